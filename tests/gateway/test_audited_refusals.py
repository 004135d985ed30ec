"""Each refusal leaves exactly one record: who, what, which session as it was named, and why; never what the call carried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.core.audit import Action, Entry, Outcome
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.protocol import messages
from aerodrome.reloading import Reloader
from aerodrome.testing.peer import RpcError

ANN, EVE = Owner("shared", "ann"), Owner("other", "eve")
SECRET = "canary-of-the-call"


def refusals(rig) -> list[Entry]:
    return [entry for entry in rig.audit_log.entries if entry.outcome is Outcome.REFUSED]


def of_gateway(rig) -> list[tuple]:
    return [
        (entry.action.value, entry.owner, entry.session_id, entry.reason)
        for entry in rig.audit_log.entries
        if entry.by == "gateway"
    ]


async def refused(call) -> None:
    with pytest.raises(RpcError):
        await call


#: What ann asks for, and the session and reason that her record must have.
CALLS = {
    "a method that policy denies": (
        ("session.shell.exec", {"sessionId": "mine", "command": SECRET}),
        ("mine", "policy_rejected: any shell command"),
    ),
    "a denied method on a session named elsewhere": (
        ("catalog.search", {"policySessionId": "mine", "query": SECRET}),
        ("mine", "policy_rejected: uses the host's GitHub identity"),
    ),
    "a method that nobody knows": (("no.such.method", {"sessionId": "mine", "x": SECRET}), ("mine", "method_unknown")),
    "an MCP server that is a command": (
        ("session.create", {"sessionId": "new", "mcpServers": {"m": {"command": "sh", "args": [SECRET]}}}),
        ("new", "policy_rejected: mcpServers.m"),
    ),
    "a provider elsewhere": (
        ("session.create", {"sessionId": "new", "provider": {"baseUrl": f"http://169.254.169.254/{SECRET}"}}),
        ("new", "policy_rejected: provider.baseUrl"),
    ),
    "a header that frames": (
        (
            "session.send",
            {"sessionId": "mine", "prompt": SECRET, "requestHeaders": {"Content-Length": "0"}},
        ),
        ("mine", "policy_rejected: requestHeaders.Content-Length"),
    ),
    "a header with a second one in it": (
        ("session.send", {"sessionId": "mine", "prompt": "x", "requestHeaders": {"X": f"a\r\n{SECRET}: b"}}),
        ("mine", "params_invalid"),
    ),
    "an id that climbs": (("session.create", {"sessionId": "../../etc"}), ("../../etc", "params_invalid")),
    "an id that climbs, resumed": (("session.resume", {"sessionId": "../../etc"}), ("../../etc", "session_missing")),
    "no id": (("session.send", {"sessionId": [SECRET]}), (None, "params_invalid")),
    "a working directory": (
        ("session.resume", {"sessionId": "mine", "workingDirectory": f"/etc/{SECRET}"}),
        ("mine", "policy_rejected: workingDirectory"),
    ),
    "a taken id": (("session.create", {"sessionId": "hers"}), ("hers", "already_exists")),
    "a foreign session": (("session.abort", {"sessionId": "hers"}), ("hers", "session_foreign")),
    "a missing session": (("session.abort", {"sessionId": "nobodys"}), ("nobodys", "session_missing")),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_refused_call_is_one_record_of_who_what_which_session_and_why(rig, name):
    (method, params), (session_id, reason) = CALLS[name]
    hers = await rig.client("other", "eve")
    await hers.call("session.create", {"sessionId": "hers", "model": "demo"})
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine", "model": "demo"})
    await refused(client.call(method, params))
    (entry,) = refusals(rig)
    assert (entry.action, entry.owner, entry.method) == (Action.CALL, ANN, method)
    assert entry.key_id == (await rig.token("shared", "ann")).split("_")[1]
    assert entry.peer.startswith("127.0.0.1:")
    assert entry.session_id == session_id
    assert entry.reason.startswith(reason)
    assert SECRET not in str(rig.audit_log.entries)


async def test_a_cap_that_is_reached_is_one_record_with_its_name(rig):
    await put(rig, "shared", max_sessions_per_user=1)
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "one", "model": "demo"})
    await refused(client.call("session.create", {"sessionId": "two", "model": "demo"}))
    (entry,) = refusals(rig)
    assert (entry.session_id, entry.reason) == ("two", "policy_rejected: max_sessions_per_user")


async def test_a_taken_id_is_recorded_where_the_runtime_is_the_callers_alone_too(rig):
    await (await rig.client("shared", "ann")).call("session.create", {"sessionId": "hers", "model": "demo"})
    client = await rig.client("alone", "ann")
    await refused(client.call("session.create", {"sessionId": "hers", "model": "demo"}))
    (entry,) = refusals(rig)
    assert (entry.owner, entry.session_id, entry.reason) == (Owner("alone", "ann"), "hers", "already_exists")


async def test_a_call_said_as_a_notification_is_one_record_and_does_nothing(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine", "model": "demo"})
    client.notify("session.delete", {"sessionId": "mine", "x": SECRET})
    await client.call("ping")
    (entry,) = refusals(rig)
    assert (entry.owner, entry.method, entry.reason) == (ANN, "session.delete", "not_a_request")
    assert await rig.registry.find("mine") is not None
    assert SECRET not in str(entry)


#: What is no frame, or no message, and why it is refused; `{}` is a body within the limit.
FRAMES = {
    "two lengths": (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "parse_failed"),
    "a negative length": (b"Content-Length: -2\r\n\r\n{}", "parse_failed"),
    "a signed length": (b"Content-Length: +2\r\n\r\n{}", "parse_failed"),
    "a hexadecimal length": (b"Content-Length: 0x2\r\n\r\n{}", "parse_failed"),
    "a length of many digits": (b"Content-Length: %d\r\n\r\n{}" % 10**30, "parse_failed"),
    "a folded length": (b"Content-Length:\r\n 2\r\n\r\n{}", "parse_failed"),
    "a folded second length": (b"X: y\r\n Content-Length: 2\r\n\r\n{}", "parse_failed"),
    "a huge length": (b"Content-Length: 99999999999\r\n\r\n{}", "frame_too_large"),
    "no length": (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}", "parse_failed"),
    "a line without a name": (b"Content-Length 2\r\n\r\n{}", "parse_failed"),
    "headers without end": (b"X: y\r\n" * 1000, "parse_failed"),
    "a request of HTTP": (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", "parse_failed"),
}


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("name", FRAMES)
async def test_a_broken_frame_is_one_record_and_ends_the_link_and_no_other(rig, name, is_known):
    data, reason = FRAMES[name]
    client = await rig.client("shared", "ann") if is_known else await rig.stranger()
    client.send_bytes(data)
    await client.wait_closed()
    (entry,) = refusals(rig)
    assert (entry.action, entry.reason) == (Action.LINK_FRAME, reason)
    assert (entry.owner, entry.by) == ((ANN, "user") if is_known else (None, "stranger"))
    assert entry.peer.startswith("127.0.0.1")
    await (await rig.client("shared", "ann")).call("ping")


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{" + b'"x":{' * 5000, "parse_failed"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":%b}' % (b"[" * 100_000), "parse_failed"),
        (b"[" * 5000 + b"]" * 5000, "parse_failed"),
        (b"[]", "request_invalid"),
        (b'{"jsonrpc":"2.0"}', "request_invalid"),
        (b"\xff\xfe", "parse_failed"),
    ],
)
async def test_a_frame_whose_body_is_no_message_is_one_record_and_the_link_goes_on(rig, body, reason, is_known):
    if not is_known:
        body = body[:4000]  # more is a frame too large before a link is known
    client = await rig.client("shared", "ann") if is_known else await rig.stranger()
    client.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    await client.wait_until(lambda: client.stray)
    if not is_known:
        await client.call("connect", {"token": await rig.token("shared", "ann")})
    await client.call("ping")
    (entry,) = refusals(rig)
    assert entry.action is Action.LINK_FRAME
    assert entry.reason in (reason, "request_invalid")
    assert entry.owner == (ANN if is_known else None)


async def test_a_call_before_a_token_and_a_revoked_token_are_one_record_each(rig):
    stranger = await rig.stranger()
    await refused(stranger.call("session.list", {"x": SECRET}))
    token = await rig.token("shared", "ann")
    await rig.keys.revoke(token.split("_")[1], 0.0)
    await refused(stranger.call("connect", {"token": token}))
    assert [(entry.action, entry.reason, entry.key_id) for entry in refusals(rig)] == [
        (Action.LINK_AUTHENTICATE, "authentication_required", None),
        (Action.LINK_AUTHENTICATE, "authentication_failed", token.split("_")[1]),
    ]
    assert SECRET not in str(rig.audit_log.entries)
    assert token.split("_", 2)[2] not in str(rig.audit_log.entries)


async def test_a_connection_token_of_a_revoked_key_is_recorded_with_that_keys_id(rig):
    minted = await rig.minter.mint(ANN, 600.0)
    (key,) = await rig.keys.list_all("shared")
    await rig.keys.revoke(key.key_id, 0.0)
    await refused((await rig.stranger()).call("connect", {"token": minted.token}))
    (entry,) = refusals(rig)
    assert (entry.key_id, entry.reason) == (key.key_id, "authentication_failed")
    assert minted.token.split(".")[2] not in str(entry)


async def test_a_secret_in_a_name_that_the_client_chose_is_blanked_out(rig):
    client = await rig.client("shared", "ann")
    token = await rig.token("shared", "ann")
    await refused(client.call(f"session.{token}", {}))
    await refused(client.call("session.create", {"sessionId": "new", "mcpServers": {token: {"command": "sh"}}}))
    await refused(client.call("x" * 100_000, {}))
    assert len(refusals(rig)) == 3
    assert token.split("_", 2)[2] not in str(rig.audit_log.entries)
    assert all(len(entry.method) <= 200 for entry in refusals(rig))


# -- what policy does -------------------------------------------------------------------------------------------------


async def put(rig, name: str, **changes) -> None:
    tenant = rig.configured[name]
    changed = Tenant(name, replace(tenant.policy, **changes), "config")
    await rig.policies.replace_configured({**rig.configured, name: changed})


async def test_a_session_that_comes_back_restricted_is_one_record(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "a", "model": "demo", "tools": [{"name": "drop"}]})
    await client.call("session.send", {"sessionId": "a", "prompt": "x"})
    await client.wait_for_event("a", "session.idle")
    await put(rig, "shared", tools=())
    for count in (2, 3):
        await client.call("session.send", {"sessionId": "a", "prompt": "x"})
        await client.wait_for_event("a", "session.idle", count)
    assert of_gateway(rig) == [("session.restrict", ANN, "a", "policy")]


async def test_a_turn_that_policy_ends_and_one_that_it_restricts_are_one_record_each(rig):
    client = await rig.client("shared", "ann")
    for session_id, model in (("stays", "demo"), ("goes", "old")):
        await client.call("session.create", {"sessionId": session_id, "model": model})
        await client.call("session.send", {"sessionId": session_id, "prompt": "[hold]"})
        await client.wait_for_event(session_id, "assistant.turn_start")
    await put(rig, "shared", models=("demo",))
    await client.wait_for_event("goes", "session.idle")
    await rig.settled(lambda: len(of_gateway(rig)) == 2)
    assert sorted(of_gateway(rig), key=str) == [
        ("session.restrict", ANN, "stays", "policy"),
        ("turn.abort", ANN, "goes", "policy_rejected: model"),
    ]


async def test_a_tool_that_policy_denies_is_one_record_when_a_model_calls_it_and_the_client_is_not_asked(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "a", "model": "demo", "tools": [{"name": "drop"}]})
    await client.call("session.send", {"sessionId": "a", "prompt": "[hold]"})
    await client.wait_for_event("a", "assistant.turn_start")
    await put(rig, "shared", tools=("!custom:drop",))
    (served,) = rig.gateway.clients
    (upstream,) = served.upstreams.values()
    data = {"requestId": "r1", "toolName": "drop", "arguments": {"x": SECRET}}
    event = {"sessionId": "a", "event": {"type": "external_tool.requested", "data": data}}
    for _ in range(3):
        served.pump.__self__.take(upstream, messages.notification("session.event", messages.encode(event)))
    await client.call("ping")
    (entry,) = refusals(rig)
    assert (entry.action, entry.owner, entry.session_id) == (Action.TOOL, ANN, "a")
    assert (entry.target, entry.reason) == ("custom:drop", "policy_rejected: tools")
    assert "external_tool.requested" not in client.events("a")
    assert SECRET not in str(rig.audit_log.entries)


async def test_a_model_and_a_tool_of_a_server_that_policy_denies_are_one_record_each(rig):
    await put(rig, "shared", models=("demo",), tools=("custom:*",))
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "a", "model": "demo"})
    await refused(client.call("session.create", {"sessionId": "b", "model": "other"}))
    await refused(client.call("session.model.switchTo", {"sessionId": "a", "modelId": "other"}))
    named = {"sessionId": "a", "serverName": "git", "toolName": "push", "arguments": {"x": SECRET}}
    await refused(client.call("session.mcp.apps.callTool", named))
    assert [(entry.method, entry.session_id, entry.reason) for entry in refusals(rig)] == [
        ("session.create", "b", "policy_rejected: model"),
        ("session.model.switchTo", "a", "policy_rejected: modelId"),
        ("session.mcp.apps.callTool", "a", "policy_rejected: tools"),
    ]
    assert SECRET not in str(rig.audit_log.entries)


async def test_a_link_that_the_gateway_closes_is_one_record_of_why(rig):
    client, other = await rig.client("guarded", "ann"), await rig.client("shared", "ann")
    await put(rig, "guarded", trust=Trust.FULL)
    await client.wait_closed()
    await rig.keys.revoke((await rig.token("shared", "ann")).split("_")[1], 0.0)
    await rig.watch.look()
    await other.wait_closed()
    assert of_gateway(rig) == [
        ("link.close", Owner("guarded", "ann"), None, "the tenant's policy has changed"),
        ("link.close", ANN, None, "its key is revoked or expired"),
    ]


async def test_a_policy_of_the_database_that_changes_or_goes_is_one_record(rig):
    await rig.tenants.add(Tenant("stored", Policy(Isolation.SHARED)))
    await rig.policies.refresh()
    assert of_gateway(rig) == []
    await rig.tenants.update(Tenant("stored", Policy(Isolation.SHARED, models=("demo",))))
    await rig.policies.refresh()
    await rig.policies.refresh()
    await rig.tenants.remove("stored")
    await rig.policies.refresh()
    changes = [entry for entry in rig.audit_log.entries if entry.action is Action.POLICY_RELOAD]
    assert [(entry.tenant, entry.reason) for entry in changes] == [
        ("stored", "changed in the database"),
        ("stored", "removed from the database"),
    ]


class Configuration:
    """Settings that a reload reads, or fails to."""

    model_fields = ()

    def __init__(self, tenants: dict[str, Tenant] | None) -> None:
        self._tenants = tenants

    def configured_tenants(self) -> dict[str, Tenant]:
        if self._tenants is None:
            raise errors.ConfigError(f"tenants.x: {SECRET} is wrong")
        return self._tenants


async def test_a_reload_of_the_file_is_one_record_of_who_asked_and_what_came_of_it(rig):
    client = await rig.client("shared", "ann")
    changed = {**rig.configured, "shared": Tenant("shared", Policy(Isolation.SHARED, models=("demo",)), "config")}
    loads = [Configuration(None), Configuration(changed)]
    reloader = Reloader(loads[0], lambda: loads.pop(0), rig.policies, rig.services.audit)
    with pytest.raises(errors.ConfigError):
        await reloader.reload("operator")
    await reloader.reload_by_signal()
    await client.call("ping")
    reloads = [entry for entry in rig.audit_log.entries if entry.action is Action.POLICY_RELOAD]
    assert [(entry.by, entry.outcome, entry.reason) for entry in reloads] == [
        ("operator", Outcome.REFUSED, "config_invalid"),
        ("signal", Outcome.DONE, f"{len(changed)} tenants, 1 links have another policy"),
    ]
    assert SECRET not in str(rig.audit_log.entries)
