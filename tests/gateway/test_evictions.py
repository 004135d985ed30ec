"""A cap on live sessions: the least recently used idle one leaves its runtime, and comes back at its next call unnoticed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

EVERYONE = ["alone", "guarded", "team", "shared"]


async def turn(client, session_id: str, prompt: str = "x") -> None:
    """Have a turn and hear its end."""
    before = client.events(session_id).count("session.idle")
    await client.call("session.send", {"sessionId": session_id, "prompt": prompt})
    await client.wait_for_event(session_id, "session.idle", before + 1)


async def open_sessions(client, *session_ids: str) -> None:
    """Create sessions and give each a turn, so that it is on disk."""
    for session_id in session_ids:
        await client.call("session.create", {"sessionId": session_id, "model": "demo"})
        await turn(client, session_id)


def live(rig, number: int = 0) -> set[str]:
    return set(rig.scripted.runtimes[number].sessions)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_the_least_recently_used_session_is_evicted_and_comes_back_at_its_next_call(open_rig, tenant):
    rig = await open_rig(live_sessions=2)
    client = await rig.client(tenant)
    await open_sessions(client, "a", "b")
    await turn(client, "a")

    await open_sessions(client, "c")
    await rig.settled(lambda: live(rig) == {"a", "c"})

    await turn(client, "b", "back again")
    await rig.settled(lambda: live(rig) == {"b", "c"})
    assert client.stray == []
    for session_id in "abc":
        assert not {"session.shutdown", "session.resume", "session.error"} & set(client.events(session_id))


async def test_an_evicted_session_is_resumed_with_all_that_its_client_said_of_it(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await client.call("session.create", {"sessionId": "a", "model": "demo", "tools": [{"name": "t"}], "name": "n"})
    await turn(client, "a")
    await client.call("session.options.update", {"sessionId": "a", "coauthorEnabled": False})
    await client.call("session.model.switchTo", {"sessionId": "a", "modelId": "first"})
    await client.call("session.model.switchTo", {"sessionId": "a", "modelId": "second"})
    await client.call("session.skills.disable", {"sessionId": "a", "name": "one"})
    await client.call("session.skills.disable", {"sessionId": "a", "name": "two"})
    await open_sessions(client, "b")
    await rig.settled(lambda: live(rig) == {"b"})
    runtime = rig.scripted.runtimes[0]
    before = len(runtime.calls)

    await client.call("session.getMessages", {"sessionId": "a"})

    repeated = [(call.method, call.params) for call in runtime.calls[before:] if call.params.get("sessionId") == "a"]
    assert repeated == [
        ("session.resume", {"sessionId": "a", "model": "demo", "tools": [{"name": "t"}]}),
        ("session.options.update", {"sessionId": "a", "coauthorEnabled": False}),
        ("session.model.switchTo", {"sessionId": "a", "modelId": "second"}),
        ("session.skills.disable", {"sessionId": "a", "name": "one"}),
        ("session.skills.disable", {"sessionId": "a", "name": "two"}),
        ("session.getMessages", {"sessionId": "a"}),
    ]


async def test_a_setting_that_the_runtime_refused_is_not_repeated(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    runtime = rig.scripted.runtimes[0]
    runtime.faults = type(runtime.faults)(refuses="session.model.switchTo")
    with pytest.raises(Exception, match="refused"):
        await client.call("session.model.switchTo", {"sessionId": "a", "modelId": "no"})
    await open_sessions(client, "b")
    await rig.settled(lambda: live(rig) == {"b"})
    before = len(runtime.called("session.model.switchTo"))
    await turn(client, "a")
    assert len(runtime.called("session.model.switchTo")) == before


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_session_at_work_is_never_evicted(open_rig, tenant):
    rig = await open_rig(live_sessions=1)
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "busy"})
    await client.call("session.send", {"sessionId": "busy", "prompt": "[hold]"})
    await client.wait_for_event("busy", "assistant.turn_start")

    await open_sessions(client, "b")
    await open_sessions(client, "c")
    await rig.settled(lambda: live(rig) == {"busy", "c"} or live(rig) == {"busy"})

    await client.call("session.abort", {"sessionId": "busy"})
    await client.wait_for_event("busy", "session.idle")
    await turn(client, "busy", "still here")
    assert "busy" not in [params["sessionId"] for params in rig.scripted.runtimes[0].called("session.resume")]


async def test_a_session_that_works_without_a_turn_is_asked_about_and_left(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await open_sessions(client, "shell")
    rig.scripted.runtimes[0].sessions["shell"].works = True

    await open_sessions(client, "b", "c")

    await rig.settled(lambda: live(rig) == {"shell"} or live(rig) == {"shell", "c"})
    assert "shell" in live(rig)


async def test_a_session_whose_question_is_unanswered_is_not_evicted(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    may_answer = asyncio.Event()

    async def answer(_params):
        await may_answer.wait()
        return {"answer": "yes"}

    client.answers["userInput.request"] = answer
    await client.call("session.create", {"sessionId": "asked"})
    await client.call("session.send", {"sessionId": "asked", "prompt": "[ask userInput.request]"})
    await client.wait_until(lambda: any(heard.method == "userInput.request" for heard in client.heard))

    await open_sessions(client, "b", "c")

    assert "asked" in live(rig)
    may_answer.set()
    await client.wait_for_event("asked", "session.idle")


async def test_a_request_that_comes_while_its_session_is_unloaded_waits_and_is_answered(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await open_sessions(client, "a")
    runtime, asked, may_go = rig.scripted.runtimes[0], asyncio.Event(), asyncio.Event()
    usual = runtime.sessions

    async def activity(_peer, params):
        asked.set()
        await may_go.wait()
        return {"hasActiveWork": params["sessionId"] not in usual}

    runtime.on["session.metadata.activity"] = activity
    opening = asyncio.ensure_future(open_sessions(client, "b"))
    async with asyncio.timeout(30):
        await asked.wait()
        await opening
    waiting = client.ask("session.getMessages", {"sessionId": "a"})
    assert await client.call("ping")
    assert not waiting.done()
    may_go.set()

    async with asyncio.timeout(30):
        assert (await waiting)["events"]
    assert [call.method for call in runtime.calls if call.params.get("sessionId") == "a"][-3:] == [
        "session.detach",
        "session.resume",
        "session.getMessages",
    ]


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_every_link_of_a_session_has_it_back_before_the_next_turn(open_rig, tenant):
    rig = await open_rig(live_sessions=1)
    one, other = await rig.client(tenant), await rig.client(tenant)
    await open_sessions(one, "a")
    await other.call("session.resume", {"sessionId": "a", "model": "others"})
    await open_sessions(one, "b")
    await rig.settled(lambda: live(rig) == {"b"})

    heard_before = len(other.events("a"))
    await turn(one, "a", "hear me")
    await other.wait_for_event("a", "session.idle")

    kinds = ["user.message", "assistant.turn_start", "assistant.message", "assistant.turn_end", "session.idle"]
    assert other.events("a")[heard_before:] == kinds
    assert one.events("a")[-5:] == kinds


async def test_what_a_client_says_about_a_session_that_another_one_holds_brings_it_back_too(open_rig):
    rig = await open_rig(live_sessions=1)
    one, other = await rig.client("alone"), await rig.client("alone")
    await open_sessions(one, "a", "b")
    await rig.settled(lambda: live(rig) == {"b"})

    assert (await other.call("session.getMessages", {"sessionId": "a"}))["events"]


async def test_an_evicted_session_that_is_created_again_is_joined_with_its_other_links(open_rig):
    rig = await open_rig(live_sessions=1)
    one, other = await rig.client("alone"), await rig.client("alone")
    await open_sessions(one, "a", "b")
    await rig.settled(lambda: live(rig) == {"b"})

    await other.call("session.create", {"sessionId": "a"})
    await turn(other, "a", "for both")

    await one.wait_for_event("a", "session.idle", 2)


async def test_an_evicted_session_that_its_holder_creates_again_is_joined_and_not_begun_anew(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await open_sessions(client, "a", "b")
    await rig.settled(lambda: live(rig) == {"b"})
    runtime = rig.scripted.runtimes[0]
    before = len(runtime.calls)

    await client.call("session.create", {"sessionId": "a"})

    opened = [call.method for call in runtime.calls[before:] if call.params.get("sessionId") == "a"]
    assert opened == ["session.resume", "session.create"]


async def test_detaching_from_an_evicted_session_needs_no_runtime(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await open_sessions(client, "a", "b")
    await rig.settled(lambda: live(rig) == {"b"})

    assert await client.call("session.detach", {"sessionId": "a"}) == {"success": True}

    assert rig.scripted.runtimes[0].called("session.resume") == []
    assert len(rig.services.residents) == 1


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_deleted_session_does_not_come_back_for_anyone(open_rig, tenant):
    rig = await open_rig(live_sessions=1)
    one, other = await rig.client(tenant), await rig.client(tenant)
    await open_sessions(one, "a")
    await other.call("session.resume", {"sessionId": "a"})
    await open_sessions(one, "b")
    await rig.settled(lambda: live(rig) == {"b"})

    assert (await one.call("session.delete", {"sessionId": "a"}))["success"]

    with pytest.raises(Exception, match="not found"):
        await other.call("session.send", {"sessionId": "a", "prompt": "x"})
    assert "a" not in live(rig)


async def test_a_session_with_turns_whose_files_are_gone_is_not_made_anew_without_them(open_rig):
    rig = await open_rig(live_sessions=1)
    client = await rig.client("alone")
    await open_sessions(client, "a", "b")
    await rig.settled(lambda: live(rig) == {"b"})
    rig.scripted.runtimes[0].disk.discard("a")

    with pytest.raises(Exception, match=r"not on disk any more.*not found"):
        await client.call("session.send", {"sessionId": "a", "prompt": "x"})


async def test_many_sessions_in_turn_keep_to_the_cap_and_lose_nothing(open_rig):
    rig = await open_rig(live_sessions=4)
    clients = [await rig.client("shared") for _ in range(3)]
    scripted, most = rig.scripted, 0
    for number in range(30):
        await open_sessions(clients[number % 3], f"s{number}")
        most = max(most, len(scripted.runtimes[0].sessions))
    for number in range(30):
        await turn(clients[number % 3], f"s{number}", "again")
        most = max(most, len(scripted.runtimes[0].sessions))
    assert most <= 4 + 2 + 1
    await rig.settled(lambda: len(scripted.runtimes[0].sessions) <= 4)
    for number in range(30):
        assert clients[number % 3].events(f"s{number}").count("session.idle") == 2


async def test_without_a_cap_nothing_is_evicted(open_rig):
    rig = await open_rig(live_sessions=0)
    client = await rig.client("alone")
    await open_sessions(client, *[f"s{number}" for number in range(10)])
    assert len(live(rig)) == 10


async def test_a_runtime_with_twice_its_cap_at_work_takes_no_more_and_says_so(open_rig):
    rig = await open_rig(live_sessions=2)
    client = await rig.client("alone")
    for number in range(4):
        await client.call("session.create", {"sessionId": f"s{number}"})
        await client.call("session.send", {"sessionId": f"s{number}", "prompt": "[hold]"})
        await client.wait_for_event(f"s{number}", "assistant.turn_start")

    with pytest.raises(Exception, match="its cap of live sessions is 2; try later"):
        await client.call("session.create", {"sessionId": "one"})

    await client.call("session.abort", {"sessionId": "s0"})
    await client.wait_for_event("s0", "session.idle")
    await rig.settled(lambda: len(live(rig)) < 4)
    assert await client.call("session.create", {"sessionId": "one"})


async def test_hooks_of_leaving_and_coming_back_are_not_the_programs(open_rig):
    rig = await open_rig(live_sessions=1)
    client, heard = await rig.client("alone"), []

    async def hook(params):
        heard.append((params["hookType"], params["input"].get("source")))
        return {}

    client.answers["hooks.invoke"] = hook
    await client.call("session.create", {"sessionId": "a", "hooks": True})
    runtime = rig.scripted.runtimes[0]
    released = type(runtime)._release

    async def detach(peer, params):
        ask = {"sessionId": params["sessionId"], "hookType": "sessionEnd", "input": {"reason": "user_exit"}}
        await peer.ask("hooks.invoke", ask)
        return released(runtime, peer, params)

    runtime.on["session.detach"] = detach
    await turn(client, "a")
    await open_sessions(client, "b")
    await rig.settled(lambda: live(rig) == {"b"})
    await client.call("session.getMessages", {"sessionId": "a"})
    [attached] = runtime.sessions["a"].attached
    for source in ("resume", "resume"):
        ask = {"sessionId": "a", "hookType": "sessionStart", "input": {"source": source}}
        assert await attached.ask("hooks.invoke", ask) == {}
    assert heard == [("sessionStart", "resume")]  # the second: no wake of ours stands behind it
    await client.call("session.detach", {"sessionId": "a"})
    assert heard[-1] == ("sessionEnd", None)


@pytest.mark.parametrize("tenant", EVERYONE)
async def test_a_cordoned_runtime_is_emptied_though_its_clients_never_pause(open_rig, tenant):
    rig = await open_rig()
    clients = [await rig.client(tenant), await rig.client(tenant)]
    await clients[0].call("session.create", {"sessionId": "a"})
    await turn(clients[0], "a")
    await clients[1].call("session.resume", {"sessionId": "a"})
    runtime = rig.scripted.runtimes[0]

    async def answer(_params):
        await asyncio.sleep(0.02)
        return "in its own time"

    for client in clients:
        client.answers["userInput.request"] = answer
    done = asyncio.Event()

    async def go_on():
        while not done.is_set():
            await turn(clients[0], "a", "[ask userInput.request]")

    working = asyncio.create_task(go_on())
    await runtime.wait_for_call("session.send", 3)
    [occupied] = rig.services.occupancy
    rig.pool.cordon(occupied.handle, "too old")
    await rig.settled(rig.scripted.processes[0].exited.done)
    done.set()
    await working
    await turn(clients[0], "a", "and on")
    assert len(rig.scripted.runtimes[1].sessions["a"].attached) == 2
    for client in clients:
        assert not {"session.error", "session.shutdown"} & set(client.events("a"))


async def test_a_runtime_with_memory_to_spare_keeps_more_sessions_and_gives_them_up_when_it_is_short(open_rig):
    rig = await open_rig(live_sessions=2, live_memory_bytes=1024 * 1024 * 1024)
    client = await rig.client("alone")
    await open_sessions(client, *[f"s{number}" for number in range(6)])
    assert len(live(rig)) == 6
    [occupied] = rig.services.occupancy
    occupied.handle.memory_bytes, occupied.handle.measured_at = 4 * 1024 * 1024 * 1024, 1.0

    await turn(client, "s5")

    await rig.settled(lambda: live(rig) == {"s4", "s5"})
    occupied.handle.memory_bytes, occupied.handle.measured_at = 100 * 1024 * 1024, 2.0
    for number in range(4):
        await turn(client, f"s{number}", "back")
    assert len(live(rig)) == 6


async def test_an_eviction_and_an_opening_never_wait_for_each_other(open_rig):
    rig = await open_rig()
    one, other = await rig.client("shared"), await rig.client("shared")
    await one.call("session.create", {"sessionId": "s"})
    await other.call("session.resume", {"sessionId": "s"})
    await turn(one, "s")
    for at_work in ("a", "b"):
        await other.call("session.create", {"sessionId": at_work})
        await other.call("session.send", {"sessionId": at_work, "prompt": "[hold]"})
        await other.wait_for_event(at_work, "assistant.turn_start")
    resident = rig.services.residents.find(rig.realm("shared"), "s")
    first = resident.holders[min(resident.holders)]
    first.held.upstream.link.abort()
    await rig.settled(lambda: resident.absent)
    object.__setattr__(rig.services, "settings", replace(rig.services.settings, live_sessions=1))

    # A call that has the session brought back is about to have its turn with it when the eviction looks.
    await resident.lock.acquire()
    asking = one.ask("session.getMessages", {"sessionId": "s"})
    await rig.settled(lambda: resident.lock._waiters)
    rig.services.evictor.note(rig.router.find(rig.realm("shared"), "s"))
    resident.lock.release()

    done, _ = await asyncio.wait((asking,), timeout=30)
    assert done
