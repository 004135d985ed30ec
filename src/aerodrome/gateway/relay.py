"""Client to runtime: every message of a client, judged, checked for ownership, and passed on in order.

The order within a link is kept: a call that has to wait (a runtime to be spawned, a record to be written) holds back the
requests behind it, but never the client's answers to the runtime, which the waiting may depend on. Only a session that must be
brought back first has its requests wait in a lane of its own, so that a program of many sessions goes on with the others. What
comes back is `downward`; what is refused never reaches a runtime.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.policy import Access
from aerodrome.gateway import calls, limits, model_lists, reattach, seats, sharing_calls, tightening, virtual
from aerodrome.gateway.client import TURN_STARTS, Attachment, Client, Request
from aerodrome.gateway.turn_queue import Run
from aerodrome.gateway.upstream import Finish, Pending, Upstream
from aerodrome.protocol import hardening, id_paths, messages, methods, missing, named_providers, replays
from aerodrome.protocol.messages import Envelope
from aerodrome.protocol.methods import Verdict

_CANCEL = "$/cancelRequest"
_MAX_WAITING = 10_000
_PROVIDER_ROLES = ("sessionFs.setProvider", "llmInference.setProvider")
_REGISTRATIONS = (*_PROVIDER_ROLES, "registerExtensionLaunchProvider", "plugins.builtin.set")
Params = msgspec.Raw | bytes | msgspec.UnsetType
#: What has to be waited for; not begun yet, because a link that ends at once ends its tasks before they begin.
Step = Callable[[], Awaitable[None]]
_DETACHES = ("session.detach", "session.destroy")
#: Makes a session under the id it is given, where others only look for one.
_OPENS_BY_ID = "sessions.open"
_NOT_HANDLED = "session.sendAndWait"
_DELETIONS = ("session.delete", "sessions.delete", "sessions.bulkDelete")


class _OneSession(msgspec.Struct, gc=False):
    """Params of nearly every call; strict, so that an id of another type is an error and not a missing id."""

    sessionId: str


_Kind = TypeVar("_Kind", str, int)
_decode_one = msgspec.json.Decoder(_OneSession).decode


class Relay:
    """Carries one client's messages to its runtimes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._waiting_count = 0
        #: Of messages that wait for their turn in a shared session, each in a task of its own.
        self._turn_bytes = 0
        #: By session id, for messages that are about to have their place among those who wait for their turn, in order.
        self._entering: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        #: By session id: what waits until the session is in a runtime again, in order.
        self._lanes: dict[str, deque[Request]] = {}
        self._working: asyncio.Task[None] | None = None

    async def run(self, rest: list[bytes]) -> None:
        """Carry messages until the client leaves.

        Raises:
            errors.InvalidRequest: it broke the framing (the listener answers and closes).
        """
        client = self._client
        batch = rest
        while True:
            for body in batch:
                self._take(body)
            client.link.flush()
            for upstream in list(client.upstreams.values()):
                upstream.link.flush()
                if upstream.link.is_stalled:
                    await upstream.link.drain(client.services.settings.stall_seconds)
            for seat in list(client.seats.values()):
                await seat.drain(client.services.settings.stall_seconds)
            if client.link.is_stalled:
                await client.link.drain(client.services.settings.stall_seconds)
            batch = await client.link.receive()
            if not batch:
                return

    def _take(self, body: bytes) -> None:
        try:
            envelope = messages.decode(body)
        except errors.InvalidRequest as error:
            self._client.services.audit.broke_off(self._client.link.peer, self._client, error)
            self._client.refuse(None, error)
            return
        method, request_id = envelope.method, envelope.id
        if method is UNSET:
            self._take_answer(envelope)
        elif request_id is UNSET or request_id is None:
            if method == _CANCEL:
                self._cancel(envelope)
            else:
                self._client.services.audit.unheard(self._client, method)
        else:
            self._take_request(Request(request_id, method, envelope.params, methods.lookup(method)))

    def _take_request(self, request: Request) -> None:
        client = self._client
        if self._working is None:
            step = self._start(request)
            if step is not None:
                self._working = asyncio.create_task(self._work(step), name=f"relay of link {client.number}")
                client.tasks.add(self._working)
                self._working.add_done_callback(client.tasks.discard)
        else:
            self._wait_in(self._waiting, request)

    def _wait_in(self, queue: deque[Request], request: Request) -> None:
        """Queue a request; past the bounds of a link it is refused."""
        limit_bytes = self._client.services.settings.max_frame_bytes
        if self._waiting_count >= _MAX_WAITING or self._waiting_bytes > limit_bytes:
            error = errors.OverCapacity("too many requests wait on this link; wait for answers first")
            self._client.refuse(request.id, error)
            return
        queue.append(request)
        self._waiting_count += 1
        self._waiting_bytes += request.size_bytes

    def _take_from(self, queue: deque[Request]) -> Request:
        request = queue.popleft()
        self._waiting_count -= 1
        self._waiting_bytes -= request.size_bytes
        return request

    async def _work(self, step: Step) -> None:
        """Finish a step that waits, then whatever came behind it."""
        try:
            await step()
            while self._waiting:
                following = self._start(self._take_from(self._waiting))
                if following is not None:
                    await following()
        finally:
            self._working = None
            self._flush()

    def _flush(self) -> None:
        self._client.link.flush()
        for upstream in self._client.upstreams.values():
            upstream.link.flush()

    def _park(self, session_id: str, request: Request) -> None:
        """Have a request wait, first in a lane of its session, until that is in a runtime again."""
        lane = self._lanes[session_id] = deque()
        self._wait_in(lane, request)
        self._client.spawn(self._run_lane(session_id, lane), f"lane of link {self._client.number}")

    async def _run_lane(self, session_id: str, lane: deque[Request]) -> None:
        try:
            while lane:
                request = self._take_from(lane)
                step = self._start(request, is_in_lane=True)
                if step is not None:
                    await step()
                self._flush()
        finally:
            del self._lanes[session_id]
            self._flush()

    def _start(self, request: Request, is_in_lane: bool = False) -> Step | None:
        """Handle a request now, or return what has to be waited for; errors become its answer either way."""
        try:
            if self._lanes and not is_in_lane and (lane := self._lanes.get(_named_session(request) or "")) is not None:
                self._wait_in(lane, request)
                return None
            step = self._dispatch(request)
        except errors.AerodromeError as error:
            self._refuse(request, error)
            return None
        except Exception:
            self._fail(request)
            return None
        return None if step is None else functools.partial(self._guard, request, step)

    async def _apart(self, request: Request, step: Step) -> None:
        await self._guard(request, step)
        self._flush()

    async def _guard(self, request: Request, step: Step) -> None:
        try:
            await step()
        except errors.AerodromeError as error:
            self._refuse(request, error)
        except Exception:
            self._fail(request)

    def _refuse(self, request: Request, error: errors.AerodromeError) -> None:
        self._client.services.audit.refused(self._client, request, error)
        self._client.services.recorder.reject(errors.wire(error).reason)
        self._client.refuse(request.id, error)

    def _fail(self, request: Request) -> None:
        self._client.log.exception("request.failed", method=request.method)
        self._client.refuse(request.id, errors.AerodromeError("the gateway failed at this request; its log says why"))

    def _dispatch(self, request: Request) -> Step | None:
        client = self._client
        if request.method.startswith(sharing_calls.PREFIX) and client.services.sharing is not None:
            step = functools.partial(sharing_calls.answer, client, client.services.sharing, request)
            if request.method != sharing_calls.WAITS:
                return step
            # It may wait for an hour for other people's turns: what comes behind it on this link must not.
            client.spawn(self._apart(request, step), f"waiting call of link {client.number}")
            return None
        session_id = _named_session(request)
        if session_id is not None and (seat := client.seats.get(session_id)) is not None:
            client.services.drainer.check(request.method)
            request.session_ids = [session_id]
            seat.take(request)
            return None
        verdict = methods.judge(request.method, client.access, session_id is not None)
        if verdict is Verdict.DENY:
            request.session_ids = [session_id] if session_id is not None else _all_named(request)
            raise _denied(request)
        client.services.drainer.check(request.method)
        if request.method == "session.create":
            return functools.partial(calls.create, client, request)
        if request.method == "session.resume":
            return functools.partial(calls.resume, client, request)
        if verdict is Verdict.VIRTUAL:
            return virtual.answer(client, request)
        names_provider = request.method in named_providers.CALLS
        if session_id is not None and client.access is Access.OPEN and not names_provider:
            has_to_wait = self._may_queue(request, session_id) or (
                request.method in tightening.BEGINNINGS and tightening.is_any_stale(client, session_id)
            )
            upstream = client.live_upstream(session_id) if not has_to_wait else None
            if upstream is not None and client.services.ownership.is_known_to_be(session_id, client.owner):
                request.session_ids = [session_id]
                self._forward(upstream, request, request.params)
                return None
        return functools.partial(self._forward_checked, request)

    async def _forward_checked(self, request: Request) -> None:
        """Check every session a request names, apply the parameter policy, find the runtime, and forward."""
        client = self._client
        params = await self._named_sessions(request)
        if params is None:
            return
        if await self._is_queued(request):
            return
        names_provider = request.method in named_providers.CALLS
        if names_provider:
            params = named_providers.check(params, client.principal.policy)
        if client.access is Access.GUARDED:
            params = hardening.harden_call(request.method, params, client.principal.policy)
        held = client.attachments.get(request.session_id or "")
        await self._wait_to_begin(request, held)
        if await self._is_detach_of_absent(request):
            return
        session_id = request.session_id
        # A message whose turn it is holds up nobody, and its turn would be over when it left this task.
        may_park = request.run is None and session_id not in self._lanes
        if session_id is not None and may_park and self._is_absent(request, session_id):
            self._park(session_id, request)
            return
        upstream = await self._upstream_of(request)
        if held is not None and client.access is Access.GUARDED:
            await model_lists.extend(held, upstream, request.method, params)
        # Guarded params are written anew: a doubled member could name one session to us and another to the runtime.
        is_named = request.session_id is not None and names_provider and named_providers.has_reference(params)
        raw = sent = request.params if client.access is Access.OPEN and not is_named else messages.encode(params)
        if is_named:
            sent = messages.encode(client.services.supplier.fill(client.realm.key, request.session_id or "", params))
        self._forward(upstream, request, raw, sent)

    def _may_queue(self, request: Request, session_id: str) -> bool:
        """Say whether a request may have to wait for its turn; one whose turn it is waits no more."""
        shared = self._client.services.sharing
        is_beginning = request.method in TURN_STARTS and request.run is None
        return is_beginning and shared is not None and not shared.is_known_unshared(session_id)

    async def _is_queued(self, request: Request) -> bool:
        """Have a message to a shared session wait for its turn, and nothing else with it; say whether it does."""
        session_id, shared = request.session_id, self._client.services.sharing
        if session_id is None or shared is None or not self._may_queue(request, session_id):
            return False
        if await shared.sharing(session_id) is None:
            return False
        if request.method == _NOT_HANDLED:
            # SDKs try it first and fall back: it must not wait for a turn only to be refused then (protocol facts 1.2).
            raise errors.MethodUnknown(f"Unhandled method {request.method}")
        if self._turn_bytes and self._turn_bytes + request.size_bytes > self._client.services.settings.max_frame_bytes:
            raise errors.OverCapacity("too much waits for its turn on this link already; wait for answers first")
        self._turn_bytes += request.size_bytes
        self._client.spawn(self._run_turn(request, session_id), f"turn of link {self._client.number}")
        return True

    async def _run_turn(self, request: Request, session_id: str) -> None:
        """Run a turn of a shared session; its messages take their places in the order in which they came."""
        entering = self._entering.setdefault(session_id, asyncio.Lock())
        await entering.acquire()
        entered = _once(entering.release)
        try:
            await self._run_entered(request, session_id, entered)
        finally:
            entered()

    async def _run_entered(self, request: Request, session_id: str, entered: Callable[[], None]) -> None:
        """Run a turn; one that need not wait for its turn lets the next message go when it is sent itself."""
        turns, size_bytes = self._client.services.turns, request.size_bytes
        assert turns is not None
        try:
            params = request.object()
            turn_id = _optional(params.pop("aerodromeTurn", None), str, "aerodromeTurn")
            token = _optional(params.pop("aerodromeLease", None), int, "aerodromeLease")
            is_sent = False
            while not is_sent:
                run = await turns.begin(self._client, session_id, turn_id, token, entered)
                said = {**params, "mode": "immediate"} if run.is_steering else params
                request.params, request.run = msgspec.Raw(messages.encode(said)), run
                is_sent = await self._send_turn(request, session_id, run)
        except errors.AerodromeError as error:
            self._refuse(request, error)
        except Exception:
            self._fail(request)
        finally:
            self._turn_bytes -= size_bytes
            self._flush()

    async def _send_turn(self, request: Request, session_id: str, run: Run) -> bool:
        """Send a message whose turn it is; return False where it was to steer one that has ended: it waits for its own."""
        turns = self._client.services.turns
        assert turns is not None
        try:
            if self._is_absent(request, session_id):
                await reattach.bring_back(self._client, session_id)
            step = self._dispatch(request)
            if step is not None:
                await step()
        except errors.LeaseLost:
            if not run.is_steering:
                raise
            return False
        finally:
            if not run.is_sent:
                turns.answered(run, None)
        return True

    async def _wait_to_begin(self, request: Request, held: Attachment | None) -> None:
        """Wait until what a request begins may begin: the session locked down, its restrictions current, within its caps."""
        if held is not None and request.method in TURN_STARTS:
            await held.wait_restricted()
        if request.session_id is not None and request.method in tightening.BEGINNINGS:
            await tightening.restrict(self._client, request.session_id)
        if request.row is not None and request.row.born_ids:
            await limits.check_birth(self._client)

    async def _named_sessions(self, request: Request) -> dict[str, Any] | None:
        """Note which sessions a request names, the caller's and others; return its params, None if it is answered here."""
        client, params, row = self._client, request.object(), request.row
        named = id_paths.find_ids(params, row.session_ids) if row is not None else [params["sessionId"]]
        request.session_ids, request.missing_ids = [], []  # one that waited in a lane is looked at again
        for session_id in named:
            owner = await client.services.ownership.find_owner(session_id)
            is_callers = calls.may_name(client, session_id, owner)
            if (
                not is_callers
                and len(named) == 1
                and (seat := await seats.find_seat(client, session_id, owner)) is not None
            ):
                request.session_ids = [session_id]
                seat.take(request)
                return None
            if not is_callers:
                client.services.audit.foreign(client, request.method, session_id, owner)
            (request.session_ids if is_callers else request.missing_ids).append(session_id)
        if request.missing_ids and client.access is Access.OPEN and request.method != _OPENS_BY_ID:
            # A runtime of the caller's alone has no session of anyone else's: it says itself what it says of a missing one.
            request.missing_ids = []
        if request.missing_ids:
            if request.method not in missing.LISTS:
                client.link.send(missing.answer(request.id, request.method, request.missing_ids[0]))
                return None
            params = {**params, "sessionIds": request.session_ids}
        return params

    async def _is_detach_of_absent(self, request: Request) -> bool:
        """Answer for a session that is in no runtime: it is detached already, and needs no runtime to be so."""
        client = self._client
        held = client.attachments.get(request.session_id or "")
        if request.method not in _DETACHES or held is None:
            return False
        if held.state is AttachmentState.UNLOADING:
            resident = client.services.residents.find(client.realm.key, held.session_id)
            if resident is not None:
                async with resident.alone():
                    pass
        if held.state not in (AttachmentState.LOST, AttachmentState.EVICTED):
            return False
        calls.let_go(client, held.session_id)
        client.link.send(messages.result(request.id, {"success": True}))
        return True

    async def _upstream_of(self, request: Request) -> Upstream:
        client, session_id = self._client, request.session_id
        if session_id is None:
            return await client.upstream_for(None)
        held = client.attachments.get(session_id)
        if held is not None and request.method in TURN_STARTS:
            held.forget_ending()
        if self._is_absent(request, session_id):
            await reattach.bring_back(client, session_id)
        return client.live_upstream(session_id) or await client.upstream_for(session_id)

    def _is_absent(self, request: Request, session_id: str) -> bool:
        """Say whether a session must be brought back before this request about it; a deletion needs no session, only files."""
        return request.method not in _DELETIONS and reattach.is_absent(self._client, session_id)

    def _forward(self, upstream: Upstream, request: Request, params: Params, sent: Params | None = None) -> None:
        """Send a request; `sent` is what goes out where it is more than what is remembered of it."""
        first, run, turns = request.session_id, request.run, self._client.services.turns
        if run is not None and turns is not None:
            turns.check(run)
        if first is not None and request.method in TURN_STARTS:
            limits.check_turn(self._client, first)
        finish = self._finish_of(upstream, request, params)
        if request.missing_ids:
            finish = calls.complete_finish(request, finish)
        heard = functools.partial(self._note_turn, run) if run is not None else None
        pending = Pending(request.method, request.id, first, finish, heard=heard)
        upstream.forward(pending, params if sent is None else sent)
        if run is not None:
            run.is_sent = True  # from now on its end is for the answer, and what follows it, to say
        held = self._client.attachments.get(first) if first is not None else None
        if first is not None:
            self._client.services.router.use(self._client.realm.key, first)
        if first is not None and request.method in TURN_STARTS:
            self._client.services.ownership.touch(first)
            if held is not None:
                self._client.services.recorder.begin_turn(self._client, held)
            if held is not None and held.is_live:
                held.move(AttachmentState.TURN)
        elif held is not None and request.method == "session.options.update":
            held.options |= messages.params_object(msgspec.Raw(bytes(params or b"{}")))

    def _finish_of(self, upstream: Upstream, request: Request, params: Params) -> Finish | None:
        """Return what must happen when the answer comes, None for nearly every call."""
        client, row = self._client, request.row
        if request.method in _DETACHES:
            return calls.detach_finish(client, request)
        if request.method in _DELETIONS:
            return calls.delete_finish(client, upstream, request)
        if request.method == "sessions.close":
            return calls.close_finish(client, request)
        if request.method in replays.METHODS and request.session_id in client.attachments:
            return self._replay_finish(client.attachments[request.session_id], request, params)
        if request.method in _REGISTRATIONS:
            return self._registration_finish(upstream, request, params)
        if row is not None and row.born_ids:
            return calls.birth_finish(client, request, row)
        if row is not None and row.verdict(client.access) is Verdict.FILTER:
            return calls.filter_finish(client, request, row)
        return None

    def _note_turn(self, run: Run, answer: Envelope) -> None:
        """Note the answer to a message whose turn runs under a lease, or that steers one: it says whether it was taken."""
        turns = self._client.services.turns
        assert turns is not None
        try:
            said = messages.params_object(answer.result) if answer.error is UNSET else None
        except errors.InvalidParams:
            said = {}
        turns.answered(run, str(said.get("messageId", "")) if said is not None else None)

    def _replay_finish(self, held: Attachment, request: Request, params: Params) -> Finish:
        async def finish(answer: Envelope) -> bytes:
            if answer.error is UNSET:
                replays.note(held.replays, request.method, messages.params_object(msgspec.Raw(bytes(params or b"{}"))))
            return messages.response(request.id, answer)

        return finish

    def _registration_finish(self, upstream: Upstream, request: Request, params: Params) -> Finish:
        async def finish(answer: Envelope) -> bytes:
            if answer.error is UNSET:
                self._client.registrations[request.method] = msgspec.Raw(bytes(params or b"{}"))
                if request.method in _PROVIDER_ROLES:
                    upstream.provider_roles.add(request.method)
            return messages.response(request.id, answer)

        return finish

    def _take_answer(self, envelope: Envelope) -> None:
        """Give a runtime the client's answer under the id the runtime knows; unasked answers go nowhere."""
        asked = self._client.asked.close(envelope.id if envelope.id is not UNSET else None)
        if asked is not None:
            asked.upstream.send(messages.response(asked.request_id, envelope))
            if isinstance(asked.upstream, Upstream):
                asked.upstream.link.flush()  # it may be the link of a member who joined this session

    def _cancel(self, envelope: Envelope) -> None:
        try:
            wanted = messages.params_object(envelope.params).get("id")
        except errors.InvalidParams:
            return
        for upstream in self._client.upstreams.values():
            for request_id, pending in upstream.owed.items():
                if wanted is not None and pending.client_id == wanted and type(pending.client_id) is type(wanted):
                    upstream.link.send(messages.notification(_CANCEL, messages.encode({"id": request_id})))


def _once(act: Callable[[], None]) -> Callable[[], None]:
    """Return what does something the first time it is called."""
    left = [act]
    return lambda: left.pop()() if left else None


def _named_session(request: Request) -> str | None:
    """Return the session of a call that names one plainly; None for those that name none, several, or elsewhere.

    Raises:
        errors.InvalidParams: a session-scoped call without a usable id.
    """
    row = request.row
    plain = row is None or (len(row.session_ids) == 1 and row.session_ids[0].steps == ("sessionId",))
    if not plain or request.params is UNSET:
        return None
    try:
        return _decode_one(request.params).sessionId
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if row is None or row.session_ids[0].optional:
            return None
        raise errors.InvalidParams("expected sessionId to be a string; name the session") from None


def _optional(value: object, kind: type[_Kind], name: str) -> _Kind | None:
    """Return a parameter of ours. Raises errors.InvalidParams: it is of another type."""
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise errors.InvalidParams(f"expected {name} to be of type {kind.__name__}, found {type(value).__name__}")


def _all_named(request: Request) -> list[str]:
    """Return the sessions that a refused call names, wherever it does; of one that cannot be read, none."""
    try:
        return id_paths.find_ids(request.object(), request.row.session_ids) if request.row is not None else []
    except errors.InvalidParams:
        return []


def _denied(request: Request) -> errors.AerodromeError:
    if request.row is None:
        return errors.MethodUnknown(f"Unhandled method {request.method}")
    reason = request.row.reason
    why = f": {reason}" if reason not in ("", "-") else ""
    return errors.PolicyRejected(
        f"{request.method} is refused by the policy of this tenant{why}", method=request.method
    )
