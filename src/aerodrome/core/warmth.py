"""How many runtimes to keep warm: what the operator wants, or what recent demand would use up. Pure: `now` is an argument."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

DEMAND_SECONDS = 10.0


def warm_target(configured: int, limit: int, recent: int, spawn_seconds: float) -> int:
    """Return how many to keep: `recent` fresh runtimes were wanted in the last ten seconds, and a spawn takes so long.

    Ten seconds' demand for each second of a spawn: ten times what is wanted on average while one is replaced, for bursts.
    `configured` 0 keeps none; `limit` is never passed.
    """
    if configured <= 0:
        return 0
    return min(max(configured, math.ceil(recent * spawn_seconds)), max(limit, 0))


@dataclass(slots=True)
class Demand:
    """When fresh runtimes were wanted, as far back as it matters."""

    _times: deque[float] = field(default_factory=deque)

    def note(self, now: float) -> None:
        """Note that one was wanted."""
        self._times.append(now)

    def recent(self, now: float) -> int:
        """Return how many were wanted in the last ten seconds; forget the rest."""
        while self._times and self._times[0] <= now - DEMAND_SECONDS:
            self._times.popleft()
        return len(self._times)
