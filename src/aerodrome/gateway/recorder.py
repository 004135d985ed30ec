"""The flight recorder: what the sessions of all links did of late, as figures and per session; in memory, bounded, no content.

Hooks elsewhere are one line each. A turn is counted by the link that sends it, so once, however many links hear it: from the
sending until that link hears that the session is idle. What the agents of a turn call and take counts for the turn. Not the audit
log, which keeps who did what: this keeps how it went, until the gateway stops.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

from aerodrome.clock import Clock, SystemClock
from aerodrome.core.flights import Place, SessionFlight, Tokens, Totals, TurnEnd, TurnFlight
from aerodrome.core.identity import Owner
from aerodrome.core.series import Series, Tally

if TYPE_CHECKING:
    from aerodrome.gateway.client import Attachment, Client

KEPT_SESSIONS = 2000
KEPT_USERS = 10_000

#: The figures' names.
TURNS = "turns"
TURN_SECONDS = "turn_seconds"
REJECTIONS = "rejections"
Key = tuple[str, str]


class _Said(msgspec.Struct):
    event: _Event


class _Event(msgspec.Struct):
    data: dict[str, Any] = {}


class _Message(msgspec.Struct):
    params: _Said


_decode = msgspec.json.Decoder(_Message).decode
#: Events whose data a turn keeps something of.
_TELLING = frozenset({"assistant.usage", "session.error", "tool.execution_start", "tool.execution_complete"})


class FlightRecorder:
    """What is kept. `since` is when it began, in Unix time."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.since = self._clock.now()
        self.series = Series()
        self._flights: OrderedDict[Key, SessionFlight] = OrderedDict()
        self._totals: OrderedDict[Owner, Totals] = OrderedDict()
        #: Counted since the beginning, for what reads counters: by how a turn ended, by why a call was rejected.
        self.ended: dict[TurnEnd, int] = dict.fromkeys(TurnEnd, 0)
        self.rejected: dict[str, int] = {}
        self.took = Tally()
        self.tokens = Tokens()

    def now(self) -> float:
        """Return the time by which it records."""
        return self._clock.now()

    # -- reading ----------------------------------------------------------------------------------------------------------

    def find(self, realm: str, session_id: str) -> SessionFlight | None:
        """Return what is kept of a session."""
        return self._flights.get((realm, session_id))

    def totals(self, tenant: str | None = None, user: str | None = None) -> dict[Owner, Totals]:
        """Return what users (of one tenant) took, those of late last."""
        return {
            owner: totals
            for owner, totals in self._totals.items()
            if tenant in (None, owner.tenant) and user in (None, owner.user)
        }

    # -- turns ------------------------------------------------------------------------------------------------------------

    def begin_turn(self, client: Client, held: Attachment) -> None:
        """A link sends a prompt; one that is sent while a turn runs is of that turn."""
        if held.turn is None:
            runtime_id = held.upstream.handle.runtime_id if held.upstream is not None else None
            held.turn = TurnFlight(self._clock.now(), runtime_id)
            self._flight(client.realm.key, held.session_id).turns.append(held.turn)

    def hear(self, turn: TurnFlight, kind: str, body: bytes) -> None:
        """A link hears an event while a turn that it sent runs."""
        if kind.startswith("assistant.message") and turn.spoke_at is None:
            turn.spoke_at = self._clock.now()
        elif kind == "abort":
            turn.end = TurnEnd.ABORTED
        elif kind in _TELLING:
            try:
                self._note(turn, kind, _decode(body).params.event.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return  # not in the form that is known: nothing is made of it

    def _note(self, turn: TurnFlight, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "assistant.usage":
                turn.use(data)
            case "tool.execution_start":
                turn.begin_tool(str(data.get("toolCallId")), str(data.get("toolName")), self._clock.now())
            case "tool.execution_complete":
                turn.end_tool(str(data.get("toolCallId")), data.get("success") is False, self._clock.now())
            case _:
                turn.error = str(data.get("errorType", "unknown"))[:100]

    def end_turn(self, client: Client, held: Attachment, end: TurnEnd) -> None:
        """A turn that a link has sent is over; what was heard of it may say more. Idempotent."""
        turn, held.turn = held.turn, None
        if turn is None:
            return
        now = self._clock.now()
        if end is TurnEnd.COMPLETED:
            end = turn.end or (TurnEnd.FAILED if turn.error is not None else end)
        turn.ended_at, turn.end = now, end
        self.ended[end] += 1
        self.series.count(now, f"{TURNS}.{end.value}")
        if end is TurnEnd.COMPLETED:
            self.series.time(now, TURN_SECONDS, now - turn.began_at)
            self.took.add(now - turn.began_at)
        self.tokens.add(turn.tokens)
        totals = self._totals.setdefault(client.owner, Totals())
        totals.add(turn)
        self._totals.move_to_end(client.owner)
        if len(self._totals) > KEPT_USERS:
            self._totals.popitem(last=False)

    # -- the rest ---------------------------------------------------------------------------------------------------------

    def place(self, realm: str, session_id: str, runtime_id: str | None, why: str) -> None:
        """A session came to a runtime, or left the one it was in."""
        self._flight(realm, session_id).places.append(Place(self._clock.now(), runtime_id, why))

    def reject(self, reason: str) -> None:
        """A call, a link or a caller was rejected; `reason` is one of the errors' table."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self.series.count(self._clock.now(), f"{REJECTIONS}.{reason}")

    def drop(self, session_id: str) -> None:
        """A session is deleted: its id may become someone else's."""
        for key in [key for key in self._flights if key[1] == session_id]:
            del self._flights[key]

    def forget(self, owner: Owner) -> None:
        """Keep no totals of a user who is erased; what was kept of their sessions goes with those."""
        self._totals.pop(owner, None)

    def _flight(self, realm: str, session_id: str) -> SessionFlight:
        key = (realm, session_id)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = SessionFlight()
            if len(self._flights) > KEPT_SESSIONS:
                self._flights.popitem(last=False)
        else:
            self._flights.move_to_end(key)
        return flight
