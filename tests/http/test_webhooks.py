"""Tools of HTTP sessions that services answer, and remote MCP servers: what is sent where, and what is not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from aerodrome.core import webhook
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy
from aerodrome.http.sealing import SealedOptions
from aerodrome.http.site import HttpSettings
from aerodrome.testing.certificates import Authority
from aerodrome.testing.http_rig import WAIT_SECONDS
from aerodrome.testing.rig import MASTER_KEY
from aerodrome.transport import tls
from aerodrome.transport.asgi import AsgiServer
from aerodrome.transport.tls import ServerCertificate, TlsFiles

from .scenes import make, say

NAME = "hooks.example"


@dataclass
class Service:
    """A service that is called; `answers` are given in order, the last one again and again."""

    port: int = 0
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=lambda: [(200, {}, b"42")])
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    #: Cleared: it does not answer.
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}/tools"

    @property
    def policy(self) -> Policy:
        return Policy(Isolation.SHARED, webhook_urls=(f"https://{NAME}:{self.port}", f"https://127.0.0.1:{self.port}"))

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.calls.append(({name.decode(): value.decode() for name, value in scope["headers"]}, body))
        await self.may_answer.wait()
        status, headers, said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": said})


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def service(authority, monkeypatch) -> AsyncIterator[Service]:
    """A service on loopback, under a name of its own."""
    found = Service()
    found.may_answer.set()
    files = authority.issue(NAME)
    server = AsgiServer(found, 16, ServerCertificate(TlsFiles(files.certificate, files.key)).context())
    found.port = await server.start()
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def look_up(host, port, **more):
        return await real("127.0.0.1" if host in (NAME, "other.example") else host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    yield found
    await server.aclose()


@pytest.fixture
async def http(open_http, service, authority):
    """An HTTP edge that trusts the service's authority, with a tenant that may call the service."""
    context = tls.client_context(authority.certificate)
    rig = await open_http(HttpSettings(masters=(MASTER_KEY,), webhook_context=context))
    rig.rig.configured["hooked"] = Tenant("hooked", service.policy, "config")
    return rig


def tool(url: str, **more) -> dict:
    return {"type": "webhook", "name": "lookup", "url": url, "retries": 0, **more}


async def call(caller, service, **more) -> dict:
    session = await make(caller, tools=[tool(service.url, **more)])
    return await say(caller, session, "[call lookup]")


async def test_a_call_is_signed_says_what_is_wanted_and_its_answer_is_the_tools(http, service):
    service.answers = [(200, {"content-type": "application/json"}, b'{"result": {"price": 7}}')]
    turn = await call(await http.caller("hooked"), service)

    assert (turn["status"], turn["content"], turn["pending"]) == ("completed", '{"price":7}', [])
    ((headers, body),) = service.calls
    secret = webhook.derive_secret(MASTER_KEY, "hooked")
    assert webhook.is_signed(secret, http.rig.clock.now(), body, headers["aerodrome-signature"])
    assert headers["host"] == f"{NAME}:{service.port}"
    said = json.loads(body)
    assert said == {
        "type": "tool.call",
        "call_id": headers["aerodrome-call-id"],
        "tool": "lookup",
        "arguments": {"n": 1},
        "session_id": "s1",
        "tenant": "hooked",
        "user": "user",
    }


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, {"content-type": "text/plain"}, b"as it is"), "as it is"),
        ((200, {"content-type": "application/json"}, b"[1, 2]"), "[1,2]"),
        ((200, {"content-type": "application/json"}, b'{"error": "no such order"}'), "no such order"),
        ((200, {"content-type": "application/json"}, b"{"), "it answered what is no JSON"),
        ((204, {}, b""), ""),
        ((302, {"location": "https://127.0.0.1/elsewhere"}, b""), "it answered 302"),
        ((404, {}, b"secret details"), "it answered 404"),
        ((200, {}, b"x" * (1024 * 1024 + 1)), "it answered more than 1048576 bytes"),
    ],
)
async def test_what_a_service_answers_is_told_to_the_agent(http, service, answer, told):
    service.answers = [answer]
    turn = await call(await http.caller("hooked"), service, retries=2)

    assert (turn["content"] or "").removeprefix("the service behind lookup could not be used: ") == told
    assert len(service.calls) == 1


async def test_a_call_that_fails_is_made_again_under_the_same_id(http, service, monkeypatch):
    monkeypatch.setattr("aerodrome.http.webhooks._FIRST_BACKOFF_SECONDS", 0.01)
    service.answers = [(503, {}, b""), (500, {}, b""), (200, {}, b"at last")]
    turn = await call(await http.caller("hooked"), service, retries=2)

    assert turn["content"] == "at last"
    assert len({headers["aerodrome-call-id"] for headers, _ in service.calls}) == 1
    assert len(service.calls) == 3


async def test_retries_and_time_are_bounded(http, service, monkeypatch):
    monkeypatch.setattr("aerodrome.http.webhooks._FIRST_BACKOFF_SECONDS", 0.01)
    service.may_answer.clear()
    turn = await call(await http.caller("hooked"), service, retries=1, timeout_seconds=1.5)

    assert turn["content"].endswith("no answer within 1.5 s")
    assert len(service.calls) == 2
    service.may_answer.set()


async def test_a_turn_that_is_aborted_waits_for_no_service(http, service):
    service.may_answer.clear()
    caller = await http.caller("hooked")
    session = await make(caller, tools=[tool(service.url)])
    turn = await say(caller, session, "[call lookup]", wait_seconds=0)
    await http.rig.settled(lambda: service.calls)

    assert (await caller.post(f"{session}/abort")).json() == {"aborted": True}
    over = await caller.get(f"{session}/turns/{turn['turn_id']}", params={"wait_seconds": WAIT_SECONDS})
    assert over.json()["status"] == "aborted"
    (user,) = http.edge.users.users
    await http.rig.settled(lambda: not user.conversations["s1"].is_in_use)
    service.may_answer.set()


@pytest.mark.parametrize(
    "urls",
    [
        (),
        ("https://elsewhere.example",),
        (f"https://{NAME}:1",),
    ],
)
async def test_a_tool_whose_url_policy_does_not_name_is_refused(http, service, urls):
    http.rig.configured["hooked"] = Tenant("hooked", Policy(Isolation.SHARED, webhook_urls=urls), "config")
    caller = await http.caller("hooked")

    refused = await caller.post("/v1/sessions", json={"tools": [tool(service.url)]})
    assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")


@pytest.mark.parametrize("name", [NAME, "localhost"])
async def test_a_name_that_leads_to_this_machine_is_called_only_where_policy_names_the_address(http, service, name):
    url = f"https://{name}:{service.port}"
    http.rig.configured["hooked"] = Tenant("hooked", Policy(Isolation.SHARED, webhook_urls=(url, "*")), "config")
    caller = await http.caller("hooked")
    session = await make(caller, tools=[tool(url)])

    turn = await say(caller, session, "[call lookup]")
    assert turn["content"].endswith("its name leads to an address that is not public")
    assert service.calls == []


@pytest.mark.parametrize("name", [f"{'a' * 64}.example", "a..example"])
async def test_a_name_that_can_be_none_is_told_to_the_agent(http, name):
    policy = Policy(Isolation.SHARED, webhook_urls=("*",))
    http.rig.configured["anywhere"] = Tenant("anywhere", policy, "config")
    caller = await http.caller("anywhere")
    session = await make(caller, tools=[tool(f"https://{name}/tools")])

    turn = await say(caller, session, "[call lookup]")

    assert (turn["status"], turn["content"].endswith("its name leads to no address")) == ("completed", True)


async def test_a_service_must_show_a_certificate_for_its_name(http, service):
    url = f"https://other.example:{service.port}"
    allowed = (url, f"https://127.0.0.1:{service.port}")
    http.rig.configured["hooked"] = Tenant("hooked", Policy(Isolation.SHARED, webhook_urls=allowed), "config")
    caller = await http.caller("hooked")
    session = await make(caller, tools=[tool(url)])

    turn = await say(caller, session, "[call lookup]")
    assert turn["content"].endswith("its certificate is not trusted, or not for that name")
    assert service.calls == []


async def test_a_policy_that_changes_holds_for_the_next_call(http, service):
    caller = await http.caller("hooked")
    session = await make(caller, tools=[tool(service.url)])
    assert (await say(caller, session, "[call lookup]"))["content"] == "42"

    now = {**http.rig.configured, "hooked": Tenant("hooked", Policy(Isolation.SHARED), "config")}
    await http.rig.policies.replace_configured(now)
    turn = await say(caller, session, "[call lookup]")

    assert turn["content"].endswith("the tenant's policy does not allow it")
    assert len(service.calls) == 1


async def test_a_gateway_without_a_master_key_takes_no_webhook_and_no_secret_header(open_http, service):
    http = await open_http()
    policy = Policy(Isolation.SHARED, webhook_urls=("*",), mcp_urls=("https://mcp.example",))
    http.rig.configured["hooked"] = Tenant("hooked", policy, "config")
    caller = await http.caller("hooked")
    server = {"url": "https://mcp.example", "headers": {"X-Key": "a secret"}}

    for body in ({"tools": [tool("https://hooks.example")]}, {"mcp_servers": {"kb": server}}):
        refused = await caller.post("/v1/sessions", json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")
        assert "master key" in refused.json()["detail"]


async def test_an_mcp_server_is_the_sessions_and_its_headers_are_kept_sealed(http):
    policy = Policy(Isolation.SHARED, mcp_urls=("https://mcp.example",))
    http.rig.configured["hooked"] = Tenant("hooked", policy, "config")
    caller = await http.caller("hooked")
    server = {"url": "https://mcp.example/kb", "headers": {"Authorization": "Bearer a-secret-of-theirs"}}

    session = await make(caller, mcp_servers={"kb": server})
    await say(caller, session, "hello")
    owner = Owner("hooked", "user")
    stored = await http.stores.conversations.find("s1", owner)
    await http.edge.users.close_user(owner)
    await say(caller, session, "again")

    (runtime,) = http.rig.scripted.runtimes
    opened = [*runtime.called("session.create"), *runtime.called("session.resume")]
    assert [one["mcpServers"]["kb"]["headers"] for one in opened] == [server["headers"]] * 2
    shown = (await caller.get(session)).json()["options"]["mcp_servers"]["kb"]
    assert (shown["url"], set(shown["headers"].values())) == ("https://mcp.example/kb", {"**********"})
    assert "a-secret-of-theirs" not in (stored or "")
    refused = await caller.post("/v1/sessions", json={"mcp_servers": {"kb": {"url": "https://elsewhere.example"}}})
    assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")


async def test_a_session_whose_headers_cannot_be_opened_any_more_is_listed_and_deleted_all_the_same(http):
    policy = Policy(Isolation.SHARED, mcp_urls=("https://mcp.example",))
    http.rig.configured["hooked"] = Tenant("hooked", policy, "config")
    caller = await http.caller("hooked")
    server = {"url": "https://mcp.example/kb", "headers": {"Authorization": "Bearer x"}}
    session = await make(caller, title="sealed", mcp_servers={"kb": server})
    await make(caller, "s2")
    http.edge.users.sealed = SealedOptions((bytes(32),))
    await http.edge.users.close_user(Owner("hooked", "user"))

    listed = (await caller.get("/v1/sessions")).json()["sessions"]
    shown = (await caller.get(session)).json()["options"]

    assert sorted(one["session_id"] for one in listed) == ["s1", "s2"]
    assert (shown["title"], shown["mcp_servers"]["kb"]["headers"]) == ("sealed", {})
    refused = await caller.post(f"{session}/messages", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["code"]) == (503, "secret_unavailable")
    assert (await caller.delete(session)).status_code == 204


async def test_the_address_that_was_judged_is_the_one_that_is_called(http, service, monkeypatch):
    loop = asyncio.get_running_loop()
    asked = []

    async def rebinding(host, port, **_):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    turn = await call(await http.caller("hooked"), service)

    assert turn["content"] == "42"
    assert asked[0] == NAME
    assert NAME not in asked[1:], "looked up once"
