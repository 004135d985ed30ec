"""Control groups of a gateway's runtimes, in whatever is writable here: version 2, version 1, both, or nothing.

One parent for each life of a gateway, one group below it for each runtime. Who enters a group is not decided here: the child
itself does, before it becomes the runtime (guardian.py), so that nothing escapes. Where version 2 is there it freezes and kills,
whoever holds the controllers; version 1 freezes only where it is alone. Facts: cgroups(7), the kernel's cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aerodrome.ports.host import ResourceLimits

_CONTROLLERS = ("memory", "pids", "cpu")
_CPU_PERIOD_MICROSECONDS = 100_000
_NAME = re.compile(r"aerodrome-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\Z")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A writable group that this process may divide, and the controllers that it may hand down."""

    place: Path
    controllers: frozenset[str]
    is_unified: bool


def discover(proc: Path = Path("/proc/self")) -> list[Hierarchy]:
    """Return where groups can be made, version 2 first; empty where nothing is writable. `proc` is this process's directory."""
    try:
        own = dict(_own_groups((proc / "cgroup").read_text()))
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    found = [hierarchy for line in mounts if (hierarchy := _hierarchy(line, own)) is not None]
    return sorted(found, key=lambda hierarchy: not hierarchy.is_unified)


def find_stale(hierarchies: list[Hierarchy]) -> list[Path]:
    """Return the parents that gateways left behind which run no more."""
    found = []
    for hierarchy in hierarchies:
        with suppress(OSError):
            found += [path for path in hierarchy.place.iterdir() if _is_stale(path.name)]
    return found


def thaw(directory: Path) -> None:
    """Let run what is in a group and in those below it: what version 1 has frozen acts on no signal, KILL included."""
    for path, _, files in os.walk(directory):
        for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if name in files:
                _try_write(Path(path, name), word)


def remove(directory: Path) -> bool:
    """Remove a group and those below it that hold no process; return whether all are gone. Idempotent."""
    for path, _, _ in os.walk(directory, topdown=False):
        with suppress(OSError):
            os.rmdir(path)
    return not directory.exists()


def processes_in(directory: Path) -> set[int]:
    """Return who is in a group and in those below it."""
    try:
        has_groups = os.stat(directory).st_nlink > 2  # here, as in the old days, every directory below is a link
    except OSError:
        return set()
    paths = [path for path, _, _ in os.walk(directory)] if has_groups else [str(directory)]
    # One that this process's namespace has no number for reads as 0, which to kill() is our own process group.
    return {int(pid) for path in paths for pid in _read(f"{path}/cgroup.procs").split()} - {0}


@dataclass(frozen=True, slots=True)
class RuntimeGroup:
    """The directories of one runtime, one in each hierarchy, and which limits are held by them."""

    directories: tuple[Path, ...] = ()
    held: frozenset[str] = frozenset()
    #: Where memory is counted, and whether that is version 2.
    accounting: tuple[Path, bool] | None = None

    def set_frozen(self, frozen: bool) -> bool:
        """Freeze or thaw all in the group; return False where no group can."""
        for directory in self.directories:
            if _try_write(directory / "cgroup.freeze", "1" if frozen else "0"):
                return True
            if _try_write(directory / "freezer.state", "FROZEN" if frozen else "THAWED"):
                return True
        return False

    def processes(self) -> set[int]:
        """Return who is in it, in groups below it too; none without a group."""
        return processes_in(self.directories[0]) if self.directories else set()

    def memory_bytes(self) -> int | None:
        """Return what it uses without the file cache that can be given back at once; None where that is not counted."""
        if self.accounting is None:
            return None
        directory, is_unified = self.accounting
        used = _read(f"{directory}/{'memory.current' if is_unified else 'memory.usage_in_bytes'}")
        cache = _field(f"{directory}/memory.stat", "inactive_file" if is_unified else "total_inactive_file")
        return max(0, int(used) - cache) if used else None

    def was_out_of_memory(self) -> bool:
        """Return whether the kernel has killed anything in it for want of memory."""
        return any(
            _field(f"{directory}/{name}", "oom_kill") > 0
            for directory in self.directories
            for name in ("memory.events", "memory.oom_control")
        )

    def kill(self) -> None:
        """Kill all in it once; new ones can come of those that live until then, so look again."""
        for directory in self.directories:
            thaw(directory)
            if not _try_write(directory / "cgroup.kill", "1"):
                for pid in processes_in(directory):
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Remove it if it is empty; return whether it is gone."""
        # Every one is tried, whatever became of those before it.
        return sum(not remove(directory) for directory in self.directories) == 0


class GatewayGroups:
    """The groups of one life of a gateway. Its name holds its process, so that the next life knows whose they were."""

    def __init__(self, hierarchies: list[Hierarchy]) -> None:
        self.name = f"aerodrome-{os.getpid()}-{_start_of(os.getpid())}-{secrets.token_hex(4)}"
        self._hierarchies = hierarchies

    def make(self, name: str, limits: ResourceLimits) -> RuntimeGroup:
        """Make the group of a runtime and set its limits, as far as that can be done here."""
        # Entering a group costs milliseconds in some hierarchies: none without need.
        wanted = {"memory", "pids"} | ({"cpu"} if limits.cpu_cores is not None else set())
        directories, held, freezes, accounting = [], set(), False, None
        for hierarchy in self._hierarchies:
            freezer = "freezer" in hierarchy.controllers and not freezes
            if not (hierarchy.is_unified or freezer or hierarchy.controllers & wanted):
                continue
            directory = hierarchy.place / self.name / name
            try:
                controllers = _make(directory, hierarchy)
            except OSError:
                continue
            directories.append(directory)
            if "memory" in controllers:
                accounting = (directory, hierarchy.is_unified)
            freezes = freezes or (directory / "cgroup.freeze").exists()
            for controller, file, value in _limit_files(limits, hierarchy.is_unified):
                if controller in controllers and _try_write(directory / file, value):
                    held.add(_LIMIT_OF[controller])
        return RuntimeGroup(tuple(directories), frozenset(held), accounting)

    def remove(self) -> bool:
        """Remove the parents and all that is empty below them; return whether they are gone."""
        return sum(not remove(hierarchy.place / self.name) for hierarchy in self._hierarchies) == 0


_LIMIT_OF = {"memory": "memory_bytes", "pids": "processes", "cpu": "cpu_cores"}


def _limit_files(limits: ResourceLimits, is_unified: bool) -> Iterator[tuple[str, str, str]]:
    if limits.memory_bytes is not None:
        yield "memory", "memory.max" if is_unified else "memory.limit_in_bytes", str(limits.memory_bytes)
    if limits.processes is not None:
        yield "pids", "pids.max", str(limits.processes)
    if limits.cpu_cores is not None:
        quota = int(limits.cpu_cores * _CPU_PERIOD_MICROSECONDS)
        if is_unified:
            yield "cpu", "cpu.max", f"{quota} {_CPU_PERIOD_MICROSECONDS}"
        else:
            yield "cpu", "cpu.cfs_quota_us", str(quota)


def _make(directory: Path, hierarchy: Hierarchy) -> frozenset[str]:
    """Make a group below a parent of ours; return the controllers that it has."""
    parent = directory.parent
    if not parent.exists():
        parent.mkdir(exist_ok=True)
        if hierarchy.is_unified:
            _hand_down(parent)
    directory.mkdir(exist_ok=True)
    if hierarchy.is_unified:
        return frozenset(_read(directory / "cgroup.controllers").split())
    return hierarchy.controllers


def _hand_down(group: Path) -> frozenset[str]:
    """Have a version 2 group give our controllers to those below it; return which it gives.

    One with processes in it gives none (the "no internal processes" rule), unless it is the root.
    """
    for controller in _CONTROLLERS:
        if controller in _read(group / "cgroup.controllers").split():
            _try_write(group / "cgroup.subtree_control", f"+{controller}")
    return frozenset(_read(group / "cgroup.subtree_control").split())


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    """Yield this process's path by controller, by "" for version 2."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _hierarchy(mount: str, own: dict[str, str]) -> Hierarchy | None:
    """Return the group of this process in one mounted hierarchy; None if it is none, is of no use or not writable."""
    before, _, after = mount.partition(" - ")
    kind, _, options = after.split(" ", 2)
    if kind not in ("cgroup", "cgroup2"):
        return None
    root, point = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), word) for word in before.split(" ")[3:5])
    useful = frozenset(options.split(",")) & {*_CONTROLLERS, "freezer"}
    path = own.get("" if kind == "cgroup2" else min(useful, default="?"))
    # Behind a namespace's or a bind mount's edge a path begins with "/..": such a group cannot be named here.
    if path is None or "/.." in path or not Path(path).is_relative_to(root):
        return None
    place = Path(point, Path(path).relative_to(root))
    if kind == "cgroup2":
        return _unified(place)
    return Hierarchy(place, useful, is_unified=False) if os.access(place, os.W_OK) else None


def _unified(own: Path) -> Hierarchy | None:
    """Return the version 2 group to divide: our own, or the one above it if that was delegated to us with controllers."""
    if _is_delegated(own.parent) and (controllers := _hand_down(own.parent)):
        return Hierarchy(own.parent, controllers, is_unified=True)
    return Hierarchy(own, _hand_down(own), is_unified=True) if os.access(own, os.W_OK) else None


def _is_delegated(group: Path) -> bool:
    """Return whether systemd marks a group as given away (Delegate=, with DelegateSubgroup= for us): else it is not ours."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError, AttributeError):
            if os.getxattr(group, name) == b"1":
                return os.access(group, os.W_OK)
    return False


def _is_stale(name: str) -> bool:
    found = _NAME.match(name)
    return found is not None and _start_of(int(found["pid"])) != found["start"]


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since the machine did; "0" if it is gone: with it a pid is unique."""
    return (_read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split() or ["0"] * 20)[19]


def _field(path: str, name: str) -> int:
    """Return a number of a file of names and numbers; 0 where it is not there."""
    _, found, rest = ("\n" + _read(path)).partition(f"\n{name} ")
    return int(rest.partition("\n")[0]) if found else 0


def _read(path: Path | str) -> str:
    """Return what a kernel file says; nothing if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    # Not open(): three times as long for a small file, and these are read for every runtime every few seconds.
    text = b""
    try:
        while chunk := os.read(descriptor, 65536):
            text += chunk
    except OSError:  # who it tells of is gone
        return ""
    finally:
        os.close(descriptor)
    return text.decode()


def _try_write(path: Path, text: str) -> bool:
    # Never O_CREAT: where the file is not there, nothing must be made (a test's stand-in may be an ordinary directory).
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
        return True
    return False
