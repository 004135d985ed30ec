"""What HTTP sessions are opened with, in memory (port: ports.conversations.ConversationStore): for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aerodrome.core.identity import Owner


class MemoryConversationStore:
    """A dict."""

    def __init__(self) -> None:
        self._options: dict[tuple[str, Owner], str] = {}

    async def save(self, session_id: str, owner: Owner, options: str) -> None:
        """Keep what a session is opened with."""
        self._options[session_id, owner] = options

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what this owner's session is opened with."""
        return self._options.get((session_id, owner))

    async def find_all(self, session_ids: Sequence[str], owner: Owner) -> Mapping[str, str]:
        """Return the same for several sessions."""
        return {one: self._options[one, owner] for one in session_ids if (one, owner) in self._options}

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Keep nothing of a session any more."""
        return self._options.pop((session_id, owner), None) is not None

    async def aclose(self) -> None:
        """Release nothing."""
