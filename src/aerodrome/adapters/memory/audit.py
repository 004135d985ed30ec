"""An audit log in this process's memory: for tests and one-process trials; entries are kept with names as they are."""

from __future__ import annotations

from aerodrome import errors
from aerodrome.core.audit import Entry
from aerodrome.core.identity import Owner


class MemoryAuditLog:
    """Entries, in a list. A test may set `is_failing`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.is_failing = False

    def record(self, entry: Entry) -> None:
        """Take an entry."""
        self.entries.append(entry)

    def check(self) -> None:
        """Refuse while it is said to fail."""
        if self.is_failing:
            raise errors.StoreUnavailable(
                "the audit log cannot be written, and nothing may begin without it; try again"
            )

    async def flush(self) -> None:
        """Do nothing: all is where it will ever be."""
        self.check()

    async def list_users(self, tenant: str) -> list[str]:
        """Return the users of a tenant in the entries, by name."""
        owners = {owner for entry in self.entries for owner in _named(entry)}
        return sorted(owner.user for owner in owners if owner is not None and owner.tenant == tenant)

    async def forget(self, owner: Owner) -> str:
        """Remove what leads to a user."""
        self.entries = [entry for entry in self.entries if owner not in _named(entry)]
        return "u_forgotten"

    async def aclose(self) -> None:
        """Do nothing; idempotent."""


def _named(entry: Entry) -> tuple[Owner | None, ...]:
    return entry.owner, entry.session_owner, entry.whose
