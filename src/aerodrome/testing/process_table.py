"""The machine's processes and control groups as tests look at them: found by a word, waited for with a bound."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aerodrome.adapters.process import cgroups


def read(pid: int, name: str) -> bytes:
    """Return what /proc says of a process. Raises OSError if it is gone."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def parent_of(pid: int) -> int:
    """Return who a process hangs below."""
    return int(read(pid, "stat").rpartition(b")")[2].split()[1])


def is_alive(pid: int) -> bool:
    """Return whether a process runs or sleeps; a zombie does neither."""
    with suppress(OSError):
        return read(pid, "stat").rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return False


def find(word: str, where: str = "cmdline") -> list[int]:
    """Return the living processes with a word in their command line or environment."""
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
        with suppress(OSError):
            if word.encode() in read(pid, where) and is_alive(pid):
                found.append(pid)
    return found


def find_groups(gateway: int) -> list[Path]:
    """Return the control groups that a gateway process has made and not removed."""
    places = [hierarchy.place for hierarchy in cgroups.discover()]
    return [path for place in places for path in place.glob(f"aerodrome-{gateway}-*")]


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until a condition about other processes holds; return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until a condition about other processes holds; return its value. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110  other processes have no events for us
            await asyncio.sleep(0.005)
    return found
