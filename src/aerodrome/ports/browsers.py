"""The browsers that have signed in, for all gateways of a registry.

Implemented by adapters.memory and adapters.sql; one contract suite runs over both. When one is over is core.browser's to say. All
methods are safe to cancel: a write either happened or did not. All raise errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from typing import Protocol

from aerodrome.core.browser import Browser


class BrowserStore(Protocol):
    """Signed-in browsers, by the hash of their token."""

    async def add(self, browser: Browser, limit: int) -> None:
        """Keep a new one; of its owner's, at most `limit` stay: those used longest ago go. Atomic."""
        ...

    async def find(self, token_hash: str) -> Browser | None:
        """Return one, its principal with the default policy; None if there is none. It may be over."""
        ...

    async def touch(self, token_hash: str, used_at: float) -> None:
        """Note a use, unless a later one is noted; nothing where there is no such browser. Idempotent."""
        ...

    async def remove(self, token_hash: str) -> None:
        """Forget one. Idempotent."""
        ...

    async def purge(self, now: float, used_before: float) -> int:
        """Forget those that have ended at `now`, or were last used at `used_before` or earlier; return how many."""
        ...

    async def count(self, now: float, used_before: float) -> int:
        """Return how many a purge would leave."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
