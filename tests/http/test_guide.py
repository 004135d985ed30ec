"""The guide's endpoints: its shapes, and what its snippets leave out."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy
from aerodrome.http.site import HttpSettings
from aerodrome.http.teams import SERVICE_USER

from .scenes import make, say


def sent(http) -> list[str]:
    return [c.params["prompt"] for r in http.rig.scripted.runtimes for c in r.calls if c.method == "session.send"]


async def test_an_analysis_answers_with_its_result_and_leaves_nothing(http):
    caller = await http.caller("shared")

    answer = await caller.post("/api/analyze", json={"prompt": "hello"})

    assert (answer.status_code, answer.json()) == (200, {"result": "hello"})
    await http.rig.settled(lambda: not http.rig.registry._records)


async def test_a_chat_is_started_continued_and_ended(http):
    caller = await http.caller("shared")

    started = await caller.post("/api/chat/start")
    chat = started.json()["sessionId"]
    said = await caller.post("/api/chat/message", json={"sessionId": chat, "message": "one"})
    again = await caller.post("/api/chat/message", json={"sessionId": chat, "message": "two"})
    opened = http.rig.scripted.runtimes[0].sessions[chat].options["infiniteSessions"]
    ended = await caller.post("/api/chat/end", json={"sessionId": chat})

    assert list(started.json()) == ["sessionId"]
    assert (said.json(), again.json(), ended.json()) == ({"content": "one"}, {"content": "two"}, {"success": True})
    assert opened == {"enabled": True, "backgroundCompactionThreshold": 0.8}
    assert (await caller.post("/api/chat/end", json={"sessionId": chat})).status_code == 404


async def test_a_chat_of_another_user_is_as_good_as_missing(http):
    caller, stranger = await http.caller("shared"), await http.caller("shared", "mallory")
    chat = (await caller.post("/api/chat/start", json={})).json()["sessionId"]

    said = await stranger.post("/api/chat/message", json={"sessionId": chat, "message": "x"})
    ended = await stranger.post("/api/chat/end", json={"sessionId": chat})

    assert (said.status_code, ended.status_code) == (404, 404)
    assert sent(http) == []


@pytest.mark.parametrize(
    ("path", "body"), [("/api/analyze", {"prompt": "[fail]"}), ("/api/chat/message", {"message": "[fail]"})]
)
async def test_a_turn_that_fails_is_a_problem_not_an_empty_answer(http, path, body):
    caller = await http.caller("shared")
    if path == "/api/chat/message":
        body["sessionId"] = (await caller.post("/api/chat/start")).json()["sessionId"]

    failed = await caller.post(path, json=body)

    assert (failed.status_code, failed.json()["code"]) == (422, "runtime_refused")
    assert failed.json()["detail"] == "the model failed"


async def test_a_turn_over_a_cap_is_said_to_be_one_and_leaves_nothing(http):
    policy = Policy(Isolation.SHARED, max_turns_per_user=1)
    http.rig.configured["capped"] = Tenant("capped", policy, "config")
    caller = await http.caller("capped")
    chat = (await caller.post("/api/chat/start")).json()["sessionId"]
    busy = await make(caller)
    await say(caller, busy, "[hold]", wait_seconds=0)

    for path, body in (
        ("/api/chat/message", {"sessionId": chat, "message": "x"}),
        ("/api/analyze", {"prompt": "x"}),
        ("/v1/ask", {"prompt": "x"}),
    ):
        refused = await caller.post(path, json=body, headers={"Idempotency-Key": path})
        assert (refused.status_code, refused.json()["code"]) == (429, "over_capacity"), path
        assert "retry-after" in refused.headers

    await caller.post(f"{busy}/abort")
    await http.rig.settled(lambda: not http.edge.users.users[0].conversations["s1"].is_busy)
    again = {"json": {"sessionId": chat, "message": "x"}, "headers": {"Idempotency-Key": "/api/chat/message"}}
    assert (await caller.post("/api/chat/message", **again)).json() == {"content": "x"}
    await http.rig.settled(lambda: len(http.rig.registry._records) == 2)


async def test_a_message_that_waited_and_then_could_not_be_sent_may_be_sent_again_under_its_key(http):
    caller, other = await http.caller("shared"), await http.caller("shared")
    chat = (await caller.post("/api/chat/start")).json()["sessionId"]
    await say(caller, f"/v1/sessions/{chat}", "[hold]", wait_seconds=0)
    message = {"json": {"sessionId": chat, "message": "x"}, "headers": {"Idempotency-Key": "k"}}
    waiting = asyncio.create_task(other.post("/api/chat/message", **message))
    held = http.edge.users.users[0].conversations[chat]
    await http.rig.settled(lambda: len(held._queue) == 1)
    draining = asyncio.create_task(http.rig.services.drainer.drain(0.0, lambda _: None))
    await asyncio.wait_for(draining, 5)
    await caller.post(f"/v1/sessions/{chat}/abort")

    refused = await asyncio.wait_for(waiting, 5)
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    again = await caller.post("/api/chat/message", **message)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (503, None)


async def test_a_message_whose_turn_is_lost_with_its_runtime_may_be_sent_again_under_its_key(http):
    caller = await http.caller("shared")
    chat = (await caller.post("/api/chat/start")).json()["sessionId"]
    assert (await caller.post("/api/chat/message", json={"sessionId": chat, "message": "one"})).status_code == 200
    message = {"json": {"sessionId": chat, "message": "[hold]"}, "headers": {"Idempotency-Key": "k"}}
    first = asyncio.create_task(caller.post("/api/chat/message", **message))
    await http.rig.settled(lambda: len(sent(http)) == 2)
    http.rig.scripted.runtimes[0].die()

    lost = await asyncio.wait_for(first, 10)
    assert (lost.status_code, lost.json()["code"]) == (503, "runtime_lost")
    again = asyncio.create_task(caller.post("/api/chat/message", **message))
    await http.rig.settled(lambda: len(sent(http)) == 3)
    await caller.post(f"/v1/sessions/{chat}/abort")
    answer = await asyncio.wait_for(again, 10)
    assert "idempotency-replayed" not in answer.headers
    kept = await caller.post("/api/chat/message", **message)
    assert kept.headers["idempotency-replayed"] == "true"
    assert (kept.status_code, kept.json()) == (answer.status_code, answer.json())


async def test_a_caller_who_leaves_a_chat_is_waited_for_no_longer_and_the_turn_goes_on(http):
    caller = await http.caller("shared")
    chat = (await caller.post("/api/chat/start")).json()["sessionId"]
    message = {"sessionId": chat, "message": "[hold]"}
    other = await http.caller("shared")
    call = asyncio.create_task(other.post("/api/chat/message", json=message))
    await http.rig.settled(lambda: sent(http))

    call.cancel()
    await asyncio.wait((call,))
    await http.rig.settled(lambda: not http.edge._server._server.server_state.tasks)

    assert (await caller.post(f"/v1/sessions/{chat}/abort")).json() == {"aborted": True}


async def test_a_team_speaks_in_one_session_each_message_with_its_sender(open_http):
    http = await open_http(HttpSettings(team_chat=True))
    names = ("ann", "bob", "cyd")
    callers = [await http.caller("shared", name) for name in names]

    answers = await asyncio.gather(*(one.post("/team-chat", json={"message": "hello"}) for one in callers))

    assert sorted(answer.json()["content"] for answer in answers) == [f"From {name}:\nhello" for name in names]
    assert len(http.rig.registry._records) == 1
    assert {record.owner for record in http.rig.registry._records.values()} == {Owner("shared", SERVICE_USER)}
    assert (await callers[0].get("/v1/sessions")).json()["sessions"] == []


async def test_teams_of_two_tenants_share_nothing(open_http):
    http = await open_http(HttpSettings(team_chat=True))
    for tenant in ("shared", "other"):
        caller = await http.caller(tenant)
        assert (await caller.post("/team-chat", json={"message": "x"})).status_code == 200
        assert (await caller.post("/team-chat", json={"message": "y"})).status_code == 200

    assert {record.owner.tenant for record in http.rig.registry._records.values()} == {"shared", "other"}
    assert len(http.rig.registry._records) == 2


async def test_there_is_no_team_chat_unless_the_operator_wants_one(http):
    caller = await http.caller("shared")
    refused = await caller.post("/team-chat", json={"message": "x"})
    assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")
