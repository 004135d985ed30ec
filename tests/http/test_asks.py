"""One-shot questions: answered, and nothing left, however they end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import httpx
import pytest

from aerodrome.core.identity import Owner
from aerodrome.http.site import HttpSettings
from aerodrome.testing import http_rig
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events

STREAM = {"Accept": "text/event-stream"}


async def nothing_left(http) -> None:
    """Wait until nothing of any question is anywhere: registry, store, runtimes' memory and disk."""
    await http.rig.settled(lambda: not http.rig.registry._records)
    async with asyncio.timeout(WAIT_SECONDS):
        while await http.stores.conversations.list_ephemeral():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await http.rig.settled(lambda: not any(runtime.sessions for runtime in http.rig.scripted.runtimes))
    assert not any(runtime.disk for runtime in http.rig.scripted.runtimes)


async def over(http) -> None:
    """Wait until every question is over: also for the edge, which has tried to delete its session by then."""
    await http.rig.settled(lambda: not http.edge.site.asks._open)


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_question_is_answered_and_nothing_is_left(http, tenant):
    caller = await http.caller(tenant)

    answer = await caller.post("/v1/ask", json={"prompt": "hello", "instructions": "be brief"})

    assert (answer.status_code, answer.json()["status"], answer.json()["content"]) == (200, "completed", "hello")
    await nothing_left(http)


async def test_a_question_is_streamed_and_nothing_is_left(http):
    caller = await http.caller("shared")

    async with caller.stream("POST", "/v1/ask", json={"prompt": "[delta 2]"}, headers=STREAM) as answer:
        kinds = [event.kind async for event in read_events(answer)]

    assert (kinds[0], kinds[-1]) == ("ask.started", "turn.ended")
    assert kinds.count("assistant.message_delta") == 2
    await nothing_left(http)


async def test_permissions_are_rejected_unless_asked_for_otherwise(http):
    caller = await http.caller("shared")

    rejected = await caller.post("/v1/ask", json={"prompt": "[permit]"})
    approved = await caller.post("/v1/ask", json={"prompt": "[permit]", "permissions": "approve"})

    assert (rejected.json()["content"], approved.json()["content"]) == ("reject", "approve-once")


async def test_what_the_caller_would_have_to_answer_needs_a_stream(http):
    caller = await http.caller("shared")

    for wish in ({"permissions": "ask"}, {"ask_user": True}, {"tools": [{"name": "t", "description": "d"}]}):
        refused = await caller.post("/v1/ask", json={"prompt": "x", **wish})
        async with caller.stream("POST", "/v1/ask", json={"prompt": "x", **wish}, headers=STREAM) as answer:
            assert [event.kind async for event in read_events(answer)][-1] == "turn.ended"
        assert (refused.status_code, next(iter(wish)) in refused.json()["detail"]) == (400, True)


async def test_a_streamed_question_is_helped_by_its_session_while_it_runs(http):
    caller, other = await http.caller("shared"), await http.caller("shared")
    request = {"json": {"prompt": "[permit]", "permissions": "ask"}, "headers": STREAM}
    said = []

    async with caller.stream("POST", "/v1/ask", **request) as answer:
        async for event in read_events(answer):
            if event.kind == "ask.started":
                session = event.data["data"]["session_id"]
                assert (await other.get("/v1/sessions")).json()["sessions"] == []
            elif event.kind == "request.opened":
                path = f"/v1/sessions/{session}/requests/{event.data['data']['request_id']}"
                await other.post(path, json={"kind": "permission", "decision": "approve"})
            elif event.kind == "assistant.message":
                said.append(event.data["data"]["content"])

    assert said == ["approve-once"]
    await nothing_left(http)


async def test_a_question_that_fails_says_why_and_leaves_nothing(http):
    caller = await http.caller("shared")

    answer = await caller.post("/v1/ask", json={"prompt": "[fail]"})

    assert (answer.json()["status"], answer.json()["error"]["message"]) == ("failed", "the model failed")
    await nothing_left(http)


async def test_a_question_that_takes_too_long_is_aborted_and_leaves_nothing(http):
    caller = await http.caller("shared")

    answer = await caller.post("/v1/ask", json={"prompt": "[hold]", "timeout_seconds": 0.05})

    assert (answer.json()["status"], answer.json()["error"]["code"]) == ("aborted", "timed_out")
    await nothing_left(http)


async def test_the_operator_bounds_how_long_a_question_may_take(open_http):
    http = await open_http(HttpSettings(ask_seconds=0.05))
    caller = await http.caller("shared")

    assert (await caller.post("/v1/ask", json={"prompt": "[hold]"})).json()["status"] == "aborted"
    await nothing_left(http)


@pytest.mark.parametrize("headers", [{}, STREAM], ids=["json", "stream"])
async def test_a_caller_who_vanishes_mid_turn_leaves_nothing(http, headers):
    caller = await http.caller("shared")
    asking = asyncio.create_task(caller.post("/v1/ask", json={"prompt": "[hold]"}, headers=headers))
    await http.rig.settled(
        lambda: any(call.method == "session.send" for runtime in http.rig.scripted.runtimes for call in runtime.calls)
    )

    asking.cancel()
    await asyncio.wait((asking,))

    await nothing_left(http)


async def test_a_caller_with_a_key_may_leave_and_come_back_for_the_answer(http):
    caller = await http.caller("shared")
    request = {"json": {"prompt": "[flood 20 10]"}, "headers": {"Idempotency-Key": "k"}}
    with pytest.raises(httpx.ReadTimeout):
        await caller.post("/v1/ask", **request, timeout=httpx.Timeout(5.0, read=0.001))

    answer = await caller.post("/v1/ask", **request)

    assert answer.json()["status"] == "completed"
    sent = [c for runtime in http.rig.scripted.runtimes for c in runtime.calls if c.method == "session.send"]
    assert len(sent) == 1
    await nothing_left(http)


async def test_a_question_whose_runtime_dies_says_so_and_leaves_nothing(http):
    caller = await http.caller("shared")

    answer = await caller.post("/v1/ask", json={"prompt": "[die]"})

    assert answer.json()["status"] == "failed"
    await over(http)
    await http.edge.site.asks.delete_leftovers()
    await nothing_left(http)


async def test_a_question_that_cannot_be_asked_leaves_nothing(http):
    caller = await http.caller("shared")

    refused = await caller.post("/v1/ask", json={"prompt": "x", "provider": "nobody"})

    assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")
    await http.edge.site.asks.delete_leftovers()
    await nothing_left(http)


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_what_a_killed_gateway_left_of_a_question_is_deleted_at_the_next_start(http, tenant):
    # As it is in the moment of the kill: marked in the store, on a runtime's disk, and in the registry. The edge that is there
    # now must not find it.
    await http.edge.aclose()
    owner = Owner(tenant, "user")
    for store in (http.stores.conversations,):
        await store.save("ask-1", owner, "{}", is_ephemeral=True)
        await store.save("ask-2", owner, "{}", is_ephemeral=True)
        await store.save("kept", owner, "{}")
    client = await http.rig.client(tenant)
    for session_id in ("ask-1", "kept"):
        await client.call("session.create", {"sessionId": session_id})
        await client.call("session.send", {"sessionId": session_id, "prompt": "x"})
        await client.wait_until(lambda session_id=session_id: "session.idle" in client.events(session_id))
    await client.aclose()
    await http.rig.settled(lambda: not any(runtime.sessions for runtime in http.rig.scripted.runtimes))

    async with http_rig.open_http(http.rig, stores=http.stores) as following:
        caller = await following.caller(tenant)
        listed = (await caller.get("/v1/sessions")).json()["sessions"]
        assert [one["session_id"] for one in listed] == ["kept"], "nobody is to find it, before it is deleted either"
        async with asyncio.timeout(WAIT_SECONDS):
            while await http.stores.conversations.list_ephemeral():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    assert set(http.rig.registry._records) == {"kept"}
    assert {one for runtime in http.rig.scripted.runtimes for one in runtime.disk} == {"kept"}


async def test_a_question_ends_with_its_callers_token(http):
    caller = await http.caller("shared")
    asking = asyncio.create_task(caller.post("/v1/ask", json={"prompt": "[hold]"}))
    await http.rig.settled(lambda: http.rig.gateway.guests)
    (guest,) = http.rig.gateway.guests

    guest.dismiss()

    assert (await asking).status_code == 401
    await nothing_left(http)


async def test_a_question_under_way_ends_with_its_gateway(http):
    """What is left of its tasks the fixture would tell."""
    caller = await http.caller("shared")
    headers = {**STREAM, "Idempotency-Key": "k1"}
    with suppress(httpx.TransportError):
        async with caller.stream("POST", "/v1/ask", json={"prompt": "[hold]"}, headers=headers) as answer:
            async for event in read_events(answer):
                if event.kind == "user.message":
                    await http.edge.aclose()
    assert not http.edge.users.users


async def test_a_question_that_ends_while_sessions_are_listed_is_not_among_them(http, monkeypatch):
    caller = await http.caller("shared")
    registry, has_read, may_arrive = http.rig.registry, asyncio.Event(), asyncio.Event()
    list_owned = registry.list_owned

    async def arrive_late(owner):
        found = await list_owned(owner)
        has_read.set()
        await may_arrive.wait()
        return found

    asking = asyncio.create_task(caller.post("/v1/ask", json={"prompt": "[hold]"}))
    await http.rig.settled(lambda: registry._records and http.rig.gateway.guests)
    monkeypatch.setattr(registry, "list_owned", arrive_late)

    listing = asyncio.create_task(caller.get("/v1/sessions"))
    await has_read.wait()
    asking.cancel()
    await asyncio.wait((asking,))
    await nothing_left(http)
    may_arrive.set()

    assert (await listing).json()["sessions"] == []


async def test_a_question_that_begins_and_ends_while_sessions_are_listed_is_not_among_them(http):
    caller = await http.caller("shared")
    asks = http.edge.site.asks
    with asks.hiding() as hidden:
        answer = await caller.post("/v1/ask", json={"prompt": "hello"})
        await nothing_left(http)

        assert answer.json()["session_id"] in hidden
    await http.rig.settled(lambda: not hidden_now(asks))


def hidden_now(asks) -> set[str]:
    with asks.hiding() as hidden:
        return set(hidden)
