"""Open turns of HTTP sessions, in memory (port: ports.open_turns.OpenTurnStore): for tests."""

from __future__ import annotations

from aerodrome import errors
from aerodrome.core.identity import Owner


class MemoryOpenTurnStore:
    """A dict."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, Owner], str] = {}
        self._is_closed = False

    async def put(self, session_id: str, owner: Owner, turns: str) -> None:
        """Keep what an owner has open in a session."""
        self._check_open()
        self._turns[session_id, owner] = turns

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what an owner has open in a session."""
        self._check_open()
        return self._turns.get((session_id, owner))

    async def remove(self, session_id: str, owner: Owner | None = None) -> None:
        """Keep none of an owner's any more, or nobody's."""
        self._check_open()
        for key in [key for key in self._turns if key[0] == session_id and owner in (None, key[1])]:
            del self._turns[key]

    async def aclose(self) -> None:
        """Refuse further calls. Idempotent."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")
