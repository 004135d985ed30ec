"""Whose turn it is, agreed within one process (ports: ports.coordination.TurnCoordinator and TurnFence).

The clock and the order are of this process, so that a check and what it guards are one step of the event loop.
"""

from __future__ import annotations

import asyncio

from aerodrome.clock import Clock
from aerodrome.core.turn_order import Lease, TurnOrder
from aerodrome.ports.coordination import Order


class MemoryTurnCoordinator:
    """The orders of all sessions, in a dict."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._orders: dict[str, TurnOrder] = {}
        self._changed: dict[str, asyncio.Event] = {}

    async def enqueue(self, session_id: str, turn_id: str, member: str, ttl: float, is_urgent: bool = False) -> int:
        """Have a turn wait; return its place."""
        order = self._order(session_id)
        waiting = len(order.tickets)
        place = order.enqueue(turn_id, member, self._now(), ttl, is_urgent)
        if len(order.tickets) != waiting:
            self._tell(session_id)
        return place

    async def touch(self, session_id: str, turn_id: str, ttl: float) -> bool:
        """Have a turn that waits wait longer."""
        return self._order(session_id).touch(turn_id, self._now(), ttl)

    async def acquire(self, session_id: str, turn_id: str, ttl: float) -> Lease | None:
        """Grant the lease to a turn that is the next."""
        order, now = self._order(session_id), self._now()
        order.touch(turn_id, now, ttl)
        lease = order.acquire(turn_id, now, ttl)
        if lease is not None:
            self._tell(session_id)
        return lease

    async def renew(self, session_id: str, token: int, ttl: float) -> Lease:
        """Have the lease last longer."""
        return self._order(session_id).renew(token, self._now(), ttl)

    async def release(self, session_id: str, token: int) -> bool:
        """End the lease."""
        was_newest = self._order(session_id).release(token)
        self._tell(session_id)
        return was_newest

    async def withdraw(self, session_id: str, turn_id: str | None, member: str | None = None) -> list[str]:
        """Take back a turn, or all of a member."""
        order = self._order(session_id)
        gone = [one for one in (turn_id,) if one is not None and order.withdraw(one)]
        if turn_id is None:
            gone = order.leave(member or "")
        self._tell(session_id)
        return gone

    async def look(self, session_id: str) -> Order:
        """Return what waits and runs."""
        order, now = self._order(session_id), self._now()
        return Order(tuple(order.queue(now)), order.lease, now)

    async def forget(self, session_id: str) -> None:
        """Keep nothing of a session that is gone."""
        self._orders.pop(session_id, None)
        self._tell(session_id)

    async def wait_changed(self, session_id: str, seconds: float) -> None:
        """Return when something may have changed, or so many seconds have passed."""
        changed = self._changed.setdefault(session_id, asyncio.Event())
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            return

    def check(self, session_id: str, token: int) -> Lease:
        """Return the lease, if the token is not stale."""
        return self._order(session_id).check(token, self._now())

    def _order(self, session_id: str) -> TurnOrder:
        # Forgotten with its session only: its token must not begin anew.
        return self._orders.setdefault(session_id, TurnOrder())

    def _now(self) -> float:
        return self._clock.monotonic()

    def _tell(self, session_id: str) -> None:
        changed = self._changed.pop(session_id, None)
        if changed is not None:
            changed.set()
