"""What one local link has open at its gateway: requests either way, sessions with what opened them, turns. Sans-IO.

Every message passes through here once: `pass_up` from the local program, `pass_down` from the gateway. Ids are exchanged both
ways, because each new link to a gateway counts from 1 again. When such a link ends, `lose` says what the program must hear; what
must be said to the next one is in `sessions` and `registrations` (forward.restoring says it). No answer is owed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.protocol import id_paths, messages, methods, reopening, replays
from aerodrome.protocol.correlation import Correlation
from aerodrome.protocol.messages import Envelope, Peek, PeekParams, RequestId

_CANCEL = "$/cancelRequest"
_OPENERS = ("session.create", "session.resume")
_CLOSERS = (
    "session.delete",
    "session.destroy",
    "session.detach",
    "sessions.bulkDelete",
    "sessions.close",
    "sessions.delete",
)
_OPTIONS = "session.options.update"
_REGISTRATIONS = (
    "llmInference.setProvider",
    "plugins.builtin.set",
    "registerExtensionLaunchProvider",
    "sessionFs.setProvider",
)
#: Calls whose params are needed again when they have succeeded, or when the link is lost.
_REMEMBERED = frozenset({*_OPENERS, *_CLOSERS, *_REGISTRATIONS, *reopening.TURN_STARTS, _OPTIONS} | replays.METHODS)
_ONCE = {"session.start": 1, "session.resume": 1}


@dataclass(slots=True)
class HeldSession:
    """A session that the local program has open, with what a gateway must be told to have it again."""

    session_id: str
    create: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    replays: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    #: Whether a turn ever ended: then it is on disk, and making it anew would lose what was said.
    is_kept: bool = False
    has_turn: bool = False
    #: Whether its interrupted turn was told as failed, and not yet as over.
    is_ending: bool = False
    hushed: dict[str, int] = field(default_factory=dict)

    def hush(self) -> None:
        """Keep what the runtime will say of opening it again from the program."""
        self.hushed = dict.fromkeys(reopening.OPENING_EVENTS, reopening.ALWAYS) | _ONCE

    def begin_turn(self) -> None:
        """Note that a turn runs."""
        self.has_turn = True
        self.is_ending = False


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request that the gateway owes an answer to; `local_id` is None for one of our own."""

    local_id: RequestId | None
    method: str
    params: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """The answer to a request that `call` made."""

    request_id: int
    envelope: Envelope


class Ledger:
    """The open business of one local link."""

    def __init__(self, limit: int = 10_000) -> None:
        self.sessions: dict[str, HeldSession] = {}
        self.registrations: dict[str, dict[str, Any]] = {}
        self._limit = limit
        self._owed: Correlation[_Pending] = Correlation(limit)
        self._asked: Correlation[RequestId] = Correlation(limit)

    # -- towards the gateway --------------------------------------------------------------------------------------------

    def call(self, method: str, params: dict[str, Any]) -> tuple[int, bytes]:
        """Return the id and the body of a request of our own."""
        request_id = self._owed.open(_Pending(None, method))
        return request_id, messages.request(request_id, method, messages.encode(params))

    def pass_up(self, envelope: Envelope) -> bytes | None:
        """Return what the gateway is to hear for a message of the program; None for what concerns nobody any more.

        Raises:
            errors.OverCapacity: too many requests wait. errors.InvalidParams: params that must be read are no object.
        """
        if envelope.method is UNSET:
            asked = self._asked.close(envelope.id if envelope.id is not UNSET else None)
            return None if asked is None else messages.response(asked, envelope)
        if not isinstance(envelope.id, (str, int)):
            return self._cancel_up(envelope) if envelope.method == _CANCEL else None
        method = envelope.method
        params = messages.params_object(envelope.params) if method in _REMEMBERED else None
        held = None
        if method in reopening.TURN_STARTS and params is not None:
            params = {"sessionId": params.get("sessionId")}  # the prompt may be large, and is never said again
            held = self.sessions.get(str(params["sessionId"]))
        request_id = self._owed.open(_Pending(envelope.id, method, params))
        if held is not None:
            held.begin_turn()
        return messages.request(request_id, method, bytes(envelope.params) if envelope.params is not UNSET else UNSET)

    def expect_turn(self, envelope: Envelope) -> None:
        """Note that a request which has to wait begins a turn: no end of an earlier one may be said any more."""
        if envelope.method in reopening.TURN_STARTS:
            try:
                held = self.sessions.get(str(messages.params_object(envelope.params).get("sessionId")))
            except errors.InvalidParams:
                return
            if held is not None:
                held.is_ending = False

    def _cancel_up(self, envelope: Envelope) -> bytes | None:
        wanted = _cancelled_id(envelope)
        for request_id, pending in self._owed.items():
            if pending.local_id == wanted and type(pending.local_id) is type(wanted):
                return messages.notification(_CANCEL, messages.encode({"id": request_id}))
        return None

    # -- towards the program --------------------------------------------------------------------------------------------

    def pass_down(self, body: bytes) -> bytes | OwnAnswer | None:
        """Return what the program is to hear for a message of the gateway, an answer of our own, or None.

        Raises:
            errors.InvalidRequest: it is no message.
        """
        peek = messages.peek(body)
        if peek is None or peek.method is UNSET:
            return self._answer_down(messages.decode(body))
        if peek.id is not UNSET:
            return self._ask_down(messages.decode(body))
        if peek.method == _CANCEL:
            return self._cancel_down(messages.decode(body))
        return None if self._is_hushed(peek) else body

    def _answer_down(self, envelope: Envelope) -> bytes | OwnAnswer | None:
        if envelope.id is None:
            return messages.response(None, envelope)  # it could not tell which request was broken
        pending = self._owed.close(envelope.id if envelope.id is not UNSET else None)
        if pending is None:
            return None
        if pending.local_id is None:
            assert isinstance(envelope.id, int)
            return OwnAnswer(envelope.id, envelope)
        if pending.params is not None:
            self._note_answer(pending.method, pending.params, envelope)
        return messages.response(pending.local_id, envelope)

    def _ask_down(self, envelope: Envelope) -> bytes:
        assert isinstance(envelope.method, str)
        assert isinstance(envelope.id, (str, int))
        return messages.request(self._asked.open(envelope.id), envelope.method, envelope.params)

    def _cancel_down(self, envelope: Envelope) -> bytes | None:
        wanted = _cancelled_id(envelope)
        for request_id, asked in self._asked.items():
            if asked == wanted and type(asked) is type(wanted):
                return messages.notification(_CANCEL, messages.encode({"id": request_id}))
        return None

    def _is_hushed(self, peek: Peek) -> bool:
        """Note what an event says of its session's turn; say whether it is only about our opening it again."""
        params = peek.params
        if not isinstance(params, PeekParams) or not isinstance(params.event, msgspec.Struct):
            return False
        held = self.sessions.get(params.sessionId) if isinstance(params.sessionId, str) else None
        if held is None or params.event.agentId is not None:
            return False
        kind = params.event.type
        left = held.hushed.get(kind, 0)
        if left:
            held.hushed[kind] = left - 1
            return True
        if kind == "session.idle":
            held.is_kept = held.is_kept or held.has_turn
            held.has_turn = held.is_ending = False
        elif kind.startswith(reopening.TURN_EVENTS):
            held.hushed.clear()
            held.begin_turn()
        return False

    def _note_answer(self, method: str, params: dict[str, Any], answer: Envelope) -> None:
        session_id = params.get("sessionId")
        held = self.sessions.get(session_id) if isinstance(session_id, str) else None
        if answer.error is not UNSET:
            if method in reopening.TURN_STARTS and held is not None:
                held.has_turn = False
        elif method in _OPENERS:
            self._open(method, params, answer)
        elif method in _CLOSERS:
            self._close(method, params)
        elif method in _REGISTRATIONS:
            self.registrations[method] = params
        elif held is not None and method == _OPTIONS:
            held.options |= params
        elif held is not None and method in replays.METHODS:
            replays.note(held.replays, method, params)

    def _open(self, method: str, params: dict[str, Any], answer: Envelope) -> None:
        try:
            session_id = messages.params_object(answer.result).get("sessionId", params.get("sessionId"))
        except errors.InvalidParams:
            session_id = params.get("sessionId")
        if not isinstance(session_id, str):
            return
        before = self.sessions.get(session_id)
        held = self.sessions[session_id] = HeldSession(session_id)
        held.has_turn = before is not None and before.has_turn
        if method == "session.create":
            held.create = {**params, "sessionId": session_id}
        else:
            held.resume, held.is_kept = params, before is None or before.is_kept

    def _close(self, method: str, params: dict[str, Any]) -> None:
        row = methods.lookup(method)
        if row is None:
            return
        for session_id in id_paths.find_ids(params, row.session_ids):
            self.sessions.pop(session_id, None)

    # -- when the link to the gateway is gone -----------------------------------------------------------------------------

    def lose(self, error: errors.AerodromeError) -> list[bytes]:
        """Return what the program must hear now: running turns have failed, requests in flight get `error`.

        Events go first: a program that hears its request fail may send the next one, which they would seem to be about.
        """
        said = []
        for held in self.sessions.values():
            if held.has_turn:
                held.has_turn, held.is_ending = False, True
                data = {"errorType": error.code, "message": f"the turn was interrupted: {error.message}"}
                said.append(reopening.event(held.session_id, "session.error", data))
        number, details = errors.wire(error).jsonrpc, errors.data(error)
        for pending in self._owed.drain():
            if pending.local_id is not None:
                said.append(messages.failure(pending.local_id, number, error.message, details))
        self._asked.drain()
        # Ids go on where they were: a late answer of the program must not seem to be one to the next gateway's request.
        return said

    def end_turns(self) -> list[bytes]:
        """Return the `session.idle` of every turn that was told as failed, where no new one has begun since."""
        ending = [held for held in self.sessions.values() if held.is_ending]
        for held in ending:
            held.is_ending = False
        return [reopening.event(held.session_id, "session.idle", {}) for held in ending]


def _cancelled_id(envelope: Envelope) -> object:
    try:
        return messages.params_object(envelope.params).get("id")
    except errors.InvalidParams:
        return None
