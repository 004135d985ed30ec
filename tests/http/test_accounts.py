"""What callers are told of themselves: who they are, their models, their usage; forks; and tokens for those who may mint."""

from __future__ import annotations

import time

import httpx
import pytest

from aerodrome.core import identity
from aerodrome.core.audit import Action
from aerodrome.core.identity import Owner, Scope
from aerodrome.core.provider import NamedProvider, ProviderKind
from aerodrome.core.usage import day_of
from aerodrome.gateway.supplying import Supplier
from aerodrome.testing import http_rig
from aerodrome.testing import rig as rigs
from aerodrome.testing.scripted_host import ScriptedHost

from .test_idempotency import make


async def key_for(http, scope: Scope, user: str = "backend") -> httpx.AsyncClient:
    key, token = identity.create_key(Owner("shared", user), time.time(), scopes=frozenset({scope}))
    await http.rig.keys.add(key)
    return await http.with_token(token)


async def test_callers_are_told_who_they_are_and_what_holds_for_them(http):
    caller = await http.caller("shared", "ann")
    me = (await caller.get("/v1/me")).json()
    assert (me["tenant"], me["user"], me["isolation"]) == ("shared", "ann", "shared")
    assert me["limits"]["requests_per_minute"] == 0


async def test_models_are_those_of_the_providers_that_policy_allows(tmp_path):
    models = ("m1", "m2")
    house = NamedProvider("house", ProviderKind.OPENAI, "http://x", models=models, aliases=(("fast", "m2"),))
    providers = {"house": house, "other": NamedProvider("other", ProviderKind.OPENAI, "http://y")}
    providers["foreign"] = NamedProvider("foreign", ProviderKind.OPENAI, "http://z", models=("secret",))
    host = ScriptedHost()
    async with (
        rigs.open_rig(host, rigs.fleet_settings(tmp_path), supplier=Supplier(providers)) as rig,
        http_rig.open_http(rig) as http,
    ):
        supplied, plain = await http.caller("supplied"), await http.caller("shared")
        listed = (await supplied.get("/v1/models")).json()
        first = (await supplied.get("/v1/models", params={"limit": 2})).json()
        rest = (await supplied.get("/v1/models", params={"limit": 2, "after": first["next"]})).json()
        none = (await plain.get("/v1/models")).json()

    assert [(one["id"], one["provider"], one["is_default"]) for one in listed["models"]] == [
        ("m1", "house", True),
        ("m2", "house", False),
        ("fast", "house", False),
    ]
    assert listed["open_providers"] == ["other"]
    assert first["models"] + rest["models"] == listed["models"]
    assert rest["next"] is None
    assert (none["models"], none["open_providers"]) == ([], [])


async def test_a_session_is_forked_with_its_history_and_options(http):
    caller = await http.caller("shared")
    session = await make(caller, title="origin", metadata={"a": "b"})
    await caller.post(f"{session}/messages", json={"prompt": "one"})

    forked = await caller.post(f"{session}/fork", json={"title": "branch"})

    assert forked.status_code == 201
    path = forked.headers["location"]
    assert path == f"/v1/sessions/{forked.json()['session_id']}"
    assert (forked.json()["options"]["title"], forked.json()["options"]["metadata"]) == ("branch", {"a": "b"})
    said = [event["data"] for event in (await caller.get(f"{path}/history")).json()["events"]]
    assert {"content": "one"} in said
    assert (await caller.post(f"{path}/messages", json={"prompt": "two"})).json()["content"] == "two"


async def test_a_fork_may_branch_off_before_an_event_and_one_without_history_is_refused(http):
    caller = await http.caller("shared")
    session = await make(caller)
    assert (await caller.post(f"{session}/fork")).status_code == 422
    for prompt in ("one", "two"):
        await caller.post(f"{session}/messages", json={"prompt": prompt})
    events = (await caller.get(f"{session}/history")).json()["events"]
    second = [event["id"] for event in events if event["type"] == "assistant.turn_start"][1]

    forked = await caller.post(f"{session}/fork", json={"before_event": second})

    history = (await caller.get(f"{forked.headers['location']}/history")).json()["events"]
    assert [event["data"]["content"] for event in history if event["type"] == "assistant.message"] == ["one"]


async def test_a_session_of_another_user_is_neither_forked_nor_measured(http):
    session = await make(await http.caller("shared"))
    stranger = await http.caller("shared", "mallory")
    assert (await stranger.post(f"{session}/fork")).status_code == 404
    assert (await stranger.get(f"{session}/usage")).status_code == 404


async def test_a_session_says_what_it_took(http):
    caller = await http.caller("shared")
    session = await make(caller)
    await caller.post(f"{session}/messages", json={"prompt": "one"})

    used = (await caller.get(f"{session}/usage")).json()

    assert (used["user_requests"], used["model_seconds"], used["lines_added"]) == (1, 1.5, 1)
    assert [(one["model"], one["input_tokens"]) for one in used["models"]] == [("scripted", 10)]


async def test_usage_is_by_day_and_model_over_all_links_of_the_caller(http, monkeypatch):
    now = http.rig.clock.now()
    monkeypatch.setattr(http.rig.clock, "now", lambda: now)  # one day, whenever this runs
    caller, other = await http.caller("shared"), await http.caller("shared", "bob")
    session = await make(caller)
    await caller.post(f"{session}/messages", json={"prompt": "[use m1 10 2] [use m1 1 1] [use m2 5 5]"})
    client = await http.rig.client("shared")
    await client.call("session.create", {"sessionId": "sdk"})
    await client.call("session.send", {"sessionId": "sdk", "prompt": "[use m1 100 3]"})
    await client.wait_until(lambda: "session.idle" in client.events("sdk"))

    used = (await caller.get("/v1/usage")).json()
    first = (await caller.get("/v1/usage", params={"limit": 1})).json()
    rest = (await caller.get("/v1/usage", params={"limit": 1, "after": first["next"]})).json()

    today = day_of(now)
    assert [(one["day"], one["model"], one["usage"]["input_tokens"]) for one in used["days"]] == [
        (today, "m1", 111),
        (today, "m2", 5),
    ]
    assert (used["total"]["output_tokens"], used["total"]["model_calls"], used["total"]["cost"]) == (11, 4, 2.0)
    assert first["days"] + rest["days"] == used["days"]
    assert first["total"] == used["total"]
    assert (await other.get("/v1/usage")).json()["days"] == []
    assert (await caller.get("/v1/usage", params={"last": "2020-01-01"})).json()["days"] == []
    assert (await caller.get("/v1/usage", params={"last": "2020-02-30"})).status_code == 400


async def test_a_call_that_several_links_hear_is_counted_once(http):
    caller = await http.caller("shared")
    session = await make(caller)
    clients = [await http.rig.client("shared") for _ in range(2)]
    for client in clients:
        await client.call("session.resume", {"sessionId": "s1"})

    await caller.post(f"{session}/messages", json={"prompt": "[use m1 10 2]"})
    for client in clients:
        await client.wait_until(lambda client=client: "session.idle" in client.events("s1"))

    (day,) = (await caller.get("/v1/usage")).json()["days"]
    assert (day["usage"]["model_calls"], day["usage"]["input_tokens"]) == (1, 10)


async def test_a_key_that_may_mint_makes_tokens_and_does_nothing_else(http):
    backend = await key_for(http, Scope.MINT)

    minted = await backend.post("/v1/tokens", json={"user": "ann", "seconds": 60})

    assert minted.status_code == 201
    ann = await http.with_token(minted.json()["token"])
    assert (await ann.get("/v1/me")).json()["user"] == "ann"
    assert time.time() < minted.json()["expires_at"] <= time.time() + 60
    for method, path in (("GET", "/v1/me"), ("GET", "/v1/sessions"), ("POST", "/v1/ask"), ("POST", "/api/chat/start")):
        body = {"json": {"prompt": "x"}} if path == "/v1/ask" else {}
        assert (await backend.request(method, path, **body)).status_code == 403, path
    entries = [entry for entry in http.rig.audit_log.entries if entry.action is Action.TOKEN_MINT]
    assert [(entry.by, entry.owner) for entry in entries] == [("mint key", Owner("shared", "ann"))]


async def test_whoever_may_only_connect_mints_nothing_and_a_stranger_is_told_nothing(http):
    user, stranger = await http.caller("shared"), await http.with_token("aero_nothing")
    nobody = await http.stranger()
    request = {"json": {"user": "ann"}}

    assert (await user.post("/v1/tokens", **request)).status_code == 403
    assert (await stranger.post("/v1/tokens", **request)).status_code == 401
    assert (await nobody.post("/v1/tokens", **request)).status_code == 401


@pytest.mark.parametrize(
    "wish", [{"user": "No One"}, {"user": "ann", "seconds": 99_999}, {"user": "ann", "seconds": 0}]
)
async def test_a_token_that_cannot_be_is_refused(http, wish):
    backend = await key_for(http, Scope.MINT)
    refused = await backend.post("/v1/tokens", json=wish)
    assert (refused.status_code, refused.json()["code"]) == (400, "params_invalid")


async def test_tokens_are_never_kept_for_a_retry(http):
    backend = await key_for(http, Scope.MINT)
    request = {"json": {"user": "ann"}, "headers": {"Idempotency-Key": "k"}}

    first, again = await backend.post("/v1/tokens", **request), await backend.post("/v1/tokens", **request)

    assert (first.status_code, again.status_code) == (201, 201)
    assert "idempotency-replayed" not in again.headers
    assert http.stores.idempotency._requests == {}
