"""Who may spawn now: so many at once, the rest in a bounded queue that is fair to tenants.

What is spawned in advance (fleet.warm) goes behind every client, and never takes more than half of the places: a spawn that
hangs must not keep clients waiting for a runtime that nobody asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aerodrome import errors
from aerodrome.core.turns import FairQueue

_NOBODY = ""


class SpawnQueue:
    """Turns to spawn."""

    def __init__(self, at_once: int, length: int) -> None:
        self._at_once = at_once
        self._length = length
        self._running = 0
        self._in_advance = 0
        self._clients: FairQueue[asyncio.Future[None]] = FairQueue()
        self._advance: FairQueue[asyncio.Future[None]] = FairQueue()

    @property
    def running(self) -> int:
        """Return how many spawn now."""
        return self._running

    @property
    def queued(self) -> int:
        """Return how many spawns for clients wait."""
        return len(self._clients)

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Hold a turn for a client of a tenant for the length of a block.

        Raises:
            errors.OverCapacity: too many wait already.
        """
        if len(self._clients) >= self._length and self._running >= self._at_once:
            raise errors.OverCapacity(
                f"{len(self._clients)} runtimes wait to be spawned, as many as may (runtime.spawn_queue); try again later"
            )
        try:
            async with self._hold(self._clients, tenant):
                yield
        finally:
            self._admit()

    @asynccontextmanager
    async def turn_in_advance(self) -> AsyncIterator[None]:
        """Hold a turn that no client waits for."""
        try:
            async with self._hold(self._advance, _NOBODY):
                try:
                    yield
                finally:
                    self._in_advance -= 1
        finally:
            self._admit()

    @asynccontextmanager
    async def _hold(self, waiting: FairQueue[asyncio.Future[None]], tenant: str) -> AsyncIterator[None]:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.put(tenant, place)
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                waiting.remove(tenant, place)
            else:  # it was given the place at the very moment
                self._running -= 1
                self._in_advance -= waiting is self._advance
            raise
        try:
            yield
        finally:
            self._running -= 1

    def _admit(self) -> None:
        """Give free places to those whose turn it is."""
        while self._running < self._at_once and len(self._clients):
            self._running += _give(self._clients.take())
        advance_limit = max(1, self._at_once // 2)
        while self._running < self._at_once and self._in_advance < advance_limit and len(self._advance):
            given = _give(self._advance.take())
            self._running += given
            self._in_advance += given


def _give(place: asyncio.Future[None]) -> bool:
    """Tell one who waits; False for one who has just given up."""
    if place.done():
        return False
    place.set_result(None)
    return True
