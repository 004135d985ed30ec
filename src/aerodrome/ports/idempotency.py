"""Requests under their keys, and what each was answered with: so that a request sent twice is done once.

Implemented by adapters.memory and adapters.sql; one contract suite runs over both. All methods are safe to cancel: a write
either happened or did not. All raise errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from typing import Protocol

from aerodrome.core.idempotency import Answer, KeyedRequest
from aerodrome.core.identity import Owner


class IdempotencyStore(Protocol):
    """Keyed requests, by owner and key."""

    async def begin(self, wanted: KeyedRequest, expired_before: float, limit: int) -> KeyedRequest:
        """Record a request unless its key is taken; return the one that holds. Atomic: of several at once one is recorded.

        One that was made before `expired_before` counts as not there.

        Raises:
            errors.OverCapacity: its owner has `limit` keys already.
        """
        ...

    async def note(self, owner: Owner, key: str, resource: str) -> None:
        """Note what a request has made so far; nothing where there is no such request."""
        ...

    async def finish(self, owner: Owner, key: str, answer: Answer) -> None:
        """Keep the answer of a request; nothing where there is no such request."""
        ...

    async def release(self, owner: Owner, key: str) -> None:
        """Forget a request: it did nothing, and may be sent again. Idempotent."""
        ...

    async def purge(self, created_before: float) -> int:
        """Forget what was made before; return how many."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
