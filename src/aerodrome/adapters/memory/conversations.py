"""What HTTP sessions are opened with, in memory (port: ports.conversations.ConversationStore): for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aerodrome import errors
from aerodrome.core.identity import Owner


class MemoryConversationStore:
    """A dict."""

    def __init__(self) -> None:
        self._options: dict[tuple[str, Owner], str] = {}
        self._ephemeral: set[tuple[str, Owner]] = set()
        self._is_closed = False

    async def save(self, session_id: str, owner: Owner, options: str, is_ephemeral: bool = False) -> None:
        """Keep what a session is opened with."""
        self._check_open()
        for key in [key for key in self._options if key[0] == session_id]:
            self._remove(key)
        self._options[session_id, owner] = options
        if is_ephemeral:
            self._ephemeral.add((session_id, owner))

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what this owner's session is opened with."""
        self._check_open()
        return self._options.get((session_id, owner))

    async def find_all(self, session_ids: Sequence[str], owner: Owner) -> Mapping[str, str]:
        """Return the same for several sessions."""
        self._check_open()
        return {one: self._options[one, owner] for one in session_ids if (one, owner) in self._options}

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Keep nothing of a session any more."""
        self._check_open()
        return self._remove((session_id, owner))

    async def list_ephemeral(self) -> Sequence[tuple[str, Owner]]:
        """Return all sessions that are to be deleted when they are over."""
        self._check_open()
        return sorted(self._ephemeral, key=lambda one: one[0])

    async def aclose(self) -> None:
        """Refuse further calls. Idempotent."""
        self._is_closed = True

    def _remove(self, key: tuple[str, Owner]) -> bool:
        self._ephemeral.discard(key)
        return self._options.pop(key, None) is not None

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")
