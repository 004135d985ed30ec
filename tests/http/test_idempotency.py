"""Requests with an idempotency key: done once, answered the same, whatever comes between."""

from __future__ import annotations

import asyncio
import json

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.http.idempotency import IdempotencySettings
from aerodrome.http.site import HttpSettings
from aerodrome.testing import http_rig
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events

from .scenes import make

STREAM = {"Accept": "text/event-stream"}


def key(name: str = "k1", **more: str) -> dict[str, str]:
    return {"Idempotency-Key": name, **more}


def prompts(http) -> list[str]:
    return [
        call.params["prompt"]
        for runtime in http.rig.scripted.runtimes
        for call in runtime.calls
        if call.method == "session.send"
    ]


async def test_a_session_is_made_once_and_the_retry_is_answered_the_same(http):
    caller = await http.caller("shared")

    first = await caller.post("/v1/sessions", json={"title": "a"}, headers=key())
    again = await caller.post("/v1/sessions", json={"title": "a"}, headers=key())

    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len((await caller.get("/v1/sessions")).json()["sessions"]) == 1


async def test_a_prompt_is_sent_once_and_every_retry_has_its_answer(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "hello"}, "headers": key()}

    answers = await asyncio.gather(*(caller.post(f"{session}/messages", **request) for _ in range(4)))
    late = await caller.post(f"{session}/messages", **request)

    assert {answer.json()["turn_id"] for answer in [*answers, late]} == {late.json()["turn_id"]}
    assert {answer.content for answer in answers} == {late.content}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 3
    assert prompts(http) == ["hello"]


async def test_a_key_stands_for_one_request_only_and_is_its_owners(http):
    caller, other = await http.caller("shared"), await http.caller("shared", "mallory")
    session = await make(caller)
    await caller.post(f"{session}/messages", json={"prompt": "one"}, headers=key())

    reused = await caller.post(f"{session}/messages", json={"prompt": "two"}, headers=key())
    elsewhere = await caller.post("/v1/sessions", json={}, headers=key())
    theirs = await other.post("/v1/sessions", json={"title": "a"}, headers=key())

    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (422, "idempotency_key_reused")
    assert theirs.status_code == 201
    assert prompts(http) == ["one"]


async def test_what_cannot_be_a_key_is_refused(http):
    caller = await http.caller("shared")
    for bad in ("", "a b", "x" * 256):
        refused = await caller.post("/v1/sessions", json={}, headers=key(bad))
        assert (refused.status_code, refused.json()["code"]) == (400, "params_invalid"), bad


async def test_a_retry_waits_for_the_first_a_bounded_time(open_http):
    http = await open_http(HttpSettings(idempotency=IdempotencySettings(wait_seconds=0.05)))
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[hold]"}, "headers": key()}
    first = asyncio.create_task(caller.post(f"{session}/messages", **request))
    await http.rig.settled(lambda: prompts(http))

    early = await caller.post(f"{session}/messages", **request)
    assert (early.status_code, early.json()["code"], early.json()["retryable"]) == (409, "idempotency_key_busy", True)
    assert int(early.headers["retry-after"]) >= 1

    await caller.post(f"{session}/abort")
    assert (await first).json()["status"] == "aborted"
    assert (await caller.post(f"{session}/messages", **request)).json() == (await first).json()


async def test_a_retried_stream_is_of_the_same_turn_and_the_prompt_is_not_sent_again(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[delta 3]"}, "headers": key(**STREAM)}
    heard = []
    for _ in range(2):
        async with caller.stream("POST", f"{session}/messages", **request) as answer:
            heard.append([(event.kind, event.event_id) async for event in read_events(answer)])
            replayed = answer.headers.get("idempotency-replayed")

    assert heard[0] == heard[1]
    assert heard[0][-1][0] == "turn.ended"
    assert replayed == "true"
    assert prompts(http) == ["[delta 3]"]
    as_json = await caller.post(f"{session}/messages", json={"prompt": "[delta 3]"}, headers=key())
    assert (as_json.json()["status"], as_json.headers["idempotency-replayed"]) == ("completed", "true")


async def test_a_reader_who_left_mid_turn_streams_the_same_turn_with_its_key(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[permit]"}, "headers": key(**STREAM)}
    async with caller.stream("POST", f"{session}/messages", **request) as answer:
        async for event in read_events(answer):
            if event.kind == "request.opened":
                asked = event.data["data"]["request_id"]
                break

    async with asyncio.timeout(WAIT_SECONDS), caller.stream("POST", f"{session}/messages", **request) as answer:
        kinds = []
        async for event in read_events(answer):
            kinds.append(event.kind)
            if event.kind == "request.opened":
                approve = {"kind": "permission", "decision": "approve"}
                assert (await caller.post(f"{session}/requests/{asked}", json=approve)).status_code == 200

    assert (kinds[0], kinds[-1]) == ("turn.started", "turn.ended")
    assert prompts(http) == ["[permit]"]


async def begun(http, caller, session: str, request: dict) -> asyncio.Task:
    """Return a call that waits for its turn, which runs."""
    call = asyncio.create_task(caller.post(f"{session}/messages", **request))
    await http.rig.settled(lambda: prompts(http) and http.rig.gateway.guests)
    return call


async def test_a_caller_who_was_cut_off_while_they_waited_has_the_answer_when_they_come_back(http):
    caller, other = await http.caller("shared"), await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[hold]"}, "headers": key()}
    call = await begun(http, other, session, request)
    call.cancel()
    await asyncio.wait((call,))
    await http.rig.settled(lambda: not http.rig.gateway.guests)

    retry = asyncio.create_task(caller.post(f"{session}/messages", **request))
    assert (await caller.post(f"{session}/abort")).json() == {"aborted": True}
    again = await retry

    assert (again.status_code, again.json()["status"], again.json()["content"]) == (200, "aborted", "[hold]")
    assert prompts(http) == ["[hold]"]


async def test_a_caller_whose_token_ended_while_they_waited_has_the_answer_with_another(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[hold]"}, "headers": key()}
    call = await begun(http, caller, session, request)
    (guest,) = http.rig.gateway.guests
    guest.dismiss()
    assert (await call).status_code == 401

    retry = asyncio.create_task(caller.post(f"{session}/messages", **request))
    await caller.post(f"{session}/abort")

    assert ((await retry).status_code, (await retry).json()["status"]) == (200, "aborted")
    assert prompts(http) == ["[hold]"]


async def test_a_turn_whose_name_could_not_be_stored_is_answered_all_the_same(http, monkeypatch):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "hello"}, "headers": key()}

    async def fails(*_) -> None:
        raise errors.StoreUnavailable("the database is busy: try again")

    monkeypatch.setattr(http.stores.idempotency, "note", fails)
    first = await caller.post(f"{session}/messages", **request)
    again = await caller.post(f"{session}/messages", **request)

    assert (first.status_code, first.json()["content"]) == (200, "hello")
    assert again.content == first.content
    assert prompts(http) == ["hello"]


async def test_answers_hold_across_a_restart_and_a_streamed_turn_is_told_by_what_is_kept(http):
    caller = await http.caller("shared")
    session = await make(caller)
    streamed = {"json": {"prompt": "streamed"}, "headers": key("s", **STREAM)}
    plain = await caller.post(f"{session}/messages", json={"prompt": "plain"}, headers=key("p"))
    async with caller.stream("POST", f"{session}/messages", **streamed) as answer:
        assert [event async for event in read_events(answer)]
    await http.edge.aclose()

    async with http_rig.open_http(http.rig, stores=http.stores) as restarted:
        caller = await restarted.caller("shared")
        again = await caller.post(f"{session}/messages", json={"prompt": "plain"}, headers=key("p"))
        async with caller.stream("POST", f"{session}/messages", **streamed) as answer:
            events = [(event.kind, event.data["data"]) async for event in read_events(answer)]

    assert (again.content, again.headers["idempotency-replayed"]) == (plain.content, "true")
    assert events[0] == ("assistant.message", {"content": "streamed"})
    assert (events[-1][0], events[-1][1]["status"]) == ("turn.ended", "completed")
    assert prompts(http) == ["plain", "streamed"]


async def test_a_request_that_ended_with_its_gateway_is_not_done_again(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[hold]"}, "headers": key()}
    first = asyncio.create_task(caller.post(f"{session}/messages", **request))
    await http.rig.settled(lambda: prompts(http))

    async with http_rig.open_http(http.rig, stores=http.stores) as another_life:
        retrying = await another_life.caller("shared")
        retry = await retrying.post(f"{session}/messages", **request)

    assert (retry.status_code, retry.json()["code"]) == (409, "idempotency_outcome_unknown")
    assert retry.json()["session_id"] == "s1"
    assert prompts(http) == ["[hold]"]
    await caller.post(f"{session}/abort")
    await first


async def test_what_was_refused_before_anything_was_done_may_be_tried_again_under_its_key(http):
    caller = await http.caller("shared")
    body = json.dumps({"session_id": "s1", "model": 5})

    wrong = await caller.post("/v1/sessions", content=body, headers=key(**{"Content-Type": "application/json"}))
    assert wrong.status_code == 400
    right = await caller.post("/v1/sessions", json={"session_id": "s1"}, headers=key())

    assert right.status_code == 201


async def test_a_missing_session_is_missing_again_under_the_same_key(http):
    caller = await http.caller("shared")
    request = {"json": {"prompt": "x"}, "headers": key()}

    assert (await caller.post("/v1/sessions/none/messages", **request)).status_code == 404
    again = await caller.post("/v1/sessions/none/messages", **request)

    assert (again.status_code, again.headers["idempotency-replayed"]) == (404, "true")
    assert again.headers["content-type"] == "application/problem+json"


async def test_an_answer_that_is_too_large_to_keep_is_not_done_again(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[size 1100000]"}, "headers": key()}

    assert (await caller.post(f"{session}/messages", **request)).status_code == 200
    again = await caller.post(f"{session}/messages", **request)

    assert (again.status_code, again.json()["code"]) == (409, "idempotency_outcome_unknown")
    assert len(prompts(http)) == 1


async def test_an_owner_has_a_bounded_number_of_keys(open_http):
    http = await open_http(HttpSettings(idempotency=IdempotencySettings(keys_per_owner=1)))
    caller = await http.caller("shared")

    assert (await caller.post("/v1/sessions", json={}, headers=key("a"))).status_code == 201
    assert (await caller.post("/v1/sessions", json={}, headers=key("b"))).status_code == 429


async def test_a_streamed_turn_that_ended_with_its_link_is_said_to_be_lost_and_not_sent_again(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"prompt": "[hold]"}, "headers": key(**STREAM)}
    async with asyncio.timeout(WAIT_SECONDS), caller.stream("POST", f"{session}/messages", **request) as answer:
        async for event in read_events(answer):
            if event.kind == "turn.started":
                await http.edge.users.close_user(Owner("shared", "user"))
            last = event
    async with asyncio.timeout(WAIT_SECONDS), caller.stream("POST", f"{session}/messages", **request) as answer:
        again = [event async for event in read_events(answer)]

    assert (last.kind, last.data["data"]["error"]["code"]) == ("turn.ended", "runtime_lost")
    assert (again[-1].kind, again[-1].data["data"]["error"]["code"]) == ("turn.ended", "runtime_lost")
    assert prompts(http) == ["[hold]"]


async def test_a_store_that_does_not_answer_has_nothing_done(http):
    caller = await http.caller("shared")
    await http.stores.idempotency.aclose()

    refused = await caller.post("/v1/sessions", json={}, headers=key())

    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert (await caller.get("/v1/sessions")).json()["sessions"] == []
    assert (await caller.post("/v1/sessions", json={})).status_code == 201


async def test_an_answer_that_is_a_secret_is_not_kept_and_not_made_again(http):
    caller = await http.caller("shared")
    session = await make(caller)
    request = {"json": {"roles": ["driver"]}, "headers": key()}

    made = await caller.post(f"{session}/links", **request)
    again = await caller.post(f"{session}/links", **request)

    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert (again.status_code, again.json()["code"]) == (409, "idempotency_outcome_unknown")
    assert len((await caller.get(f"{session}/links")).json()["links"]) == 1
    assert made.json()["token"] not in repr(http.stores.idempotency._requests)
