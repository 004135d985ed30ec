"""What an erasure asks of the registry: everything that is kept by a user's name, and what must be remembered of the erasure.

PersonStore is implemented by adapters.sql over every table that names a tenant and a user, so that a table added later is not
forgotten; ErasureStore by adapters.sql and adapters.memory, one contract suite runs over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from aerodrome.core.erasure import Erasure
from aerodrome.core.identity import Owner


class PersonStore(Protocol):
    """Rows by user."""

    async def list_users(self, tenant: str) -> Sequence[str]:
        """Return the users of a tenant of whom anything is kept."""
        ...

    async def count(self, owner: Owner) -> Mapping[str, int]:
        """Return how many rows of a user each table has; tables that have none are left out."""
        ...

    async def erase(self, owner: Owner, keep_sessions: bool = False) -> Mapping[str, int]:
        """Remove a user's rows in one step, those of sessions not if so asked; return how many of which table. Idempotent."""
        ...

    async def purge(self) -> None:
        """Overwrite what removed rows left in the files. Waits for other processes' writes; changes no row."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...


class ErasureStore(Protocol):
    """Erasures that tokens may be older than. All methods are safe to cancel and raise errors.StoreUnavailable."""

    async def note(self, erasure: Erasure, now: float) -> None:
        """Remember an erasure; of two of one user the later times hold. Forgets those whose time is over. Idempotent."""
        ...

    async def find(self, digests: Sequence[str], now: float) -> float | None:
        """Return until when tokens must have been issued to prove nobody, the latest of these; None if there is none."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
