"""`/v1/admin`: every route serves whom it is for and nobody else, and does what the operator's commands do."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import httpx
import pytest
from fastapi.routing import APIRoute

from aerodrome.core import identity
from aerodrome.core.identity import Scope
from aerodrome.http import admin_routes

ROUTES = sorted(
    (method, route.path)
    for route in admin_routes.router.routes
    if isinstance(route, APIRoute)
    for method in route.methods
)
#: What only an operator may; the rest is for a tenant's admin too, of that tenant.
OPERATORS = {
    ("GET", "/v1/admin/runtimes"),
    ("GET", "/v1/admin/pool"),
    ("GET", "/v1/admin/figures"),
    ("POST", "/v1/admin/drain"),
    ("POST", "/v1/admin/reload"),
    ("POST", "/v1/admin/recycle"),
    ("POST", "/v1/admin/runtimes/{runtime_id}/recycle"),
    ("POST", "/v1/admin/runtimes/{runtime_id}/cordon"),
}
#: What an admin of another tenant is answered where a thing of this tenant is named: as if it were not there.
NAMED = ("{session_id}", "{key_id}", "{name}")
BODIES = {"/keys": {"user": "new", "tenant": "shared"}, "/rotate": {}, "/migrate": {}, "/cordon": {"reason": "a test"}}


async def turn(caller, session_id: str = "s1") -> None:
    await caller.post("/v1/sessions", json={"session_id": session_id})
    answer = await caller.post(f"/v1/sessions/{session_id}/messages", json={"prompt": "hello"})
    assert answer.json()["status"] == "completed"


async def key_of(http, tenant: str, user: str) -> str:
    return next(key.key_id for key in await http.rig.keys.list_all(tenant) if key.owner.user == user)


async def call(client, method: str, path: str, **places: str) -> httpx.Response:
    for name, value in places.items():
        path = path.replace(f"{{{name}}}", value)
    body = next((body for end, body in BODIES.items() if path.endswith(end)), None) if method == "POST" else None
    return await client.request(method, path, json=body)


async def runtime_of(http, ann) -> str:
    """Return the runtime that has the session, once none is on its way out that an earlier call has sent there."""
    await http.rig.settled(lambda: not any(handle.cordoned.done() for handle in http.rig.pool.handles()))
    await ann.post("/v1/sessions/s1/messages", json={"prompt": "be in a runtime"})
    return http.rig.services.router.find("shared", "s1")


async def test_a_route_serves_those_it_is_for_and_nobody_else(http):
    ann = await http.caller("shared", "ann")
    await turn(ann)
    callers = {
        "stranger": await http.stranger(),
        "user": await http.caller("shared", "ben"),
        "minter": await http.bearer(await http.token_with("shared", "backend", Scope.MINT)),
        "other admin": await http.admin("alone"),
        "admin": await http.admin("shared"),
        "operator": await http.operator(),
    }
    wrong = []
    for method, path in ROUTES:
        runtime_id = await runtime_of(http, ann)
        key_id = identity.split_token(await http.token_with("shared", "ann", Scope.CONNECT))[0]
        places = {"session_id": "s1", "key_id": key_id, "name": "shared", "runtime_id": runtime_id}
        answers = {name: await call(client, method, path, **places) for name, client in callers.items()}
        wrong += [(method, path, one) for one in faults(method, path, answers)]
    assert len(ROUTES) > 20
    assert wrong == []


def faults(method: str, path: str, answers: dict[str, httpx.Response]) -> list[str]:
    """Return what of the answers of a route to each role is not as it should be."""
    statuses = {name: answer.status_code for name, answer in answers.items()}
    expected: dict[str, set[int] | range] = {"stranger": {401}, "user": {403}, "minter": {403}}
    names_a_thing = any(name in path for name in NAMED) or (method, path) == ("POST", "/v1/admin/keys")
    if (method, path) in OPERATORS:
        expected |= {"admin": {403}, "other admin": {403}}
    else:
        expected |= {"admin": range(200, 300), "other admin": {404} if names_a_thing else {200}}
    # A rig has no configuration to read again, and two may not recycle all at once.
    may_fail = {"/reload": {403}, "/recycle": {202, 409}}
    allowed = {end: codes for end, codes in may_fail.items() if path.endswith(end)}
    expected["operator"] = next(iter(allowed.values()), range(200, 300)) if allowed else range(200, 300)
    found = [
        f"{name}: {statuses[name]} {answers[name].text}" for name in expected if statuses[name] not in expected[name]
    ]
    told = answers["other admin"].text.replace("no tenant shared", "")
    return found + [f"other admin is told of {word}" for word in ("s1", "ann", "shared") if f'"{word}"' in told]


async def test_every_route_is_in_the_document(http):
    document = (await (await http.stranger()).get("/v1/openapi.json")).json()
    for method, path in ROUTES:
        operation = document["paths"][path][method.lower()]
        assert operation["operationId"].startswith("admin")
        assert operation["security"], path


async def test_an_admin_asks_for_no_other_tenant(http):
    admin = await http.admin("shared")
    for path in ("sessions", "links", "keys", "audit"):
        assert (await admin.get(f"/v1/admin/{path}", params={"tenant": "alone"})).status_code == 404


async def test_an_operators_key_opens_no_session_and_no_link(http):
    token = await http.token_with("", "ops", Scope.OPERATE)
    operator = await http.bearer(token)

    assert (await operator.get("/v1/sessions")).status_code == 403
    assert (await operator.post("/v1/sessions", json={})).status_code == 403
    stranger = await http.rig.stranger()
    with pytest.raises(Exception, match="AUTHENTICATION_FAILED"):
        await stranger.call("connect", {"token": token})


async def test_the_fleet_is_shown_as_it_is(http):
    await turn(await http.caller("shared", "ann"))
    operator = await http.operator()

    [row] = (await operator.get("/v1/admin/runtimes")).json()["runtimes"]
    assert (row["runtime"]["realm"], row["runtime"]["state"], row["live_sessions"]) == ("shared", "ready", 1)
    pool = (await operator.get("/v1/admin/pool")).json()
    assert (pool["sessions"], pool["links"], pool["pool"]["runtimes"]) == (1, 1, 1)
    [link] = (await operator.get("/v1/admin/links")).json()["links"]
    assert (link["tenant"], link["user"], link["sessions"]) == ("shared", "ann", 1)


async def test_held_sessions_come_page_by_page(http):
    caller = await http.caller("shared", "ann")
    for number in range(3):
        await turn(caller, f"s{number}")
    operator = await http.operator()

    first = (await operator.get("/v1/admin/sessions", params={"limit": 2})).json()
    second = (await operator.get("/v1/admin/sessions", params={"limit": 2, "after": first["next"]})).json()

    assert [one["session_id"] for one in first["sessions"] + second["sessions"]] == ["s0", "s1", "s2"]
    assert second["next"] is None
    assert (await operator.get("/v1/admin/sessions", params={"after": "nonsense"})).status_code == 400


async def test_a_session_is_evicted_and_migrated_and_goes_on(http):
    caller = await http.caller("shared", "ann")
    await turn(caller)
    operator = await http.operator()

    moved = (await operator.post("/v1/admin/sessions/s1/migrate", json={})).json()
    evicted = (await operator.post("/v1/admin/sessions/s1/evict")).json()
    again = (await operator.post("/v1/admin/sessions/s1/evict")).json()
    answer = await caller.post("/v1/sessions/s1/messages", json={"prompt": "and on"})

    assert moved["outcome"] == "migrated"
    assert (evicted["outcome"], again["outcome"]) == ("evicted", "absent")
    assert answer.json()["content"] == "and on"
    timeline = (await operator.get("/v1/admin/sessions/s1/timeline")).json()
    assert [one["why"] for one in timeline["places"]] == [
        "opened",
        "evicted: migration",
        "brought back",
        "evicted: operator",
        "brought back",
    ]
    assert timeline["places"][2]["runtime_id"] == moved["runtime_id"] != timeline["places"][0]["runtime_id"]
    assert [one["status"] for one in timeline["turns"]] == ["completed", "completed"]
    assert "hello" not in str(timeline)


async def test_a_session_at_work_is_neither_evicted_nor_migrated(http):
    caller = await http.caller("shared", "ann")
    await caller.post("/v1/sessions", json={"session_id": "s1"})
    await caller.post("/v1/sessions/s1/messages", json={"prompt": "[hold]", "wait_seconds": 0})
    await http.rig.settled(lambda: http.rig.services.drainer.at_work)
    operator = await http.operator()

    for verb in ("evict", "migrate"):
        answer = await operator.post(f"/v1/admin/sessions/s1/{verb}", json={})
        assert answer.json()["outcome"] == "at_work"


async def test_a_cordoned_runtime_says_why_and_a_drain_is_asked_for_once(http):
    await turn(await http.caller("shared", "ann"))
    [runtime] = http.rig.pool.handles()
    operator = await http.operator()

    done = await operator.post(f"/v1/admin/runtimes/{runtime.runtime_id}/cordon", json={"reason": "too hot"})
    drained = await operator.post("/v1/admin/drain")

    assert done.json() == {"runtime_id": runtime.runtime_id, "reason": "too hot", "was_cordoned": False}
    assert drained.status_code == 202
    assert http.rig.drains.is_set()
    assert (await operator.post("/v1/admin/runtimes/rt-none/cordon", json={})).status_code == 400


async def test_what_is_done_is_in_the_audit_log_with_who_asked(http):
    await turn(await http.caller("shared", "ann"))
    admin = await http.admin("shared")
    key_id = await key_of(http, "shared", "boss")
    await admin.post("/v1/admin/sessions/s1/evict")
    await admin.post("/v1/admin/keys", json={"user": "new"})

    noted = [entry for entry in http.rig.audit_log.entries if entry.by == f"tenant-admin, key {key_id}"]
    assert [entry.action.value for entry in noted] == ["operate", "key.create"]
    assert (noted[0].method, noted[0].session_id) == ("evict", "s1")
    assert noted[1].owner.user == "new"


async def test_nothing_is_done_that_cannot_be_recorded(http):
    admin = await http.admin("shared")
    http.rig.audit_log.is_failing = True
    before = len(await http.rig.keys.list_all())
    assert (await admin.post("/v1/admin/keys", json={"user": "new"})).status_code == 503
    assert len(await http.rig.keys.list_all()) == before


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_is_made_shown_once_used_rotated_and_revoked(http):
    admin = await http.admin("shared")

    made = await admin.post("/v1/admin/keys", json={"user": "new", "expires_seconds": 3600})
    token, key_id = made.json()["token"], made.json()["key_id"]
    assert (await (await http.bearer(token)).get("/v1/sessions")).status_code == 200
    listed = await admin.get("/v1/admin/keys")
    assert token not in listed.text
    assert {key["key_id"]: key["state"] for key in listed.json()["keys"]}[key_id] == "active"

    rotated = (await admin.post(f"/v1/admin/keys/{key_id}/rotate", json={"overlap_seconds": 0})).json()
    assert (rotated["user"], rotated["scopes"]) == ("new", ["connect"])
    assert (await (await http.bearer(token)).get("/v1/sessions")).status_code == 401

    revoked = (await admin.delete(f"/v1/admin/keys/{rotated['key_id']}")).json()
    assert revoked["state"] == "revoked"
    assert (await (await http.bearer(rotated["token"])).get("/v1/sessions")).status_code == 401


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"user": "new", "scopes": ["operate"]}, 403),
        ({"user": "new", "tenant": "alone"}, 404),
        ({"user": "New User"}, 400),
        ({"user": "new", "scopes": ["connect", "operate"]}, 400),
        ({"user": "new", "scopes": ["sign"]}, 400),
        ({"user": "new", "scopes": []}, 400),
        ({"user": "new", "expires_seconds": -1}, 400),
        ({"user": "new", "extra": 1}, 400),
    ],
    ids=str,
)
async def test_a_tenants_admin_makes_no_other_keys(http, wanted, status):
    admin = await http.admin("shared")
    before = len(await http.rig.keys.list_all())
    assert (await admin.post("/v1/admin/keys", json=wanted)).status_code == status
    assert len(await http.rig.keys.list_all()) == before


async def test_an_operator_makes_keys_of_any_tenant_and_of_operators(http):
    operator = await http.operator()
    for wanted, status in (
        ({"user": "new", "tenant": "alone", "scopes": ["connect", "admin"]}, 201),
        ({"user": "other", "scopes": ["operate"]}, 201),
        ({"user": "new", "scopes": ["operate"], "tenant": "alone"}, 400),
        ({"user": "new", "tenant": "nowhere"}, 404),
        ({"user": "new"}, 404),
    ):
        answer = await operator.post("/v1/admin/keys", json=wanted)
        assert answer.status_code == status, answer.text
    keys = (await operator.get("/v1/admin/keys")).json()["keys"]
    assert {(key["tenant"], key["user"]) for key in keys} >= {("alone", "new"), (None, "other")}


async def test_a_signing_key_is_not_rotated_from_afar(http):
    await http.token_with("shared", "backend", Scope.SIGN)
    key_id = await key_of(http, "shared", "backend")
    answer = await (await http.admin("shared")).post(f"/v1/admin/keys/{key_id}/rotate", json={})
    assert answer.status_code == 403


async def test_a_revoked_key_ends_the_streams_it_opened(http):
    caller = await http.caller("shared", "ann")
    await turn(caller)
    admin = await http.admin("shared")
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(caller.stream("GET", "/v1/sessions/s1/events"))
        lines = stream.aiter_lines()
        await anext(lines)
        began = time.monotonic()
        await admin.delete(f"/v1/admin/keys/{await key_of(http, 'shared', 'ann')}")
        async for _ in lines:
            pass
        assert time.monotonic() - began < 5


# -- tenants, users, figures ------------------------------------------------------------------------------------------


async def test_users_are_shown_with_what_they_have_and_took(http):
    await turn(await http.caller("shared", "ann"))
    await http.caller("shared", "ben")

    users = (await (await http.admin("shared")).get("/v1/admin/tenants/shared/users")).json()["users"]

    found = {one["user"]: (one["live_keys"], one["held_sessions"], one["usage"]["turns"]) for one in users}
    assert found == {"ann": (1, 1, 1), "ben": (1, 0, 0), "boss": (1, 0, 0)}


@pytest.mark.parametrize(("scope", "is_shown"), [(Scope.CONNECT, True), (Scope.SIGN, False)], ids=["user", "backend"])
async def test_who_has_a_first_key_while_users_are_listed_is_shown_as_at_any_other_time(
    http, monkeypatch, scope, is_shown
):
    admin, people = await http.admin("shared"), http.edge.site.office.people
    list_users = people.list_users

    async def meanwhile(tenant: str) -> list[str]:
        await http.token_with("shared", "new", scope)
        return await list_users(tenant)

    monkeypatch.setattr(people, "list_users", meanwhile)
    users = (await admin.get("/v1/admin/tenants/shared/users")).json()["users"]

    assert ("new" in [one["user"] for one in users]) is is_shown


async def test_a_tenant_is_shown_with_its_policy_in_the_configurations_words(http):
    tenants = (await (await http.operator()).get("/v1/admin/tenants")).json()["tenants"]
    assert len(tenants) > 5
    shared = (await (await http.admin("shared")).get("/v1/admin/tenants/shared")).json()
    assert (shared["name"], shared["source"], shared["policy"]["isolation"]) == ("shared", "config", "shared")


async def test_the_figures_are_what_happened(http):
    await turn(await http.caller("shared", "ann"))
    client = await http.rig.client("team")
    await client.call("session.create", {"sessionId": "t"})
    await client.call("session.send", {"sessionId": "t", "prompt": "[fail]"})
    await client.wait_for_event("t", "session.idle")
    await (await http.bearer("aero_wrong")).get("/v1/sessions")

    figures = (await (await http.operator()).get("/v1/admin/figures")).json()["figures"]

    assert (sum(one["turns"] for one in figures), sum(one["failed_turns"] for one in figures)) == (2, 1)
    assert sum(one["rejections"] for one in figures) == 1
    [timed] = [one for one in figures if one["turn_seconds_p50"] is not None]
    assert 0 < timed["turn_seconds_p50"] <= timed["turn_seconds_p95"] < 5


# -- page by page -----------------------------------------------------------------------------------------------------


async def read_pages(caller, path: str, name: str, limit: int, query: dict[str, str]) -> list[list[dict]]:
    """Return the pages of a list, read with `next` to the end."""
    found, after = [], {}
    while True:
        page = (await caller.get(path, params={**query, "limit": limit, **after})).json()
        found.append(page[name])
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


@pytest.mark.parametrize(
    ("path", "name", "query"),
    [
        ("tenants", "tenants", {}),
        ("tenants/shared/users", "users", {}),
        ("keys", "keys", {}),
        ("keys", "keys", {"tenant": "shared"}),
        ("runtimes", "runtimes", {}),
        ("sessions", "sessions", {}),
    ],
)
async def test_what_there_may_be_many_of_comes_page_by_page_each_once(http, path, name, query):
    operator = await http.operator()
    for number in range(5):
        tenant, user = ("shared", f"user-{number}") if number < 3 else ("alone", f"user-{number}")
        await turn(await http.caller(tenant, user), f"s{number}")

    whole = (await operator.get(f"/v1/admin/{path}", params=query)).json()
    pages = await read_pages(operator, f"/v1/admin/{path}", name, 2, query)

    assert whole["next"] is None
    assert [_key(one) for page in pages for one in page] == [_key(one) for one in whole[name]]
    assert len(whole[name]) > 2
    assert {len(page) for page in pages[:-1]} == {2}


def _key(one: dict) -> str:
    said = one.get("runtime", one)
    return next(said[name] for name in ("session_id", "key_id", "runtime_id", "user", "name") if name in said)


async def test_a_page_goes_on_behind_a_tenant_that_has_gone_meanwhile(http):
    operator = await http.operator()
    whole = [one["name"] for one in (await operator.get("/v1/admin/tenants")).json()["tenants"]]
    first = (await operator.get("/v1/admin/tenants", params={"limit": 1})).json()
    del http.rig.configured[first["next"]]

    second = (await operator.get("/v1/admin/tenants", params={"limit": 1, "after": first["next"]})).json()

    assert [one["name"] for one in (*first["tenants"], *second["tenants"])] == whole[:2]
