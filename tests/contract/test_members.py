"""What every store of members and share links must do, over each adapter."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.adapters.memory.members import MemoryMemberStore
from aerodrome.adapters.sql import engine, migrate
from aerodrome.adapters.sql.members import SqlMemberStore
from aerodrome.core import membership
from aerodrome.core.membership import Billing, BusyPolicy, Member, Role, SentBy, Sharing

from .registry_suite import ALICE, BOB, OTHER_ALICE

DRIVER = frozenset({Role.DRIVER})


@pytest.fixture(params=["memory", "sqlite"])
async def twins(request, tmp_path):
    """Two ways to the same store: for SQLite two engines on one file, as two processes have."""
    if request.param == "memory":
        store = MemoryMemberStore()
        yield store, store
        return
    databases = [await engine.open_database(f"sqlite:///{tmp_path / 'm.db'}", busy_seconds=60.0) for _ in range(2)]
    await migrate.migrate(databases[0])
    yield tuple(SqlMemberStore(database) for database in databases)
    for database in databases:
        await database.aclose()


def member(person=ALICE, session_id="s1", roles=DRIVER, since=1.5, is_invited=False) -> Member:
    return Member(session_id, person, frozenset(roles), since, is_invited)


async def test_a_member_is_found_as_it_is_in_its_session_only(twins):
    one, other = twins
    ann = member(roles={Role.DRIVER, Role.APPROVER}, is_invited=True)
    await one.put(ann)

    assert await other.find("s1", ALICE) == ann
    assert await other.find("s2", ALICE) is None
    assert await other.find("s1", BOB) is None
    assert await other.find("s1", OTHER_ALICE) is None


async def test_who_is_put_again_takes_the_place_of_what_they_were(twins):
    store, _ = twins
    await store.put(member())
    await store.put(member(roles={Role.OBSERVER}))

    assert [one.roles for one in await store.list_of("s1")] == [frozenset({Role.OBSERVER})]


async def test_what_somebody_is_changes_in_one_step_with_reading_it(twins):
    one, other = twins
    await one.put(member(roles={Role.DRIVER}, since=0.0))

    def count(before):
        return replace(before, since=before.since + 1)

    await asyncio.gather(*(store.amend("s1", ALICE, count) for store in (one, other) * 8))
    assert await other.find("s1", ALICE) == member(roles={Role.DRIVER}, since=16.0)

    def refuse(before):
        assert before is not None
        raise errors.KeyMissing("no")

    with pytest.raises(errors.KeyMissing):
        await one.amend("s1", ALICE, refuse)
    assert await one.amend("s1", BOB, lambda before: before) is None
    assert await one.amend("s2", BOB, lambda _: member(BOB, "s2")) == await other.find("s2", BOB) == member(BOB, "s2")
    assert len(await other.list_of("s1")) == 1


async def test_members_are_listed_by_session_and_by_person(twins):
    store, _ = twins
    for one in (member(since=3.0), member(BOB, since=2.0), member(session_id="s2", since=4.0)):
        await store.put(one)

    assert [one.person for one in await store.list_of("s1")] == [BOB, ALICE]
    assert [one.session_id for one in await store.list_for(ALICE)] == ["s2", "s1"]
    assert await store.list_for(OTHER_ALICE) == []


async def test_a_member_goes_alone_and_a_session_goes_with_everything(twins):
    store, _ = twins
    link, _token = membership.create_link("s1", DRIVER, 0.0, 10.0, 1)
    for one in (member(), member(BOB), member(session_id="s2")):
        await store.put(one)
    await store.amend_sharing("s1", lambda _: Sharing("s1", BusyPolicy.REJECT))
    await store.add_link(link)

    assert await store.remove("s1", ALICE) == 1
    assert await store.remove("s1", ALICE) == 0
    assert await store.find_sharing("s1") == Sharing("s1", BusyPolicy.REJECT)
    assert await store.remove("s1") == 1
    assert (await store.find_sharing("s1"), await store.find_link(link.link_id)) == (None, None)
    assert [one.session_id for one in await store.list_for(ALICE)] == ["s2"]


async def test_how_a_session_is_shared_is_kept_and_changed(twins):
    one, other = twins
    assert await one.find_sharing("s1") is None
    assert await one.amend_sharing("s1", lambda before: before) is None
    assert await one.amend_sharing("s1", lambda _: Sharing("s1")) == Sharing("s1")
    await one.amend_sharing("s1", lambda _: Sharing("s1", BusyPolicy.STEER, Billing.OWNER))

    assert await other.find_sharing("s1") == Sharing("s1", BusyPolicy.STEER, Billing.OWNER)
    assert await other.amend_sharing("s1", lambda _: None) == Sharing("s1", BusyPolicy.STEER, Billing.OWNER)


async def test_of_changes_of_how_a_session_is_shared_that_come_at_once_none_is_lost(twins):
    one, other = twins
    busy, billing = {"busy": BusyPolicy.REJECT}, {"billing": Billing.OWNER}

    for session_id in (f"s{number}" for number in range(10)):

        def change(said, name=session_id):
            return lambda before: replace(before or Sharing(name), **said)

        await asyncio.gather(
            *(store.amend_sharing(session_id, change(said)) for store, said in ((one, busy), (other, billing)))
        )

        assert await one.find_sharing(session_id) == Sharing(session_id, **busy, **billing)


async def test_a_link_is_used_no_oftener_than_it_may_be_however_many_come_at_once(twins):
    one, other = twins
    link, _token = membership.create_link("s1", DRIVER, 0.0, 10.0, uses=3)
    await one.add_link(link)

    used = await asyncio.gather(*(store.use_link(link.link_id, 5.0) for store in (one, other) * 4))

    assert sum(found is not None for found in used) == 3
    assert await one.find_link(link.link_id) == replace(link, uses_left=0)


async def test_a_link_that_is_over_or_revoked_cannot_be_used(twins):
    store, _ = twins
    link, _token = membership.create_link("s1", DRIVER, 0.0, 10.0, uses=3)
    await store.add_link(link)

    assert await store.use_link(link.link_id, 10.0) is None
    assert not await store.revoke_link("s2", link.link_id)
    assert await store.list_links("s1") == [link]
    assert await store.revoke_link("s1", link.link_id)
    assert await store.use_link(link.link_id, 5.0) is None
    assert await store.use_link("nothing", 5.0) is None


async def test_a_closed_store_refuses(tmp_path):
    database = await engine.open_database(f"sqlite:///{tmp_path / 'm.db'}")
    store = SqlMemberStore(database)
    await store.aclose()
    with pytest.raises(errors.StoreUnavailable):
        await store.find("s1", ALICE)
    await database.aclose()


async def test_who_sent_a_message_is_kept_once_and_goes_with_the_session(twins):
    one, other = twins
    sent = [
        SentBy("s1", "m2", "t2", "bob", 2.0),
        SentBy("s1", "m1", "t1", "alice", 1.0),
        SentBy("s2", "m1", "t3", "bob", 3.0),
    ]
    for entry in (*sent, sent[0]):
        await one.add_sent(entry)

    assert await other.list_sent("s1") == [sent[1], sent[0]]
    assert await other.list_sent("s1", {"m2", "none"}) == [sent[0]]
    assert await other.list_sent("s1", ()) == []
    await one.remove("s1")
    assert (await other.list_sent("s1"), await other.list_sent("s2")) == ([], [sent[2]])
