"""What a runtime and all below its keeper use now, read from /proc and its control group.

Called for hundreds of runtimes every few seconds: a handful of small files each, never the whole process table.
"""

from __future__ import annotations

import os
from contextlib import suppress

from aerodrome.adapters.process.cgroups import RuntimeGroup
from aerodrome.ports.host import ResourceUsage

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def measure(pid: int, keeper: int, group: RuntimeGroup) -> ResourceUsage | None:
    """Return what a runtime uses; None if it is gone or there is no /proc.

    Memory is the group's where it is counted, else the sum of resident sets, in which shared pages count once per process.
    Without a group, and in a kernel that does not list children, the tree is the runtime alone.
    """
    try:
        state, *fields = _stat(pid)
        if state in (b"Z", b"X"):
            return None
        open_files = _count_files(pid)
    except (OSError, ValueError, IndexError):
        return None
    tree = (group.processes() or _tree(keeper)) | {pid}
    memory_bytes = group.memory_bytes()
    if memory_bytes is None:
        memory_bytes = sum(map(_resident_bytes, tree))
    return ResourceUsage(memory_bytes, threads=int(fields[16]), open_files=open_files, processes=len(tree))


def behind(pid: int, generations: int = 2) -> int:
    """Return the runtime that a sandbox program runs: the oldest child of its oldest child; as near as that can be told."""
    for _ in range(generations):
        pid = next(iter(_children(pid)), pid)
    return pid


def _stat(pid: int) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) from the third on: the name before them may hold anything."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _count_files(pid: int) -> int:
    # Linux 6.2 and later say the number as the directory's size; before, it is 0.
    try:
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:  # a process that must not be looked into: of another user, or not dumpable
        return 0


def _resident_bytes(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE_BYTES
    return 0


def _tree(ancestor: int) -> set[int]:
    """Return all below a process."""
    found: set[int] = set()
    frontier = [ancestor]
    while frontier:
        children = [child for child in _children(frontier.pop()) if child not in found]
        found.update(children)
        frontier += children
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    return found


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)
