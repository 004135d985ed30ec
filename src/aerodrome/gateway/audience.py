"""Those who only read a shared session: they hear what its holders hear, and cost no connection to a runtime of their own.

A runtime tells a session's events to the connections that have it open, and takes 128 of those. Whoever may only read is told by
the gateway instead, from what any holder's link hears: each event once, by its id. The first link to hear one passes it on; every
link hears them in the same order, so that the order is kept and nothing is left out while anybody has the session open. Readers
do not keep a session at work: what ends with its last holder ends.

A reader's other calls go by a holder's upstream; where nobody holds the session it takes a seat like others (gateway.seats).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from aerodrome import errors
from aerodrome.core.membership import Right
from aerodrome.protocol import member_methods, messages

if TYPE_CHECKING:
    from aerodrome.core.identity import Owner
    from aerodrome.gateway.client import Client, Request
    from aerodrome.gateway.residents import Holder

#: Events that are remembered so as not to be told twice; holders' links are never so far apart.
_REMEMBERED = 4096
#: What may wait for a reader: nobody else waits for it.
_MOST_UNSENT_BYTES = 32 * 1024 * 1024
_LEAVES = ("session.detach", "session.destroy")


class _Event(msgspec.Struct, gc=False):
    id: str = ""


class _Params(msgspec.Struct, gc=False):
    event: _Event = msgspec.field(default_factory=_Event)


class _Message(msgspec.Struct, gc=False):
    params: _Params = msgspec.field(default_factory=_Params)


_decode = msgspec.json.Decoder(_Message).decode


@dataclass(slots=True)
class Audience:
    """The readers of one session."""

    readers: dict[int, Reader] = field(default_factory=dict)
    _told: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def tell(self, body: bytes) -> None:
        """Tell readers an event, unless they have been told."""
        event_id = event_id_of(body)
        if event_id:
            if event_id in self._told:
                return
            self._told[event_id] = None
            if len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
        for reader in list(self.readers.values()):
            reader.hear(body)

    @property
    def told(self) -> frozenset[str]:
        """Return the events that readers have been told lately."""
        return frozenset(self._told)


class Audiences:
    """The readers of all shared sessions, by realm and session."""

    def __init__(self) -> None:
        self._audiences: dict[tuple[str, str], Audience] = {}

    def find(self, realm: str, session_id: str) -> Audience | None:
        """Return a session's readers, None if it has none."""
        return self._audiences.get((realm, session_id)) if self._audiences else None

    def enter(self, realm: str, session_id: str, reader: Reader) -> Audience:
        """Have a reader told what is said from now on."""
        audience = self._audiences.setdefault((realm, session_id), Audience())
        audience.readers[reader.number] = reader
        return audience

    def leave(self, realm: str, session_id: str, reader: Reader) -> None:
        """Have a reader told nothing more. Idempotent."""
        audience = self._audiences.get((realm, session_id))
        if audience is not None and audience.readers.get(reader.number) is reader:
            del audience.readers[reader.number]
            if not audience.readers:
                del self._audiences[realm, session_id]

    def users(self, realm: str, session_id: str) -> list[Owner]:
        """Return who reads a session, by a link each."""
        audience = self.find(realm, session_id)
        return [reader.client.actor for reader in audience.readers.values()] if audience is not None else []


@dataclass(eq=False, slots=True)
class Reader:
    """A link that reads one session of another owner; stands where a seat does. `give_up` has it take a seat instead."""

    client: Client
    owner: Owner
    realm: str
    session_id: str
    audiences: Audiences
    give_up: Callable[[Reader, Request | None], None]
    unwatch: Callable[[], None] = lambda: None
    #: Whether it is taking a seat.
    is_leaving: bool = False
    _audience: Audience | None = None
    #: What was said while it is not known whether the reader may still read.
    _kept: list[bytes] | None = None
    _kept_bytes: int = 0
    _is_flushing: bool = False
    _stalled_at: float | None = None

    @property
    def number(self) -> int:
        """Return the number of its link."""
        return self.client.number

    @property
    def told(self) -> frozenset[str]:
        """Return the events that it has been told lately."""
        return self._audience.told if self._audience is not None else frozenset()

    def begin(self) -> None:
        """Hear what is said from now on."""
        self._audience = self.audiences.enter(self.realm, self.session_id, self)
        self.client.seats[self.session_id] = self

    def pause(self) -> None:
        """Pass nothing on until it is known whether the reader may still read."""
        self._kept = [] if self._kept is None else self._kept

    def go_on(self) -> None:
        """Pass on what was said meanwhile, and what follows."""
        kept, self._kept, self._kept_bytes = self._kept, None, 0
        for body in kept or ():
            self.hear(body)

    def is_of(self, _owner: Owner) -> bool:
        """Say that no other session is served by it."""
        return False

    def hear(self, body: bytes) -> None:
        """Pass an event on; a link that does not read for too long is closed, for memory for it would have no bound."""
        if self._kept is not None:
            self._kept.append(body)
            self._kept_bytes += len(body)
            if self._kept_bytes > _MOST_UNSENT_BYTES:
                self.client.link.abort()
            return
        link, loop = self.client.link, asyncio.get_running_loop()
        if not link.is_stalled:
            self._stalled_at = None
        elif self._stalled_at is None:
            self._stalled_at = now = loop.time()
            loop.call_later(self.client.services.settings.stall_seconds, self._check_stall, now)
        if link.unsent_bytes > _MOST_UNSENT_BYTES:
            link.abort()
            return
        link.send(body)
        if not self._is_flushing:
            self._is_flushing = True
            loop.call_soon(self._flush)

    def take(self, request: Request) -> None:
        """Answer a request about the session, or have a holder's upstream answer it.

        Raises:
            errors.PolicyRejected: it needs more than reading.
        """
        right = member_methods.right_for(request.method)
        if right is not Right.READ and (self._kept is not None or self.is_leaving):
            self.give_up(self, request)  # its roles have just changed: its seat will say
            return
        if right is not Right.READ:
            raise member_methods.refusal(request.method, self.session_id, right)
        source = self._source()
        if request.method in _LEAVES:
            self.end()
            self.client.link.send(messages.result(request.id, {"success": True}))
        elif request.method in member_methods.SWALLOWED:
            self.client.link.send(messages.result(request.id, member_methods.SWALLOWED[request.method]))
        elif source is None:
            self.give_up(self, request)
        elif request.method == "session.resume":
            assert source.held.answered is not None
            self.client.services.audit.joined(self.client, self.session_id, self.owner)
            self.client.link.send(messages.raw_result(request.id, source.held.answered))
        else:
            work = self._ask(source, request)
            self.client.spawn(work, f"reader of link {self.client.number}")

    def send(self, _body: bytes) -> None:
        """Send nothing: a reader is asked nothing."""

    async def drain(self, _stall_seconds: float) -> None:
        """Wait for nothing: nothing of a reader's waits."""

    def end(self) -> None:
        """Hear nothing more. Idempotent."""
        self.unwatch()
        self.audiences.leave(self.realm, self.session_id, self)
        if self.client.seats.get(self.session_id) is self:
            del self.client.seats[self.session_id]

    @property
    def has_source(self) -> bool:
        """Say whether anybody has the session in a runtime."""
        return self._source() is not None

    def _source(self) -> Holder | None:
        """Return a holder that has the session in a runtime, the latest."""
        resident = self.client.services.residents.find(self.realm, self.session_id)
        live = resident.live if resident is not None else []
        return next((holder for holder in reversed(live) if holder.held.answered is not None), None)

    async def _ask(self, source: Holder, request: Request) -> None:
        upstream = source.held.upstream
        try:
            if upstream is None:
                raise errors.RuntimeLost("the session has just left its runtime; try again")
            envelope = await upstream.call(request.method, request.object())
        except errors.AerodromeError as error:
            self.client.refuse(request.id, error)
        else:
            self.client.link.send(messages.response(request.id, envelope))
        self.client.link.flush()

    def _check_stall(self, since: float) -> None:
        if self._stalled_at == since and self.client.link.is_stalled:
            self.client.link.abort()

    def _flush(self) -> None:
        self._is_flushing = False
        self.client.link.flush()


def event_id_of(body: bytes) -> str:
    """Return the id of a `session.event`."""
    try:
        return _decode(body).params.event.id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def is_reader(rights: frozenset[Right]) -> bool:
    """Say whether somebody may read and nothing else."""
    return rights == {Right.READ}
