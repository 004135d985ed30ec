"""Turns that are open when their gateway ends: noted before they are sent, taken up by whoever opens their session next.

Noted are names and times, never what was said: that is in the session's history, which also says what came of a turn that was
sent. One whose end was told and is noted all the same (a gateway that was killed in between) is told to have ended once more.
Turns while their gateway runs are http.turns; who takes them up is http.conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.http import events
from aerodrome.http.events import Event
from aerodrome.http.turns import Turn, TurnState
from aerodrome.ports.open_turns import OpenTurnStore

_log = structlog.get_logger()


class _Noted(msgspec.Struct):
    turn_id: str
    sender: str
    created_at: float
    started_at: float | None
    cursor: str


class OpenTurns:
    """The open turns of an owner's sessions."""

    def __init__(self, store: OpenTurnStore, owner: Owner) -> None:
        self._store = store
        self._owner = owner

    async def note(self, session_id: str, turns: Sequence[Turn]) -> bool:
        """Note which turns of a session are open; say whether that is kept. No turn is refused because it is not."""
        noted = [_Noted(one.turn_id, one.sender, one.created_at, one.started_at, one.cursor) for one in turns]
        try:
            if noted:
                await self._store.put(session_id, self._owner, msgspec.json.encode(noted).decode())
            else:
                await self._store.remove(session_id, self._owner)
        except errors.StoreUnavailable as error:
            _log.warning("http.turn_not_noted", session=session_id, reason=error.message)
            return False
        return True

    async def find(self, session_id: str) -> list[Turn]:
        """Return the turns of a session that were open when its gateway ended, in their order; nothing is known of their end."""
        noted = await self._store.find(session_id, self._owner)
        found = []
        for one in msgspec.json.decode(noted or "[]", type=list[_Noted]):
            state = TurnState.QUEUED if one.started_at is None else TurnState.RUNNING
            turn = Turn("", one.created_at, one.sender, one.turn_id, state, cursor=one.cursor)
            turn.started_at = one.started_at
            found.append(turn)
        return found


def hear_history(turn: Turn, history: Sequence[Event]) -> bool:
    """Note what a session's history says of a turn that was sent; say whether the turn has ended by it.

    Where several prompts came since, whose is whose is not known, and nothing is noted.
    """
    said = events.behind(history, turn.cursor)
    prompts = [number for number, event in enumerate(said) if event.kind == "user.message"]
    if len(prompts) != 1:
        return False
    (asked,) = prompts
    turn.prompt, turn.message_id = str(said[asked].data.get("content", "")), str(said[asked].data.get("messageId", ""))
    last, wants_tools = "", False
    for event in said[asked:]:
        turn.hear(event)
        if event.agent_id is None and event.kind.startswith("assistant."):
            last = event.kind
            if event.kind == "assistant.message":
                wants_tools = bool(event.data.get("toolRequests"))
    has_answered = last == "assistant.turn_end" and not wants_tools
    return has_answered or turn.error is not None or turn.is_aborted
