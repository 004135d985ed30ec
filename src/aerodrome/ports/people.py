"""What an erasure asks of the registry: everything that is kept by a user's name, whatever it is.

Implemented by adapters.sql over every table that names a tenant and a user, so that a table added later is not forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

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
