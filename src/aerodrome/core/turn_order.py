"""Whose turn it is in a shared session: a fair queue, and one lease at a time with a rising fencing token.

Pure; `now` is an argument, of one clock. An adapter keeps one `TurnOrder` for a session and makes each call one atomic step
(ports.coordination). Waiting turns and the lease both expire, so that whoever crashed holds nobody up; and a holder that was
paused past its lease finds a higher token in its way, whatever it believes.

Fair: a member's next turn counts as if it began where the member's one before would end, or now, if that is later (start-time
fair queueing with turns of equal cost). So everyone waits for at most one turn of every other member for each turn of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aerodrome import errors

#: Turns that may wait in a session, in all and of one member.
QUEUE_TURNS = 200
MEMBER_TURNS = 50


@dataclass(frozen=True, slots=True)
class Ticket:
    """A turn that waits. `urgent` ones go before all others, in the order in which they came."""

    turn_id: str
    member: str
    tag: int
    number: int
    expires_at: float
    is_urgent: bool = False
    #: When it came.
    since: float = 0.0

    @property
    def place(self) -> tuple[bool, int, int]:
        """Return what orders tickets."""
        return not self.is_urgent, self.tag, self.number


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a turn, until it expires. A lower token than the session's newest is stale."""

    turn_id: str
    member: str
    token: int
    since: float
    expires_at: float
    #: The one before it, where that expired and was never released: its holder has lost it to this one.
    lapsed: Lease | None = None


@dataclass(slots=True)
class TurnOrder:
    """The order of one session."""

    tickets: list[Ticket] = field(default_factory=list)
    lease: Lease | None = None
    token: int = 0
    #: Virtual time, and by member the tag of the last turn that was granted.
    _virtual: int = 0
    _granted: dict[str, int] = field(default_factory=dict)
    _number: int = 0
    _lapsed: Lease | None = None

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is remembered but the token, which never goes back."""
        return not self.tickets and self.lease is None

    def queue(self, now: float) -> list[Ticket]:
        """Return what waits, in the order in which it will run if nothing is added."""
        self._reap(now)
        return sorted(self.tickets, key=lambda ticket: ticket.place)

    def enqueue(self, turn_id: str, member: str, now: float, ttl: float, is_urgent: bool = False) -> int:
        """Have a turn wait for so long unless it is touched; return its place, 1 is the next. One that waits is touched.

        Raises:
            errors.OverCapacity: too many wait. errors.AlreadyExists: another member's turn has that id.
        """
        waiting = self._find(turn_id)
        if waiting is not None and waiting.member != member:
            raise errors.AlreadyExists(f"turn {turn_id} is another member's; choose another id")
        if not self.touch(turn_id, now, ttl):
            self._check_room(member)
            own = [ticket.tag for ticket in self.tickets if ticket.member == member]
            tag = max(self._virtual, self._granted.get(member, 0), max(own, default=0)) + 1
            self._number += 1
            self.tickets.append(Ticket(turn_id, member, tag, self._number, now + ttl, is_urgent, now))
        return self.position(turn_id, now)

    def position(self, turn_id: str, now: float) -> int:
        """Return the place of a waiting turn, 0 if it does not wait."""
        ids = [ticket.turn_id for ticket in self.queue(now)]
        return ids.index(turn_id) + 1 if turn_id in ids else 0

    def touch(self, turn_id: str, now: float, ttl: float) -> bool:
        """Have a turn wait longer; say whether it still waits."""
        self._reap(now)
        ticket = self._find(turn_id)
        if ticket is None:
            return False
        self.tickets[self.tickets.index(ticket)] = Ticket(
            turn_id, ticket.member, ticket.tag, ticket.number, now + ttl, ticket.is_urgent, ticket.since
        )
        return True

    def withdraw(self, turn_id: str) -> bool:
        """Take back a turn that waits; say whether it did."""
        ticket = self._find(turn_id)
        if ticket is None:
            return False
        self.tickets.remove(ticket)
        self._forget()
        return True

    def leave(self, member: str) -> list[str]:
        """Take back all that a member has waiting; return the turns."""
        gone = [ticket.turn_id for ticket in self.tickets if ticket.member == member]
        self.tickets = [ticket for ticket in self.tickets if ticket.member != member]
        self._forget()
        return gone

    def acquire(self, turn_id: str, now: float, ttl: float) -> Lease | None:
        """Grant the lease to the turn whose place is the first; None while another runs, or waits before it."""
        self._reap(now)
        if self.lease is not None:
            return None
        waiting = self.queue(now)
        if not waiting or waiting[0].turn_id != turn_id:
            return None
        first = waiting[0]
        self.tickets.remove(first)
        self._granted[first.member] = max(self._granted.get(first.member, 0), first.tag)
        self._virtual = max(self._virtual, first.tag - 1)
        self.token += 1
        self.lease = Lease(turn_id, first.member, self.token, now, now + ttl, self._lapsed)
        self._lapsed = None
        return self.lease

    def renew(self, token: int, now: float, ttl: float) -> Lease:
        """Have the lease last longer.

        Raises:
            errors.LeaseLost: it is over, or another's.
        """
        lease = self.check(token, now)
        self.lease = Lease(lease.turn_id, lease.member, lease.token, lease.since, now + ttl)
        return self.lease

    def release(self, token: int) -> bool:
        """End the lease; say whether it was the newest. Idempotent."""
        if self.lease is None or self.lease.token != token:
            return False
        self.lease = None
        self._forget()
        return True

    def check(self, token: int, now: float) -> Lease:
        """Check a token, in the same step as what it guards.

        Raises:
            errors.LeaseLost: it is stale: the lease is over, or another's.
        """
        self._reap(now)
        if self.lease is None or self.lease.token != token:
            raise errors.LeaseLost(
                f"fencing token {token} is stale: the lease has expired or passed on (the newest is {self.token}); "
                "acquire a new one"
            )
        return self.lease

    def _check_room(self, member: str) -> None:
        if len(self.tickets) >= QUEUE_TURNS:
            raise errors.OverCapacity(f"{QUEUE_TURNS} turns wait in this session; try again when some are over")
        if sum(ticket.member == member for ticket in self.tickets) >= MEMBER_TURNS:
            raise errors.OverCapacity(
                f"{MEMBER_TURNS} turns of yours wait in this session; wait for some of them first"
            )

    def _find(self, turn_id: str) -> Ticket | None:
        return next((ticket for ticket in self.tickets if ticket.turn_id == turn_id), None)

    def _reap(self, now: float) -> None:
        if self.lease is not None and now >= self.lease.expires_at:
            self._lapsed = replace(self.lease, lapsed=None)
            self.lease = None
        if any(now >= ticket.expires_at for ticket in self.tickets):
            self.tickets = [ticket for ticket in self.tickets if now < ticket.expires_at]
        self._forget()

    def _forget(self) -> None:
        """Forget members whose next turn would count from now anyway; a quiet session begins anew."""
        if self.is_idle:
            self._virtual, self._granted = 0, {}
        else:
            self._granted = {member: tag for member, tag in self._granted.items() if tag > self._virtual}
