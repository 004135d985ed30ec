"""A member's seat in another's sessions: a link of this process that serves with the session owner's identity.

Whatever the gateway does for a session (where it runs, what policy its owner has, how it comes back) it does for the owner; a
member's link borrows that by a seat, and the seat is where the member's rights are checked: every request that goes in, every
event and question that comes out. One seat serves all the sessions of one owner that a link has joined.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.membership import Right
from aerodrome.core.policy import Access, Policy
from aerodrome.gateway import audience
from aerodrome.gateway.audience import Reader
from aerodrome.gateway.client import Asked, Client, Request
from aerodrome.gateway.sharing import SharedSessions
from aerodrome.protocol import hardening, member_methods, messages, named_providers, reopening
from aerodrome.protocol.correlation import Correlation
from aerodrome.protocol.messages import Envelope, Peek, PeekParams, RequestId
from aerodrome.transport.link import Link

_log = structlog.get_logger()
_END_SECONDS = 10.0
_JOIN_SECONDS = 30.0
_TOOL_CALL = "external_tool.requested"
_CANCEL = "$/cancelRequest"
#: How a guarded session is opened where nobody knows which tools its owner chose: with none (measured: an empty filter passes
#: nothing), until its owner opens it again.
_UNKNOWN: dict[str, Any] = {"availableTools": []}
#: Tool calls that are remembered, so as to know whose tool an answer is of.
_REMEMBERED_CALLS = 1000
#: Requests that may wait until it is known again what the member may do.
_MOST_LATE = 1000


class Seat:
    """One client's seat in the sessions of one owner."""

    def __init__(self, client: Client, owner: Owner, shared: SharedSessions, policy: Policy) -> None:
        self._client = client
        self._owner = owner
        self._shared = shared
        self._first_policy = policy
        #: The link's other end, which serves with the owner's identity.
        self._behind: Client | None = None
        self._near: Link | None = None
        self._owed: Correlation[Request] = Correlation(client.services.settings.max_requests_in_flight)
        #: What the member may do, by session; events of others do not pass.
        self._rights: dict[str, frozenset[Right]] = {}
        #: The tools that this link registered, by session; and the calls that wait, by request.
        self._tools: dict[str, frozenset[str]] = {}
        self._tool_calls: OrderedDict[str, str] = OrderedDict()
        self._recipes: dict[str, dict[str, Any]] = {}
        #: Sessions that are being joined quietly, and what their readers were told before.
        self._joining: dict[str, tuple[Reader, asyncio.Future[None]]] = {}
        self._told: dict[str, frozenset[str]] = {}
        #: Sessions of which it is not known what the member may do, by the number of the last change; nothing passes then.
        self._looking: dict[str, int] = {}
        self._changes = 0
        self._known = asyncio.Event()
        self._known.set()
        self._late: list[Request] = []
        #: Sessions that the link behind has been told to leave, and has not said that it has.
        self._leaving: set[str] = set()
        self._wanted = 0
        self._unwatch: Callable[[], None] = lambda: None

    async def open(self, serving_principal: Any) -> None:
        """Open the link behind the seat; it ends with the last session that needs it, with the member's own at the latest.

        Raises:
            errors.OverCapacity: this process has no descriptors left.
        """
        limit = self._client.services.settings.max_frame_bytes
        near, far = Link(limit), Link(limit)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise errors.OverCapacity(f"no connection can be opened now ({error.strerror}); try again later") from None
        try:
            loop = asyncio.get_running_loop()
            ours.setblocking(False)
            await loop.create_connection(lambda: near, sock=ours)
            theirs.setblocking(False)
            await loop.create_connection(lambda: far, sock=theirs)
        except BaseException:
            self._settle(near, far)
            ours.close()
            theirs.close()
            raise
        self._unwatch = self._shared.watch(self._look_again)
        self._near = near
        serving = self._client.spawn(self._run(near, far, serving_principal), f"seat of link {self._client.number}")
        # Not within it: a link that ends at once ends its tasks before they begin.
        serving.add_done_callback(lambda _: self._settle(near, far))

    def _settle(self, near: Link, far: Link) -> None:
        """Leave nothing open, and nobody without an answer. Idempotent."""
        self._unwatch()
        near.abort()
        far.abort()
        self._end()

    def is_of(self, owner: Owner) -> bool:
        """Say whether it serves in sessions of this owner, and has not ended."""
        return owner == self._owner and self._near is not None and not self._near.is_closing

    async def learn(self, session_id: str) -> None:
        """Find out what a session is opened with, where no link of its owner says so; a guarded one opens without tools then.

        Raises:
            errors.PolicyRejected: nobody knows, and a runtime of a trusted owner would open it with everything.
        """
        if self._opened_with(session_id):
            return
        found = (
            await self._shared.find_recipe(session_id, self._owner) if self._shared.find_recipe is not None else None
        )
        if found is None and self._policy.access is Access.OPEN:
            raise errors.PolicyRejected(
                f"session {session_id} is in no runtime, and only its owner's program knows how to open it: "
                "have its owner resume it first"
            )
        self._recipes[session_id] = _UNKNOWN if found is None else found

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Keep the seat for the length of a block, though it may serve no session."""
        self._wanted += 1
        try:
            yield
        finally:
            self._wanted -= 1
            self._end_if_unneeded()

    def grant(self, session_id: str, rights: frozenset[Right]) -> None:
        """Note what the member may do in a session.

        Raises:
            errors.RuntimeLost: the seat has ended.
        """
        if self._near is None or self._near.is_closing:
            raise errors.RuntimeLost("the session's link has ended; try again")
        self._rights[session_id] = rights
        self._client.seats[session_id] = self

    def take(self, request: Request) -> None:
        """Pass on a request about a session that this seat serves.

        Raises:
            errors.PolicyRejected: the member has not the right. errors.RuntimeLost: the seat has ended.
        """
        session_id = request.session_id or ""
        if session_id in self._looking:
            late_bytes = sum(waiting.size_bytes for waiting in self._late)
            if len(self._late) >= _MOST_LATE or late_bytes > self._client.services.settings.max_frame_bytes:
                raise errors.OverCapacity(
                    "too many requests wait until it is known what you may do in this session; try again"
                )
            self._late.append(request)
            return
        right = member_methods.right_for(request.method)
        if right not in self._rights.get(session_id, frozenset()):
            raise member_methods.refusal(request.method, session_id, right)
        swallowed = member_methods.SWALLOWED.get(request.method)
        if swallowed is not None:
            self._client.link.send(messages.result(request.id, swallowed))
            return
        near = self._near
        if near is None or near.is_closing:
            raise errors.RuntimeLost("the session's link has ended; try again")
        params = self._params(request, session_id)
        near.send(messages.request(self._owed.open(request), request.method, messages.encode(params)))
        near.flush()
        request.params = UNSET  # what it says is not kept until it is answered

    def send(self, body: bytes) -> None:
        """Send the member's answer to a question; for client.Asked."""
        if self._near is not None and not self._near.is_closing:
            self._near.send(body)
            self._near.flush()

    async def drain(self, stall_seconds: float) -> None:
        """Wait until the link behind takes more; one that does not for so long is ended."""
        if self._near is not None:
            await self._near.drain(stall_seconds)

    # -- what goes in -------------------------------------------------------------------------------------------------------

    @property
    def _policy(self) -> Policy:
        """Return the policy of the sessions' owner as it is now (gateway.policy_watch)."""
        return self._first_policy if self._behind is None else self._behind.principal.policy

    def _params(self, request: Request, session_id: str) -> dict[str, Any]:
        params = request.object()
        if request.method == "session.resume":
            said = named_providers.check(params, self._policy)
            tools = hardening.harden_resume({"sessionId": session_id, "tools": said.get("tools") or []}, self._policy)
            said = {**said, "tools": tools.get("tools", [])}
            params = member_methods.join_params(
                session_id, said, self._opened_with(session_id), self._rights[session_id]
            )
            self._tools[session_id] = member_methods.tool_names(params)
            return params
        if request.method == "session.tools.handlePendingToolCall":
            self._check_tool(session_id, str(params.get("requestId")))
        extras: dict[str, Any] = {
            name: params.pop(name) for name in ("aerodromeTurn", "aerodromeLease") if name in params
        }
        # A member gets the safe form of a call even where its owner, alone with a runtime, may have any.
        return {**hardening.harden_call(request.method, params, self._policy), **extras}

    async def join(self, reader: Reader) -> None:
        """Join a session that the member's link has read until now, without its noticing; then it is read by this seat.

        Raises:
            errors.AerodromeError: it cannot be joined.
        """
        near, session_id = self._near, reader.session_id
        if near is None or near.is_closing:
            raise errors.RuntimeLost("the session's link has ended; try again")
        said = {"streaming": True, "includeSubAgentStreamingEvents": True}
        params = member_methods.join_params(session_id, said, self._opened_with(session_id), self._rights[session_id])
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joining[session_id] = (reader, joined)
        number = f"join-{session_id}"
        near.send(messages.request(number, "session.resume", messages.encode(params)))
        near.flush()
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                await joined
        except TimeoutError:
            raise errors.RuntimeLost("the session could not be joined in time; try again") from None
        finally:
            self._joining.pop(session_id, None)

    def forget(self, session_id: str) -> None:
        """Serve a session no more that it did not come to be told of."""
        self._rights.pop(session_id, None)
        self._tools.pop(session_id, None)
        self._end_if_unneeded()

    def _check_tool(self, session_id: str, request_id: str) -> None:
        tool = self._tool_calls.get(request_id)
        if tool is None or tool not in self._tools.get(session_id, frozenset()):
            raise errors.PolicyRejected(f"tool call {request_id} is not of a tool that this link registered")

    def _opened_with(self, session_id: str) -> dict[str, Any]:
        """Return what a session was last opened with by its owner's links; nothing where none holds it."""
        services = self._client.services
        for resident in services.residents.of_tenant(self._owner.tenant):
            if resident.session_id != session_id:
                continue
            for holder in reversed(list(resident.holders.values())):
                held = holder.held
                if holder.client.owner == self._owner:
                    if held.opening is not None:
                        return {k: v for k, v in held.opening.asked.items() if k not in reopening.CREATE_ONLY}
                    return reopening.resume_params(session_id, held.create, held.resume)
        return self._recipes.get(session_id, {})

    # -- what comes out -----------------------------------------------------------------------------------------------------

    async def _run(self, near: Link, far: Link, principal: Any) -> None:
        assert self._shared.serve_for is not None
        serving = asyncio.create_task(
            self._serve(far, principal),
            name=f"behind a seat of link {self._client.number}",
        )
        try:
            while batch := await near.receive():
                for body in batch:
                    if not self._known.is_set():
                        self._client.link.flush()
                        await self._known.wait()
                    self._hear(body)
                self._client.link.flush()
                if self._client.link.is_stalled:
                    await self._client.link.drain(self._client.services.settings.stall_seconds)
        finally:
            self._settle(near, far)
            await asyncio.wait((serving,), timeout=_END_SECONDS)
            serving.cancel()
            await asyncio.wait((serving,))

    async def _serve(self, far: Link, principal: Any) -> None:
        assert self._shared.serve_for is not None

        def note(client: Client) -> None:
            self._behind = client

        try:
            await self._shared.serve_for(far, principal, self._client.actor, note)
        except errors.AerodromeError as error:
            _log.warning("seat.failed", reason=error.message)
        finally:
            far.abort()

    def _end(self) -> None:
        """Answer what is open: the link behind has ended."""
        for session_id in [key for key, seat in self._client.seats.items() if seat is self]:
            del self._client.seats[session_id]
        late, self._late = self._late, []
        self._looking.clear()
        for request in [*self._owed.drain(), *late]:
            self._client.refuse(request.id, errors.RuntimeLost("the session's link has ended; try again"))
        self._drop_questions(None)
        self._client.link.flush()

    def _end_if_unneeded(self) -> None:
        """Close the link behind when no session needs it, and nothing is owed by it: it costs a connection to a runtime."""
        is_needed = self._rights or self._joining or self._leaving or self._late or self._wanted or len(self._owed)
        if not is_needed and self._near is not None:
            self._near.close()

    def _drop_questions(self, session_id: str | None) -> None:
        """Wait for no answer of the member's any more, about one session or any."""
        for number, asked in self._client.asked.items():
            if asked.upstream is self and session_id in (None, asked.session_id):
                self._client.asked.close(number)

    def _hear(self, body: bytes) -> None:
        peek = messages.peek(body)
        if peek is None or peek.method is UNSET:
            self._hear_answer(messages.decode(body))
            return
        if peek.method == _CANCEL:
            self._cancel(messages.decode(body))
            return
        params = peek.params
        session_id = params.sessionId if isinstance(params, PeekParams) else UNSET
        if not isinstance(session_id, str) or Right.READ not in self._rights.get(session_id, frozenset()):
            if peek.id is not UNSET:
                self._decline(messages.decode(body))
            return
        if peek.id is UNSET:
            if session_id in self._joining or self._was_told(session_id, body):
                return
            self._note_tool_call(peek, body)
            self._client.link.send(body)
        else:
            self._hear_question(messages.decode(body), session_id)

    def _cancel(self, envelope: Envelope) -> None:
        """Tell the member that a question of the runtime's needs no answer any more."""
        wanted = messages.params_object(envelope.params).get("id")
        for number, asked in self._client.asked.items():
            if asked.upstream is self and asked.request_id == wanted and type(asked.request_id) is type(wanted):
                self._client.link.send(messages.notification(_CANCEL, messages.encode({"id": number})))

    def _hear_joined(self, session_id: str, envelope: Envelope) -> None:
        """Take over from a reader, in one step: nothing is said twice, nothing is left out."""
        reader, joined = self._joining.pop(session_id, (None, None))
        if reader is None or joined is None:
            return
        if envelope.error is not UNSET:
            if not joined.done():
                said = reopening.message_of(envelope)
                joined.set_exception(errors.RuntimeUnavailable(f"the session could not be joined: {said}"))
            return
        self._told[session_id] = reader.told
        # Links of one session are never so far apart.
        asyncio.get_running_loop().call_later(_JOIN_SECONDS, self._told.pop, session_id, None)
        reader.end()
        self._client.seats[session_id] = self
        if not joined.done():
            joined.set_result(None)

    def _was_told(self, session_id: str, body: bytes) -> bool:
        """Say whether the member's link has heard an event as a reader."""
        told = self._told.get(session_id)
        return told is not None and audience.event_id_of(body) in told

    def _hear_answer(self, envelope: Envelope) -> None:
        if isinstance(envelope.id, str) and envelope.id.startswith("join-"):
            self._hear_joined(envelope.id.removeprefix("join-"), envelope)
            return
        if isinstance(envelope.id, str) and envelope.id.startswith("leave-"):
            self._leaving.discard(envelope.id.removeprefix("leave-"))
            self._end_if_unneeded()
            return
        request = self._owed.close(envelope.id if envelope.id is not UNSET else None)
        if request is None:
            return
        if request.method in ("session.detach", "session.destroy") and envelope.error is UNSET:
            self._let_go(request.session_id or "")
        self._client.link.send(messages.response(request.id, envelope))
        self._end_if_unneeded()

    def _hear_question(self, envelope: Envelope, session_id: str) -> None:
        may_answer = envelope.method in member_methods.ASKED and Right.APPROVE in self._rights[session_id]
        if not may_answer or not isinstance(envelope.id, (int, str)):
            self._decline(envelope)
            return
        assert isinstance(envelope.method, str)
        try:
            self._client.ask(Asked(self, envelope.id, session_id, envelope.method, envelope.params))
        except errors.OverCapacity:
            self._decline(envelope)

    def _decline(self, envelope: Envelope) -> None:
        if isinstance(envelope.id, (int, str)):
            self.send(messages.failure(envelope.id, -32601, f"Unhandled method {envelope.method}"))

    def _note_tool_call(self, peek: Peek, body: bytes) -> None:
        event = peek.params.event if isinstance(peek.params, PeekParams) else UNSET
        if event is UNSET or event.type != _TOOL_CALL:
            return
        data = messages.params_object(messages.decode(body).params).get("event", {}).get("data", {})
        self._tool_calls[str(data.get("requestId"))] = str(data.get("toolName"))
        if len(self._tool_calls) > _REMEMBERED_CALLS:
            self._tool_calls.popitem(last=False)

    # -- members that change ------------------------------------------------------------------------------------------------

    def _look_again(self, session_id: str, person: Owner | None) -> None:
        if session_id in self._rights and person in (None, self._client.actor):
            # Until the store has been asked nothing passes, and nothing is lost.
            self._changes += 1
            self._looking[session_id] = self._changes
            self._known.clear()
            work = self._refresh(session_id, self._changes)
            self._client.spawn(work, f"seat of link {self._client.number} looks again")

    async def _refresh(self, session_id: str, number: int) -> None:
        rights = await self._shared.settled_rights(session_id, self._client.actor, self._owner)
        if self._looking.get(session_id) != number:
            return  # it has changed again, or the seat has ended
        del self._looking[session_id]
        if Right.READ in rights:
            self._rights[session_id] = rights
        else:
            self._leave(session_id)
            gone = reopening.event(session_id, "aerodrome.member_removed", {"user": self._client.actor.user})
            self._client.link.send(gone)
        late, self._late = self._late, []
        for request in late:
            self._take_late(request)
        if not self._looking:
            self._known.set()
        self._client.link.flush()
        self._end_if_unneeded()

    def _take_late(self, request: Request) -> None:
        """Take a request that has waited; an error is its answer."""
        session_id = request.session_id or ""
        try:
            if session_id not in self._rights:
                raise errors.SessionMissing("no such session")
            self.take(request)
        except errors.AerodromeError as error:
            self._client.services.audit.refused(self._client, request, error)
            self._client.services.recorder.reject(errors.wire(error).reason)
            self._client.refuse(request.id, error)

    def _leave(self, session_id: str) -> None:
        """Let go of a session that the member may not see any more."""
        self._let_go(session_id)
        if self._near is not None and not self._near.is_closing:
            number: RequestId = f"leave-{session_id}"
            self._leaving.add(session_id)
            self._near.send(messages.request(number, "session.detach", messages.encode({"sessionId": session_id})))
            self._near.flush()

    def _let_go(self, session_id: str) -> None:
        self._rights.pop(session_id, None)
        self._tools.pop(session_id, None)
        self._recipes.pop(session_id, None)
        self._drop_questions(session_id)
        if self._client.seats.get(session_id) is self:
            del self._client.seats[session_id]


async def find_seat(client: Client, session_id: str, owner: Owner | None) -> Seat | Reader | None:
    """Return the client's seat in another's session, or its place among the readers; None if it is no member."""
    shared = client.services.sharing
    if shared is None or owner is None or client.is_seat:
        return None
    rights = await shared.rights(session_id, client.owner, owner)
    if Right.READ not in rights:
        return None
    async with client.seating:
        present = client.seats.get(session_id)
        if isinstance(present, Reader):
            return present
        realm = await shared.realm_key(owner)
        if present is None and audience.is_reader(rights) and not _seats_of(client, owner):
            reader = _make_reader(client, shared, realm, session_id, owner)
            if reader.has_source:
                reader.begin()
                shared.note_holders(client.services, realm, session_id)
                return reader
            reader.unwatch()
        return await _take_seat(client, shared, session_id, owner, rights)


def _seats_of(client: Client, owner: Owner) -> list[Seat]:
    return [seat for seat in client.seats.values() if isinstance(seat, Seat) and seat.is_of(owner)]


async def _take_seat(
    client: Client, shared: SharedSessions, session_id: str, owner: Owner, rights: frozenset[Right]
) -> Seat:
    seat = next(iter(_seats_of(client, owner)), None)
    if seat is None:
        principal = await shared.principal_for(owner, client.principal)
        seat = Seat(client, owner, shared, principal.policy)
        await seat.open(principal)
    with seat.wanted():
        await seat.learn(session_id)
        seat.grant(session_id, rights)
    return seat


def _make_reader(client: Client, shared: SharedSessions, realm: str, session_id: str, owner: Owner) -> Reader:
    def give_up(reader: Reader, request: Request | None) -> None:
        client.spawn(_promote(shared, reader, owner, request), f"reader of link {client.number} takes a seat")

    reader = Reader(client, owner, realm, session_id, shared.audiences, give_up)

    def look_again(changed: str, person: Owner | None) -> None:
        if changed == session_id and person in (None, client.actor):
            reader.pause()
            client.spawn(_look_again(shared, reader, owner), f"reader of link {client.number} looks again")

    reader.unwatch = shared.watch(look_again)
    return reader


async def _look_again(shared: SharedSessions, reader: Reader, owner: Owner) -> None:
    """Have a reader whose roles have changed go on, take a seat, or leave."""
    client, session_id = reader.client, reader.session_id
    rights = await shared.settled_rights(session_id, client.actor, owner)
    if audience.is_reader(rights):
        reader.is_leaving = False
        reader.go_on()
    elif Right.READ in rights:
        await _promote(shared, reader, owner, None)
    else:
        reader.end()
        client.link.send(reopening.event(session_id, "aerodrome.member_removed", {"user": client.actor.user}))
        client.link.flush()


async def _promote(shared: SharedSessions, reader: Reader, owner: Owner, request: Request | None) -> None:
    """Have a reader take a seat: it may do more now, or nobody holds the session whom it could listen to."""
    client, session_id = reader.client, reader.session_id
    try:
        rights = await shared.rights(session_id, client.actor, owner)
        if Right.READ not in rights:
            raise errors.SessionMissing("no such session")
        async with client.seating:
            seat = client.seats.get(session_id)
            if not isinstance(seat, Seat):
                reader.is_leaving = True
                reader.go_on()
                seat = await _take_seat(client, shared, session_id, owner, rights)
                client.seats[session_id] = reader  # it listens until the seat does
                try:
                    await seat.join(reader)
                except BaseException:
                    seat.forget(session_id)
                    raise
        if request is not None:
            seat.take(request)
    except errors.AerodromeError as error:
        if request is not None:
            client.refuse(request.id, error)
    client.link.flush()
