"""A gateway that drains takes no new work and lets what runs finish, until its deadline."""

from __future__ import annotations

import asyncio

import pytest

from .test_evictions import open_sessions


async def begin(rig, tenant: str = "alone"):
    client = await rig.client(tenant)
    await open_sessions(client, "idle")
    await client.call("session.create", {"sessionId": "busy"})
    await client.call("session.send", {"sessionId": "busy", "prompt": "[hold]"})
    await client.wait_for_event("busy", "assistant.turn_start")
    return client


async def test_what_begins_work_is_refused_and_what_runs_is_heard_to_its_end(rig):
    client = await begin(rig)
    told: list[int] = []
    draining = asyncio.ensure_future(rig.services.drainer.drain(10, told.append))
    await rig.settled(lambda: told)

    for method, params in (
        ("session.create", {"sessionId": "new"}),
        ("session.resume", {"sessionId": "idle"}),
        ("session.send", {"sessionId": "idle", "prompt": "x"}),
    ):
        with pytest.raises(Exception, match="takes no new work") as refused:
            await client.call(method, params)
        assert refused.value.data["retryable"] is True
    assert (await client.call("session.getMessages", {"sessionId": "idle"}))["events"]
    assert not draining.done()
    await client.call("session.abort", {"sessionId": "busy"})
    await client.wait_for_event("busy", "session.idle")

    async with asyncio.timeout(30):
        assert await draining == 0
    assert told == [1]


async def test_a_turn_that_does_not_end_in_time_is_counted(rig):
    await begin(rig)
    assert await rig.services.drainer.drain(0.1, lambda _: None) == 1


async def test_nothing_at_work_is_nothing_to_wait_for(rig):
    client = await rig.client("alone")
    await open_sessions(client, "idle")
    async with asyncio.timeout(30):
        assert await rig.services.drainer.drain(60, lambda _: None) == 0


async def test_a_turn_whose_client_left_is_waited_for(rig):
    client = await begin(rig, "patient")
    await client.aclose()
    await rig.settled(lambda: len(rig.services.finishing) == 1)
    draining = asyncio.ensure_future(rig.services.drainer.drain(10, lambda _: None))
    rig.scripted.runtimes[0].sessions["busy"].turn.cancel()
    async with asyncio.timeout(30):
        assert await draining == 0


async def test_new_links_are_not_accepted_and_open_ones_stay(rig):
    client = await rig.client("alone")
    rig.listener.stop_accepting()
    with pytest.raises((OSError, ConnectionError)):
        await rig.client("alone")
    assert await client.call("ping")
