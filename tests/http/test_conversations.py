"""Sessions over HTTP: made, spoken to, watched, answered, deleted; and nobody else's."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome import errors
from aerodrome.core.audit import Outcome
from aerodrome.core.identity import Owner
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events
from aerodrome.testing.peer import RpcError

from .scenes import make, say


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_prompt_is_answered_with_the_turn_that_came_of_it(http, tenant):
    caller = await http.caller(tenant)
    session = await make(caller)

    turn = await say(caller, session, "hello")

    assert (turn["status"], turn["content"], turn["sender"]) == ("completed", "hello", "user")
    assert turn["created_at"] <= turn["started_at"] <= turn["ended_at"]


async def test_a_turn_is_streamed_from_its_start_to_its_end(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[delta 3]"}, "headers": {"Accept": "text/event-stream"}}

    async with caller.stream("POST", f"{session}/messages", **request) as answer:
        kinds = [event.kind async for event in read_events(answer)]

    assert kinds[0] == "turn.started"
    assert kinds[-1] == "turn.ended"
    assert kinds.count("assistant.message_delta") == 3


async def test_the_session_that_was_used_last_is_listed_first_at_once(http):
    caller = await http.caller("shared")
    sessions = [await make(caller, session_id=name) for name in ("s1", "s2", "s3")]
    await caller.post(f"{sessions[1]}/messages", json={"prompt": "x"})

    listed = (await caller.get("/v1/sessions")).json()["sessions"]

    assert listed[0]["session_id"] == "s2"
    assert listed[0] == (await caller.get(sessions[1])).json()


async def test_a_session_of_another_user_answers_as_a_missing_one_does(http):
    session = await make(await http.caller("shared"))
    stranger = await http.caller("shared", "mallory")

    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("PATCH", ""),
        ("GET", "/events"),
        ("GET", "/history"),
        ("GET", "/turns"),
        ("GET", "/requests"),
        ("POST", "/abort"),
        ("POST", "/messages"),
    ):
        body = {"json": {"prompt": "x"}} if path == "/messages" else {"json": {}} if method == "PATCH" else {}
        theirs = await stranger.request(method, session + path, **body)
        missing = await stranger.request(method, f"/v1/sessions/none{path}", **body)
        assert (theirs.status_code, theirs.json()) == (404, missing.json()), path
        assert theirs.json()["code"] == "session_missing"
    assert (await stranger.get("/v1/sessions")).json()["sessions"] == []


async def test_a_reader_that_comes_back_hears_what_it_missed_once(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "one")
    heard = []
    async with caller.stream("GET", f"{session}/events", params={"start": "beginning"}) as answer:
        async for event in read_events(answer):
            heard.append(event)
            if event.kind == "assistant.turn_start":
                break

    await say(caller, session, "two")
    async with caller.stream("GET", f"{session}/events", headers={"Last-Event-ID": heard[-1].event_id}) as answer:
        async for event in read_events(answer):
            heard.append(event)
            if event.kind == "turn.ended" and sum(one.kind == "turn.ended" for one in heard) == 2:
                break

    said = [event.data["data"].get("content") for event in heard if event.kind == "assistant.message"]
    assert said == ["one", "two"]
    assert len({event.event_id for event in heard}) == len(heard)


async def test_a_cursor_holds_where_nothing_of_the_session_is_in_memory_any_more(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "one")
    history = (await caller.get(f"{session}/history")).json()
    first = history["events"][0]["id"]
    await http.edge.users.close_user(next(user.owner for user in http.edge.users.users))

    heard = []
    async with caller.stream("GET", f"{session}/events", headers={"Last-Event-ID": first}) as answer:
        async for event in read_events(answer):
            heard.append(event)
            if len(heard) == len(history["events"]) - 1:
                break

    assert [event.event_id.partition("_")[0] for event in heard] == [event["id"] for event in history["events"][1:]]


async def test_a_permission_waits_for_its_answer_and_the_turn_says_so(http):
    caller = await http.caller("shared")
    session = await make(caller)

    turn = await say(caller, session, "[permit]")
    assert turn["status"] == "waiting"
    (asked,) = turn["pending"]
    assert (asked["kind"], asked["data"]["toolName"]) == ("permission", "lookup")
    assert (await caller.get(session)).json()["state"] == "waiting"

    answered = await caller.post(
        f"{session}/requests/{asked['request_id']}", json={"kind": "permission", "decision": "approve"}
    )
    assert answered.status_code == 200
    over = await caller.get(f"{session}/turns/{turn['turn_id']}", params={"wait_seconds": WAIT_SECONDS})
    assert (over.json()["status"], over.json()["content"]) == ("completed", "approve-once")
    late = await caller.post(
        f"{session}/requests/{asked['request_id']}", json={"kind": "permission", "decision": "reject"}
    )
    assert late.status_code == 404


async def test_turns_of_a_session_run_one_after_the_other_and_a_waiting_one_can_be_withdrawn(http):
    caller = await http.caller("shared")
    session = await make(caller)
    running = await say(caller, session, "[hold]", wait_seconds=0)
    second = await say(caller, session, "second", wait_seconds=0)
    third = await say(caller, session, "third", wait_seconds=0)

    withdrawn = await caller.delete(f"{session}/turns/{second['turn_id']}")
    assert withdrawn.json()["status"] == "withdrawn"
    assert (await caller.delete(f"{session}/turns/{running['turn_id']}")).status_code == 409
    assert (await caller.post(f"{session}/abort")).json() == {"aborted": True}

    over = await caller.get(f"{session}/turns/{third['turn_id']}", params={"wait_seconds": WAIT_SECONDS})
    assert over.json()["content"] == "third"
    turns = (await caller.get(f"{session}/turns")).json()["turns"]
    assert [turn["status"] for turn in turns] == ["aborted", "withdrawn", "completed"]


async def test_a_turn_whose_caller_vanished_goes_on_and_is_there_to_be_read(http):
    caller = await http.caller("shared")
    session = await make(caller)
    asking = asyncio.create_task(say(caller, session, "[permit]"))
    other = await http.caller("shared")
    async with asyncio.timeout(WAIT_SECONDS):
        while not (waiting := (await other.get(f"{session}/requests")).json()["requests"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    asking.cancel()

    path = f"{session}/requests/{waiting[0]['request_id']}"
    assert (await other.post(path, json={"kind": "permission", "decision": "reject"})).status_code == 200
    (turn,) = (await other.get(f"{session}/turns")).json()["turns"]
    over = await other.get(f"{session}/turns/{turn['turn_id']}", params={"wait_seconds": WAIT_SECONDS})
    assert (over.json()["status"], over.json()["content"]) == ("completed", "reject")


async def test_a_deleted_session_is_gone_and_its_id_free(http):
    caller = await http.caller("shared")
    session = await make(caller, title="first")
    await say(caller, session, "hello")

    assert (await caller.delete(session)).status_code == 204

    assert (await caller.get(session)).status_code == 404
    await make(caller)
    assert (await caller.get(session)).json()["options"]["title"] is None


async def test_a_token_that_ends_takes_its_streams_along(open_http):
    http = await open_http(principals_seconds=0.05)
    caller = await http.caller("shared")
    session = await make(caller)

    async with asyncio.timeout(WAIT_SECONDS), caller.stream("GET", f"{session}/events") as answer:
        for key in await http.rig.keys.list_all("shared"):
            await http.rig.keys.revoke(key.key_id, http.rig.clock.now())
        assert [event async for event in read_events(answer)] == []
    assert (await caller.get(session)).status_code == 401


@pytest.mark.parametrize("before", [[], ["one"]], ids=["before anything was said", "behind a turn"])
async def test_a_reader_that_is_cut_off_before_its_first_event_comes_back_to_where_it_was(http, before):
    caller = await http.caller("shared")
    session = await make(caller)
    for prompt in before:
        await say(caller, session, prompt)
    if before:  # and nothing of it is in memory any more
        await http.edge.users.close_user(next(user.owner for user in http.edge.users.users))
    async with caller.stream("GET", f"{session}/events") as answer:
        cursor = next(line for line in [line async for line in take(answer, 3)] if line.startswith("id: "))

    await say(caller, session, "two")

    said = []
    headers = {"Last-Event-ID": cursor.removeprefix("id: ")}
    async with caller.stream("GET", f"{session}/events", headers=headers) as answer:
        async for event in read_events(answer):
            said.append(event)
            if event.kind == "turn.ended":
                break
    assert [one.data["data"]["content"] for one in said if one.kind == "assistant.message"] == ["two"]
    assert [one.kind for one in said].count("turn.started") == 1


async def take(answer, count: int):
    lines = answer.aiter_lines()
    for _ in range(count):
        yield await anext(lines)


async def test_each_refusal_over_http_is_one_record(http):
    await make(await http.caller("shared"))
    mallory, stranger = await http.caller("shared", "mallory"), await http.stranger()

    assert (await stranger.get("/v1/sessions/s1")).status_code == 401
    assert (await stranger.get("/v1/sessions/s1", headers={"Authorization": "Bearer canary"})).status_code == 401
    for named in ("s1", "nobodys", "s1"):
        assert (await mallory.get(f"/v1/sessions/{named}")).status_code == 404

    refused = [entry for entry in http.rig.audit_log.entries if entry.outcome is Outcome.REFUSED]
    assert [(entry.owner, entry.session_id, entry.reason) for entry in refused] == [
        (None, None, "authentication_required"),
        (None, None, "authentication_failed"),
        (Owner("shared", "mallory"), "s1", "session_foreign"),
        (Owner("shared", "mallory"), "nobodys", "session_missing"),
    ]
    assert "canary" not in str(http.rig.audit_log.entries)


async def test_an_answer_that_fails_when_its_turn_is_over_leaves_no_request_open(http):
    caller = await http.caller("shared")
    session = await make(caller)
    (asked,) = (await say(caller, session, "[permit]"))["pending"]
    (user,), (runtime,) = http.edge.users.users, http.rig.scripted.runtimes
    held, method = user.conversations["s1"], "session.permissions.handlePendingPermissionRequest"
    is_over = asyncio.Event()

    async def refuse_late(*_) -> None:
        await is_over.wait()
        raise RpcError(-32603, "no such request")

    runtime.on[method] = refuse_late
    approve = {"kind": "permission", "decision": "approve"}
    answering = asyncio.create_task(caller.post(f"{session}/requests/{asked['request_id']}", json=approve))
    await runtime.wait_for_call(method)
    await caller.post(f"{session}/abort")
    await http.rig.settled(lambda: not held.is_busy)
    is_over.set()

    assert (await answering).status_code == 422
    assert held.pending == []
    assert not held.is_in_use


async def test_whoever_is_forgotten_gets_no_link_that_nobody_would_close(http):
    await make(await http.caller("shared"))
    (user,) = http.edge.users.users
    held = user.conversations["s1"]
    await http.edge.users.close_user(user.owner)

    with pytest.raises(errors.RuntimeLost):
        await held.open()
    assert not user.has_link


async def test_a_session_that_is_used_again_meanwhile_is_not_let_go(http):
    caller = await http.caller("shared")
    await make(caller, "idle")
    await make(caller, "used")
    (user,) = http.edge.users.users
    now = asyncio.get_running_loop().time()
    user.conversations["idle"].used_at = now - 100

    await user.let_go(["idle", "used"], now - 50)

    assert [user.conversations[name].is_open for name in ("idle", "used")] == [False, True]


async def test_of_two_changes_at_once_neither_undoes_the_other(http):
    caller, other = await http.caller("shared"), await http.caller("shared")
    session = await make(caller, title="old")
    (runtime,), (user,) = http.rig.scripted.runtimes, http.edge.users.users
    may_switch = asyncio.Event()

    async def switch_slowly(*_) -> dict:
        await may_switch.wait()
        return {}

    runtime.on["session.model.switchTo"] = switch_slowly
    first = asyncio.create_task(caller.patch(session, json={"model": "m2"}))
    await runtime.wait_for_call("session.model.switchTo")
    second = asyncio.create_task(other.patch(session, json={"title": "new", "permissions": "reject"}))
    await http.rig.settled(lambda: second.done() or user.conversations["s1"].changing._waiters)
    may_switch.set()

    assert [(await one).status_code for one in (first, second)] == [200, 200]
    options = (await caller.get(session)).json()["options"]
    assert (options["model"], options["title"], options["permissions"]) == ("m2", "new", "reject")
