"""The ownership rule over a registry that is slow, races, and fails."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome import errors
from aerodrome.adapters.memory.registry import MemorySessionRegistry
from aerodrome.core.identity import Owner
from aerodrome.gateway.ownership import Ownership

ANN, BEN = Owner("acme", "ann"), Owner("acme", "ben")


class HandClock:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class SlowRegistry(MemorySessionRegistry):
    """Reads happen at once, but their answers arrive when the test says; writes fail when the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.reads = 0
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.failures_left = 0
        self.touched: list[str] = []

    async def find(self, session_id):
        found = await super().find(session_id)
        self.reads += 1
        await self.may_answer.wait()
        return found

    def hold_back(self) -> asyncio.Event:
        """Have later reads be answered at once; return what answers those that wait."""
        held, self.may_answer = self.may_answer, asyncio.Event()
        self.may_answer.set()
        return held

    async def touch(self, session_id, used_at):
        if self.failures_left:
            self.failures_left -= 1
            raise errors.StoreUnavailable("down")
        self.touched.append(session_id)
        await super().touch(session_id, used_at)
        await self.may_write.wait()


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def registry():
    return SlowRegistry()


@pytest.fixture
def ownership(registry, clock):
    return Ownership(registry, clock, cache_seconds=30.0)


async def test_a_claim_is_once_and_for_the_first(ownership):
    assert (await ownership.claim("s", ANN, "shared")).created
    assert not (await ownership.claim("s", ANN, "shared")).created
    with pytest.raises(errors.AlreadyExists):
        await ownership.claim("s", BEN, "shared")
    assert await ownership.find_owner("s") == ANN


async def test_the_cache_is_believed_until_its_deadline_and_not_longer(ownership, registry, clock):
    await ownership.claim("s", ANN, "shared")
    assert ownership.is_known_to_be("s", ANN)
    assert await ownership.find_owner("s") == ANN
    assert registry.reads == 0
    clock.time += 30.0
    assert not ownership.is_known_to_be("s", ANN)
    assert await ownership.find_owner("s") == ANN
    assert registry.reads == 1


async def test_an_answer_that_was_overtaken_by_a_new_owner_is_not_believed(ownership, registry, clock):
    await ownership.claim("s", ANN, "shared")
    clock.time += 60.0
    registry.may_answer.clear()
    slow = asyncio.create_task(ownership.find_owner("s"))
    await asyncio.sleep(0)
    assert registry.reads == 1
    held = registry.hold_back()
    await ownership.forget("s", ANN)
    await ownership.claim("s", BEN, "shared")
    held.set()
    assert await slow == BEN
    assert ownership.is_known_to_be("s", BEN)
    assert not ownership.may_see("s", ANN)


async def test_an_answer_that_was_overtaken_by_a_deletion_is_not_remembered(ownership, registry, clock):
    await ownership.claim("s", ANN, "shared")
    clock.time += 60.0
    registry.may_answer.clear()
    slow = asyncio.create_task(ownership.find_owner("s"))
    await asyncio.sleep(0)
    held = registry.hold_back()
    await ownership.forget("s", ANN)
    held.set()
    assert await slow is None
    assert await ownership.find_owner("s") is None


async def test_the_last_events_of_a_deleted_session_still_reach_its_owner_until_someone_else_has_the_id(ownership):
    await ownership.claim("s", ANN, "shared")
    await ownership.forget("s", ANN)
    assert ownership.may_see("s", ANN)
    assert not ownership.may_see("s", BEN)
    await ownership.claim("s", BEN, "shared")
    assert ownership.may_see("s", BEN)
    assert not ownership.may_see("s", ANN)


async def test_forgetting_what_is_someone_elses_changes_nothing(ownership, registry):
    await ownership.claim("s", ANN, "shared")
    await ownership.forget("s", BEN)
    assert (await registry.find("s")).owner == ANN
    assert ownership.is_known_to_be("s", ANN)
    assert not ownership.may_see("s", BEN)


async def test_times_of_use_are_written_by_the_flush_and_order_the_list_before_it(ownership, registry, clock):
    for session_id in ("a", "b", "c"):
        await ownership.claim(session_id, ANN, "shared")
    clock.time += 1
    ownership.touch("b")
    assert (await ownership.list_ids(ANN))[0] == "b"
    assert registry.touched == []
    await ownership.flush()
    assert registry.touched == ["b"]
    assert (await registry.find("b")).used_at == clock.time


async def test_the_list_is_in_order_while_times_of_use_are_being_written(ownership, registry, clock):
    for session_id in ("a", "b"):
        await ownership.claim(session_id, ANN, "shared")
    for session_id in ("a", "b"):
        clock.time += 1
        ownership.touch(session_id)
    flushing = await begin_flush(ownership, registry)  # when "b" was used is not written yet

    assert await ownership.list_ids(ANN) == ["b", "a"]
    assert (await ownership.find_record("b")).used_at == clock.time
    assert (await ownership.list_records(ANN))[0] == await ownership.find_record("b")

    registry.may_write.set()
    await flushing
    assert await ownership.list_ids(ANN) == ["b", "a"]


async def begin_flush(ownership, registry):
    """Begin a flush that is held in its first write until `may_write` is set."""
    registry.may_write.clear()
    flushing = asyncio.create_task(ownership.flush())
    async with asyncio.timeout(10):
        while not registry.touched:  # noqa: ASYNC110  a step of the loop each
            await asyncio.sleep(0)
    return flushing


async def test_a_flush_has_written_what_another_one_had_begun_to_write(ownership, registry, clock):
    await ownership.claim("a", ANN, "shared")
    clock.time += 1
    ownership.touch("a")
    first = await begin_flush(ownership, registry)
    second = asyncio.create_task(ownership.flush())
    for _ in range(10):
        await asyncio.sleep(0)

    assert not second.done(), "who asks the registry next, a reaper say, would take the session for unused"

    registry.may_write.set()
    await first
    await second
    assert registry.touched == ["a"]


async def test_times_of_use_that_could_not_be_written_are_tried_again(ownership, registry, clock):
    for session_id in ("a", "b", "c"):
        await ownership.claim(session_id, ANN, "shared")
        ownership.touch(session_id)
    registry.failures_left = 1
    with pytest.raises(errors.StoreUnavailable):
        await ownership.flush()
    clock.time += 5
    ownership.touch("a")
    await ownership.flush()
    assert sorted(registry.touched) == ["a", "b", "c"]
    assert (await registry.find("a")).used_at == clock.time


async def test_flushing_on_schedule_outlives_failures_and_flushes_once_more_at_the_end(ownership, registry):
    failures: list[errors.StoreUnavailable] = []
    failed = asyncio.Event()

    def note(error):
        failures.append(error)
        failed.set()

    await ownership.claim("s", ANN, "shared")
    ownership.touch("s")
    registry.failures_left = 1
    flushing = asyncio.create_task(ownership.flush_every(0.001, note))
    async with asyncio.timeout(30):
        await failed.wait()
        while not registry.touched:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    ownership.touch("s")
    flushing.cancel()
    await asyncio.wait((flushing,))
    assert registry.touched.count("s") >= 2
    assert len(failures) == 1


async def test_the_last_flush_of_a_store_that_is_down_is_reported_and_does_not_hinder_the_end(ownership, registry):
    failures: list[errors.StoreUnavailable] = []
    await ownership.claim("s", ANN, "shared")
    flushing = asyncio.create_task(ownership.flush_every(1000, failures.append))
    await asyncio.sleep(0)
    ownership.touch("s")
    registry.failures_left = 1
    flushing.cancel()
    await asyncio.wait((flushing,))
    assert flushing.cancelled()
    assert len(failures) == 1


async def test_a_claim_of_ones_own_session_is_a_use_of_it(ownership, registry, clock):
    await ownership.claim("s", ANN, "shared")
    clock.time += 5

    await ownership.claim("s", ANN, "shared")

    assert (await ownership.find_record("s")).used_at == clock.time
    assert (await registry.find("s")).used_at == clock.time - 5
    await ownership.flush()
    assert (await registry.find("s")).used_at == clock.time


async def test_who_asks_about_a_withdrawn_session_waits_and_hears_what_became_of_it(ownership):
    for session_id in ("kept", "freed"):
        await ownership.claim(session_id, ANN, "shared")
    with ownership.withdrawn("kept"), ownership.withdrawn("freed"):
        asking = [asyncio.create_task(ownership.find_owner(session_id)) for session_id in ("kept", "freed")]
        assert await ownership.find_owner("another") is None
        await ownership.forget("freed", ANN)
        assert not any(task.done() for task in asking)
    assert await asyncio.gather(*asking) == [ANN, None]


@pytest.mark.parametrize("owner", [ANN, BEN])
async def test_a_withdrawn_id_cannot_be_claimed_not_even_by_its_owner(ownership, owner):
    await ownership.claim("s", ANN, "shared")
    with ownership.withdrawn("s"), pytest.raises(errors.AlreadyExists, match="try again"):
        await ownership.claim("s", owner, "shared")
    assert await ownership.find_owner("s") == ANN


async def test_a_claim_under_way_at_a_withdrawal_is_waited_for_and_refused(ownership, registry, monkeypatch):
    await ownership.claim("s", ANN, "shared")
    usual, came, may_go = registry.claim, asyncio.Event(), asyncio.Event()

    async def slow(record, quota):
        came.set()
        await may_go.wait()
        return await usual(record, quota)

    monkeypatch.setattr(registry, "claim", slow)
    claiming = asyncio.create_task(ownership.claim("s", ANN, "shared"))
    await came.wait()
    with ownership.withdrawn("s"):
        assert await ownership.wait_unasked("s", 0.001) is False
        may_go.set()
        assert await ownership.wait_unasked("s", 5.0) is True
        with pytest.raises(errors.AlreadyExists, match="try again"):
            await claiming


async def test_a_task_that_asked_counts_until_it_ends_and_for_what_it_asked_about_alone(ownership):
    may_go = asyncio.Event()

    async def ask_and_work():
        await ownership.find_owner("s")
        await may_go.wait()

    working = asyncio.create_task(ask_and_work())
    await ownership.find_owner("s")  # this task's own question does not count: it would wait for itself
    await asyncio.sleep(0)
    assert await ownership.wait_unasked("t", 5.0) is True
    assert await ownership.wait_unasked("s", 0.001) is False
    may_go.set()
    await working
    assert await ownership.wait_unasked("s", 5.0) is True
    assert set(ownership._asked) == {asyncio.current_task()}


async def test_an_id_is_not_free_before_all_that_is_kept_under_it_is_gone(ownership, registry):
    await ownership.claim("s", ANN, "shared")
    failures = [errors.StoreUnavailable("down")]

    async def forget_members(_session_id, _owner):
        if failures:
            raise failures.pop()

    ownership.keepers.append(forget_members)
    with pytest.raises(errors.StoreUnavailable):
        await ownership.forget("s", ANN)

    assert await registry.find("s") is not None
    await ownership.forget("s", BEN)
    assert await registry.find("s") is not None
    await ownership.forget("s", ANN)
    assert await registry.find("s") is None


async def test_two_who_delete_one_session_at_once_keep_it_withdrawn_until_both_are_done(ownership):
    await ownership.claim("s", ANN, "shared")
    with ownership.withdrawn("s"):
        with ownership.withdrawn("s"):
            asking = asyncio.create_task(ownership.find_owner("s"))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asking.done()
        with pytest.raises(errors.AlreadyExists):
            await ownership.claim("s", ANN, "shared")

    assert await asyncio.wait_for(asking, 30) == ANN
    assert (await ownership.claim("s", ANN, "shared")).record.owner == ANN
