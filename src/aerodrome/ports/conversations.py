"""What the HTTP edge keeps of its sessions: what each is opened with, so that it opens again after anything.

Not who owns a session, which is ports.registry. Implemented by adapters.memory and adapters.sql; one contract suite runs over
both. All methods are safe to cancel, and raise errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from aerodrome.core.identity import Owner


class ConversationStore(Protocol):
    """The options of HTTP sessions, as JSON text."""

    async def save(self, session_id: str, owner: Owner, options: str, is_ephemeral: bool = False) -> None:
        """Keep what a session is opened with, in place of what was kept. Idempotent.

        One that is ephemeral is to be deleted by whoever made it, or by whoever finds it after their death.
        """
        ...

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what this owner's session is opened with; None if nothing is kept, or it is another's."""
        ...

    async def find_all(self, session_ids: Sequence[str], owner: Owner) -> Mapping[str, str]:
        """Return the same for several sessions, by id; those of which nothing is kept are left out."""
        ...

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Keep nothing of a session any more; say whether something was kept."""
        ...

    async def list_ephemeral(self) -> Sequence[tuple[str, Owner]]:
        """Return all sessions that are to be deleted when they are over, by id, with their owners."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
