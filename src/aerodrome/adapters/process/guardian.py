"""The guardian: a small process that starts runtimes and takes everything down when the gateway is gone.

    gateway ── guardian ─┬─ keeper ── runtime ── whatever it starts
                         └─ keeper ── runtime ── ...

Runs as a script of its own (`python -I -S guardian.py FD`), standard library only: it must outlive any fault of the gateway,
so it shares no code with it. A keeper is a fork of it, one for each runtime, and the child subreaper of all that its runtime
starts: shells that moved to another session, double forks and processes with an empty environment all stay below it, so what
belongs to a runtime is always known. Whoever of gateway, guardian, keeper and runtime is killed, those that are left see to it
that nothing of the runtime stays: the guardian when its socket closes or a keeper dies, a keeper when the guardian or its runtime
dies, the kernel (PDEATHSIG) for a runtime whose keeper dies.

Control groups are the gateway's to make (cgroups.py); here a runtime enters them before it is one, and a keeper empties them.

A wrapped runtime is the grandchild of what is started here, behind the first process of a process namespace: a sandbox program
(bubblewrap) that ends as it ends, and that takes all of the namespace along when it is killed. Signals go to the runtime itself.

Protocol: one JSON object a line over a stream socket. In: {"op":"spawn","id","argv","env","cwd","nofile","data","groups",
"files","wrapped"} with the output's file descriptor attached; {"op":"signal","id","signal"}, to the runtime; {"op":"signal_all",
"id","signal"} with STOP or CONT, to it and all below; {"op":"open","id","number","port","listen"}: a socket on the loopback of a
wrapped runtime's own network, connected or listening. Out: {"id","pid","keeper"}, {"id","error"}, {"id","exited"} (negative:
signal), {"id","opened"} with the number and the socket attached, or {"id","opened","errno"}.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NS_GET_USERNS = 0xB701
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
#: What a keeper passes on to its runtime.
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCONT)
#: What has a keeper kill its runtime and all below: sent by the guardian in place of KILL, by the kernel when the guardian dies.
#: A keeper that is killed itself leaves that to the guardian, which may be the next to be killed.
_TAKE_DOWN = signal.SIGUSR2
_KILL_SECONDS = 10.0
_OPEN_SECONDS = 5.0
#: Whether the kernel lists a process's children: else the whole table is read, for each of hundreds of keepers.
_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _prctl(option: int, value: int) -> None:
    """Set a process attribute; a platform without prctl does without (direct children are still known)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Guardian:
    """Owner of the runtime processes of one gateway."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        #: The spawn order of each living keeper.
        self.keepers: dict[int, dict] = {}  # type: ignore[type-arg]
        #: The order of each child that is about to open a socket.
        self.openers: dict[int, dict] = {}  # type: ignore[type-arg]
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
            elif order["op"] == "signal":
                self.signal(order)
            elif order["op"] == "open":
                self.open(order)
            else:
                self.signal_all(order)
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
            self.keepers[keeper] = order
            pid = os.read(told, 32)
        except OSError as error:
            os.close(telling)
            self.tell({"id": order["id"], "error": f"cannot fork: {error.strerror}"})
        else:
            # A keeper that could not fork says nothing and exits: that is told when it is reaped.
            if pid:
                order["pid"] = int(pid)
                self.tell({"id": order["id"], "pid": int(pid), "keeper": keeper})
        finally:
            os.close(output)
            os.close(told)

    def signal(self, order: dict) -> None:  # type: ignore[type-arg]
        """Signal one runtime through its keeper, which is unreaped, so that its pid cannot be another's."""
        wanted = _TAKE_DOWN if order["signal"] == signal.SIGKILL else order["signal"]
        for keeper in self.keepers_of(order):
            os.kill(keeper, wanted)

    def open(self, order: dict) -> None:  # type: ignore[type-arg]
        """Have a child of its own enter a runtime's network and send a socket of there; its failure is told when it is reaped."""
        pids = [self.keepers[keeper].get("pid", 0) for keeper in self.keepers_of(order)]
        if not pids:
            self.tell({"id": order["id"], "opened": order["number"], "errno": errno.ESRCH})
            return
        try:
            opener = os.fork()
        except OSError as error:
            self.tell({"id": order["id"], "opened": order["number"], "errno": error.errno})
            return
        if opener == 0:
            _open_socket(self.control, order, pids[0])
        self.openers[opener] = order

    def signal_all(self, order: dict) -> None:  # type: ignore[type-arg]
        """Stop or continue a runtime and all below it; the keeper stays awake."""
        for keeper in self.keepers_of(order):
            if order["signal"] == signal.SIGSTOP:
                _stop_below(keeper)
            else:
                # Children first: one that its parent finds stopped is news to a shell.
                for pid in reversed(_descendants(keeper, spared=())):
                    _kill(pid, order["signal"])

    def keepers_of(self, order: dict) -> list[int]:  # type: ignore[type-arg]
        """Return the living keeper of the runtime that an order names, if there is one."""
        return [keeper for keeper, spawned in self.keepers.items() if spawned["id"] == order["id"]]

    def reap(self) -> None:
        """Collect what has exited; say that a runtime has once nothing of it is left."""
        ended = []
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in self.keepers:
                    ended.append((self.keepers.pop(pid), os.waitstatus_to_exitcode(status)))
                elif (order := self.openers.pop(pid, None)) and (code := os.waitstatus_to_exitcode(status)):
                    self.tell({"id": order["id"], "opened": order["number"], "errno": max(code, 1)})
        for order, _ in ended:
            _thaw(order["groups"])  # its keeper may have been killed before it could
        if ended:
            # Every living keeper holds what is its runtime's: whatever else is below us was a dead one's.
            _kill_below(os.getpid(), spared={*self.keepers, *self.openers})
        for order, code in ended:
            _empty(order["groups"])
            self.tell({"id": order["id"], "exited": code})

    def take_everything_down(self) -> None:
        """Have every keeper kill what is below it; then kill whatever is left, and remove the empty groups."""
        groups = [group for order in self.keepers.values() for group in order["groups"]]
        for keeper in self.keepers:
            _kill(keeper, signal.SIGCONT)
            _kill(keeper, _TAKE_DOWN)
        deadline = time.monotonic() + _KILL_SECONDS
        while self.keepers and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.002)
        _kill_below(os.getpid(), spared=())
        for group in groups:
            _remove(group)

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
            signal.signal(number, lambda passed, _: _kill(_wrapped(runtime) if order["wrapped"] else runtime, passed))
        signal.signal(_TAKE_DOWN, lambda *_: _kill_thawed(runtime, order["groups"]))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_PASSED_ON, _TAKE_DOWN))
        if os.getppid() != guardian:
            _kill_thawed(runtime, order["groups"])  # it died before it could be said that its death matters
        os.write(telling, str(runtime).encode())
        os.closerange(3, 1024)
        ended = status = 0
        while ended != runtime:
            ended, status = os.waitpid(-1, 0)
        _thaw(order["groups"])
        _kill_below(os.getpid(), spared=())
        _empty(order["groups"])
        code = os.waitstatus_to_exitcode(status)
        # What runs it says a signal as a shell does.
        _end_with(128 - code if order["wrapped"] and code > 128 else code)
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
        for path in order["files"]:
            os.set_inheritable(os.open(path, os.O_RDONLY), True)  # the lowest free numbers: 3, 4, ...
        _limit_files(order["nofile"])
        if order["data"] is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (order["data"], order["data"]))
        os.umask(0o077)
        for group in order["groups"]:
            if not _write(os.path.join(group, "cgroup.procs"), b"0"):
                os.write(2, f"cannot enter the control group {group}\n".encode())
                return
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


def _wrapped(runtime: int) -> int:
    """Return the runtime behind a sandbox program: the oldest child of its child; the program itself before there is one."""
    children_of = _children if _LISTS_CHILDREN else _table().__getitem__
    for first in children_of(runtime)[:1]:
        for found in children_of(first)[:1]:
            return found
    return runtime


def _open_socket(control: socket.socket, order: dict, runtime: int) -> None:  # type: ignore[type-arg]
    """Open a socket in a runtime's network and send it to the gateway; never returns."""
    code = errno.EIO
    try:
        _enter_network(runtime)
        opened = socket.socket()
        address = ("127.0.0.1", order["port"])
        if order["listen"]:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(128)
        else:
            opened.settimeout(_OPEN_SECONDS)
            opened.connect(address)
        told = json.dumps({"id": order["id"], "opened": order["number"]}).encode() + b"\n"
        code = 0 if socket.send_fds(control, [told], [opened.fileno()]) else errno.EIO
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)


def _enter_network(runtime: int) -> None:
    """Move this process into the network of a wrapped runtime. Raises OSError; ESRCH if it has none of its own."""
    found = _wrapped(runtime)
    network = os.open(f"/proc/{found}/ns/net", os.O_RDONLY)
    # Looked at again once it is held: a process that ended meanwhile may have left its number to another.
    if found == runtime or _wrapped(runtime) != found or _is_own(network, "net"):
        raise OSError(errno.ESRCH, "not in a network of its own")
    owner = fcntl.ioctl(network, _NS_GET_USERNS)
    libc = ctypes.CDLL(None, use_errno=True)
    # Without privileges of our own we have them in the user namespace that the network belongs to.
    for namespace, kind in ((owner, _CLONE_NEWUSER), (network, _CLONE_NEWNET)):
        if kind == _CLONE_NEWUSER and _is_own(owner, "user"):
            continue
        if libc.setns(namespace, kind):
            raise OSError(ctypes.get_errno(), "cannot enter")


def _is_own(namespace: int, name: str) -> bool:
    return os.fstat(namespace).st_ino == os.stat(f"/proc/self/ns/{name}").st_ino


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
    # Twice: what is read process by process leaves out, for one pass, whoever is given another parent meanwhile.
    while clean_passes < 2 and time.monotonic() < deadline:
        victims = _descendants(ancestor, spared)
        for pid in victims:
            _kill(pid, signal.SIGKILL)
        clean_passes = 0 if victims else clean_passes + 1
        if victims:
            time.sleep(0.002)


def _stop_below(ancestor: int) -> None:
    """Stop all descendants, parents first, until none is new: who is stopped starts no more."""
    stopped: set[int] = set()
    deadline = time.monotonic() + _KILL_SECONDS
    while (found := set(_descendants(ancestor, spared=())) - stopped) and time.monotonic() < deadline:
        for pid in found:
            _kill(pid, signal.SIGSTOP)
        stopped |= found


def _empty(groups: list[str]) -> None:
    """Kill whatever is in control groups, however it came there, until they hold no living process."""
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        found = {pid for group in groups for pid in _living_in(group)}
        if not found:
            return
        for group in groups:
            _write(os.path.join(group, "cgroup.kill"), b"1")
        for pid in found:
            _kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _living_in(group: str) -> list[int]:
    found = []
    for path, _, _ in os.walk(group):
        with suppress(OSError), open(os.path.join(path, "cgroup.procs"), "rb") as listed:
            found += [int(pid) for pid in listed.read().split() if _parent(int(pid)) is not None]
    return found


def _kill_thawed(runtime: int, groups: list[str]) -> None:
    _kill(runtime, signal.SIGKILL)
    _thaw(groups)


def _thaw(groups: list[str]) -> None:
    """Let frozen groups run: what version 1 has frozen acts on no signal, KILL included."""
    for group in groups:
        _write(os.path.join(group, "freezer.state"), b"THAWED")


def _remove(group: str) -> None:
    """Remove an empty control group, those below it, and the one above if this was its last."""
    for path in [path for path, _, _ in os.walk(group, topdown=False)] + [os.path.dirname(group)]:
        with suppress(OSError):
            os.rmdir(path)


def _write(path: str, text: bytes) -> bool:
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
        return True
    return False


def _descendants(ancestor: int, spared: Collection[int]) -> list[int]:
    """Return all living processes below one, parents first, but the spared and what is below them."""
    children_of = _children if _LISTS_CHILDREN else _table().__getitem__
    found: list[int] = []
    frontier = [ancestor]
    while frontier:
        children = [pid for parent in frontier for pid in children_of(parent) if pid not in spared]
        frontier = [pid for pid in children if _parent(pid) is not None]
        found += frontier
    return found


def _children(pid: int) -> list[int]:
    """Return the children of a process, dead ones too. While some are reaped others may be left out, so look again."""
    found = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as listed:
                found += [int(child) for child in listed.read().split()]
    return found


def _table() -> "dict[int, list[int]]":
    """Return the children of every process, for kernels that do not list them; empty where there is no /proc."""
    children = defaultdict(list)
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        parent = _parent(int(name)) if name.isdigit() else None
        if parent is not None:
            children[parent].append(int(name))
    return children


def _parent(pid: int) -> "int | None":
    """Return the parent of a living process; None if it is dead."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
        # A process whose first thread has ended shows as a zombie too: it lives as long as it has another.
        if fields[0] not in (b"Z", b"X") or int(fields[17]) > 1:
            return int(fields[1])
    return None


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    Guardian(socket.socket(fileno=int(sys.argv[1]))).run()
