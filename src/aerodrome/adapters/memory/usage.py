"""What model calls took, in memory (port: ports.usage.UsageStore): for tests."""

from __future__ import annotations

from collections.abc import Sequence

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.usage import DayUsage, Usage


class MemoryUsageStore:
    """A dict."""

    def __init__(self) -> None:
        self._figures: dict[tuple[Owner, str, str], Usage] = {}
        self._is_closed = False

    async def add(self, counted: Sequence[DayUsage]) -> None:
        """Add figures."""
        self._check_open()
        for one in counted:
            self._figures.setdefault((one.owner, one.day, one.model), Usage()).merge(one.usage)

    async def list_days(self, owner: Owner, first: str, last: str) -> Sequence[DayUsage]:
        """Return a user's figures of some days."""
        self._check_open()
        found: list[DayUsage] = []
        for (whose, day, model), usage in self._figures.items():
            if whose == owner and first <= day <= last:
                copy = Usage()
                copy.merge(usage)
                found.append(DayUsage(owner, day, model, copy))
        found.sort(key=lambda one: one.model)
        return sorted(found, key=lambda one: one.day, reverse=True)

    async def aclose(self) -> None:
        """Refuse further calls. Idempotent."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")
