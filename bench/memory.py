"""What processes take of memory and processor, as the kernel counts it.

PSS, the proportional set size: what a process has for itself, and its part of what it shares with others. Sums of it count
nothing twice, so that fifty runtimes of one binary, or a guardian and the keepers that were forked off it, can be added up.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size; 0 if it is gone."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used, and its collected children; 0 if it is gone."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    return 0.0


def below(root: int) -> list[int]:
    """Return the processes that descend from one, at this moment."""
    children: dict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                children[int(fields[1])].append(int(name))
    found, frontier = [], [root]
    while frontier:
        frontier = [child for parent in frontier for child in children[parent]]
        found += frontier
    return found


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a gateway and all below it take, in bytes, by kind; `runtimes` counts theirs."""

    gateway: int
    guardian: int
    runtime: int
    runtimes: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.gateway + self.guardian + self.runtime


def footprint(gateway: int, entry: str) -> Footprint:
    """Measure a gateway process and everything below it; `entry` is the path of the runtimes' program."""
    of_runtimes, of_guardian = [], 0
    for pid in below(gateway):
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
            if command == entry.encode():
                of_runtimes.append(pss_bytes(pid))
            else:
                of_guardian += pss_bytes(pid)
    return Footprint(pss_bytes(gateway), of_guardian, sum(of_runtimes), len(of_runtimes))


@dataclass(slots=True)
class Sampler:
    """Measures a gateway's footprint on schedule while it is entered."""

    gateway: int
    entry: str
    interval_seconds: float = 1.0
    samples: list[Footprint] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sampler:
        self._task = asyncio.create_task(self._sample(), name="footprint sampler")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _sample(self) -> None:
        while True:
            began = time.monotonic()
            self.samples.append(await asyncio.to_thread(footprint, self.gateway, self.entry))
            await asyncio.sleep(max(0.0, self.interval_seconds - (time.monotonic() - began)))


def mean(values: Iterable[float]) -> float:
    """Return the mean, 0 of nothing."""
    taken = list(values)
    return sum(taken) / len(taken) if taken else 0.0
