"""The guardian: a small process that starts runtimes and takes everything down when the gateway is gone.

    gateway ── guardian ─┬─ keeper ── runtime ── whatever it starts
                         └─ keeper ── runtime ── ...

Runs as a script of its own (`python -I -S guardian.py FD`), standard library only: it must outlive any fault of the gateway,
so it shares no code with it. A keeper is a fork of it, one for each runtime, and the child subreaper of all that its runtime
starts: shells that moved to another session, double forks and processes with an empty environment all stay below it, so what
belongs to a runtime is always known. Whoever of gateway, guardian, keeper and runtime is killed, those that are left see to it
that nothing of the runtime stays: the guardian when its socket closes or a keeper dies, a keeper when the guardian or its runtime
dies, the kernel (PDEATHSIG) for a runtime whose keeper dies.

Protocol: one JSON object a line over a stream socket. In: {"op":"spawn","id","argv","env","cwd","nofile"} with the output's
file descriptor attached; {"op":"signal","id","signal"}. Out: {"id","pid"}, {"id","error"}, {"id","exited"} (negative: signal).
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Collection
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: What a keeper passes on to its runtime.
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCONT)
#: What has a keeper kill its runtime and all below: sent by the guardian in place of KILL, by the kernel when the guardian dies.
#: A keeper that is killed itself leaves that to the guardian, which may be the next to be killed.
_TAKE_DOWN = signal.SIGUSR2
_KILL_SECONDS = 10.0


def _prctl(option: int, value: int) -> None:
    """Set a process attribute; a platform without prctl does without (direct children are still known)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Guardian:
    """Owner of the runtime processes of one gateway."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.keepers: dict[int, int] = {}
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
            self.take_everything_down()

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
        """Start one runtime below a keeper of its own."""
        output = self.descriptors.pop(0)
        told, telling = os.pipe()
        try:
            keeper = os.fork()
            if keeper == 0:
                _keep(order, output, telling)
            os.close(telling)
            self.keepers[keeper] = order["id"]
            pid = os.read(told, 32)
        except OSError as error:
            os.close(telling)
            self.tell({"id": order["id"], "error": f"cannot fork: {error.strerror}"})
        else:
            # A keeper that could not fork says nothing and exits: that is told when it is reaped.
            if pid:
                self.tell({"id": order["id"], "pid": int(pid)})
        finally:
            os.close(output)
            os.close(told)

    def signal(self, order: dict) -> None:  # type: ignore[type-arg]
        """Signal one runtime through its keeper, which is unreaped, so that its pid cannot be another's."""
        wanted = _TAKE_DOWN if order["signal"] == signal.SIGKILL else order["signal"]
        for keeper, number in self.keepers.items():
            if number == order["id"]:
                os.kill(keeper, wanted)

    def reap(self) -> None:
        """Collect what has exited; say that a runtime has once nothing of it is left."""
        ended = []
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in self.keepers:
                    ended.append({"id": self.keepers.pop(pid), "exited": os.waitstatus_to_exitcode(status)})
        if ended:
            # Every living keeper holds what is its runtime's: whatever else is below us was a dead one's.
            _kill_below(os.getpid(), spared=self.keepers)
        for message in ended:
            self.tell(message)

    def take_everything_down(self) -> None:
        """Have every keeper kill what is below it; then kill whatever is left."""
        for keeper in self.keepers:
            _kill(keeper, signal.SIGCONT)
            _kill(keeper, _TAKE_DOWN)
        deadline = time.monotonic() + _KILL_SECONDS
        while self.keepers and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.002)
        _kill_below(os.getpid(), spared=())

    def tell(self, message: dict) -> None:  # type: ignore[type-arg]
        """Report to the gateway; if it is gone, the closed socket is noticed by `serve`."""
        with suppress(OSError):
            self.control.sendall(json.dumps(message).encode() + b"\n")


def _keep(order: dict, output: int, telling: int) -> None:  # type: ignore[type-arg]
    """Be the keeper of one runtime: start it, pass signals on, reap all below, end as it ends. Never returns."""
    guardian = os.getppid()
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_PASSED_ON, _TAKE_DOWN))
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, _TAKE_DOWN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        runtime = os.fork()
        if runtime == 0:
            _become(order, output)
        for number in _PASSED_ON:
            signal.signal(number, lambda passed, _: _kill(runtime, passed))
        signal.signal(_TAKE_DOWN, lambda *_: _kill(runtime, signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_PASSED_ON, _TAKE_DOWN))
        if os.getppid() != guardian:
            _kill(runtime, signal.SIGKILL)  # it died before it could be said that its death matters
        os.write(telling, str(runtime).encode())
        os.closerange(3, 1024)
        ended = status = 0
        while ended != runtime:
            ended, status = os.waitpid(-1, 0)
        _kill_below(os.getpid(), spared=())
        _end_with(os.waitstatus_to_exitcode(status))
    finally:
        os._exit(126)


def _become(order: dict, output: int) -> None:  # type: ignore[type-arg]
    """Turn this forked child into the runtime, in a session of its own; never returns."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Python itself ignores the last two, and what is ignored stays so for the runtime and all its tools.
        for restored in (*_PASSED_ON, _TAKE_DOWN, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(restored, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 1024)
        _limit_files(order["nofile"])
        os.umask(0o077)
        try:
            os.chdir(order["cwd"])
        except OSError as error:
            os.write(2, f"cannot enter {order['cwd']}: {error.strerror}\n".encode())
            return
        os.execve(order["argv"][0], order["argv"], order["env"])  # noqa: S606
    except (OSError, ValueError) as error:
        os.write(2, f"cannot start {order['argv'][0]}: {getattr(error, 'strerror', None) or error}\n".encode())
    finally:
        os._exit(127)


def _limit_files(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _end_with(code: int) -> None:
    """End as the runtime ended: with its code, or by its signal."""
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _kill_below(ancestor: int, spared: Collection[int]) -> None:
    """Kill all descendants but the spared and what is below them, until none is left; new ones come only from the living."""
    deadline = time.monotonic() + _KILL_SECONDS
    clean_passes = 0
    # Twice: the table is read row by row, and a row whose parent died meanwhile hangs in the air for one pass.
    while clean_passes < 2 and time.monotonic() < deadline:
        victims = _descendants(ancestor, spared)
        for pid in victims:
            _kill(pid, signal.SIGKILL)
        clean_passes = 0 if victims else clean_passes + 1
        if victims:
            time.sleep(0.002)


def _descendants(ancestor: int, spared: Collection[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in _table().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    frontier = [ancestor]
    while frontier:
        frontier = [pid for parent in frontier for pid in children.get(parent, ()) if pid not in spared]
        found += frontier
    return found


def _table() -> dict[int, int]:
    """Return the parent of every process but those dead already; empty where there is no /proc."""
    table = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    table[int(name)] = int(fields[1])
    return table


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    Guardian(socket.socket(fileno=int(sys.argv[1]))).run()
