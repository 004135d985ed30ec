"""What HTTP sessions go through: runtimes that die, links that end, other links of their owner, limits, a gateway that stops."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy
from aerodrome.http.site import HttpSettings
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events

from .scenes import make, say


def kill_runtimes(http) -> None:
    for process in http.rig.scripted.alive:
        process.kill()


async def over(caller, session: str, turn: dict) -> dict:
    """Return a turn once it is over, whatever it has waited for."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            found = await caller.get(f"{session}/turns/{turn['turn_id']}", params={"wait_seconds": 1})
            if found.json()["status"] not in ("running", "waiting", "queued"):
                return found.json()
            await asyncio.sleep(0.005)


async def open_requests(caller, session: str) -> list[dict]:
    return (await caller.get(f"{session}/requests")).json()["requests"]


async def test_turns_that_wait_are_sent_when_the_runtime_of_the_one_before_them_has_died(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    first = await say(caller, session, "[hold]", wait_seconds=0)
    second = await say(caller, session, "second", wait_seconds=0)

    kill_runtimes(http)

    failed = await over(caller, session, first)
    assert (failed["status"], failed["error"]["code"], failed["error"]["retryable"]) == ("failed", "runtime_lost", True)
    assert (await over(caller, session, second))["content"] == "second"


async def test_a_stream_goes_on_over_the_death_of_a_runtime(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    heard = []
    async with caller.stream("GET", f"{session}/events") as answer:
        reading = read_events(answer)
        first = await say(caller, session, "[hold]", wait_seconds=0)
        kill_runtimes(http)
        await over(caller, session, first)
        await say(caller, session, "after")
        async for event in reading:
            heard.append(event.kind)
            if heard.count("turn.ended") == 2:
                break

    assert heard.count("session.error") == 1
    assert "session.idle" in heard
    assert heard.count("assistant.message") == 1


async def test_a_question_that_died_with_its_runtime_is_not_listed_any_more(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    turn = await say(caller, session, "[ask userInput.request]")
    assert turn["status"] == "waiting"

    kill_runtimes(http)

    assert (await over(caller, session, turn))["status"] == "failed"
    assert await open_requests(caller, session) == []


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_permission_survives_its_runtime_where_the_runtime_had_written_it_down(http, is_kept):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    for runtime in http.rig.scripted.runtimes:
        runtime.keeps_permissions = is_kept
    turn = await say(caller, session, "[permit]")
    (asked,) = turn["pending"]

    kill_runtimes(http)

    path = f"{session}/requests/{asked['request_id']}"
    if not is_kept:
        assert (await over(caller, session, turn))["error"]["code"] == "runtime_lost"
        assert (await caller.post(path, json={"kind": "permission", "decision": "approve"})).status_code == 404
        return
    answered = await caller.post(path, json={"kind": "permission", "decision": "approve"})
    assert answered.status_code == 200, answered.text

    found = await over(caller, session, turn)
    assert (found["status"], found["content"]) == ("completed", "approve-once")
    assert await open_requests(caller, session) == []


async def test_a_permission_that_the_options_decide_is_never_waited_for(http):
    caller = await http.caller("shared")
    session = await make(caller, permissions="reject")
    turn = await say(caller, session, "[permit]")

    assert (turn["status"], turn["content"], turn["pending"]) == ("completed", "reject", [])


async def test_the_stream_of_a_turn_that_waits_has_its_own_events_only(http):
    caller = await http.caller("shared")
    session = await make(caller)
    first = await say(caller, session, "[permit]")
    request = {"json": {"prompt": "second"}, "headers": {"Accept": "text/event-stream"}}

    heard = []
    async with caller.stream("POST", f"{session}/messages", **request) as answer:
        path = f"{session}/requests/{first['pending'][0]['request_id']}"
        await caller.post(path, json={"kind": "permission", "decision": "approve"})
        async for event in read_events(answer):
            heard.append((event.kind, event.data["data"].get("content")))

    assert heard[0][0] == "turn.started"
    assert heard[-1][0] == "turn.ended"
    assert [content for kind, content in heard if kind == "assistant.message"] == ["second"]


@pytest.mark.parametrize("by", ["http", "sdk"])
async def test_a_stream_of_a_session_that_is_deleted_ends(http, by):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "hello")

    async with asyncio.timeout(WAIT_SECONDS), caller.stream("GET", f"{session}/events") as answer:
        if by == "http":
            assert (await caller.delete(session)).status_code == 204
        else:
            sdk = await http.rig.client("shared")
            await sdk.call("session.delete", {"sessionId": "s1"})
        assert [event.kind async for event in read_events(answer)] == []
    assert (await caller.get(session)).status_code == 404
    assert (await caller.post(f"{session}/messages", json={"prompt": "x"})).status_code == 404


async def test_a_turn_that_runs_in_a_session_that_is_deleted_has_failed(http):
    caller = await http.caller("shared")
    session = await make(caller)
    waiting = asyncio.create_task(say(caller, session, "[hold]"))
    other = await http.caller("shared")

    async with asyncio.timeout(WAIT_SECONDS):
        while (await other.get(session)).json()["state"] != "busy":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (await other.delete(session)).status_code == 204

    turn = await waiting
    assert (turn["status"], turn["error"]["code"]) == ("failed", "session_missing")


async def test_what_an_sdk_link_of_the_same_owner_says_is_heard_and_is_nobodys_turn(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "one")
    sdk = await http.rig.client("shared")
    await sdk.call("session.resume", {"sessionId": "s1"})

    async with caller.stream("GET", f"{session}/events") as answer:
        await sdk.call("session.send", {"sessionId": "s1", "prompt": "from the program"})
        async for event in read_events(answer):
            if event.kind == "assistant.message":
                assert event.data["data"]["content"] == "from the program"
                break
    assert len((await caller.get(f"{session}/turns")).json()["turns"]) == 1


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_who_joins_a_session_that_a_program_has_open_changes_nothing_for_it(http, tenant):
    sdk = await http.rig.client(tenant)
    said = {"sessionId": "s1", "systemMessage": {"mode": "append", "content": "speak of tea"}, "hooks": True}
    await sdk.call("session.create", {**said, "tools": [{"name": "brew", "description": "", "parameters": {}}]})
    caller = await http.caller(tenant)
    async with caller.stream("GET", "/v1/sessions/s1/events"):
        pass

    (runtime,) = http.rig.scripted.runtimes
    (created,), (resumed,) = runtime.called("session.create"), runtime.called("session.resume")
    for member in ("systemMessage", "tools"):
        assert resumed[member] == created[member]
    assert "hooks" not in resumed
    assert not resumed.get("requestUserInput")


async def test_a_programs_session_that_is_given_a_title_stays_the_programs(http):
    sdk = await http.rig.client("shared")
    tools = [{"name": "brew", "description": "", "parameters": {}}]
    await sdk.call("session.create", {"sessionId": "s1", "tools": tools})
    caller = await http.caller("shared")
    assert (await caller.patch("/v1/sessions/s1", json={"title": "tea"})).status_code == 200
    await http.edge.users.close_user(Owner("shared", "user"))

    assert (await caller.get("/v1/sessions/s1/usage")).status_code == 200

    (runtime,) = http.rig.scripted.runtimes
    (resumed,) = runtime.called("session.resume")
    assert [tool["name"] for tool in resumed["tools"]] == ["brew"]
    assert (await caller.get("/v1/sessions/s1")).json()["options"]["title"] == "tea"


@pytest.mark.parametrize(("by", "tenant"), [("the same user", "shared"), ("another user", "other")])
async def test_an_id_that_is_taken_answers_the_same_whose_it_may_be(http, by, tenant):
    sdk = await http.rig.client("shared")
    await sdk.call("session.create", {"sessionId": "s1"})
    caller = await http.caller(tenant)

    found = await caller.post("/v1/sessions", json={"session_id": "s1"})

    assert (found.status_code, found.json()["code"]) == (409, "already_exists")
    assert found.json()["detail"] == "session s1 is there already; choose another id"


async def test_caps_of_policy_are_said_to_be_reached(http):
    policy = Policy(Isolation.SHARED, max_sessions_per_user=2, max_turns_per_user=1)
    http.rig.configured["capped"] = Tenant("capped", policy, "config")
    caller = await http.caller("capped")
    first, second = await make(caller, "c1"), await make(caller, "c2")
    third = await caller.post("/v1/sessions", json={"session_id": "c3"})
    assert (third.status_code, third.json()["code"]) == (403, "policy_rejected")

    running = await say(caller, first, "[permit]")
    for accept in ("application/json", "text/event-stream"):
        refused = await caller.post(f"{second}/messages", json={"prompt": "x"}, headers={"Accept": accept})
        assert (refused.status_code, refused.json()["code"]) == (429, "over_capacity"), refused.text
        assert "retry-after" in refused.headers
    assert (await caller.get(f"{second}/turns")).json()["turns"] == []

    path = f"{first}/requests/{running['pending'][0]['request_id']}"
    await caller.post(path, json={"kind": "permission", "decision": "approve"})
    assert (await over(caller, first, running))["status"] == "completed"
    assert (await say(caller, second, "x"))["content"] == "x"


async def test_a_link_that_nobody_needs_is_closed_and_what_was_said_can_still_be_asked_for(open_http):
    http = await open_http(HttpSettings(idle_seconds=0.05))
    caller = await http.caller("shared")
    session = await make(caller)
    turn = await say(caller, session, "hello")
    async with asyncio.timeout(WAIT_SECONDS):
        while http.edge.users.users:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()["content"] == "hello"
    assert (await say(caller, session, "again"))["content"] == "again"
    history = (await caller.get(f"{session}/history")).json()["events"]
    assert [one["data"]["content"] for one in history if one["type"] == "assistant.message"] == ["hello", "again"]


async def test_a_link_stays_while_an_answer_a_turn_or_a_reader_needs_it(open_http):
    http = await open_http(HttpSettings(idle_seconds=3600))
    caller = await http.caller("shared")
    session = await make(caller)
    turn = await say(caller, session, "[permit]")
    (user,) = http.edge.users.users
    program = user.program

    user.used_at -= 7200
    http.edge.users.sweep()
    assert (await open_requests(caller, session)) != []
    path = f"{session}/requests/{turn['pending'][0]['request_id']}"
    await caller.post(path, json={"kind": "permission", "decision": "approve"})
    async with caller.stream("GET", f"{session}/events"):
        user.used_at -= 7200
        http.edge.users.sweep()
        assert user.program is program


async def test_a_session_that_nobody_uses_is_let_go_of_and_comes_back_while_its_owner_uses_others(open_http):
    http = await open_http(HttpSettings(idle_seconds=3600))
    caller = await http.caller("shared")
    quiet, lively = await make(caller, "quiet"), await make(caller, "lively")
    await say(caller, quiet, "one")
    (user,) = http.edge.users.users
    await http.rig.settled(lambda: not user.conversations["quiet"].is_in_use)
    user.conversations["quiet"].used_at -= 7200
    http.edge.users.sweep()
    await http.rig.settled(lambda: not user.conversations["quiet"].is_open)

    assert user.conversations["quiet"].log.read(0) == []
    assert user.conversations["lively"].is_open
    assert (await caller.get(quiet)).json()["state"] == "unloaded"
    assert (await say(caller, quiet, "two"))["content"] == "two"
    assert (await say(caller, lively, "three"))["content"] == "three"


async def test_a_policy_that_needs_another_runtime_ends_turns_and_streams_and_the_next_message_is_served(http):
    caller = await http.caller("team")
    session = await make(caller)
    await say(caller, session, "one")
    async with asyncio.timeout(WAIT_SECONDS), caller.stream("GET", f"{session}/events") as answer:
        turn = await say(caller, session, "[hold]", wait_seconds=0)
        was = http.rig.configured["team"]
        now = replace(was, policy=replace(was.policy, host_tools=True, isolation=Isolation.USER))
        await http.rig.policies.replace_configured({**http.rig.configured, "team": now})
        kinds = [event.kind async for event in read_events(answer)]

    assert kinds[-1] == "turn.ended"
    failed = (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()
    assert (failed["status"], failed["error"]["retryable"]) == ("failed", True)
    assert (await say(caller, await make(caller, "s2"), "two"))["content"] == "two"


async def test_a_gateway_that_drains_takes_no_new_work_and_streams_and_history_go_on(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "one")
    turn = await say(caller, session, "[permit]")
    waiting = await say(caller, session, "later", wait_seconds=0)

    async with caller.stream("GET", f"{session}/events") as answer:
        draining = asyncio.create_task(http.rig.services.drainer.drain(WAIT_SECONDS, lambda _: None))
        await http.rig.settled(lambda: http.rig.services.drainer.is_draining)
        refused = await caller.post("/v1/sessions", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert (await caller.get(f"{session}/history")).status_code == 200
        path = f"{session}/requests/{turn['pending'][0]['request_id']}"
        await caller.post(path, json={"kind": "permission", "decision": "approve"})
        ends = []
        async for event in read_events(answer):
            if event.kind == "turn.ended":
                ends.append(event.data["data"])
                if len(ends) == 2:
                    break
    assert [end["status"] for end in ends] == ["completed", "failed"]
    assert ends[1]["turn_id"] == waiting["turn_id"]
    assert ends[1]["error"] == {**ends[1]["error"], "code": "draining", "retryable": True}
    assert await draining == 0


async def test_a_session_whose_options_could_not_be_kept_was_not_made(http, monkeypatch):
    caller = await http.caller("shared")

    async def fail(*_):
        raise errors.StoreUnavailable("the disk is full")

    monkeypatch.setattr(http.stores.conversations, "save", fail)
    assert (await caller.post("/v1/sessions", json={"session_id": "s1"})).status_code == 503
    monkeypatch.undo()
    assert (await caller.get("/v1/sessions/s1")).status_code == 404
    await make(caller)


async def test_who_waits_with_a_token_that_ends_is_told_so_at_once(open_http):
    http = await open_http(principals_seconds=0.05)
    caller = await http.caller("shared")
    session = await make(caller)
    waiting = asyncio.create_task(caller.post(f"{session}/messages", json={"prompt": "[hold]"}))
    await http.rig.settled(lambda: http.rig.gateway.guests)
    for key in await http.rig.keys.list_all("shared"):
        await http.rig.keys.revoke(key.key_id, http.rig.clock.now())

    assert (await waiting).status_code == 401


async def test_where_certificates_name_tenants_a_token_alone_proves_nothing(open_http):
    http = await open_http(client_names_tenant=True)
    refused = await (await http.caller("shared")).get("/v1/sessions")

    assert (refused.status_code, refused.json()["code"]) == (401, "authentication_failed")


async def test_turns_are_remembered_within_a_bound(http, monkeypatch):
    monkeypatch.setattr("aerodrome.http.conversation.KEPT_TURN_BYTES", 50_000)
    caller = await http.caller("shared")
    session = await make(caller)
    for number in range(6):
        await say(caller, session, f"{number}" + "x" * 20_000)

    kept = (await caller.get(f"{session}/turns")).json()["turns"]
    assert [turn["prompt"][0] for turn in kept] == ["5"]
    assert Owner("shared", "user") in {user.owner for user in http.edge.users.users}


async def test_a_session_whose_runtime_died_over_its_making_was_not_made_and_may_be_made_again(http):
    caller = await http.caller("shared")
    await make(caller, "s0")
    (runtime,) = http.rig.scripted.runtimes
    runtime.faults = replace(runtime.faults, dies_at="session.create")

    failed = await caller.post("/v1/sessions", json={"session_id": "s1", "title": "mine"})
    listed = [one["session_id"] for one in (await caller.get("/v1/sessions")).json()["sessions"]]
    again = await caller.post("/v1/sessions", json={"session_id": "s1", "title": "mine"})

    assert (failed.status_code, failed.json()["retryable"]) == (503, True)
    assert listed == ["s0"]
    assert (again.status_code, again.json()["options"]["title"]) == (201, "mine")


async def test_a_fork_whose_options_cannot_be_kept_was_not_made(http, monkeypatch):
    caller = await http.caller("shared")
    session = await make(caller, title="origin")
    await say(caller, session, "hello")

    async def fails(*_) -> None:
        raise errors.StoreUnavailable("the database is busy: try again")

    with monkeypatch.context() as patched:
        patched.setattr(http.stores.conversations, "save", fails)
        assert (await caller.post(f"{session}/fork")).status_code == 503
    assert [one["session_id"] for one in (await caller.get("/v1/sessions")).json()["sessions"]] == ["s1"]
