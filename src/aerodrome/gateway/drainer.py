"""Draining: no new work, what runs may finish until a deadline, then the gateway stops.

What counts as running is what residents say: turns, requests without an answer, openings, also of clients that have left. The
links themselves stay open until the end, so that answers and events of what finishes are heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aerodrome import errors
from aerodrome.gateway.residents import Residents

_LOOK_SECONDS = 0.05
_PROGRESS_SECONDS = 1.0

#: Requests that begin work, and are refused while draining.
BEGINNINGS = frozenset(
    {"session.create", "session.resume", "session.send", "session.sendMessages", "session.sendAndWait"}
)


class Drainer:
    """Whether this gateway drains, and how far it is."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        """Say whether no new work is taken."""
        return self._is_draining

    @property
    def at_work(self) -> int:
        """Return how many sessions have something under way."""
        return sum(resident.is_at_work for resident in self._residents)

    def check(self, method: str) -> None:
        """Check that a request may begin work.

        Raises:
            errors.Draining: it begins some, and the gateway drains.
        """
        if self._is_draining and method in BEGINNINGS:
            raise errors.Draining("this gateway is stopping and takes no new work; connect again to reach another")

    async def drain(self, seconds: float, progress: Callable[[int], None]) -> int:
        """Take no new work and wait until nothing runs, at most `seconds`; return how many sessions were still at work.

        `progress` hears how many there are, at the beginning and each second.
        """
        self._is_draining = True
        loop = asyncio.get_running_loop()
        ends_at, told_at = loop.time() + seconds, -_PROGRESS_SECONDS
        while (left := self.at_work) and loop.time() < ends_at:
            if loop.time() - told_at >= _PROGRESS_SECONDS:
                told_at = loop.time()
                progress(left)
            await asyncio.sleep(min(_LOOK_SECONDS, max(0.0, ends_at - loop.time())))
        return left
