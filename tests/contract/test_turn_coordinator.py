"""What every coordinator of turns must do, over each adapter; what the order is has its own tests (unit/test_turn_order.py)."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome import errors
from aerodrome.adapters.memory.coordination import MemoryTurnCoordinator
from aerodrome.clock import SystemClock

TTL = 30.0


class AheadClock(SystemClock):
    """The real clock, ahead by as much as a test says."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@pytest.fixture
def clock():
    return AheadClock()


@pytest.fixture(params=["memory"])
def twins(request, clock):
    """Two ways to the same coordinator."""
    coordinator = MemoryTurnCoordinator(clock)
    return coordinator, coordinator


async def test_turns_are_granted_one_at_a_time_in_their_order(twins):
    one, other = twins
    assert await one.enqueue("s1", "a", "ann", TTL) == 1
    assert await other.enqueue("s1", "b", "ben", TTL) == 2

    assert await other.acquire("s1", "b", TTL) is None
    lease = await one.acquire("s1", "a", TTL)
    assert (lease.turn_id, lease.member) == ("a", "ann")
    assert await other.acquire("s1", "b", TTL) is None
    assert await one.release("s1", lease.token)
    following = await other.acquire("s1", "b", TTL)
    assert following.token > lease.token


async def test_of_many_who_ask_at_once_one_has_the_lease(twins):
    coordinators = twins * 10
    await twins[0].enqueue("s1", "a", "ann", TTL)

    leases = await asyncio.gather(*(one.acquire("s1", "a", TTL) for one in coordinators))

    assert sum(lease is not None for lease in leases) == 1


async def test_sessions_do_not_wait_for_each_other(twins):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    await other.enqueue("s2", "a", "ann", TTL)
    assert await one.acquire("s1", "a", TTL) is not None
    assert await other.acquire("s2", "a", TTL) is not None


async def test_a_lease_that_is_not_renewed_passes_on_and_its_token_is_stale(twins):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    await other.enqueue("s1", "b", "ben", TTL)
    paused = await one.acquire("s1", "a", 0.05)
    following = await acquire_later(other, "b", 20)

    assert following.token > paused.token
    for late in (one.renew("s1", paused.token, TTL), _check(one, paused.token)):
        with pytest.raises(errors.LeaseLost):
            await late
    assert not await one.release("s1", paused.token)
    assert (await other.look("s1")).lease.token == following.token
    assert other.check("s1", following.token).member == "ben"


async def acquire_later(coordinator, turn_id, seconds):
    """Have the lease as soon as the one before it has expired."""
    async with asyncio.timeout(seconds):
        while (lease := await coordinator.acquire("s1", turn_id, TTL)) is None:
            await coordinator.wait_changed("s1", 0.02)
    return lease


async def _check(coordinator, token):
    coordinator.check("s1", token)


async def test_a_renewed_lease_stays(twins, clock):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    lease = await one.acquire("s1", "a", TTL)
    for _ in range(4):
        clock.ahead += TTL / 2
        lease = await one.renew("s1", lease.token, TTL)
    assert (await other.look("s1")).lease.token == lease.token


async def test_who_waits_hears_of_the_end_of_the_one_before(twins):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    lease = await one.acquire("s1", "a", TTL)
    waiting = asyncio.create_task(other.wait_changed("s1", 10.0))
    await asyncio.sleep(0)  # it has begun to wait
    await one.release("s1", lease.token)
    await asyncio.wait_for(waiting, 5)


async def test_a_turn_that_is_touched_waits_on_and_one_that_was_taken_back_stays_so(twins, clock):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    for _ in range(4):
        clock.ahead += TTL / 2
        assert await other.touch("s1", "a", TTL)
    await other.withdraw("s1", "a")

    assert not await one.touch("s1", "a", TTL)

    assert (await one.look("s1")).queue == ()
    assert not await one.touch("nobodys", "a", TTL)


async def test_a_turn_and_all_of_a_member_are_taken_back(twins):
    one, other = twins
    for turn, member in (("a", "ann"), ("b", "ben"), ("c", "ann")):
        await one.enqueue("s1", turn, member, TTL)

    assert await other.withdraw("s1", "b") == ["b"]
    assert await other.withdraw("s1", "b") == []
    assert sorted(await other.withdraw("s1", None, "ann")) == ["a", "c"]
    assert (await one.look("s1")).queue == ()
    assert await one.acquire("s1", "a", TTL) is None


async def test_a_turn_that_nobody_asks_for_any_more_holds_nobody_up(twins):
    one, other = twins
    await one.enqueue("s1", "crashed", "ann", 0.05)
    await other.enqueue("s1", "b", "ben", TTL)
    async with asyncio.timeout(20):
        while await other.acquire("s1", "b", TTL) is None:
            await other.wait_changed("s1", 0.02)


async def test_nothing_is_kept_of_a_session_that_is_gone(twins):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    await one.acquire("s1", "a", TTL)
    await other.forget("s1")
    await other.forget("s1")
    order = await one.look("s1")
    assert (order.queue, order.lease) == ((), None)


async def test_a_lease_says_which_one_expired_before_it_and_only_the_next_one_does(twins):
    one, other = twins
    await one.enqueue("s1", "a", "ann", TTL)
    await one.enqueue("s1", "b", "ben", TTL)
    await one.enqueue("s1", "c", "cat", TTL)
    lost = await one.acquire("s1", "a", 0.05)
    second = await acquire_later(other, "b", 5)
    await other.release("s1", second.token)
    third = await one.acquire("s1", "c", TTL)

    assert (second.lapsed.turn_id, second.lapsed.member, second.lapsed.token) == ("a", "ann", lost.token)
    assert (lost.lapsed, third.lapsed) == (None, None)
