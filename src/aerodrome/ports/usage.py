"""What model calls took, by user, day and model: counted by the gateway, kept for those who pay.

Implemented by adapters.memory and adapters.sql; one contract suite runs over both. All methods are safe to cancel: a write
either happened or did not. All raise errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aerodrome.core.identity import Owner
from aerodrome.core.usage import DayUsage


class UsageStore(Protocol):
    """Figures that only grow."""

    async def add(self, counted: Sequence[DayUsage]) -> None:
        """Add figures to those of the same user, day and model; all of them or none."""
        ...

    async def list_days(self, owner: Owner, first: str, last: str) -> Sequence[DayUsage]:
        """Return a user's figures of the days from `first` to `last`, both included: the newest day first, then by model."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
