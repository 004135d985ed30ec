"""Whose turn it is: a stateful model of queue and lease over thousands of schedules, and the rules one by one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aerodrome import errors
from aerodrome.core.turn_order import MEMBER_TURNS, TurnOrder

TTL = 10.0
MEMBERS = ["ann", "bob", "cat", "dan"]


class Schedules(RuleBasedStateMachine):
    """Joins, sends, ends, crashes, pauses and expiries in any order; the model remembers what each step must keep."""

    def __init__(self) -> None:
        super().__init__()
        self.order = TurnOrder()
        self.now = 0.0
        self.turns = 0
        self.waiting: dict[str, tuple[str, float]] = {}
        self.holder: tuple[str, int, float] | None = None
        self.tokens: list[int] = []
        self.old_tokens: set[int] = set()

    def reap(self) -> None:
        self.waiting = {turn: (who, end) for turn, (who, end) in self.waiting.items() if self.now < end}
        if self.holder is not None and self.now >= self.holder[2]:
            self.old_tokens.add(self.holder[1])
            self.holder = None

    @rule(member=st.sampled_from(MEMBERS), is_urgent=st.booleans())
    def send(self, member: str, is_urgent: bool) -> None:
        self.turns += 1
        turn = f"t{self.turns}"
        of_member = sum(who == member for who, _ in self.waiting.values())
        if of_member >= MEMBER_TURNS:
            with pytest.raises(errors.OverCapacity):
                self.order.enqueue(turn, member, self.now, TTL, is_urgent)
            return
        place = self.order.enqueue(turn, member, self.now, TTL, is_urgent)
        self.waiting[turn] = (member, self.now + TTL)
        assert 1 <= place <= len(self.waiting)

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 9.9, 10.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.reap()

    @rule()
    def touch_all(self) -> None:
        for turn, (who, _) in list(self.waiting.items()):
            assert self.order.touch(turn, self.now, TTL)
            self.waiting[turn] = (who, self.now + TTL)

    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        queue = [ticket.turn_id for ticket in self.order.queue(self.now)]
        turn = data.draw(st.sampled_from([*queue, "nobody"]))
        lease = self.order.acquire(turn, self.now, TTL)
        if self.holder is not None or not queue or turn != queue[0]:
            assert lease is None
            return
        assert lease is not None
        assert lease.member == self.waiting.pop(turn)[0]
        assert lease.token > max(self.tokens, default=0)
        self.tokens.append(lease.token)
        self.holder = (turn, lease.token, self.now + TTL)

    @precondition(lambda self: self.holder is not None)
    @rule()
    def renew(self) -> None:
        turn, token, _ = self.holder
        self.order.renew(token, self.now, TTL)
        self.holder = (turn, token, self.now + TTL)

    @precondition(lambda self: self.holder is not None)
    @rule()
    def end(self) -> None:
        assert self.order.release(self.holder[1])
        self.old_tokens.add(self.holder[1])
        self.holder = None

    @precondition(lambda self: self.old_tokens)
    @rule(data=st.data())
    def come_back_from_a_pause(self, data: st.DataObject) -> None:
        stale = data.draw(st.sampled_from(sorted(self.old_tokens)))
        with pytest.raises(errors.LeaseLost):
            self.order.check(stale, self.now)
        with pytest.raises(errors.LeaseLost):
            self.order.renew(stale, self.now, TTL)
        assert not self.order.release(stale)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.order.withdraw(turn)
        assert not self.order.withdraw(turn)
        del self.waiting[turn]

    @rule(member=st.sampled_from(MEMBERS))
    def leave(self, member: str) -> None:
        gone = self.order.leave(member)
        assert sorted(gone) == sorted(turn for turn, (who, _) in self.waiting.items() if who == member)
        for turn in gone:
            del self.waiting[turn]

    @invariant()
    def one_holder_and_nobody_lost(self) -> None:
        assert {ticket.turn_id for ticket in self.order.queue(self.now)} == set(self.waiting)
        held = self.order.lease
        assert (held is None) == (self.holder is None)
        if held is not None:
            assert (held.turn_id, held.token) == self.holder[:2]

    @invariant()
    def turns_of_one_member_keep_their_order(self) -> None:
        for member in MEMBERS:
            own = [t for t in self.order.queue(self.now) if t.member == member and not t.is_urgent]
            assert [t.number for t in own] == sorted(t.number for t in own)


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def run(order: TurnOrder, turns: int) -> list[str]:
    """Run turns to their end; return whose they were."""
    said = []
    for _ in range(turns):
        first = order.queue(0.0)[0]
        lease = order.acquire(first.turn_id, 0.0, 100.0)
        said.append(lease.member)
        order.release(lease.token)
    return said


def test_a_member_with_many_turns_does_not_hold_up_one_with_few():
    order = TurnOrder()
    for number in range(20):
        order.enqueue(f"a{number}", "ann", 0.0, 100.0)
    lease = order.acquire("a0", 0.0, 100.0)
    order.enqueue("b0", "bob", 0.0, 100.0)
    order.enqueue("c0", "cat", 0.0, 100.0)
    order.release(lease.token)

    assert set(run(order, 3)) == {"ann", "bob", "cat"}


def test_members_who_ask_again_at_once_take_turns_evenly():
    order, counts = TurnOrder(), dict.fromkeys(MEMBERS, 0)
    for member in MEMBERS:
        order.enqueue(f"{member}-0", member, 0.0, 1e9)
    for number in range(1, 401):
        first = order.queue(0.0)[0]
        lease = order.acquire(first.turn_id, 0.0, 1e9)
        counts[lease.member] += 1
        order.enqueue(f"{lease.member}-{number}", lease.member, 0.0, 1e9)
        order.release(lease.token)

    assert set(counts.values()) == {100}


def test_turns_of_several_members_run_in_the_order_they_came_where_each_has_one():
    order = TurnOrder()
    for member in ("dan", "ann", "cat"):
        order.enqueue(member, member, 0.0, 100.0)

    assert run(order, 3) == ["dan", "ann", "cat"]


def test_how_long_a_turn_waits_is_counted_from_its_coming_however_often_it_is_touched():
    order = TurnOrder()
    order.enqueue("a", "ann", 5.0, 10.0)
    order.enqueue("a", "ann", 9.0, 10.0)
    order.touch("a", 12.0, 10.0)
    assert [ticket.since for ticket in order.queue(14.0)] == [5.0]


def test_an_urgent_turn_goes_before_all_that_wait():
    order = TurnOrder()
    order.enqueue("a", "ann", 0.0, 100.0)
    assert order.enqueue("b", "bob", 0.0, 100.0, is_urgent=True) == 1


def test_withdrawn_turns_cost_their_member_nothing():
    order = TurnOrder()
    order.enqueue("other", "cat", 0.0, 100.0)
    for number in range(10):
        order.enqueue(f"a{number}", "ann", 0.0, 100.0)
        order.withdraw(f"a{number}")
    order.enqueue("a", "ann", 0.0, 100.0)
    order.enqueue("b", "bob", 0.0, 100.0)

    assert run(order, 3) == ["cat", "ann", "bob"]
