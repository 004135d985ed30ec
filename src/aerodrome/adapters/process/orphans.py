"""What earlier gateways over the same state directory left behind, collected before the first spawn.

The guardian leaves nothing. But where gateway, guardian and keepers are all killed at the same moment, what a runtime had started
lives on: it would write to sessions that the next gateway gives to a fresh runtime.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.process import cgroups

_MARK = b"AERODROME_RUNTIME_ID"
_SECONDS = 10.0
_DYING_SECONDS = 2.0
#: The flag in /proc/PID/stat of a process that ends (include/linux/sched.h).
_PF_EXITING = 0x4


def collect(state_directory: Path) -> list[int]:
    """Kill the runtimes and tools of gateways that are gone; remove their empty control groups; return whom it killed.

    Killed is only who is of this user, has a runtime's id in its environment and there, too, a path in this very directory.
    Call it while the directory is held alone and before the first spawn: whoever carries both marks then is an orphan.
    Blocks until they are gone.
    """
    stale = cgroups.find_stale(cgroups.discover())
    for directory in stale:
        cgroups.thaw(directory)
    roots = {os.fsencode(path) for path in (state_directory.absolute(), state_directory.resolve())} - {b"/"}
    killed: set[int] = set()
    deadline = time.monotonic() + _SECONDS
    while (found := _kill_marked(roots)) and time.monotonic() < deadline:
        killed |= found
        time.sleep(0.002)
    deadline = time.monotonic() + _DYING_SECONDS
    for directory in stale:
        # Who has just died has no environment any more, and is in its group for a moment yet.
        while not cgroups.remove(directory) and _all_die(directory) and time.monotonic() < deadline:
            time.sleep(0.002)
    return sorted(killed)


def _all_die(directory: Path) -> bool:
    """Say whether whoever is in a group is about to be gone."""
    return all(map(_dies, cgroups.processes_in(directory)))


def _dies(pid: int) -> bool:
    try:
        return bool(int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[6]) & _PF_EXITING)
    except (OSError, IndexError):
        return True


def _kill_marked(roots: set[bytes]) -> set[int]:
    """Kill whoever carries both marks; return who did and was alive."""
    spared = _ancestry()
    found = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit() and int(name) not in spared and _kill_if_marked(int(name), roots):
            found.add(int(name))
    return found


def _kill_if_marked(pid: int, roots: set[bytes]) -> bool:
    with suppress(OSError):
        # Held before it is looked at: a pid that is given anew meanwhile is not hit.
        process = os.pidfd_open(pid)
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid() and _is_marked(pid, roots):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                return True
        finally:
            os.close(process)
    return False


def _is_marked(pid: int, roots: set[bytes]) -> bool:
    """Return whether a process carries both marks; a dead one shows no environment."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names_and_values = [(name, value) for name, _, value in (variable.partition(b"=") for variable in variables)]
    return any(name == _MARK and value for name, value in names_and_values) and any(
        value == root or value.startswith(root + b"/") for _, value in names_and_values for root in roots
    )


def _ancestry() -> set[int]:
    """Return this process and those above it: a gateway may itself have been started in a runtime's shell."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


@contextmanager
def sole_use(directory: Path) -> Iterator[None]:
    """Hold the state directory: two gateways over it would run one session in two runtimes at once."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "gateway.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise errors.ConfigError(
                f"state_directory: another gateway uses {directory}; stop it, or name another with --state-directory"
            ) from None
        yield
