"""Runtime to client: events, lifecycle, requests and answers, in order, and only what its owner may see.

A runtime tells every connection of every session's lifecycle, and may go on calling hooks of a connection that has detached
(protocol facts 1.5): the check here is ownership, not attachment. In a realm of one user everything is theirs.
"""

from __future__ import annotations

import functools

import msgspec
from msgspec import UNSET, Raw

from aerodrome import errors, redaction
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.flights import TurnEnd
from aerodrome.gateway import reattach, tightening, usage
from aerodrome.gateway.client import TURN_STARTS, Asked, Client
from aerodrome.gateway.upstream import Upstream
from aerodrome.protocol import member_methods, messages, methods, reopening
from aerodrome.protocol.messages import Envelope, Peek, PeekParams
from aerodrome.protocol.methods import Direction, Verdict

_CANCEL = "$/cancelRequest"
#: Events that only a running turn sends; a link that attached in its middle sees no `assistant.turn_start`.


class Downward:
    """What one client's upstreams say to it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stall_seconds = client.services.settings.stall_seconds

    async def pump(self, upstream: Upstream) -> None:
        """Carry messages until the upstream ends; then settle what it leaves open."""
        client = self._client
        try:
            while batch := await upstream.link.receive():
                for body in batch:
                    self.take(upstream, body)
                client.link.flush()
                if client.link.is_stalled:
                    await client.link.drain(self._stall_seconds)
        except errors.InvalidRequest as error:
            client.log.error("upstream.broke_framing", reason=error.message)
        finally:
            if client.pumps.pop(upstream, None) is not None:  # else another client reads it now
                upstream.link.abort()
                reattach.settle(client, upstream)
                client.link.flush()

    def take(self, upstream: Upstream, body: bytes) -> None:
        """Handle one message of a runtime."""
        peek = messages.peek(body)
        if peek is None or peek.method is UNSET:
            self._take_answer(upstream, body, peek)
        elif peek.id is UNSET:
            self._take_notification(upstream, body, peek)
        else:
            self._take_request(upstream, body, peek)

    def _take_answer(self, upstream: Upstream, body: bytes, peek: Peek | None) -> None:
        envelope = messages.decode(body)
        if envelope.error is not UNSET:
            envelope.error = _masked(envelope.error)
        pending = upstream.owed.close(envelope.id if envelope.id is not UNSET else None)
        if pending is None:
            if envelope.id is None and envelope.error is not UNSET:
                # It could not read a request (nested deeper than it goes, a number too large), nor say which one.
                self._client.link.send(messages.raw_error(None, envelope.error))
            return  # else late, after its caller gave up
        if pending.heard is not None:
            pending.heard(envelope)
        if pending.waiter is not None:
            if not pending.waiter.done():
                pending.waiter.set_result(envelope)
        elif pending.client_id is not None:
            if envelope.error is not UNSET and pending.session_id is not None:
                self._note_failure(pending.method, pending.session_id)
            if pending.finish is None:
                self._client.link.send(messages.response(pending.client_id, envelope))
            else:
                self._client.answer_later(pending.client_id, functools.partial(pending.finish, envelope))

    def _note_failure(self, method: str, session_id: str) -> None:
        held = self._client.attachments.get(session_id)
        if method not in TURN_STARTS or held is None:
            return
        self._client.end_turn(held, TurnEnd.FAILED)
        if held.state is AttachmentState.TURN:
            held.move(AttachmentState.IDLE)

    def _take_notification(self, upstream: Upstream, body: bytes, peek: Peek) -> None:
        session_id = _session_of(peek)
        if peek.method == "session.event" and session_id is not None:
            if self._is_heard_here(upstream, session_id) and not self._is_hushed(session_id, peek):
                self._record(session_id, peek, body)
                self._note_turn(session_id, peek)
                if _kind_of(peek) == usage.EVENT:
                    self._note_usage(session_id, body)
                if self._client.services.turns is not None:
                    self._client.services.turns.hear(self._client, session_id, _kind_of(peek), body)
                refusal = tightening.refuse_tool(self._client, peek, body)
                if refusal is not None:
                    tightening.answer_tool(self._client, session_id, refusal)
                    return
                self._client.deliver(session_id, _kind_of(peek), body)
                if self._client.services.sharing is not None:
                    self._client.services.sharing.overhear(self._client.realm.key, session_id, body)
        elif peek.method == "session.lifecycle":
            if session_id is not None and self._may_see(session_id):
                self._client.link.send(body)
        elif peek.method == _CANCEL:
            self._cancel(upstream, messages.decode(body))
        elif self._is_forwarded(peek, session_id):
            self._client.link.send(body)

    def _take_request(self, upstream: Upstream, body: bytes, peek: Peek) -> None:
        """Pass a runtime's request on to the client."""
        envelope = messages.decode(body)
        assert isinstance(envelope.method, str)
        assert isinstance(envelope.id, (str, int))
        if not self._is_forwarded(peek, _session_of(peek)):
            upstream.link.send(messages.failure(envelope.id, -32601, f"Unhandled method {envelope.method}"))
            upstream.link.flush()
            return
        if envelope.method == "hooks.invoke" and self._is_hook_of_ours(envelope):
            upstream.send(messages.result(envelope.id, {}))
            upstream.link.flush()
            return
        answering = self._client
        if answering.is_seat and envelope.method in member_methods.OWNERS:
            answering = self._owners_link(_session_of(peek)) or answering
        try:
            answering.ask(Asked(upstream, envelope.id, _session_of(peek), envelope.method, envelope.params))
            if answering is not self._client:
                answering.link.flush()
        except errors.OverCapacity as error:
            upstream.link.send(messages.failure(envelope.id, -32603, error.message))
            upstream.link.flush()

    def _owners_link(self, session_id: str | None) -> Client | None:
        """Return the latest link of a session's owner itself; None if it has none here."""
        client = self._client
        resident = client.services.residents.find(client.realm.key, session_id or "")
        holders = reversed(list(resident.holders.values())) if resident is not None else ()
        own = (holder.client for holder in holders if not holder.client.is_seat and not holder.client.link.is_closing)
        return next(own, None)

    def _cancel(self, upstream: Upstream, envelope: Envelope) -> None:
        try:
            wanted = messages.params_object(envelope.params).get("id")
        except errors.InvalidParams:
            return
        for request_id, asked in self._client.asked.items():
            if asked.upstream is upstream and asked.request_id == wanted and type(asked.request_id) is type(wanted):
                self._client.link.send(messages.notification(_CANCEL, messages.encode({"id": request_id})))

    def _is_forwarded(self, peek: Peek, session_id: str | None) -> bool:
        assert isinstance(peek.method, str)
        verdict = methods.judge(peek.method, self._client.access, session_id is not None, Direction.S2C)
        if verdict is Verdict.DENY:
            return False
        return session_id is None or self._may_see(session_id)

    def _may_see(self, session_id: str) -> bool:
        client = self._client
        known = client.is_alone or session_id in client.attachments
        return known or client.services.ownership.may_see(session_id, client.owner)

    def _is_heard_here(self, upstream: Upstream, session_id: str) -> bool:
        """Say whether a session's events come to the client by this upstream; another may hold it too (gateway.finishing)."""
        held = self._client.attachments.get(session_id)
        is_elsewhere = held is not None and held.upstream is not None and held.upstream is not upstream
        return not is_elsewhere and self._may_see(session_id)

    def _is_hushed(self, session_id: str, peek: Peek) -> bool:
        """Say whether an event is of our unloading a session or bringing it back, which clients are not to notice."""
        held = self._client.attachments.get(session_id)
        event = peek.params.event if isinstance(peek.params, PeekParams) else UNSET
        if held is None or event is UNSET:
            return False
        if held.state in (AttachmentState.UNLOADING, AttachmentState.EVICTED):
            return event.type == "session.shutdown"
        left = held.hushed.get(event.type, 0)
        if left:
            held.hushed[event.type] = left - 1
        return left > 0

    def _is_hook_of_ours(self, envelope: Envelope) -> bool:
        """Say whether a hook is called because we unload a session or have brought it back.

        Those of a session's end, and of its start (at the next turn, measured), whose `source` says that it is not new.
        """
        params = messages.params_object(envelope.params)
        held = self._client.attachments.get(str(params.get("sessionId")))
        if held is None:
            return False
        kind, given = params.get("hookType"), params.get("input")
        if kind == "sessionEnd":
            return held.state in (AttachmentState.UNLOADING, AttachmentState.EVICTED)
        is_return = kind == "sessionStart" and isinstance(given, dict) and (given.get("source") == "resume")
        return is_return and held.hushed.pop("hook", 0) > 0

    def _record(self, session_id: str, peek: Peek, body: bytes) -> None:
        held = self._client.attachments.get(session_id)
        if held is not None and held.turn is not None:
            self._client.services.recorder.hear(held.turn, _kind_of(peek), body)

    def _note_usage(self, session_id: str, body: bytes) -> None:
        client = self._client
        turns, payer = client.services.turns, client.owner
        if turns is not None:
            payer = turns.payer(client.realm.key, session_id, payer)
        client.services.usage.note(payer, body)

    def _note_turn(self, session_id: str, peek: Peek) -> None:
        assert isinstance(peek.params, PeekParams)
        event = peek.params.event
        held = self._client.attachments.get(session_id)
        if event is UNSET or held is None or held.upstream is None or event.agentId is not None:
            return
        if held.state is AttachmentState.UNLOADING:
            return
        if event.type == "session.idle":
            held.is_kept = held.is_kept or held.state is AttachmentState.TURN
            held.move(AttachmentState.IDLE)
            held.is_mid_turn = False
            self._client.end_turn(held, TurnEnd.COMPLETED)
            held.upstream.touch()
            self._client.turn_ended.set()
            runtime_id, realm = held.upstream.handle.runtime_id, self._client.realm.key
            self._client.services.evictor.note_idle(runtime_id, realm, session_id)
        elif event.type.startswith(reopening.TURN_EVENTS):
            for kind in [kind for kind in held.hushed if kind != "hook"]:
                del held.hushed[kind]
            held.move(AttachmentState.TURN)


def _masked(error: Raw) -> Raw:
    """Return a runtime's error without what looks like a secret in it: it may quote what it was given."""
    try:
        said = msgspec.json.decode(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error
    masked = redaction.mask_value(said)
    return error if masked == said else Raw(messages.encode(masked))


def _kind_of(peek: Peek) -> str:
    event = peek.params.event if isinstance(peek.params, PeekParams) else UNSET
    return "" if event is UNSET else event.type


def _session_of(peek: Peek) -> str | None:
    params = peek.params
    return params.sessionId if isinstance(params, PeekParams) and isinstance(params.sessionId, str) else None
