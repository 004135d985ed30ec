"""One client link's state, and the few things everything round it needs: send, refuse, find the upstream for a session.

Shared by relay (client to runtime), downward (runtime to client), calls (create, resume, delete ...) and reattach.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType

from aerodrome import errors, redaction
from aerodrome.core import attachment as attachment_states
from aerodrome.core import placement
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.flights import TurnEnd, TurnFlight
from aerodrome.core.identity import Owner
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Access, Isolation, Policy
from aerodrome.gateway import audit, handshake
from aerodrome.gateway.drainer import Drainer
from aerodrome.gateway.finishing import Finishing
from aerodrome.gateway.handshake import Greeting
from aerodrome.gateway.missed import Missed
from aerodrome.gateway.occupancy import Occupancy
from aerodrome.gateway.ownership import Ownership
from aerodrome.gateway.recorder import FlightRecorder
from aerodrome.gateway.residents import Residents
from aerodrome.gateway.router import Router
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.gateway.sharing import SharedSessions
from aerodrome.gateway.supplying import Supplier
from aerodrome.gateway.turn_queue import Run, TurnQueue
from aerodrome.gateway.unloading import Evictor
from aerodrome.gateway.upstream import Upstream, open_upstream
from aerodrome.gateway.usage import UsageLedger
from aerodrome.ports.fleet import Fleet, RuntimeHandle
from aerodrome.protocol import messages, reopening
from aerodrome.protocol.correlation import Correlation
from aerodrome.protocol.messages import RequestId
from aerodrome.protocol.methods import Method
from aerodrome.transport.link import Link

if TYPE_CHECKING:
    from aerodrome.gateway.audience import Reader
    from aerodrome.gateway.seats import Seat

_log = structlog.get_logger()
_numbers = itertools.count(1)

TURN_STARTS = reopening.TURN_STARTS


@dataclass(frozen=True, slots=True)
class Services:
    """What all client links share."""

    fleet: Fleet
    ownership: Ownership
    router: Router
    settings: GatewaySettings
    supplier: Supplier = field(default_factory=Supplier)
    #: What makes sessions shared; without it every session is its owner's alone.
    sharing: SharedSessions | None = None
    turns: TurnQueue | None = None
    residents: Residents = field(init=False)
    occupancy: Occupancy = field(default_factory=Occupancy)
    audit: audit.Auditor = audit.UNAUDITED
    usage: UsageLedger = field(default_factory=UsageLedger)
    evictor: Evictor = field(init=False)
    finishing: Finishing = field(init=False)
    drainer: Drainer = field(init=False)
    recorder: FlightRecorder = field(default_factory=FlightRecorder)

    def __post_init__(self) -> None:
        limits = self.settings
        object.__setattr__(self, "residents", Residents(self.supplier.withdraw, self._note_holders))
        object.__setattr__(self, "evictor", Evictor(self))
        finishing = Finishing(limits.finish_seconds, limits.missed_seconds, limits.missed_bytes)
        object.__setattr__(self, "finishing", finishing)
        object.__setattr__(self, "drainer", Drainer(self.residents))
        self.router.note_place = self.recorder.place
        self.ownership.note_freed = self.recorder.drop
        if self.sharing is not None:
            self.ownership.keepers.append(self.sharing.end)

    def _note_holders(self, realm: str, session_id: str) -> None:
        if self.sharing is not None:
            self.sharing.note_holders(self, realm, session_id)

    async def aclose(self) -> None:
        """End evictions and the turns that clients left; links are closed before."""
        if self.turns is not None:
            await self.turns.aclose()
        if self.sharing is not None:
            await self.sharing.aclose()
        await self.finishing.aclose()
        await self.evictor.aclose()


@dataclass(frozen=True, slots=True)
class Opening:
    """What a client asked for when it opened a session, and the policy under which it was given (gateway.tightening)."""

    asked: dict[str, Any]
    policy: Policy


@dataclass(slots=True)
class Attachment:
    """This link's hold on one session, with what a fresh runtime must be told to have it again."""

    session_id: str
    upstream: Upstream | None
    state: AttachmentState = AttachmentState.OPENING
    create: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    opening: Opening | None = None
    options: dict[str, Any] = field(default_factory=dict)
    #: What else was set since it was opened and the runtime forgets (protocol.replays).
    replays: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    #: The runtime's answer to its opening.
    answered: bytes | None = None
    #: Whether a turn ever ended: then it is on disk, and making it anew would lose what was said.
    is_kept: bool = False
    #: Whether a turn began since its client opened it: then its program has heard of the session's start.
    is_begun: bool = False
    #: What the runtime will say of a coming back that the client is not to hear, by event type (gateway.reattach).
    hushed: dict[str, int] = field(default_factory=dict)
    #: Done once a guarded session that is opening is locked down, or has failed to be; no turn begins before.
    restricting: asyncio.Future[None] | None = None
    #: Whether it was opened again in the middle of a turn, which goes on.
    is_mid_turn: bool = False
    #: What is recorded of the turn that this link has sent and that runs (gateway.recorder).
    turn: TurnFlight | None = None
    #: Says that an interrupted turn is over, a moment after its error (gateway.reattach); a new turn makes it needless.
    ending: asyncio.TimerHandle | None = None

    def move(self, following: AttachmentState) -> None:
        """Pass to another state of the table."""
        self.state = attachment_states.move(self.state, following)
        self.is_begun = self.is_begun or following is AttachmentState.TURN

    def describe(self, create: dict[str, Any] | None, resume: dict[str, Any] | None) -> None:
        """Remember what it was opened with; what was set before that is the earlier opening's."""
        self.create, self.resume, self.options, self.replays = create, resume, {}, {}
        self.is_begun = False

    async def wait_restricted(self) -> None:
        """Wait until an opening under way has locked the session down, or has failed to."""
        if self.restricting is not None:
            await asyncio.shield(self.restricting)

    def forget_ending(self) -> None:
        """Let the interrupted turn be: a new one begins, or nobody listens any more."""
        if self.ending is not None:
            self.ending.cancel()
            self.ending = None

    @property
    def has_turn(self) -> bool:
        """Say whether a turn runs in it, or did when its client opened it again a moment ago."""
        is_reopening = self.state is AttachmentState.OPENING and self.is_mid_turn
        return self.upstream is not None and (is_reopening or self.state is AttachmentState.TURN)

    @property
    def is_live(self) -> bool:
        """Say whether calls can go to its upstream as they are."""
        return self.upstream is not None and self.state in (AttachmentState.IDLE, AttachmentState.TURN)


@dataclass(slots=True)
class Request:
    """A client's request on its way: as it came, with what the method table and the params say of it."""

    id: RequestId
    method: str
    params: Raw | UnsetType
    row: Method | None
    session_ids: list[str] = field(default_factory=list)
    #: Sessions it names that its caller has not; only where a call may name several (protocol.missing).
    missing_ids: list[str] = field(default_factory=list)
    #: The turn that it runs, or steers, in a shared session, once it may.
    run: Run | None = None

    @property
    def size_bytes(self) -> int:
        """Return about what it costs to keep it waiting."""
        return len(memoryview(self.params)) if isinstance(self.params, Raw) else 0

    def object(self) -> dict[str, Any]:
        """Return the decoded params. Raises errors.InvalidParams if they are no object."""
        return messages.params_object(self.params)

    @property
    def session_id(self) -> str | None:
        """Return the first session it names."""
        return self.session_ids[0] if self.session_ids else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a runtime that waits for the client's answer, and who takes it there: an upstream, or a seat."""

    upstream: Upstream | Seat
    request_id: RequestId
    session_id: str | None
    method: str
    params: Raw | UnsetType


class Client:
    """The state of one authenticated client link."""

    def __init__(
        self,
        link: Link,
        greeting: Greeting,
        introduction: dict[str, Any],
        services: Services,
        actor: Owner | None = None,
    ) -> None:
        self.link = link
        principal = greeting.principal
        #: Its policy is the current one: gateway.policy_watch puts another in its place when it changes.
        self.principal = principal
        self.proof = greeting.proof
        #: On whose behalf the link serves, where that is not its owner: a member of the owner's session (gateway.seats).
        self._actor = actor
        #: This link's seats in sessions of others, by session.
        self.seats: dict[str, Seat | Reader] = {}
        self.seating = asyncio.Lock()
        self.introduction = introduction
        self.services = services
        self.number = next(_numbers)
        self.opened_at = asyncio.get_running_loop().time()
        self.realm: Realm = placement.realm_of(principal.owner, principal.policy)
        self.upstreams: dict[str, Upstream] = {}
        self.attachments: dict[str, Attachment] = {}
        self.asked: Correlation[Asked] = Correlation(services.settings.max_requests_in_flight)
        #: Provider roles and the like, in order: a fresh runtime is told them again before any session.
        self.registrations: dict[str, Raw | UnsetType] = {}
        self.pump: Callable[[Upstream], Coroutine[Any, Any, None]] | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        #: The readers of the upstreams; one that is not here any more was handed over to another client.
        self.pumps: dict[Upstream, asyncio.Task[None]] = {}
        #: Sessions whose events are kept for now: the client is gone, or has not heard yet that it has resumed them.
        self.missed: dict[str, Missed] = {}
        self.turn_ended = asyncio.Event()
        #: Ends the serving of the link when its principal has ended; for gateway.service alone.
        self.term = asyncio.timeout(None)
        self.is_dismissed = False
        #: Whether all that it held is closed: nothing is opened for it any more.
        self.is_released = False
        self._opening = asyncio.Lock()
        self.log = _log.bind(link=self.number, tenant=principal.owner.tenant, peer=link.peer)

    @property
    def owner(self) -> Owner:
        """Return who calls."""
        return self.principal.owner

    @property
    def actor(self) -> Owner:
        """Return who acts: the owner, or the member for whom this link serves."""
        return self._actor or self.principal.owner

    @property
    def is_seat(self) -> bool:
        """Say whether this link serves a member of its owner's sessions."""
        return self._actor is not None

    @property
    def access(self) -> Access:
        """Return which column of the method table applies."""
        return self.principal.policy.access

    @property
    def is_alone(self) -> bool:
        """Say whether the runtimes of this realm serve this owner only."""
        return self.realm.isolation is Isolation.USER

    @property
    def turns(self) -> list[str]:
        """Return the sessions in which a turn runs, as far as this link knows."""
        return [held.session_id for held in self.attachments.values() if held.has_turn]

    def deliver(self, session_id: str, kind: str, body: bytes) -> None:
        """Send what is about a session, or keep it; it leaves with the next flush."""
        missed = self.missed.get(session_id)
        if missed is None:
            self.link.send(body)
        else:
            missed.add(kind, body)

    def release_missed(self, session_id: str) -> None:
        """Send what was kept of a session; later events go out as they come."""
        missed = self.missed.pop(session_id, None)
        for body in missed.bodies() if missed is not None else ():
            self.link.send(body)
        self.link.flush()

    def end_turn(self, held: Attachment, end: TurnEnd) -> None:
        """Record that a turn which this link has sent is over, if one was under way."""
        if held.turn is not None:
            self.services.recorder.end_turn(self, held, end)

    def ask(self, asked: Asked) -> None:
        """Ask the client what a runtime asks, under an id of ours: runtimes count theirs per connection, so two would collide.

        Raises:
            errors.OverCapacity: it owes too many answers.
        """
        body = messages.request(self.asked.open(asked), asked.method, asked.params)
        self.deliver(asked.session_id or "", "request", body)

    def refuse(self, request_id: RequestId | None, error: errors.AerodromeError) -> None:
        """Answer with an error; it leaves with the next flush."""
        self.link.send(handshake.answer_error(request_id, error))

    def live_upstream(self, session_id: str) -> Upstream | None:
        """Return the upstream of an attached session, None if a call must look further."""
        held = self.attachments.get(session_id)
        return held.upstream if held is not None and held.is_live else None

    async def upstream_for(self, session_id: str | None) -> Upstream:
        """Return the link to the runtime that holds the session, or to any of the realm for one that is not live.

        Raises:
            errors.RuntimeUnavailable, errors.OverCapacity, errors.Draining: there is none to be had.
        """
        held = self.attachments.get(session_id) if session_id is not None else None
        if held is not None and held.upstream is not None and not held.upstream.link.is_closing:
            return held.upstream
        async with self._opening:
            for _ in range(3):
                router = self.services.router
                runtime_id = router.destination(self.realm.key, session_id) if session_id is not None else None
                present = self._present_upstream(runtime_id)
                if present is not None:
                    return present
                handle = await self.services.fleet.acquire(self.realm, runtime_id)
                upstream = await self._connect(handle)
                if upstream is not None:
                    try:
                        return await self._introduce(upstream)
                    except errors.RuntimeLost as error:
                        # It took the connection and died: nothing of the client's was sent yet, another may have it.
                        self.services.fleet.retire(handle, error.message)
                        self.services.router.lose_runtime(handle.runtime_id)
            raise errors.RuntimeUnavailable("no runtime could be reached in three attempts; try again")

    def _present_upstream(self, runtime_id: str | None) -> Upstream | None:
        """Return the open upstream to that runtime, or to any where new sessions may be placed."""
        found = self.upstreams.values() if runtime_id is None else [self.upstreams.get(runtime_id)]
        open_ones = (one for one in found if one is not None and not one.link.is_closing)
        return next((one for one in open_ones if runtime_id is not None or not one.handle.cordoned.done()), None)

    async def _connect(self, handle: RuntimeHandle) -> Upstream | None:
        """Open a link to a runtime, or have its death noticed before its supervisor does."""
        try:
            upstream = await open_upstream(handle, self.services.settings)
        except errors.RuntimeUnavailable as error:
            self.services.fleet.release(handle)
            self.services.fleet.retire(handle, error.message)
            self.services.router.lose_runtime(handle.runtime_id)
            return None
        except BaseException:
            self.services.fleet.release(handle)
            raise
        if self.is_released:
            # Another link wanted a session back for this one too, which went meanwhile: nobody would close it.
            upstream.link.abort()
            self.services.fleet.release(handle)
            raise errors.RuntimeLost("the link that held the session has ended")
        self.upstreams[handle.runtime_id] = upstream
        self.services.occupancy.enter(upstream, self)
        self.services.router.watch(handle.runtime_id, handle.lost)
        self.run_pump(upstream)
        return upstream

    def run_pump(self, upstream: Upstream) -> None:
        """Read an upstream from now on."""
        assert self.pump is not None
        name = f"upstream {upstream.handle.runtime_id} of link {self.number}"
        self.pumps[upstream] = self.spawn(self.pump(upstream), name)

    def forget_upstream(self, upstream: Upstream) -> None:
        """Send nothing new through an upstream that has ended, or is another's now."""
        for key in [key for key, found in self.upstreams.items() if found is upstream]:
            del self.upstreams[key]

    async def _introduce(self, upstream: Upstream) -> Upstream:
        """Say who is calling, and repeat what this link had registered with an earlier runtime."""
        token = upstream.handle.token
        introduction = self.introduction if token is None else {**self.introduction, "token": token}
        try:
            answer = await upstream.call("connect", introduction)
            if answer.error is not UNSET:
                raise _refused_introduction(answer.error)
            for method, params in list(self.registrations.items()):
                await upstream.call(method, messages.params_object(params))
        except BaseException:
            upstream.link.abort()  # it must not be taken for one that is introduced; whoever reads it settles it
            raise
        return upstream

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task of this link; it ends with the link at the latest."""
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def answer_later(self, request_id: RequestId, make_body: Callable[[], Awaitable[bytes]]) -> None:
        """Send a body when it is made, or the error that came instead."""

        async def answer() -> None:
            try:
                self.link.send(await make_body())
            except errors.AerodromeError as error:
                self.refuse(request_id, error)
            except Exception:
                self.log.exception("answer.failed")
                self.refuse(
                    request_id, errors.AerodromeError("the gateway failed to finish this answer; its log says why")
                )
            self.link.flush()

        self.spawn(answer(), f"answer of link {self.number}")


def _refused_introduction(raw: Raw) -> errors.AerodromeError:
    """Return why a runtime refuses `connect`: for what the client said of itself, or for our token."""
    error = msgspec.json.decode(raw)
    number, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, None)
    if number == errors.WIRE["params_invalid"].jsonrpc:
        return errors.InvalidParams(redaction.mask(str(message)))
    return errors.RuntimeUnavailable("the runtime refuses our token; check the upstream's token")
