"""Erasures in this process's memory: for tests and one-process trials (port: ports.people.ErasureStore)."""

from __future__ import annotations

from collections.abc import Sequence

from aerodrome import errors
from aerodrome.core.erasure import Erasure


class MemoryErasureStore:
    """Erasures, in a mapping."""

    def __init__(self) -> None:
        self._found: dict[str, Erasure] = {}
        self._is_closed = False

    async def note(self, erasure: Erasure, now: float) -> None:
        """Remember an erasure."""
        self._check()
        was = self._found.get(erasure.digest, erasure)
        self._found[erasure.digest] = Erasure(
            erasure.digest, max(erasure.until, was.until), max(erasure.kept_until, was.kept_until)
        )
        self._found = {digest: found for digest, found in self._found.items() if found.kept_until > now}

    async def find(self, digests: Sequence[str], now: float) -> float | None:
        """Return the latest time of these."""
        self._check()
        found = [self._found[digest] for digest in digests if digest in self._found]
        return max((erasure.until for erasure in found if erasure.kept_until > now), default=None)

    async def aclose(self) -> None:
        """Refuse further calls. Idempotent."""
        self._is_closed = True

    def _check(self) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")
