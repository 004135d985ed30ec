"""Whose turn it is in shared sessions, agreed among all gateways that serve them.

Implemented by adapters.memory for one gateway (and by a shared store for several); one contract suite runs over all. Each method
is one atomic step, by the store's clock; what they mean is core.turn_order. Safe to cancel: a step happened or did not. All
raise errors.StoreUnavailable when the store does not answer. `ttl` is in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aerodrome.core.turn_order import Lease, Ticket


@dataclass(frozen=True, slots=True)
class Order:
    """What waits and what runs in a session, at one moment; `now` is the store's clock, in which the times are."""

    queue: tuple[Ticket, ...]
    lease: Lease | None
    now: float


class TurnCoordinator(Protocol):
    """The order of turns, by session."""

    async def enqueue(self, session_id: str, turn_id: str, member: str, ttl: float, is_urgent: bool = False) -> int:
        """Have a turn wait; return its place, 1 is the next. Idempotent by turn.

        Raises:
            errors.OverCapacity: too many wait. errors.AlreadyExists: another member's turn has that id.
        """
        ...

    async def touch(self, session_id: str, turn_id: str, ttl: float) -> bool:
        """Have a turn that waits wait longer; say whether it does: one that was taken back stays so."""
        ...

    async def acquire(self, session_id: str, turn_id: str, ttl: float) -> Lease | None:
        """Grant the lease to a turn that is the next, None otherwise; a turn that waits is touched by asking."""
        ...

    async def renew(self, session_id: str, token: int, ttl: float) -> Lease:
        """Have the lease last longer. Raises errors.LeaseLost: the token is stale."""
        ...

    async def release(self, session_id: str, token: int) -> bool:
        """End the lease, say whether the token was the newest. Idempotent."""
        ...

    async def withdraw(self, session_id: str, turn_id: str | None, member: str | None = None) -> list[str]:
        """Take back a turn that waits, or (without one) all of a member; return those that did."""
        ...

    async def look(self, session_id: str) -> Order:
        """Return what waits and runs."""
        ...

    async def forget(self, session_id: str) -> None:
        """Keep nothing of a session that is gone; whoever waits in it is withdrawn. Idempotent."""
        ...

    async def wait_changed(self, session_id: str, seconds: float) -> None:
        """Return when something may have changed, or so many seconds have passed: a hint, never the truth."""
        ...


class TurnFence(Protocol):
    """The check that must be one step with what it guards: where the coordinator is of this process, no step lies between."""

    def check(self, session_id: str, token: int) -> Lease:
        """Return the lease. Raises errors.LeaseLost: the token is stale."""
        ...
