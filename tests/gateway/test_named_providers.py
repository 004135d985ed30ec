"""Named providers: sessions reach the gateway's model endpoints, their keys reach neither clients nor runtimes."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aerodrome.adapters.secrets.cached import CachedSecrets
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core import provider
from aerodrome.core.provider import NamedProvider
from aerodrome.gateway.forwarder import Forwarder
from aerodrome.gateway.supplying import Supplier
from aerodrome.testing.peer import RpcError
from aerodrome.transport.asgi import AsgiServer

from .test_evictions import open_sessions, turn
from .test_shared_turns import put

KEY, OTHER_KEY = "sk-canary-house-41f0", "sk-canary-other-93b7"
ISOLATIONS = ["supplied", "supplied-shared"]
REFERENCE = {"baseUrl": "aerodrome:house"}


class Endpoint:
    """A model endpoint that checks its key and notes what it is asked."""

    def __init__(self) -> None:
        self.key = KEY
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.left = asyncio.Event()
        self.base_url = ""

    def application(self) -> Starlette:
        return Starlette(routes=[Route("/v1/{rest:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        headers, body = dict(request.headers), await request.body()
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.heard.append((target, headers, body))
        given = headers.get("authorization") or headers.get("api-key") or headers.get("x-api-key") or ""
        if given.removeprefix("Bearer ") != self.key:
            return JSONResponse({"error": f"wrong key {given}"}, 401, {"www-authenticate": f"Bearer {given}"})
        if target.endswith("/echo"):
            parts = [b"your key is ", self.key[:9].encode(), self.key[9:].encode(), b", keep it"]
            return StreamingResponse(_each(parts), headers={"set-cookie": "a=b", "x-echo": self.key})
        if target.endswith("/slow"):
            return StreamingResponse(self.slowly())
        return JSONResponse({"heard": headers.get("x-ours", "")})

    async def slowly(self):
        try:
            yield b"first"
            await asyncio.get_running_loop().create_future()
        finally:
            self.left.set()


async def _each(parts):
    for part in parts:
        yield part


class House:
    """Two named providers of an endpoint, with the forwarder before it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.environment = {"HOUSE_KEY": KEY, "OTHER_KEY": OTHER_KEY, "OURS": "canary-header"}
        self.supplier = Supplier(
            {
                "house": self.make("house", aliases={"fast": "small"}, models=["large", "small"]),
                "other": self.make("other", api_key="env:OTHER_KEY"),
            }
        )
        self.sources = EnvironmentSource(self.environment)

    def make(self, name: str, **changes: Any) -> NamedProvider:
        values = {
            "type": "openai",
            "base_url": self.endpoint.base_url,
            "wire_api": None,
            "api_key": "env:HOUSE_KEY",
            "bearer_token": None,
            "headers": {},
            "models": [],
            "aliases": {},
            "azure_api_version": None,
        }
        return provider.make(name, values | changes)

    def grant(self, name: str = "house") -> dict[str, Any]:
        """Return the provider that a session of some realm is given."""
        return self.supplier.fill("realm", "s", {"provider": {"baseUrl": f"aerodrome:{name}"}})["provider"]

    async def call(self, path: str = "/chat/completions", name: str = "house", **changes: Any) -> httpx.Response:
        """Make a model call as a runtime does."""
        given = self.grant(name)
        headers = {"authorization": f"Bearer {given['apiKey']}", **changes.pop("headers", {})}
        request = {"method": "POST", "json": {"model": "large"}, **changes}
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            return await http.request(url=f"{given['baseUrl']}{path}", headers=headers, **request)


@pytest.fixture
async def house():
    async with AsyncExitStack() as stack:
        endpoint = Endpoint()
        server = AsgiServer(endpoint.application(), 100)
        stack.push_async_callback(server.aclose)
        endpoint.base_url = f"http://127.0.0.1:{await server.start()}/v1"
        house = House(endpoint)
        secrets = CachedSecrets({"env": house.sources}, SystemClock(), 3600.0, 0.0)
        forwarder = Forwarder(house.supplier, secrets, 100_000)
        stack.push_async_callback(forwarder.aclose)
        front = AsgiServer(forwarder, 100)
        stack.push_async_callback(front.aclose)
        house.supplier.forwarder_url = f"http://127.0.0.1:{await front.start()}"
        yield house


@pytest.fixture
async def rig(open_rig, house):
    return await open_rig(supplier=house.supplier)


# -- what sessions are given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_session_without_a_provider_is_given_its_tenants_with_a_key_of_its_own(rig, house, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "a"})
    await client.call("session.create", {"sessionId": "b", "model": "small"})
    first, second = rig.scripted.runtimes[0].called("session.create")
    assert first["provider"]["baseUrl"] == f"{house.supplier.forwarder_url}/house"
    assert (first["model"], second["model"]) == ("large", "small")
    assert first["provider"]["apiKey"] != second["provider"]["apiKey"]
    assert KEY not in json.dumps([first, second])


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_session_that_comes_back_is_given_it_again_and_only_the_name_is_stored(open_rig, house, tenant):
    rig = await open_rig(supplier=house.supplier, live_sessions=1)
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "a"})
    await client.call("session.options.update", {"sessionId": "a", "provider": {"baseUrl": "aerodrome:other"}})
    await client.call("session.provider.add", {"sessionId": "a", "providers": [{"name": "x", **REFERENCE}]})
    await turn(client, "a")
    (held,) = [one.attachments["a"] for one in rig.gateway.clients]
    assert held.create["provider"] == REFERENCE
    assert held.options["provider"] == {"baseUrl": "aerodrome:other"}
    await open_sessions(client, "b")
    await rig.settled(lambda: "a" not in rig.scripted.runtimes[0].sessions)
    await turn(client, "a")
    (resumed,) = rig.scripted.runtimes[0].called("session.resume")
    updated = [call for call in rig.scripted.runtimes[0].called("session.options.update") if "provider" in call][-1]
    assert resumed["provider"]["baseUrl"].endswith("/house")
    assert updated["provider"]["baseUrl"].endswith("/other")
    assert house.supplier.grants.find(resumed["provider"]["apiKey"]).session_id == "a"
    stored = repr([held.create, held.resume, held.options, held.replays])
    for key in (KEY, OTHER_KEY, resumed["provider"]["apiKey"], updated["provider"]["apiKey"]):
        assert key not in stored


# -- what policy takes away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_session_whose_tenant_gets_another_provider_has_it_from_its_next_turn_on(rig, house, tenant):
    client, beside = await rig.client(tenant), await rig.client(tenant)
    await client.call("session.create", {"sessionId": "a"})
    await client.call("session.options.update", {"sessionId": "a", "clientName": "mine"})
    await turn(client, "a")
    key = rig.scripted.runtimes[0].called("session.create")[0]["provider"]["apiKey"]

    await put(rig, tenant, provider="other", provider_names=())
    await beside.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle", 2)

    resumed = rig.scripted.runtimes[0].called("session.resume")[-1]
    assert resumed["provider"]["baseUrl"].endswith("/other")
    assert resumed["provider"]["apiKey"] != key
    assert "mine" in [call.get("clientName") for call in rig.scripted.runtimes[0].called("session.options.update")][1:]


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_session_that_names_a_provider_which_policy_took_away_has_no_turn_until_it_names_another(rig, tenant):
    client = await rig.client(tenant)
    other = {"baseUrl": "aerodrome:other"}
    await client.call("session.create", {"sessionId": "a", "model": "m", "provider": other})
    await turn(client, "a")

    await put(rig, tenant, provider_names=())
    with pytest.raises(RpcError) as refused:
        await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    assert refused.value.data["code"] == "policy_rejected"
    assert len(rig.scripted.runtimes[0].called("session.send")) == 1
    await client.call("session.resume", {"sessionId": "a"})
    await turn(client, "a")

    assert rig.scripted.runtimes[0].called("session.resume")[-1]["provider"]["baseUrl"].endswith("/house")


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_what_a_session_was_told_of_a_provider_which_policy_took_away_is_not_said_again(rig, tenant):
    client = await rig.client(tenant)
    await client.call("session.create", {"sessionId": "a"})
    await client.call("session.options.update", {"sessionId": "a", "provider": {"baseUrl": "aerodrome:other"}})
    added = {"sessionId": "a", "providers": [{"name": "x", "baseUrl": "aerodrome:other"}]}
    await client.call("session.provider.add", added)
    await turn(client, "a")
    runtime = rig.scripted.runtimes[0]
    before = len(runtime.calls)

    await put(rig, tenant, provider_names=())
    await turn(client, "a")

    assert runtime.called("session.resume")
    assert "/other" not in json.dumps([call.params for call in runtime.calls[before:]])


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_turn_under_a_provider_which_policy_takes_away_is_aborted(rig, tenant):
    client = await rig.client(tenant)
    other = {"baseUrl": "aerodrome:other"}
    await client.call("session.create", {"sessionId": "a", "model": "m", "provider": other})
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start")

    await put(rig, tenant, provider_names=())

    await client.wait_for_event("a", "session.idle")
    assert "abort" in client.events("a")


async def test_what_does_not_concern_providers_leaves_a_trusted_tenants_sessions_where_they_are(rig):
    client = await rig.client("supplied")
    await client.call("session.create", {"sessionId": "a"})
    await turn(client, "a")

    await put(rig, "supplied", max_turns_per_user=5, mcp_urls=("https://tools.example",))
    await turn(client, "a")

    assert rig.scripted.runtimes[0].called("session.resume") == []


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_resume_of_the_clients_own_is_supplied_too(rig, house, tenant):
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    await client.call("session.detach", {"sessionId": "a"})
    await client.call("session.resume", {"sessionId": "a"})
    (resumed,) = rig.scripted.runtimes[0].called("session.resume")
    assert resumed["provider"]["baseUrl"].endswith("/house")


async def test_a_placeholder_key_is_gone_with_the_last_link_that_holds_its_session(rig, house):
    one, other = await rig.client("supplied"), await rig.client("supplied")
    await open_sessions(one, "a")
    await other.call("session.resume", {"sessionId": "a"})
    key = rig.scripted.runtimes[0].called("session.create")[0]["provider"]["apiKey"]
    await one.call("session.detach", {"sessionId": "a"})
    assert house.supplier.grants.find(key) is not None
    await other.aclose()
    await rig.settled(lambda: house.supplier.grants.find(key) is None)
    assert len(house.supplier.grants) == 0


async def test_sessions_that_outlive_their_link_keep_their_keys_on_the_one_that_takes_them_over(rig, house):
    one = await rig.client("supplied-patient")
    await open_sessions(one, "beside")
    await one.call("session.create", {"sessionId": "a"})
    await one.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await one.wait_for_event("a", "assistant.turn_start")
    keys = [call["provider"]["apiKey"] for call in rig.scripted.runtimes[0].called("session.create")]
    await one.aclose()
    other = await rig.client("supplied-patient")
    await other.call("session.resume", {"sessionId": "a"})
    await other.call("ping", {})
    assert [house.supplier.grants.find(key).session_id for key in keys] == ["beside", "a"]
    await other.call("session.abort", {"sessionId": "a"})
    await other.wait_for_event("a", "session.idle")
    await other.aclose()
    await rig.settled(lambda: len(house.supplier.grants) == 0)


async def test_an_opening_that_fails_leaves_no_placeholder_key(open_rig, house):
    from aerodrome.testing.scripted_runtime import Faults

    rig = await open_rig(lambda _: Faults(refuses="session.create"), supplier=house.supplier)
    client = await rig.client("supplied")
    with pytest.raises(RpcError):
        await client.call("session.create", {"sessionId": "a"})
    await rig.settled(lambda: len(house.supplier.grants) == 0)


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_a_client_may_name_what_its_tenant_has_and_say_nothing_more_of_it(rig, tenant):
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    wishes = [
        {"baseUrl": "aerodrome:secret"},
        {"baseUrl": "aerodrome:"},
        {**REFERENCE, "apiKey": "mine"},
        {**REFERENCE, "bearerToken": "mine"},
        {**REFERENCE, "headers": {"x": "y"}},
        {**REFERENCE, "apiKeyCommand": "id"},
        {**REFERENCE, "azure": {"apiVersion": "1"}},
    ]
    for wish in wishes:
        await refused(client, wish)
    assert len(rig.scripted.runtimes[0].called("session.create")) == 1


async def refused(client, provider) -> None:
    calls = [
        ("session.create", {"sessionId": "b", "provider": provider}),
        ("session.create", {"sessionId": "b", "providers": [{"name": "n", **provider}]}),
        ("session.resume", {"sessionId": "a", "provider": provider}),
        ("session.options.update", {"sessionId": "a", "provider": provider}),
        ("session.provider.sync", {"sessionId": "a", "providers": [provider]}),
    ]
    for method, params in calls:
        with pytest.raises(RpcError) as raised:
            await client.call(method, params)
        assert raised.value.number == -32010, (method, provider)


async def test_tenants_without_a_named_provider_cannot_name_one(rig):
    for tenant in ("alone", "shared"):
        client = await rig.client(tenant)
        with pytest.raises(RpcError) as raised:
            await client.call("session.create", {"sessionId": tenant, "provider": REFERENCE})
        assert raised.value.number == -32010


async def test_a_provider_of_the_clients_own_is_refused_unless_policy_allows_its_address(rig):
    own = {"type": "openai", "baseUrl": "https://models.example.com/v1", "apiKey": "mine"}
    with pytest.raises(RpcError):
        await (await rig.client("supplied-shared")).call("session.create", {"sessionId": "a", "provider": own})
    await (await rig.client("supplied")).call("session.create", {"sessionId": "b", "provider": own})
    (created,) = rig.scripted.runtimes[0].called("session.create")
    assert created["provider"] == own


@pytest.mark.parametrize("tenant", ISOLATIONS)
async def test_clients_hear_neither_keys_nor_placeholders(rig, house, tenant):
    client = await rig.client(tenant)
    await open_sessions(client, "a")
    placeholder = rig.scripted.runtimes[0].called("session.create")[0]["provider"]["apiKey"]
    said = [await client.call("session.resume", {"sessionId": "a"}), await client.call("session.list", {})]
    heard = repr([said, client.heard])
    assert "session.idle" in heard
    assert KEY not in heard
    assert placeholder not in heard


# -- the forwarder -----------------------------------------------------------------------------------------------------------


async def test_the_real_key_takes_the_place_of_the_placeholder(house):
    answer = await house.call(
        "/chat/completions?a=b", headers={"x-ours": "kept", "cookie": "c", "x-forwarded-for": "f"}
    )
    assert (answer.status_code, answer.json()) == (200, {"heard": "kept"})
    ((target, headers, body),) = house.endpoint.heard
    assert target == "/v1/chat/completions?a=b"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not {"cookie", "x-forwarded-for"} & set(headers)
    assert json.loads(body) == {"model": "large"}
    assert house.grant()["apiKey"] not in repr(headers)


@pytest.mark.parametrize(("kind", "header"), [("azure", "api-key"), ("anthropic", "x-api-key")])
async def test_each_api_has_its_key_where_it_looks_for_it(house, kind, header):
    house.supplier.providers["house"] = house.make("house", type=kind, headers={"X-Ours": "env:OURS"})
    given = house.grant()
    answer = await house.call("/messages", headers={header: given["apiKey"], "x-ours": "the client's"})
    assert answer.json() == {"heard": "*" * len("canary-header")}
    ((_, headers, _),) = house.endpoint.heard
    assert (headers[header], headers["x-ours"]) == (KEY, "canary-header")
    assert "authorization" not in headers


async def test_a_rotated_key_is_used_at_the_next_call(house):
    assert (await house.call()).status_code == 200
    house.environment["HOUSE_KEY"] = house.endpoint.key = "sk-canary-rotated"
    assert (await house.call()).status_code == 200
    assert len(house.endpoint.heard) == 3  # one of them with the key as it was


async def test_a_key_that_stays_wrong_is_said_so_without_it(house):
    house.endpoint.key = "another"
    answer = await house.call()
    assert answer.status_code == 401
    assert KEY not in answer.text + repr(answer.headers)
    assert len(house.endpoint.heard) == 1


async def test_what_an_endpoint_repeats_of_its_key_is_taken_out(house):
    answer = await house.call("/echo")
    assert answer.text == f"your key is {'*' * len(KEY)}, keep it"
    assert answer.headers["x-echo"] == "*" * len(KEY)
    assert "set-cookie" not in answer.headers


async def test_a_session_reaches_its_own_provider_only(house):
    given, other = house.grant("house"), house.grant("other")
    stolen = {"authorization": f"Bearer {given['apiKey']}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        for url, headers in (
            (other["baseUrl"], stolen),
            (given["baseUrl"], {}),
            (given["baseUrl"], {"authorization": "Bearer x"}),
        ):
            answer = await http.post(f"{url}/chat/completions", headers=headers, json={})
            assert answer.status_code in (401, 403)
    house.supplier.withdraw("realm", "s")
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{given['baseUrl']}/chat/completions", headers=stolen, json={})
    assert answer.status_code == 401
    assert house.endpoint.heard == []


async def test_a_path_that_could_be_read_in_two_ways_goes_nowhere(house):
    for path in ("/../admin", "/a/%2e%2e/b", "//evil", "/a\\b", "/..;/x", "/", "/a?x=%0a", "/a/./b"):
        assert await status_of(house.grant(), path) in (b"400", b"403")
    assert house.endpoint.heard == []


async def status_of(given, path) -> bytes:
    host, port = given["baseUrl"].removeprefix("http://").split("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"GET /house{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {given['apiKey']}\r\nconnection: close\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer.split(b" ")[1]


async def test_only_the_providers_models_are_called_under_their_own_names(house):
    assert (await house.call(json={"model": "fast", "n": 1, "messages": ["é"]})).status_code == 200
    assert json.loads(house.endpoint.heard[0][2]) == {"model": "small", "n": 1, "messages": ["é"]}
    assert (await house.call(json={"model": "huge"})).status_code == 403
    assert (await house.call(content=b"{", json=None)).status_code == 400
    assert (await house.call(content=b"x" * 200_000, json=None)).status_code == 413
    assert len(house.endpoint.heard) == 1


async def test_a_call_that_the_runtime_gives_up_is_given_up_at_the_endpoint(house):
    given = house.grant()
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        headers = {"authorization": f"Bearer {given['apiKey']}"}
        async with http.stream("GET", f"{given['baseUrl']}/slow", headers=headers) as answer:
            assert await anext(answer.aiter_bytes()) == b"first"
    async with asyncio.timeout(30):
        await house.endpoint.left.wait()


async def test_an_endpoint_that_is_away_and_a_key_that_is_gone_are_told_as_such(house):
    house.supplier.providers["house"] = house.make("house", base_url="http://127.0.0.1:9/v1")
    assert (await house.call()).status_code == 502
    house.supplier.providers["house"] = house.make("house", api_key="env:GONE")
    answer = await house.call()
    assert (answer.status_code, "GONE" in answer.text) == (503, False)
