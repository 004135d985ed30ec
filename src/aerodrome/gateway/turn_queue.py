"""Whose turn it is in a shared session: messages wait for their place, run under a lease, and are fenced.

A message to a session that is shared is held here until its turn is the next (ports.coordination), sent under a lease that is
renewed while the turn runs, and let go when the session is idle again. Right before it is sent its token is checked, in the same
step of the event loop: whoever was paused past the lease finds another's turn in its way. What may begin a turn goes through
`begin`; nothing else about a session waits for it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from aerodrome import errors
from aerodrome.core import session as sessions
from aerodrome.core.identity import Owner
from aerodrome.core.membership import Billing, BusyPolicy, Right, SentBy, Sharing
from aerodrome.core.turn_order import Lease
from aerodrome.gateway.sharing import SharedSessions
from aerodrome.ports.coordination import Order

if TYPE_CHECKING:
    from aerodrome.gateway.client import Client, Services

_log = structlog.get_logger()
#: A waiting turn is looked at so often at least; notices come earlier.
_LOOK_SECONDS = 1.0
#: The first turn of a session that is at work already waits for that.
_SETTLE_SECONDS = 0.05
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """`lease_seconds`: how long a lease lasts unless it is renewed, and how long a turn waits unless it is asked for."""

    lease_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a turn is to run."""

    services: Services
    realm: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Dismissal:
    """What was taken back from somebody: turns that waited, and that which held the lease and did not run."""

    withdrawn: list[str]
    held: str | None = None


@dataclass(slots=True, eq=False)
class Run:
    """A turn that runs: who sent it, under which lease. `message_id` is the runtime's, once it has answered."""

    session_id: str
    realm: str
    client: Client
    turn_id: str
    lease: Lease
    is_explicit: bool = False
    billing: Billing = Billing.SENDER
    message_id: str | None = None
    is_answered: bool = False
    is_sent: bool = False
    #: Messages that began since it was sent, until it is answered; and those of them that an idle has followed.
    began: frozenset[str] = frozenset()
    is_idle_after: frozenset[str] = frozenset()
    over: asyncio.Event = field(default_factory=asyncio.Event)
    #: One that was sent before it and is not over: under one lease a sender may send several, and only the last hears an idle.
    before: Run | None = None
    #: Whether it is no turn but a message into one, under that one's lease.
    is_steering: bool = False
    #: Messages into this turn that no idle has followed yet, and whether one has followed the turn's own message: one that the
    #: runtime took too late begins a turn of its own, for which the lease stays.
    steering: list[_Steering] = field(default_factory=list)
    is_idle: bool = False

    @property
    def actor(self) -> Owner:
        """Return who sent it."""
        return self.client.actor


@dataclass(slots=True, eq=False)
class _Steering:
    """A message into a turn: what links have heard since it was sent, as (link, message)."""

    run: Run
    began: set[tuple[int, str]] = field(default_factory=set)
    is_idle_after: set[str] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """Say whether an idle has followed it; until the runtime has said what it is called, nobody knows."""
        return self.run.is_answered and self.run.message_id in self.is_idle_after


#: Hears of turns that have begun and ended: the run, and whether it is over.
NoteTurn = Callable[[Run, bool], None]


class TurnQueue:
    """The turns of the shared sessions of this gateway."""

    def __init__(
        self, shared: SharedSessions, settings: TurnSettings, note: NoteTurn = lambda _run, _over: None
    ) -> None:
        self._shared = shared
        shared.dismiss = self.dismiss
        self._settings = settings
        self._note = note
        self._runs: dict[tuple[str, str], Run] = {}
        #: Sessions in which a turn has run under a lease.
        self._ordered: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Who sent the messages that are being kept now.
        self._keeping: set[SentBy] = set()

    # -- for the relay ------------------------------------------------------------------------------------------------------

    async def begin(
        self,
        client: Client,
        session_id: str,
        turn_id: str | None,
        token: int | None,
        queued: Callable[[], None] = lambda: None,
    ) -> Run:
        """Wait until a message may begin its turn, or steer the one that runs; return its run.

        `token` is that of a lease which the sender has acquired itself. `queued` is called when it has its place among those
        who wait: the next message of the same link may have its own then.

        Raises:
            errors.SessionBusy: policy is to refuse while a turn runs. errors.OverCapacity: too many wait.
            errors.LeaseLost: the token is stale. errors.TurnWithdrawn: it was withdrawn, or its sender may not send any more.
            errors.InvalidParams, errors.AlreadyExists: `turn_id` is none, or waits already.
        """
        if turn_id is not None and not sessions.is_valid_id(turn_id):
            raise errors.InvalidParams("expected aerodromeTurn to be 1 to 250 of A-Z, a-z, 0-9, '_' and '-'")
        sharing = await self._shared.sharing(session_id) or Sharing(session_id)
        if token is not None:
            await self._check_sender(client, session_id, turn_id)
            lease = self._check_token(client, session_id, token)
            run = self._start(client, session_id, turn_id or lease.turn_id, lease, is_explicit=True)
            run.billing = sharing.billing
            return run
        turn_id = turn_id or f"turn_{secrets.token_hex(12)}"
        order = await self._shared.stores.coordinator.look(session_id)
        if order.lease is not None or order.queue:
            if sharing.busy is BusyPolicy.REJECT:
                raise _busy(order)
            running = self._runs.get((client.realm.key, session_id))
            if sharing.busy is BusyPolicy.STEER and running is not None and running.is_sent:
                # Else there is none to steer: a holder of the lease between two turns, or on its way.
                return Run(session_id, client.realm.key, client, running.turn_id, running.lease, is_steering=True)
        place = _Place(client.services, client.realm.key, session_id)
        lease = await self._wait(place, turn_id, client.actor.user, sharing.busy is BusyPolicy.INTERRUPT, queued=queued)
        try:
            await self._check_sender(client, session_id, turn_id)
        except BaseException:
            await self._shared.stores.coordinator.release(session_id, lease.token)
            raise
        client.services.audit.took_over(client, session_id, client.owner, lease)
        run = self._start(client, session_id, turn_id, lease)
        run.billing = sharing.billing
        return run

    def check(self, run: Run) -> None:
        """Check the fence, in the same step as the sending. Raises errors.LeaseLost; also where the turn to steer is over."""
        if run.is_steering:
            self._check_steered(run)
            return
        try:
            self._shared.stores.fence.check(run.session_id, run.lease.token)
        except errors.LeaseLost:
            self._end(run)
            raise

    def answered(self, run: Run, message_id: str | None) -> None:
        """Note the runtime's answer to the message; None: it took none."""
        if message_id is None:
            if run.is_steering:
                self._settle_steered(run, refused=run)
            else:
                self._end(run)
            return
        run.message_id, run.is_answered = message_id, True
        run.client.services.audit.sent(run.client, run.session_id, run.turn_id)
        sent = SentBy(run.session_id, message_id, run.turn_id, run.actor.user, self._shared.clock.now())
        self._keep_sender(sent)
        if run.is_steering:
            self._settle_steered(run)
            return
        run_is_over = message_id in run.is_idle_after
        self._note(run, False)
        said = {"turnId": run.turn_id, "sender": run.actor.user, "messageId": message_id}
        self._tell(run.client.services, run.realm, run.session_id, "aerodrome.turn_started", said)
        if run_is_over:
            self._fall_idle(run)

    async def dismiss(self, session_id: str, person: Owner) -> Dismissal:
        """Take back what somebody who may not send any more has waiting, and the lease if it is theirs.

        A turn of theirs that runs keeps it until it is over.
        """
        coordinator = self._shared.stores.coordinator
        withdrawn = await coordinator.withdraw(session_id, None, person.user)
        lease = (await coordinator.look(session_id)).lease
        if lease is None or lease.member != person.user:
            return Dismissal(withdrawn)
        running = [run for run in self._runs.values() if (run.session_id, run.lease.token) == (session_id, lease.token)]
        for run in running:
            if run.is_explicit:
                run.is_explicit = False
                self._spawn(self._keep(run), f"turn of session {session_id}")
        if running or not await coordinator.release(session_id, lease.token):
            return Dismissal(withdrawn)
        return Dismissal(withdrawn, lease.turn_id)

    def payer(self, realm: str, session_id: str, owner: Owner) -> Owner:
        """Return whose usage it is what runs in an owner's session now."""
        run = self._runs.get((realm, session_id))
        if run is None or run.billing is not Billing.SENDER:
            return owner
        return run.steering[0].run.actor if run.is_idle and run.steering else run.actor

    async def senders(self, session_id: str, message_ids: Collection[str]) -> dict[str, str]:
        """Return who sent messages of a session, by the runtime's ids of them: also those that are just being kept."""
        being_kept = [
            sent for sent in self._keeping if sent.session_id == session_id and sent.message_id in message_ids
        ]
        kept = await self._shared.stores.sharings.list_sent(session_id, message_ids)
        return {sent.message_id: sent.user for sent in (*being_kept, *kept)}

    def hear(self, client: Client, session_id: str, kind: str, body: bytes) -> None:
        """Note what a link hears of a session: the idle that follows the message of a run, on the link that sent it, is its end.

        The idle of the turn before may still come after the message was sent; and the answer that says what the message is
        called may come after all of a quick turn.
        """
        run = self._runs.get((client.realm.key, session_id)) if self._runs else None
        if run is None or not run.is_sent:
            return
        if run.steering:
            self._hear_steered(run, client, kind, body)
        if run.client is not client:
            if kind == "session.idle" and self._has_left(run) and self._is_left(run):
                self._fall_idle(run)  # its sender has gone; the others heard its turn to the end
            return
        if kind == "session.idle":
            run.is_idle_after |= run.began
            if run.is_answered:
                self._fall_idle(run)
        elif kind == "user.message" and not run.is_answered:
            run.began |= {_message_id(body)}

    def lost(self, client: Client, session_id: str) -> None:
        """Note that the turn of a link has ended with its runtime."""
        run = self._runs.get((client.realm.key, session_id)) if self._runs else None
        if run is not None and run.client is client:
            self._end(run)

    async def acquire(
        self, services: Services, realm: str, session_id: str, member: str, ttl: float, wait_seconds: float
    ) -> Lease:
        """Acquire the lease for a turn that a member will send, and renew and release, itself.

        Raises:
            errors.SessionBusy: it was not to be had in time.
        """
        turn_id = f"turn_{secrets.token_hex(12)}"
        try:
            async with asyncio.timeout(wait_seconds):
                return await self._wait(_Place(services, realm, session_id), turn_id, member, False, ttl)
        except TimeoutError:
            raise _busy(await self._shared.stores.coordinator.look(session_id)) from None

    async def aclose(self) -> None:
        """End what renews leases. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- waiting ------------------------------------------------------------------------------------------------------------

    async def _wait(
        self,
        place: _Place,
        turn_id: str,
        member: str,
        interrupts: bool,
        ttl: float | None = None,
        *,
        queued: Callable[[], None] = lambda: None,
    ) -> Lease:
        coordinator, seconds = self._shared.stores.coordinator, self._settings.lease_seconds
        session_id = place.session_id
        order = await coordinator.look(session_id)
        if any(ticket.turn_id == turn_id for ticket in order.queue):
            raise errors.AlreadyExists(f"turn {turn_id} waits already; choose another id")
        position = await coordinator.enqueue(session_id, turn_id, member, seconds, interrupts)
        queued()
        said = {"turnId": turn_id, "sender": member, "position": position}
        self._tell(place.services, place.realm, session_id, "aerodrome.turn_queued", said)
        lease: Lease | None = None
        try:
            if interrupts:
                await self._interrupt(place)
            while lease is None:
                if self._is_busy_otherwise(place):
                    await self._wait_on(session_id, turn_id)
                    await coordinator.wait_changed(session_id, _SETTLE_SECONDS)
                    continue
                lease = await coordinator.acquire(session_id, turn_id, ttl or seconds)
                if lease is None:
                    await self._wait_on(session_id, turn_id)
                    await coordinator.wait_changed(session_id, min(_LOOK_SECONDS, seconds / 3))
            return lease
        finally:
            if lease is None:
                await coordinator.withdraw(session_id, turn_id)

    async def _wait_on(self, session_id: str, turn_id: str) -> None:
        """Keep a turn's place for as long as its sender is here. Raises errors.TurnWithdrawn: it has none any more."""
        if not await self._shared.stores.coordinator.touch(session_id, turn_id, self._settings.lease_seconds):
            raise errors.TurnWithdrawn(f"turn {turn_id} was withdrawn before it was sent")

    def _is_busy_otherwise(self, place: _Place) -> bool:
        """Say whether a turn runs that began before the session was shared: its end is waited for."""
        key = (place.realm, place.session_id)
        if key in self._ordered:
            return (
                False  # since then every turn has come through here; other links may only not have heard of its end yet
            )
        resident = place.services.residents.find(*key)
        return resident is not None and any(one.held.has_turn for one in resident.live)

    async def _interrupt(self, place: _Place) -> None:
        """Abort the turn that runs; the message that does it is the next."""
        resident = place.services.residents.find(place.realm, place.session_id)
        for holder in resident.live if resident is not None else []:
            if holder.held.has_turn and holder.held.upstream is not None:
                await holder.held.upstream.call("session.abort", {"sessionId": place.session_id})
                return

    async def _check_sender(self, client: Client, session_id: str, turn_id: str | None) -> None:
        """Check that whoever sends may still: it may have waited for long."""
        if Right.SEND not in await self._shared.rights(session_id, client.actor, client.owner):
            raise errors.TurnWithdrawn(
                f"turn {turn_id or ''} was withdrawn: its sender may not send in this session any more"
            )

    def _check_token(self, client: Client, session_id: str, token: int) -> Lease:
        lease = self._shared.stores.fence.check(session_id, token)
        if lease.member != client.actor.user:
            raise errors.LeaseLost(f"fencing token {token} is another member's")
        return lease

    # -- running ------------------------------------------------------------------------------------------------------------

    def _start(self, client: Client, session_id: str, turn_id: str, lease: Lease, is_explicit: bool = False) -> Run:
        run = Run(session_id, client.realm.key, client, turn_id, lease, is_explicit)
        said = {"turnId": turn_id, "sender": client.actor.user}
        self._tell(client.services, run.realm, session_id, "aerodrome.turn_granted", said)
        run.before = self._runs.get((run.realm, session_id))
        if run.before is not None:
            run.steering, run.before.steering = run.before.steering, []
        self._runs[run.realm, session_id] = run
        if len(self._ordered) >= _REMEMBERED:
            self._ordered.clear()
        self._ordered.add((run.realm, session_id))
        if not is_explicit:
            self._spawn(self._keep(run), f"turn of session {session_id}")
        return run

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _keep_sender(self, sent: SentBy) -> None:
        """Keep who sent a message, for whoever reads the history; the audit log and usage have it without."""
        self._keeping.add(sent)
        self._spawn(self._add_sender(sent), f"sender of a message of session {sent.session_id}")

    async def _add_sender(self, sent: SentBy) -> None:
        try:
            await self._shared.stores.sharings.add_sent(sent)
        except errors.StoreUnavailable as error:
            _log.warning("turn.sender_unkept", session=sent.session_id, reason=error.message)
        finally:
            self._keeping.discard(sent)

    async def _keep(self, run: Run) -> None:
        """Renew the lease for as long as the turn runs, wherever it ends."""
        seconds = self._settings.lease_seconds
        coordinator = self._shared.stores.coordinator
        was_left = False
        try:
            while not run.over.is_set():
                try:
                    async with asyncio.timeout(seconds / 3):
                        await run.over.wait()
                except TimeoutError:
                    is_left = self._is_left(run)
                    if is_left and (was_left or not run.steering):  # a message into it may be about to begin a turn
                        break
                    was_left = is_left
                    run.lease = await coordinator.renew(run.session_id, run.lease.token, seconds)
        except errors.AerodromeError as error:
            _log.warning("turn.lease_lost", session=run.session_id, reason=error.message)
        finally:
            self._end(run)
            await coordinator.release(run.session_id, run.lease.token)

    def _has_left(self, run: Run) -> bool:
        """Say whether the link that sent a turn holds the session no more."""
        resident = run.client.services.residents.find(run.realm, run.session_id)
        return resident is None or run.client.number not in resident.holders

    def _is_left(self, run: Run) -> bool:
        """Say whether nobody runs the turn any more: its link is gone, and no other link hears of it."""
        resident = run.client.services.residents.find(run.realm, run.session_id)
        if resident is None:
            return True
        if run.client.number in resident.holders:
            held = resident.holders[run.client.number].held
            return run.is_answered and not held.has_turn and held.ending is None
        return not any(holder.held.has_turn for holder in resident.holders.values())

    # -- steering -----------------------------------------------------------------------------------------------------------

    def _check_steered(self, run: Run) -> None:
        """Have a message go into the turn that runs. Raises errors.LeaseLost: none does any more."""
        running = self._runs.get((run.realm, run.session_id))
        if running is None or not running.is_sent:
            raise errors.LeaseLost(
                f"no turn runs in session {run.session_id} any more that could be steered; send it again"
            )
        self._shared.stores.fence.check(run.session_id, running.lease.token)
        run.turn_id, run.lease = running.turn_id, running.lease
        running.steering.append(_Steering(run))

    def _hear_steered(self, run: Run, client: Client, kind: str, body: bytes) -> None:
        """Note what any link hears of messages into a turn: that an idle followed one is so whoever heard it."""
        if kind == "user.message":
            said = (client.number, _message_id(body))
            for one in run.steering:
                one.began.add(said)
        elif kind == "session.idle":
            for one in run.steering:
                one.is_idle_after |= {message_id for number, message_id in one.began if number == client.number}
            self._settle(run)

    def _settle(self, run: Run, refused: Run | None = None) -> None:
        """Forget messages into a turn that are over or were refused; the turn may be over with them."""
        run.steering = [one for one in run.steering if one.run is not refused and not one.is_over]
        if run.is_idle and not run.steering:
            self._end(run)

    def _settle_steered(self, steering: Run, refused: Run | None = None) -> None:
        steered = self._runs.get((steering.realm, steering.session_id))
        if steered is not None:
            self._settle(steered, refused)

    def _fall_idle(self, run: Run) -> None:
        """End a turn whose message is over, unless one into it may have begun another."""
        run.is_idle = True
        if not run.steering:
            self._end(run)

    def _end(self, run: Run) -> None:
        key = (run.realm, run.session_id)
        if self._runs.get(key) is run:
            del self._runs[key]
        ended: list[Run] = []
        following: Run | None = run
        while following is not None and not following.over.is_set():
            following.over.set()
            ended.append(following)
            following = following.before
        for one in reversed(ended):
            one.before = None
            self._note(one, True)
            said: dict[str, Any] = {"turnId": one.turn_id, "sender": one.actor.user, "messageId": one.message_id}
            self._tell(one.client.services, *key, "aerodrome.turn_ended", said)

    def _tell(self, services: Services, realm: str, session_id: str, kind: str, data: dict[str, Any]) -> None:
        self._shared.tell(services, realm, session_id, kind, data)


def _message_id(body: bytes) -> str:
    """Return what the runtime calls the message of a `user.message` event."""
    try:
        data = msgspec.json.decode(body)["params"]["event"]["data"]
        return str(data["messageId"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return ""


def _busy(order: Order) -> errors.SessionBusy:
    lease = order.lease
    if lease is None:
        return errors.SessionBusy(f"{len(order.queue)} turns wait in this session; try again", waiting=len(order.queue))
    seconds = round(order.now - lease.since, 3)
    return errors.SessionBusy(
        f"a turn of {lease.member} runs in this session for {seconds:g} s; try again when it is over",
        holder=lease.member,
        since_seconds=seconds,
        waiting=len(order.queue),
    )
