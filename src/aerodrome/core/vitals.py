"""What a runtime's signs of life say: whether it drifts away from health, and why. Pure values and rules.

Drift is not death: a runtime that drifts still serves, and is replaced in peace. That one hangs is found by deadline, in
fleet.health, which also takes the measurements.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

#: Pings that say how fast a runtime was when it was fresh, and how fast it is now. Ten outlast what a cold start costs; the
#: median of five lets two outliers in a row pass.
BASELINE_PINGS = 10
RECENT_PINGS = 5


@dataclass(frozen=True, slots=True)
class PingWindow:
    """Latencies of a runtime's first pings and of its last ones, in seconds, in order."""

    first: tuple[float, ...] = ()
    last: tuple[float, ...] = ()

    def add(self, seconds: float) -> PingWindow:
        """Return the window with one more latency."""
        if len(self.first) < BASELINE_PINGS:
            return PingWindow((*self.first, seconds))
        return replace(self, last=(*self.last, seconds)[-RECENT_PINGS:])

    @property
    def latest(self) -> float | None:
        """Return the last latency."""
        return next(reversed(self.last or self.first), None)


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """When a runtime has drifted far enough to be replaced; 0 sets no limit.

    A ping may take `ping_factor` times what it took at first, and `ping_floor_seconds` in any case. The floor lies above what a
    fully loaded machine does to a ping (0.5 to 2.5 ms, measured) and well below the shortest turn (p95 17 ms, protocol facts
    2.3), so that a runtime that gets slower is found before its turns take twice their time. Load that comes and stays can
    cost a replacement once: the next one's first pings are taken under it.
    """

    memory_bytes: int = 1536 * 1024 * 1024
    threads: int = 2000
    open_files: int = 0
    processes: int = 256
    age_seconds: float = 24 * 3600.0
    sessions: int = 10_000
    ping_factor: float = 5.0
    ping_floor_seconds: float = 0.005


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of a runtime at one moment; resources are None where they could not be measured."""

    spawned_at: float
    opened: int = 0
    memory_bytes: int | None = None
    threads: int | None = None
    open_files: int | None = None
    processes: int | None = None


def find_drift(vitals: Vitals, limits: DriftLimits, now: float) -> str | None:
    """Return what a runtime has too much of, None while it is well. Times are seconds of one clock."""
    age = now - vitals.spawned_at
    measured: list[tuple[str, float | None, float]] = [
        ("bytes of memory", vitals.memory_bytes, limits.memory_bytes),
        ("threads", vitals.threads, limits.threads),
        ("open files", vitals.open_files, limits.open_files),
        ("processes", vitals.processes, limits.processes),
        ("seconds of age", age, limits.age_seconds),
        ("sessions opened", vitals.opened, limits.sessions),
    ]
    for noun, value, limit in measured:
        if limit and value is not None and value > limit:
            return f"{value:.0f} {noun}, more than {limit:.0f}"
    return None


def find_slowness(pings: PingWindow, limits: DriftLimits, others_seconds: float = 0.0) -> str | None:
    """Return how slow a runtime has become, None while it is as fast as it was, or as slow as the `others` (their median ping).

    When all are slow together the machine is: to replace them would make it slower.
    """
    if not limits.ping_factor or len(pings.last) < RECENT_PINGS:
        return None
    present, fresh = statistics.median(pings.last), statistics.median(pings.first)
    limit = max(limits.ping_factor * fresh, limits.ping_floor_seconds, limits.ping_factor * others_seconds)
    if present <= limit:
        return None
    return f"pings take {_milliseconds(present)} ms, when it was fresh {_milliseconds(fresh)} ms"


def _milliseconds(seconds: float) -> str:
    return f"{math.ceil(seconds * 10_000) / 10:g}"
