"""Turns of HTTP sessions that are open, so that whoever follows a gateway that died can say what became of them.

Implemented by adapters.memory and adapters.sql; one contract suite runs over both. All methods are safe to cancel, and raise
errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from typing import Protocol

from aerodrome.core.identity import Owner


class OpenTurnStore(Protocol):
    """The open turns of HTTP sessions, as JSON text: names and times, never what was said.

    An owner is who sends them: in a shared session several have some.
    """

    async def put(self, session_id: str, owner: Owner, turns: str) -> None:
        """Keep what an owner has open in a session, in place of what was kept. Idempotent."""
        ...

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what an owner has open in a session; None if nothing is kept."""
        ...

    async def remove(self, session_id: str, owner: Owner | None = None) -> None:
        """Keep none of an owner's in a session any more, or (without one) nobody's. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
