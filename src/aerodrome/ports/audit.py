"""What the gateway asks of an audit log: take what happened without being waited for, and say when it cannot.

Implemented by adapters.audit (files) and adapters.memory. Reading and verifying is no business of the gateway's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aerodrome.core.audit import Entry
from aerodrome.core.identity import Owner


class AuditLog(Protocol):
    """An append-only record of who did what."""

    def record(self, entry: Entry) -> None:
        """Take an entry; it is on disk a bounded time later. Never waits, never raises: what cannot be kept is counted."""
        ...

    def check(self) -> None:
        """Raise errors.StoreUnavailable where nothing may happen unrecorded and the log cannot be written now."""
        ...

    async def flush(self) -> None:
        """Wait until all that was taken is on disk.

        Raises:
            errors.StoreUnavailable: it cannot be written.
        """
        ...

    async def list_users(self, tenant: str) -> Sequence[str]:
        """Return the users of a tenant to whom records still lead.

        Raises:
            errors.StoreUnavailable: it cannot be read.
        """
        ...

    async def forget(self, owner: Owner) -> str:
        """Make every record of a user, written or taken, lead to nobody; return the pseudonym it had there.

        The records stay and the chain holds. Idempotent.

        Raises:
            errors.StoreUnavailable: it cannot be done.
        """
        ...

    async def aclose(self) -> None:
        """Write what was taken and release the files. Idempotent."""
        ...
