"""The guardian: a small process that starts runtimes, reaps them, and takes everything down when the gateway is gone.

Runs as a script of its own (`python -I -S guardian.py FD`), standard library only: it must outlive any fault of the gateway,
so it shares no code with it. It is the parent and child subreaper of all runtimes, hence the ancestor of whatever they start:
shells that moved to another session, double forks, MCP servers. When its socket closes, for whatever reason, it kills them all.

Protocol: one JSON object a line over a stream socket. In: {"op":"spawn","id","argv","env","cwd","nofile"} with the output's
file descriptor attached; {"op":"signal","id","signal"}. Out: {"id","pid"}, {"id","error"}, {"id","exited"} (negative: signal).
"""

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MARK = "AERODROME_RUNTIME_ID"


def _prctl(option: int, value: int) -> None:
    """Set a process attribute; a platform without prctl does without (the tree walk still works where /proc is)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Guardian:
    """Owner of the runtime processes of one gateway."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.runtimes: dict[int, str] = {}
        #: What a runtime had started when it was last told to stop: (pid, start time), for those that shed their mark.
        self.trees: dict[str, set[tuple[int, int]]] = {}
        self.received = b""
        self.descriptors: list[int] = []

    def run(self) -> None:
        """Serve until the gateway's end of the socket closes, then kill all that is left."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        try:
            while True:
                ready, _, _ = select.select([self.control.fileno(), wake_read], [], [])
                if wake_read in ready:
                    os.read(wake_read, 4096)
                    self.reap()
                if self.control.fileno() in ready and not self.serve():
                    return
        finally:
            self.kill_everything()

    def serve(self) -> bool:
        """Read what the gateway asks; False when it is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, 65536, 16)
        except OSError:
            return False
        self.descriptors += descriptors
        if not data:
            return False
        *lines, self.received = (self.received + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order["op"] == "spawn":
                self.spawn(order)
            else:
                self.signal(order)
        return True

    def spawn(self, order: dict) -> None:  # type: ignore[type-arg]
        """Start one runtime in a session of its own."""
        output = self.descriptors.pop(0)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(output)
            self.tell({"id": order["id"], "error": f"cannot fork: {error.strerror}"})
            return
        if pid == 0:
            _become(order, output)
        os.close(output)
        self.runtimes[pid] = order["id"]
        self.tell({"id": order["id"], "pid": pid})

    def signal(self, order: dict) -> None:  # type: ignore[type-arg]
        """Signal one runtime; it is unreaped, so its pid cannot be another's."""
        for pid, runtime_id in self.runtimes.items():
            if runtime_id == order["id"]:
                table = _table()
                tree = {(child, table[child].started) for child in _descendants(table, pid)}
                self.trees[runtime_id] = self.trees.get(runtime_id, set()) | tree
                with suppress(ProcessLookupError):
                    os.kill(pid, order["signal"])

    def reap(self) -> None:
        """Collect what has exited; a runtime takes its process tree along."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            runtime_id = self.runtimes.pop(pid, None)
            if runtime_id is not None:
                _kill_left_behind(pid, runtime_id, self.trees.pop(runtime_id, set()))
                self.tell({"id": runtime_id, "exited": os.waitstatus_to_exitcode(status)})

    def tell(self, message: dict) -> None:  # type: ignore[type-arg]
        """Report to the gateway; if it is gone, the closed socket is noticed by `serve`."""
        with suppress(OSError):
            self.control.sendall(json.dumps(message).encode() + b"\n")

    def kill_everything(self) -> None:
        """Kill all descendants until none is left; new ones can only come from those still alive."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            victims = set(_descendants(_table(), os.getpid())) | set(self.runtimes)
            for pid in victims:
                _kill(pid)
            while True:
                try:
                    pid, _ = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                if pid == 0:
                    break
                self.runtimes.pop(pid, None)
            time.sleep(0.005)


def _become(order: dict, output: int) -> None:  # type: ignore[type-arg]
    """Turn this forked child into the runtime; never returns."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for restored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(restored, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 1024)
        _limit_files(order["nofile"])
        os.umask(0o077)
        os.chdir(order["cwd"])
        os.execve(order["argv"][0], order["argv"], order["env"])  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start {order['argv'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _limit_files(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Row(NamedTuple):
    """One line of the process table: parent, session, and start time (ticks since boot: tells reused pids apart)."""

    parent: int
    session: int
    started: int


def _table() -> dict[int, _Row]:
    """Return the process table without what is dead already; empty where there is no /proc."""
    table = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    table[int(name)] = _Row(int(fields[1]), int(fields[3]), int(fields[19]))
    return table


def _descendants(table: dict[int, _Row], ancestor: int) -> list[int]:
    found: list[int] = []
    frontier = {ancestor}
    while frontier:
        frontier = {pid for pid, row in table.items() if row.parent in frontier}
        found += frontier
    return found


def _kill_left_behind(runtime_pid: int, runtime_id: str, tree: set[tuple[int, int]]) -> None:
    """Kill what a dead runtime started: its session, its last known tree, and whatever carries its mark."""
    mark = f"{_MARK}={runtime_id}".encode()
    for _ in range(100):
        table = _table()
        victims = [
            pid
            for pid in _descendants(table, os.getpid())
            if table[pid].session == runtime_pid or (pid, table[pid].started) in tree or _carries(pid, mark)
        ]
        for pid in victims:
            _kill(pid)
        if not victims:
            return
        time.sleep(0.002)


def _carries(pid: int, mark: bytes) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        return mark in environ.read().split(b"\0")
    return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):
            raise


if __name__ == "__main__":
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    Guardian(socket.socket(fileno=int(sys.argv[1]))).run()
