"""A runtime with nothing at work stops running, memory kept, and runs again before anything is asked of it."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.fleet.spec import HealthSettings
from aerodrome.testing.rig import Rig

from .test_evictions import open_sessions, turn

EVERYONE = ["alone", "guarded", "team", "shared"]
SOON = 0.1
BRISK = HealthSettings(interval_seconds=0.02, deadline_seconds=0.5, failures=2)


def handle_of(rig: Rig, number: int = 0):
    """Return the handle of the n-th runtime that is in use."""
    return list(rig.services.occupancy)[number].handle


async def frozen(rig: Rig) -> None:
    """Wait until the only runtime in use is frozen."""
    await rig.settled(lambda: handle_of(rig).is_frozen)


async def passes(rig: Rig, seconds: float) -> None:
    """Let so much of the gateway's time pass."""
    loop = asyncio.get_running_loop()
    over = loop.time() + seconds
    await rig.settled(lambda: loop.time() > over)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_an_idle_runtime_is_frozen_and_the_next_turn_thaws_it(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "a", "b")

    for _ in range(3):
        await frozen(rig)
        assert not rig.scripted.runtimes[0]._runs.is_set()
        await turn(client, "a", "awake?")
        assert not handle_of(rig).is_frozen

    assert len(rig.scripted.processes) == 1
    assert handle_of(rig).freezes == 3
    for session_id in "ab":
        assert not {"session.shutdown", "session.resume", "session.error"} & set(client.events(session_id))
    assert rig.scripted.runtimes[0].called("session.resume") == []


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_call_about_no_turn_thaws_it(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    await frozen(rig)
    assert (await client.call("session.getMessages", {"sessionId": "a"}))["events"]
    await frozen(rig)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_call_that_names_no_session_thaws_it(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    await frozen(rig)
    assert [found["sessionId"] for found in (await client.call("session.list", {}))["sessions"]] == ["a"]
    await frozen(rig)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_another_client_that_resumes_a_session_thaws_it(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    await frozen(rig)
    other = await rig.client(tenant)
    await other.call("session.resume", {"sessionId": "a"})
    await turn(other, "a", "from the other")
    assert len(rig.scripted.processes) == 1
    await frozen(rig)


@pytest.mark.parametrize("tenant", ["team", "shared"])
async def test_another_user_of_the_runtime_thaws_it(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON)
    await open_sessions(await rig.client(tenant, "ann"), "a")
    await frozen(rig)
    await open_sessions(await rig.client(tenant, "ben"), "b")
    assert len(rig.scripted.processes) == 1
    await frozen(rig)


async def test_an_answer_of_a_client_that_it_waits_for_reaches_it(open_rig):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    may_answer = asyncio.Event()

    async def answer(_params):
        await may_answer.wait()
        return "yes"

    client.answers["userInput.request"] = answer
    await client.call("session.send", {"sessionId": "a", "prompt": "[ask userInput.request]"})
    await passes(rig, 3 * SOON)
    assert not handle_of(rig).is_frozen
    may_answer.set()
    await client.wait_for_event("a", "session.idle", 2)
    await frozen(rig)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_turn_keeps_it_running_however_long_it_takes(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "idle")
    await client.call("session.create", {"sessionId": "busy"})
    await client.call("session.send", {"sessionId": "busy", "prompt": "[hold]"})
    await client.wait_for_event("busy", "assistant.turn_start")
    await passes(rig, 5 * SOON)
    assert handle_of(rig).freezes == 0
    await client.call("session.abort", {"sessionId": "busy"})
    await client.wait_for_event("busy", "session.idle")
    await frozen(rig)


async def test_a_request_without_an_answer_keeps_it_running(open_rig):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    may_answer = asyncio.Event()

    async def hold(_peer, _params):
        await may_answer.wait()
        return {"events": ["late"]}

    rig.scripted.runtimes[0].on["session.getMessages"] = hold
    answer = client.ask("session.getMessages", {"sessionId": "a"})
    await rig.scripted.runtimes[0].wait_for_call("session.getMessages")
    await passes(rig, 3 * SOON)
    assert handle_of(rig).freezes == 0
    may_answer.set()
    assert (await answer)["events"] == ["late"]
    await frozen(rig)


async def test_work_that_only_the_runtime_knows_of_keeps_it_running(open_rig):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "shell")
    runtime = rig.scripted.runtimes[0]
    runtime.sessions["shell"].works = True
    await runtime.wait_for_call("session.metadata.activity", 3)
    assert handle_of(rig).freezes == 0
    runtime.sessions["shell"].works = False
    await frozen(rig)


async def test_a_call_that_comes_while_it_is_asked_whether_it_works_keeps_it_running(open_rig):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    runtime, asked, may_go = rig.scripted.runtimes[0], asyncio.Event(), asyncio.Event()

    async def activity(_peer, _params):
        asked.set()
        await may_go.wait()
        return {"hasActiveWork": False}

    runtime.on["session.metadata.activity"] = activity
    async with asyncio.timeout(30):
        await asked.wait()
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    may_go.set()
    await passes(rig, 3 * SOON)
    assert handle_of(rig).freezes == 0
    await client.call("session.abort", {"sessionId": "a"})


async def test_it_runs_while_someone_else_lends_it(open_rig):
    """A link that no client has is one of the gateway's own: the reaper's, for one."""
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    handle = handle_of(rig)
    assert await rig.pool.acquire(handle.realm, handle.runtime_id) is handle
    await passes(rig, 3 * SOON)
    assert handle.freezes == 0
    rig.pool.release(handle)
    await frozen(rig)


async def test_health_does_not_ask_a_frozen_runtime_and_goes_on_when_it_runs(open_rig):
    rig = await open_rig(freeze_seconds=SOON, fleet={"health": BRISK})
    client = await rig.client("alone")
    await open_sessions(client, "a")
    runtime = rig.scripted.runtimes[0]
    await runtime.wait_for_call("ping", 3)
    await frozen(rig)
    await passes(rig, 3 * (BRISK.interval_seconds + BRISK.deadline_seconds))
    assert not handle_of(rig).lost.done()

    await turn(client, "a", "still there?")
    before = len(runtime.called("ping"))
    await runtime.wait_for_call("ping", before + 1)
    assert len(rig.scripted.processes) == 1


async def test_a_frozen_runtime_hibernates_in_time_with_every_session_unloaded(open_rig):
    rig = await open_rig(freeze_seconds=SOON, hibernate_seconds=5 * SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a", "b")
    await frozen(rig)
    await rig.settled(rig.scripted.processes[0].exited.done)
    assert [params["sessionId"] for params in rig.scripted.runtimes[0].called("session.detach")] == ["a", "b"]
    await turn(client, "a", "awake?")
    assert "session.error" not in client.events("a")


async def test_a_frozen_runtime_that_is_cordoned_is_emptied_and_replaced(open_rig):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("shared")
    await open_sessions(client, "a", "b")
    await frozen(rig)
    rig.pool.cordon(handle_of(rig), "too old")
    await rig.settled(rig.scripted.processes[0].exited.done)
    assert [params["sessionId"] for params in rig.scripted.runtimes[0].called("session.detach")] == ["a", "b"]
    await turn(client, "b", "awake?")
    assert "session.error" not in client.events("b")


async def test_a_frozen_runtime_that_is_retired_ends_and_its_sessions_come_back(open_rig):
    rig = await open_rig(freeze_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    await frozen(rig)
    rig.pool.retire(handle_of(rig), "moved")
    await rig.settled(rig.scripted.processes[0].exited.done)
    await rig.settled(lambda: rig.upstreams() == 0)
    await turn(client, "a", "awake?")
    assert "session.error" not in client.events("a")


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_clients_that_leave_a_frozen_runtime_leave_nothing_behind(open_rig, tenant):
    rig = await open_rig(freeze_seconds=SOON, fleet={"idle_seconds": SOON})
    clients = [await rig.client(tenant, f"user{number}") for number in range(4)]
    for number, client in enumerate(clients):
        await open_sessions(client, f"s{number}")
    await rig.settled(lambda: all(occupied.handle.is_frozen for occupied in rig.services.occupancy))
    for client in clients:
        await client.aclose()
    await rig.settled(lambda: len(rig.services.residents) == 0 and not list(rig.services.occupancy) and not rig.links())
    await rig.settled(lambda: not rig.scripted.alive)
