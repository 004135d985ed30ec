"""The flight recorder counts what the sessions of all links do: each turn once, as it was, and nothing of what was said."""

from __future__ import annotations

import pytest

from aerodrome import errors
from aerodrome.core.flights import TurnEnd
from aerodrome.core.identity import Owner
from aerodrome.gateway import recorder, unloading
from aerodrome.testing.peer import RpcError


async def open_session(client, session_id: str = "a") -> None:
    await client.call("session.create", {"sessionId": session_id})


async def turn(client, prompt: str, session_id: str = "a", end: str = "session.idle") -> None:
    before = client.events(session_id).count(end)
    await client.call("session.send", {"sessionId": session_id, "prompt": prompt})
    await client.wait_for_event(session_id, end, before + 1)


def flight_of(rig, tenant: str = "alone", session_id: str = "a"):
    return rig.services.recorder.find(rig.realm(tenant), session_id)


def ended(rig) -> dict[str, int]:
    return {end.value: count for end, count in rig.services.recorder.ended.items() if count}


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_turn_is_counted_once_though_several_links_hear_it(rig, tenant):
    client, other = await rig.client(tenant), await rig.client(tenant)
    await open_session(client)
    await other.call("session.resume", {"sessionId": "a"})

    await turn(client, "[delta 2]")
    await turn(other, "[delta 2]")
    await client.wait_for_event("a", "session.idle", 2)

    assert ended(rig) == {"completed": 2}
    turns = flight_of(rig, tenant).turns
    assert [one.end for one in turns] == [TurnEnd.COMPLETED] * 2
    assert all(one.began_at <= one.spoke_at <= one.ended_at for one in turns)
    [bucket] = [one for one in rig.services.recorder.series.window(rig.clock.now()) if one.durations]
    assert bucket.durations[recorder.TURN_SECONDS].count == 2


async def test_in_a_shared_session_a_turn_counts_once_for_the_sessions_owner(rig):
    owner, member = await rig.client("shared", "ann"), await rig.client("shared", "ben")
    await open_session(owner)
    await owner.call("aerodrome.members.invite", {"sessionId": "a", "user": "ben", "roles": ["driver"]})
    await member.call("aerodrome.members.accept", {"sessionId": "a"})
    await member.call("session.resume", {"sessionId": "a"})

    await turn(member, "from ben")
    await turn(owner, "from ann")
    await turn(owner, "from ann again")
    await member.wait_for_event("a", "session.idle", 3)

    assert ended(rig) == {"completed": 3}
    totals = rig.services.recorder.totals("shared")
    assert {who.user: of.turns for who, of in totals.items()} == {"ann": 3}


async def test_a_turn_says_how_it_ended(rig):
    client = await rig.client("alone")
    await open_session(client)

    await turn(client, "[fail]")
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start", 2)
    await client.call("session.abort", {"sessionId": "a"})
    await client.wait_for_event("a", "session.idle", 2)
    await turn(client, "[die]", end="session.error")
    await rig.settled(lambda: flight_of(rig).turns[-1].end)

    assert [one.end.value for one in flight_of(rig).turns] == ["failed", "aborted", "lost"]
    assert ended(rig) == {"failed": 1, "aborted": 1, "lost": 1}
    assert flight_of(rig).turns[0].error == "query"
    assert rig.services.recorder.totals("alone")[Owner("alone", "user")].failed == 2


async def test_a_client_that_goes_leaves_its_turn(rig):
    client = await rig.client("alone")
    await open_session(client)
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start")

    await client.aclose()
    await rig.settled(lambda: ended(rig))

    assert ended(rig) == {"left": 1}


async def test_tools_and_tokens_of_a_turn_are_kept_by_name_and_number(rig):
    client = await rig.client("alone")
    await open_session(client)
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start")
    runtime = rig.scripted.runtimes[0]
    session = runtime.sessions["a"]
    usage = {"model": "demo", "inputTokens": 30, "outputTokens": 7, "cacheReadTokens": 5}
    runtime.emit(session, "tool.execution_start", {"toolCallId": "1", "toolName": "bash", "arguments": {"x": "secret"}})
    runtime.emit(session, "tool.execution_complete", {"toolCallId": "1", "success": False, "result": "secret"})
    runtime.emit(session, "tool.execution_start", {"toolCallId": "2", "toolName": "edit"})
    runtime.emit(session, "assistant.usage", usage)
    runtime.emit(session, "assistant.usage", usage)
    await client.call("session.abort", {"sessionId": "a"})
    await client.wait_for_event("a", "session.idle")

    [kept] = flight_of(rig).turns
    assert [(tool.name, tool.is_failed, tool.ended_at is None) for tool in kept.tools.values()] == [
        ("bash", True, False),
        ("edit", False, True),
    ]
    assert (kept.tokens.calls, kept.tokens.taken, kept.tokens.given, kept.tokens.cached) == (2, 60, 14, 10)
    assert kept.model == "demo"
    assert "secret" not in repr(flight_of(rig))


async def test_what_a_runtime_says_in_another_form_is_left_out_and_the_turn_goes_on(rig):
    client = await rig.client("alone")
    await open_session(client)
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start")
    runtime = rig.scripted.runtimes[0]
    for data in ({"inputTokens": "many"}, {"inputTokens": -1, "model": 7}):
        runtime.emit(runtime.sessions["a"], "assistant.usage", data)
    await client.call("session.abort", {"sessionId": "a"})
    await client.wait_for_event("a", "session.idle")

    assert flight_of(rig).turns[0].tokens.taken == 0


async def test_where_a_session_was_is_kept_with_the_reasons(rig):
    client = await rig.client("alone")
    await open_session(client)
    await turn(client, "x")
    [resident] = rig.services.residents
    await unloading.unload(rig.services, resident, "operator")
    await turn(client, "back")
    await turn(client, "[die]", end="session.error")
    await client.call("session.destroy", {"sessionId": "a"})

    places = [(place.runtime_id is not None, place.why.partition(":")[0]) for place in flight_of(rig).places]
    assert places[:4] == [(True, "opened"), (False, "evicted"), (True, "brought back"), (False, places[3][1])]
    assert places[3][1] in ("its runtime is lost", "the connection to its runtime ended")


async def test_a_deleted_session_leaves_nothing_for_whoever_has_its_id_next(rig):
    client = await rig.client("shared", "ann")
    await open_session(client)
    await turn(client, "x")
    await client.call("session.delete", {"sessionId": "a"})
    other = await rig.client("shared", "ben")
    await open_session(other)

    assert len(flight_of(rig, "shared").turns) == 0


async def test_rejections_are_counted_by_reason(rig):
    client = await rig.client("shared")
    for _ in range(2):
        with pytest.raises(RpcError):
            await client.call("runtime.shutdown", {})
    stranger = await rig.stranger()
    with pytest.raises(RpcError):
        await stranger.call("connect", {"token": "aero_000000000000_" + "x" * 43})

    assert rig.services.recorder.rejected == {"policy": 2, "authentication": 1}
    counts = rig.services.recorder.series.window(rig.clock.now())[-1].counts
    assert counts.keys() <= {f"rejections.{wire.reason}" for wire in errors.WIRE.values()}


async def test_memory_is_bounded_however_many_sessions_there_are(rig, monkeypatch):
    monkeypatch.setattr(recorder, "KEPT_SESSIONS", 3)
    monkeypatch.setattr(recorder, "KEPT_USERS", 2)
    for number in range(6):
        client = await rig.client("shared", f"user{number}")
        await open_session(client, f"s{number}")
        await turn(client, "x", f"s{number}")

    assert len(rig.services.recorder._flights) == 3
    assert len(rig.services.recorder.totals()) == 2
