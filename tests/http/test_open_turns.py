"""What becomes of turns that were open when their gateway ended: whoever opens the session next hears it, once."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import structlog.testing

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.http import events, open_turns
from aerodrome.http.program import Program
from aerodrome.http.turns import Turn, TurnState
from aerodrome.testing import http_rig
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events

from .scenes import make, say

USER = Owner("shared", "user")


@asynccontextmanager
async def killed(http):
    """An edge after one that was killed with its runtimes: nobody has written down what happened since."""
    noted_then = await http.stores.open_turns.find("s1", USER)
    for process in http.rig.scripted.alive:
        process.kill()
    await http.edge.aclose()
    if noted_then is not None:
        await http.stores.open_turns.put("s1", USER, noted_then)
    async with http_rig.open_http(http.rig, stores=http.stores) as after:
        yield after, await after.caller(USER.tenant)


async def noted(http, owner: Owner = USER) -> list[str]:
    """Return the turns of a session that are noted as open."""
    found = await http.stores.open_turns.find("s1", owner)
    return [one["turn_id"] for one in json.loads(found or "[]")]


async def none_noted(http, owner: Owner = USER) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await noted(http, owner):  # noqa: ASYNC110  the store has no events
            await asyncio.sleep(0.002)


async def hear_until(caller, session: str, kind: str, **headers: str) -> list:
    """Return the events up to the first of a type."""
    heard = []
    async with asyncio.timeout(WAIT_SECONDS):
        async with caller.stream("GET", f"{session}/events", headers=headers) as answer:
            async for event in read_events(answer):
                heard.append(event)
                if event.kind == kind:
                    return heard
    raise AssertionError(heard)


async def test_a_reader_that_comes_back_hears_once_that_the_turn_is_lost_and_the_session_works_on(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    async with caller.stream("GET", f"{session}/events") as answer:
        turn = await say(caller, session, "[hold]", wait_seconds=0)
        async for event in read_events(answer):
            last = event.event_id
            if event.kind == "user.message":
                break

    async with killed(http) as (after, caller):
        heard = await hear_until(caller, session, "turn.ended", **{"Last-Event-ID": last})
        told = heard[-1].data["data"]
        found = (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()
        later = await say(caller, session, "later")
        rest = await hear_until(caller, session, "turn.ended", **{"Last-Event-ID": heard[-1].event_id})
        await none_noted(after)

    assert (told["turn_id"], told["status"], told["error"]["code"]) == (turn["turn_id"], "failed", "runtime_lost")
    assert (found["status"], found["prompt"], found["error"]["retryable"]) == ("failed", "[hold]", True)
    assert later["content"] == "later"
    assert rest[-1].data["data"]["turn_id"] == later["turn_id"]
    ids = [event.event_id for event in [*heard, *rest]]
    assert len(set(ids)) == len(ids)


async def test_who_asks_for_a_turn_first_has_it_too_and_those_behind_it_are_lost_with_it(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    turns = [await say(caller, session, prompt, wait_seconds=0) for prompt in ("[hold]", "second", "third")]
    names = [turn["turn_id"] for turn in turns]
    await http.rig.settled(lambda: http.rig.scripted.alive)
    async with asyncio.timeout(WAIT_SECONDS):
        while await noted(http) != names:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async with killed(http) as (_, caller):
        found = (await caller.get(f"{session}/turns/{names[1]}")).json()
        listed = (await caller.get(f"{session}/turns")).json()["turns"]

    assert (found["status"], found["error"]["retryable"], found["started_at"]) == ("failed", True, None)
    assert [(one["turn_id"], one["status"]) for one in listed] == [(name, "failed") for name in names]


async def test_a_turn_that_goes_on_without_its_gateway_is_taken_up_and_those_after_it_wait(http):
    caller = await http.caller("patient-shared")
    session = await make(caller)
    await say(caller, session, "written down")
    turn = await say(caller, session, "[permit]")
    assert turn["status"] == "waiting"
    await http.edge.aclose()

    async with http_rig.open_http(http.rig, stores=http.stores) as after:
        caller = await after.caller("patient-shared")
        waiting = (await caller.get(f"{session}/requests")).json()["requests"]
        running = (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()
        behind = await say(caller, session, "behind", wait_seconds=0)
        path = f"{session}/requests/{waiting[0]['request_id']}"
        await caller.post(path, json={"kind": "permission", "decision": "approve"})
        ended = (await caller.get(f"{session}/turns/{turn['turn_id']}", params={"wait_seconds": WAIT_SECONDS})).json()
        last = (await caller.get(f"{session}/turns/{behind['turn_id']}", params={"wait_seconds": WAIT_SECONDS})).json()
        await none_noted(after, Owner("patient-shared", "user"))

    assert (running["status"], running["prompt"]) == ("waiting", "[permit]")
    assert behind["status"] == "queued"
    assert (ended["status"], ended["content"]) == ("completed", "approve-once")
    assert (last["status"], last["content"]) == ("completed", "behind")


def say_behind(http, monkeypatch, answered: str, **event) -> None:
    """Have a session say something behind an answer, in one piece with it: before whoever called goes on."""
    call = Program.call

    async def called(self, method, params, *more, **named):
        result = await call(self, method, params, *more, **named)
        if method == answered:
            (user,) = http.edge.users.users
            user.conversations["s1"].hear(json.dumps(event).encode())
        return result

    monkeypatch.setattr(Program, "call", called)


async def test_a_turn_that_is_taken_up_and_ends_at_that_moment_is_over(http, monkeypatch):
    caller = await http.caller("patient-shared")
    session = await make(caller)
    await say(caller, session, "written down")
    turn = await say(caller, session, "[permit]")
    await http.edge.aclose()

    async with http_rig.open_http(http.rig, stores=http.stores) as after:
        idle = {"type": "session.idle", "data": {"aborted": False}, "parentId": "e1", "ephemeral": True}
        say_behind(after, monkeypatch, "session.metadata.activity", **idle)
        caller = await after.caller("patient-shared")
        found = (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()
        await none_noted(after, Owner("patient-shared", "user"))

    assert found["status"] == "completed"


async def test_what_is_asked_while_a_session_is_brought_back_is_not_taken_for_answered(http, monkeypatch):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    await http.edge.users.close_user(USER)
    asked = {"requestId": "p1", "permissionRequest": {"kind": "custom-tool", "toolName": "lookup"}}
    event = {"type": "permission.requested", "data": asked, "id": "e9"}
    say_behind(http, monkeypatch, "session.permissions.pendingRequests", **event)

    assert (await caller.get(f"{session}/usage")).status_code == 200

    assert [one["request_id"] for one in (await caller.get(f"{session}/requests")).json()["requests"]] == ["p1"]


async def test_a_turn_that_was_aborted_as_its_gateway_stopped_is_told_to_have_been(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    turn = await say(caller, session, "[hold]", wait_seconds=0)
    await http.rig.settled(lambda: "[hold]" in str(http.rig.scripted.runtimes[0].called("session.send")))
    await http.edge.aclose()

    async with http_rig.open_http(http.rig, stores=http.stores) as after:
        found = (await (await after.caller("shared")).get(f"{session}/turns/{turn['turn_id']}")).json()
        await none_noted(after)

    assert (found["status"], found["prompt"]) == ("aborted", "[hold]")


async def test_a_turn_that_had_ended_before_its_gateway_did_is_told_as_it_ended(http, monkeypatch):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "before")

    async def forget(*_):
        raise errors.StoreUnavailable("killed before it was written")

    monkeypatch.setattr(http.stores.open_turns, "remove", forget)
    with structlog.testing.capture_logs() as logs:
        turn = await say(caller, session, "done")
        await http.rig.settled(lambda: [one for one in logs if one["event"] == "http.turn_not_noted"])
        assert await noted(http) == [turn["turn_id"]]
        await http.edge.aclose()
    monkeypatch.undo()

    async with killed(http) as (after, caller):
        found = (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()
        await none_noted(after)

    assert (found["status"], found["content"], found["prompt"]) == ("completed", "done", "done")


async def test_nothing_is_noted_of_turns_that_are_over_or_of_sessions_that_are_gone(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "over")
    await none_noted(http)
    await say(caller, session, "[hold]", wait_seconds=0)
    assert await noted(http)
    await caller.delete(session)
    assert not await noted(http)


async def test_turns_that_end_with_their_users_link_are_noted_no_more(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "written down")
    turn = await say(caller, session, "[hold]", wait_seconds=0)
    (user,) = http.edge.users.users
    user.program.close()
    await none_noted(http)

    assert (await caller.get(f"{session}/turns/{turn['turn_id']}")).json()["status"] == "failed"


async def test_a_turn_is_served_while_it_cannot_be_noted(http, monkeypatch):
    async def fail(*_):
        raise errors.StoreUnavailable("the disk is full")

    caller = await http.caller("shared")
    session = await make(caller)
    monkeypatch.setattr(http.stores.open_turns, "put", fail)
    assert (await say(caller, session, "served"))["content"] == "served"


def history(*said: str) -> list:
    """Return a history: `user`, `start`, `end`, `tools` (a message that wants some), `error`, `abort`, or what was said."""
    kinds = {
        "user": ("user.message", {"content": "asked", "messageId": "m"}),
        "start": ("assistant.turn_start", {}),
        "end": ("assistant.turn_end", {}),
        "tools": ("assistant.message", {"content": "", "toolRequests": [{"name": "t"}], "originatingMessageId": "m"}),
        "error": ("session.error", {"errorType": "query", "message": "no"}),
        "abort": ("abort", {}),
    }
    made = []
    for number, word in enumerate(("user", "start", "end", *said)):
        kind, data = kinds.get(word, ("assistant.message", {"content": word, "originatingMessageId": "m"}))
        made.append(json.dumps({"id": f"e{number}", "type": kind, "data": data}).encode())
    return events.kept(made)


@pytest.mark.parametrize(
    ("said", "has_ended", "content"),
    [
        ((), False, None),
        (("user",), False, None),
        (("user", "start"), False, None),
        (("user", "start", "answer"), False, "answer"),
        (("user", "start", "answer", "end"), True, "answer"),
        (("user", "start", "tools", "end"), False, ""),
        (("user", "start", "tools", "end", "start"), False, ""),
        (("user", "start", "tools", "end", "start", "answer", "end"), True, "answer"),
        (("user", "start", "error"), True, None),
        (("user", "start", "abort", "end"), True, None),
        (("user", "start", "answer", "end", "user", "start", "other", "end"), False, None),
    ],
    ids=str,
)
def test_a_history_says_whether_a_turn_has_ended(said, has_ended, content):
    turn = Turn("", 1.0, state=TurnState.RUNNING, cursor="e2")

    assert open_turns.hear_history(turn, history(*said)) is has_ended
    assert turn.content == content
    assert turn.prompt == ("asked" if said.count("user") == 1 else "")
