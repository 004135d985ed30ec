"""An operator moves one idle session to another runtime: its clients keep their links and notice nothing."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome import errors
from aerodrome.gateway import migration

EVERYONE = ["alone", "guarded", "team", "shared"]


async def turn(client, session_id: str, prompt: str = "x") -> None:
    """Have a turn and hear its end."""
    before = client.events(session_id).count("session.idle")
    await client.call("session.send", {"sessionId": session_id, "prompt": prompt})
    await client.wait_for_event(session_id, "session.idle", before + 1)


async def open_session(rig, tenant: str, *session_ids: str):
    client = await rig.client(tenant)
    for session_id in session_ids:
        await client.call("session.create", {"sessionId": session_id, "model": "demo"})
        await turn(client, session_id)
    return client


async def move(rig, session_id: str, target: str | None = None):
    [resident] = [found for found in rig.services.residents if found.session_id == session_id]
    return await migration.migrate(rig.services, rig.pool, resident, target)


def live(rig, number: int) -> set[str]:
    return set(rig.scripted.runtimes[number].sessions)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_migrated_session_goes_on_in_another_runtime_under_every_link_that_holds_it(open_rig, tenant):
    rig = await open_rig()
    client = await open_session(rig, tenant, "a", "b")
    other = await rig.client(tenant)
    await other.call("session.resume", {"sessionId": "a"})
    await client.wait_for_event("a", "session.resume")
    heard = [len(peer.events("a")) for peer in (client, other)]

    moved = await move(rig, "a")

    assert (moved.outcome, live(rig, 0), live(rig, 1)) == ("migrated", {"b"}, {"a"})
    assert moved.runtime_id == rig.services.router.find(rig.realm(tenant), "a")
    assert [len(peer.events("a")) for peer in (client, other)] == heard
    await turn(client, "a", "again")
    await other.wait_for_event("a", "session.idle")
    assert len(rig.scripted.runtimes[1].sessions["a"].attached) == 2
    assert not {"session.error", "session.shutdown", "session.resume"} & set(client.events("a")[heard[0] :])
    assert client.stray == other.stray == []
    await turn(client, "b", "here still")


async def test_a_session_moves_back_to_the_runtime_that_is_named(rig):
    client = await open_session(rig, "alone", "a", "b")
    first = rig.services.router.find(rig.realm("alone"), "a")
    second = (await move(rig, "a")).runtime_id

    assert (await move(rig, "a", first)).runtime_id == first != second
    assert live(rig, 0) == {"a", "b"}
    await turn(client, "a")


async def test_a_session_at_work_stays(rig):
    client = await open_session(rig, "alone", "a")
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start", 2)

    assert (await move(rig, "a")).outcome == "at_work"
    assert len(rig.scripted.runtimes) == 1


async def test_a_session_in_no_runtime_is_not_moved(open_rig):
    rig = await open_rig(live_sessions=1)
    await open_session(rig, "alone", "a", "b")
    await rig.settled(lambda: rig.services.router.find(rig.realm("alone"), "a") is None)

    assert (await move(rig, "a")).outcome == "absent"


async def test_a_call_that_comes_while_a_session_moves_waits_and_is_answered_by_the_new_runtime(rig):
    client = await open_session(rig, "alone", "a")
    runtime, detaching, go_on = rig.scripted.runtimes[0], asyncio.Event(), asyncio.Event()

    async def detach(peer, params):
        detaching.set()
        await go_on.wait()
        runtime._detach(runtime.sessions[params["sessionId"]], peer)
        return {}

    runtime.on["session.detach"] = detach
    moving = asyncio.create_task(move(rig, "a"))
    await detaching.wait()
    turning = asyncio.create_task(turn(client, "a", "meanwhile"))
    await rig.settled(rig.services.residents.find(rig.realm("alone"), "a").lock.locked)
    go_on.set()

    assert (await moving).outcome == "migrated"
    await turning
    assert len(rig.scripted.runtimes[1].called("session.send")) == 1


@pytest.mark.parametrize("target", ["its own", "nothing-000"])
async def test_a_runtime_that_is_no_other_one_is_refused_and_nothing_has_changed(rig, target):
    client = await open_session(rig, "alone", "a")
    here = rig.services.router.find(rig.realm("alone"), "a")

    with pytest.raises((errors.InvalidParams, errors.RuntimeLost)):
        await move(rig, "a", here if target == "its own" else target)
    assert rig.services.router.find(rig.realm("alone"), "a") == here
    await turn(client, "a")


async def test_where_no_more_runtimes_may_be_the_session_stays(open_rig):
    rig = await open_rig(fleet={"max_runtimes": 1})
    client = await open_session(rig, "alone", "a")

    with pytest.raises(errors.OverCapacity, match="max_runtimes"):
        await move(rig, "a")
    await turn(client, "a")
    assert rig.links() == 1


async def test_the_second_runtime_of_a_realm_goes_when_nothing_holds_it(open_rig):
    rig = await open_rig(fleet={"idle_seconds": 0.05})
    client = await open_session(rig, "alone", "a")
    await move(rig, "a")
    await client.aclose()

    await rig.settled(lambda: all(process.exited.done() for process in rig.scripted.processes))
    assert (rig.links(), rig.pool.realms) == (0, 0)
