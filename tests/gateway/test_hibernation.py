"""A runtime with nothing at work is stopped under its clients' open links, and another one wakes their sessions."""

from __future__ import annotations

import asyncio

import pytest

from .test_evictions import open_sessions, turn

EVERYONE = ["alone", "guarded", "team", "shared"]
SOON = 0.1


async def hibernated(rig, number: int = 0) -> None:
    """Wait until a runtime has been stopped."""
    await rig.settled(rig.scripted.processes[number].exited.done)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_an_idle_runtime_is_stopped_and_the_next_call_goes_on_in_another(open_rig, tenant):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "a", "b")

    await hibernated(rig)
    assert rig.scripted.alive == []
    assert not client.closed.done()

    await turn(client, "a", "awake?")
    await turn(client, "b", "awake?")
    second = rig.scripted.runtimes[1]
    assert [params["sessionId"] for params in second.called("session.resume")] == ["a", "b"]
    for session_id in "ab":
        assert not {"session.shutdown", "session.resume", "session.error"} & set(client.events(session_id))
        assert client.events(session_id).count("session.idle") == 2
    assert client.stray == []


async def test_every_session_was_unloaded_before_the_runtime_was_stopped(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a", "b")

    await hibernated(rig)

    assert [params["sessionId"] for params in rig.scripted.runtimes[0].called("session.detach")] == ["a", "b"]


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_turn_keeps_its_runtime_awake_however_long_it_takes(open_rig, tenant):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "idle")
    await client.call("session.create", {"sessionId": "busy"})
    await client.call("session.send", {"sessionId": "busy", "prompt": "[hold]"})
    await client.wait_for_event("busy", "assistant.turn_start")
    loop = asyncio.get_running_loop()
    over = loop.time() + 5 * SOON

    await rig.settled(lambda: loop.time() > over)

    assert len(rig.scripted.alive) == 1
    await client.call("session.abort", {"sessionId": "busy"})
    await client.wait_for_event("busy", "session.idle")
    await hibernated(rig)


async def test_work_that_only_the_runtime_knows_of_keeps_it_awake(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "shell")
    runtime = rig.scripted.runtimes[0]
    runtime.sessions["shell"].works = True

    await runtime.wait_for_call("session.metadata.activity", 3)

    assert len(rig.scripted.alive) == 1
    runtime.sessions["shell"].works = False
    await hibernated(rig)


async def test_a_request_without_an_answer_keeps_its_runtime_awake(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    may_answer = asyncio.Event()

    async def hold(_peer, _params):
        await may_answer.wait()
        return {"events": ["late"]}

    rig.scripted.runtimes[0].on["session.getMessages"] = hold
    answer = client.ask("session.getMessages", {"sessionId": "a"})
    await rig.scripted.runtimes[0].wait_for_call("session.getMessages")
    loop = asyncio.get_running_loop()
    over = loop.time() + 3 * SOON
    await rig.settled(lambda: loop.time() > over)

    may_answer.set()

    assert (await answer)["events"] == ["late"]
    await hibernated(rig)


async def test_a_call_that_comes_while_the_runtime_is_being_emptied_is_served_and_nothing_is_lost(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a", "b")
    runtime, asked, may_go = rig.scripted.runtimes[0], asyncio.Event(), asyncio.Event()

    async def activity(_peer, _params):
        asked.set()
        await may_go.wait()
        return {"hasActiveWork": False}

    runtime.on["session.metadata.activity"] = activity
    async with asyncio.timeout(30):
        await asked.wait()
    turns = [asyncio.ensure_future(turn(client, session_id, "now")) for session_id in "ab"]
    may_go.set()

    async with asyncio.timeout(30):
        await asyncio.gather(*turns)
    assert "session.error" not in client.events("a") + client.events("b")


async def test_a_client_that_is_the_runtimes_file_system_keeps_it(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("alone")

    async def succeed(_peer, _params):
        return {"success": True}

    rig.scripted._prepare = lambda runtime: runtime.on.update({"sessionFs.setProvider": succeed})
    await client.call("sessionFs.setProvider", {"initialCwd": "/", "sessionStatePath": "/s", "conventions": "posix"})
    loop = asyncio.get_running_loop()
    over = loop.time() + 3 * SOON
    await rig.settled(lambda: loop.time() > over)
    assert len(rig.scripted.alive) == 1


async def test_a_runtime_hibernates_again_and_again(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("shared")
    await open_sessions(client, "a")
    for number in range(4):
        await hibernated(rig, number)
        await turn(client, "a", f"turn {number}")
    assert client.events("a").count("session.idle") == 5
    assert len(rig.services.occupancy._runtimes) == 1


async def test_a_session_that_never_had_a_turn_survives_hibernation(open_rig):
    rig = await open_rig(hibernate_seconds=SOON)
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "a", "model": "demo"})
    await hibernated(rig)
    await turn(client, "a")
    [created] = rig.scripted.runtimes[1].called("session.create")
    assert created == {"sessionId": "a", "model": "demo"}
    assert "session.start" not in client.events("a")


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_many_users_sleep_and_wake_at_once_and_everything_is_given_back(open_rig, tenant):
    rig = await open_rig(hibernate_seconds=SOON)
    clients = [await rig.client(tenant, f"user{number}") for number in range(8)]
    for number, client in enumerate(clients):
        await open_sessions(client, f"s{number}")
    await rig.settled(lambda: not rig.scripted.alive)
    async with asyncio.timeout(30):
        await asyncio.gather(*(turn(client, f"s{number}", "wake") for number, client in enumerate(clients)))
    for client in clients:
        await client.aclose()
    await rig.settled(lambda: len(rig.services.residents) == 0 and not list(rig.services.occupancy) and not rig.links())


# -- turns without an end: a runtime that could not write one never says that it is idle (measured on a full disk) ------------


async def begin_endless_turn(rig, client, session_id: str = "a") -> None:
    """Begin a turn whose end is never told, though the runtime says that it does no work."""
    runtime = rig.scripted.runtimes[0]

    async def send(_peer, params):
        runtime.emit(runtime.sessions[params["sessionId"]], "assistant.turn_start")
        return {"messageId": "m"}

    runtime.on["session.send"] = send
    await client.call("session.send", {"sessionId": session_id, "prompt": "x"})
    await client.wait_for_event(session_id, "assistant.turn_start", 2)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_turn_that_ends_without_a_word_does_not_keep_its_runtime_for_ever(open_rig, tenant):
    rig = await open_rig(hibernate_seconds=SOON, doubt_seconds=SOON)
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    await begin_endless_turn(rig, client)
    await hibernated(rig)
    await turn(client, "a", "awake?")


async def test_a_turn_that_ends_without_a_word_does_not_hold_up_a_replacement(open_rig):
    rig = await open_rig(doubt_seconds=SOON)
    client = await rig.client("shared")
    await open_sessions(client, "a")
    await begin_endless_turn(rig, client)
    [occupied] = rig.services.occupancy
    rig.pool.cordon(occupied.handle, "too old")
    await hibernated(rig)
    await turn(client, "a", "again")


async def test_a_turn_without_a_word_goes_on_as_long_as_the_runtime_says_that_it_works(open_rig):
    rig = await open_rig(hibernate_seconds=SOON, doubt_seconds=SOON)
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "busy"})
    await client.call("session.send", {"sessionId": "busy", "prompt": "[hold]"})
    await client.wait_for_event("busy", "assistant.turn_start")
    await rig.scripted.runtimes[0].wait_for_call("session.metadata.activity", 3)
    assert len(rig.scripted.alive) == 1
    await client.call("session.abort", {"sessionId": "busy"})
    await client.wait_for_event("busy", "session.idle")
    await hibernated(rig)


async def test_a_turn_that_waits_for_its_client_is_not_doubted(open_rig):
    rig = await open_rig(hibernate_seconds=SOON, doubt_seconds=SOON)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    may_answer = asyncio.Event()

    async def answer(_params):
        await may_answer.wait()
        return "yes"

    client.answers["userInput.request"] = answer
    await client.call("session.send", {"sessionId": "a", "prompt": "[ask userInput.request]"})
    loop = asyncio.get_running_loop()
    over = loop.time() + 4 * SOON
    await rig.settled(lambda: loop.time() > over)
    assert rig.scripted.runtimes[0].called("session.metadata.activity") == []
    assert len(rig.scripted.alive) == 1
    may_answer.set()
    await client.wait_for_event("a", "session.idle", 2)
