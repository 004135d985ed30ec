"""The parameter policy of guarded sessions: what is forced, what is refused by name, what is dropped, what passes as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core.policy import Isolation, Policy
from aerodrome.protocol import hardening, hardening_calls, methods
from aerodrome.protocol.methods import Verdict

MODEL = "https://models.example/team/v1"
MCP = "https://tools.example/mcp"
POLICY = Policy(Isolation.SHARED, provider_urls=(MODEL,), mcp_urls=(MCP,))
WHOLE_ORIGIN = Policy(Isolation.SHARED, provider_urls=("https://models.example",))
OPENINGS = [hardening.harden_create, hardening.harden_resume]
HARDENED_APART = {"session.create", "session.resume"}


def create(**params: Any) -> dict[str, Any]:
    return hardening.harden_create(params, POLICY)


def narrow(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return create(**params) if method == "session.create" else hardening.harden_call(method, params, POLICY)


def provider(**more: Any) -> dict[str, Any]:
    return {"type": "openai", "baseUrl": MODEL, "apiKey": "k", **more}


REACHING = [
    "additionalDirectories", "agentDirectories", "capi", "cloud", "configDir", "copilotUrl", "eventsLogDirectory",
    "extensionSdkPath", "featureFlags", "hookDirectories", "instructionDirectories", "managedSettings",
    "pluginDirectories", "remoteSession", "requestExtensions", "requestedEnvironmentVariables", "sandboxConfig",
    "shell", "skillDirectories", "trajectoryFile", "trustWorkingDirectory", "workflows", "workingDirectory",
]  # fmt: skip


def test_every_call_that_policy_decides_has_a_rule():
    decided = {name for name, row in methods.TABLE.items() if row.guarded is Verdict.POLICY}
    assert decided - HARDENED_APART - hardening_calls.CALLS.keys() == set()


def test_a_rule_is_only_for_a_call_that_the_table_lets_through():
    assert {name for name in hardening_calls.CALLS if methods.TABLE[name].guarded is Verdict.DENY} == set()


def test_a_call_that_policy_decides_but_no_rule_covers_is_refused():
    with pytest.raises(errors.PolicyRejected):
        hardening.harden_call("session.create", {}, POLICY)


def test_a_call_that_the_table_does_not_know_is_refused():
    with pytest.raises(errors.PolicyRejected):
        hardening.harden_call("session.brandNew", {"sessionId": "s"}, POLICY)


def test_a_call_that_needs_no_rule_keeps_its_params():
    params = {"sessionId": "s", "anything": [1]}
    assert hardening.harden_call("session.name.set", params, POLICY) == params


@pytest.mark.parametrize("harden", OPENINGS)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"enableSkills": True, "memory": {"enabled": True}, "enableConfigDiscovery": True, "envValueMode": "indirect"},
    ],
)
def test_an_opening_has_the_empty_mode_whatever_was_asked(harden, asked):
    hardened = harden(asked, POLICY)
    assert hardened["enableSkills"] is False
    assert hardened["memory"] == {"enabled": False}
    assert hardened["enableConfigDiscovery"] is False
    assert hardened["enableFileHooks"] is False
    assert hardened["envValueMode"] == "direct"
    assert hardened["toolFilterPrecedence"] == "excluded"
    assert hardened["systemMessage"]["sections"]["environment_context"] == {"action": "remove"}
    assert "builtin:bash" not in hardened["availableTools"]


@pytest.mark.parametrize("harden", OPENINGS)
@pytest.mark.parametrize(
    "name",
    REACHING,
)
def test_a_parameter_that_reaches_the_host_is_refused_by_name_unless_it_asks_for_nothing(harden, name):
    for reaching in ("x", ["x"], {"x": 1}, True, 1):
        with pytest.raises(errors.PolicyRejected, match=name):
            harden({name: reaching}, POLICY)
    for nothing in (None, "", [], {}, False):
        assert name not in harden({name: nothing}, POLICY)


@given(st.text(), st.integers())
def test_a_parameter_that_is_not_known_is_dropped(name, value):
    assert create(**{"unheard-of " + name: value}) == create()


def test_ordinary_parameters_pass_as_they_are():
    plain = {
        "sessionId": "chat_1",
        "model": "m",
        "clientName": "c",
        "streaming": True,
        "requestPermission": False,
        "hooks": True,
        "gitHubToken": "t",
        "excludedTools": ["x"],
        "infiniteSessions": {"enabled": True, "backgroundCompactionThreshold": 0.5},
        "tools": [{"name": "bash", "description": "d", "overridesBuiltInTool": True, "parameters": {"type": "object"}}],
        "commands": [{"name": "deploy", "description": "d"}],
        "defaultAgent": {"excludedTools": ["x"]},
    }
    assert plain.items() <= create(**plain).items()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hooks", {"sessionStart": [{"bash": "x"}]}),
        ("streaming", "yes"),
        ("requestPermission", 0),
        ("tools", "bash"),
        ("tools", [7]),
        ("commands", {"name": "x"}),
        ("availableTools", "bash"),
        ("availableTools", [1]),
        ("provider", []),
        ("providers", {}),
        ("mcpServers", []),
        ("customAgents", {"name": "a"}),
        ("customAgents", [{"name": "a", "tools": "bash"}]),
        ("systemMessage", "be nice"),
        ("systemMessage", {"mode": "REPLACE"}),
        ("infiniteSessions", True),
        ("largeOutput", "x"),
    ],
)
def test_a_parameter_of_the_wrong_form_is_refused(name, value):
    with pytest.raises(errors.InvalidParams):
        create(**{name: value})


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ([], []),
        (["custom:*"], ["custom:*"]),
        (["mcp:github-list"], ["mcp:github-list"]),
        (["fact"], ["custom:fact", "mcp:fact"]),
        (["bash"], ["custom:bash", "mcp:bash"]),
        (["builtin:bash"], []),
        (["builtin:ask_user"], ["builtin:ask_user"]),
        (["ask_user"], ["custom:ask_user", "mcp:ask_user", "builtin:ask_user"]),
        (["builtin:*"], [f"builtin:{tool}" for tool in hardening.SAFE_BUILTIN_TOOLS]),
        (["BUILTIN:*", "skill:*", "plugin:bash", ":bash", "Custom:*"], []),
    ],
)
def test_a_tool_filter_keeps_the_clients_tools_and_the_safe_built_in_ones(asked, passed):
    assert create(availableTools=asked)["availableTools"] == passed


@given(st.lists(st.sampled_from(["*", "builtin:*", "bash", "builtin:bash", "custom:x", "mcp:*", "", ":", "a:b:c"])))
def test_no_tool_filter_names_a_built_in_tool_that_is_not_safe(asked):
    safe = {f"builtin:{tool}" for tool in hardening.SAFE_BUILTIN_TOOLS}
    assert all(
        name in safe or name.startswith(("custom:", "mcp:")) for name in create(availableTools=asked)["availableTools"]
    )


def test_without_a_tool_filter_there_are_the_clients_tools_and_those_of_a_conversation():
    assert create()["availableTools"] == create(availableTools=None)["availableTools"]
    assert {"custom:*", "mcp:*", "builtin:ask_user"} <= set(create()["availableTools"])
    assert "builtin:task" not in create()["availableTools"]


def test_agents_of_the_client_can_be_called_without_a_tool_filter():
    hardened = create(customAgents=[{"name": "a", "prompt": "p", "tools": ["fact", "bash"]}])
    assert "builtin:task" in hardened["availableTools"]
    assert hardened["customAgents"] == [{"name": "a", "prompt": "p", "tools": ["fact", "bash"]}]


@pytest.mark.parametrize("tools", [None, [], ["*"]])
def test_an_agents_tools_stay_as_they_are(tools):
    assert create(customAgents=[{"name": "a", "tools": tools}])["customAgents"] == [{"name": "a", "tools": tools}]


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        (None, {"mode": "customize", "sections": {}}),
        ({"content": "c"}, {"mode": "customize", "content": "c", "sections": {}}),
        ({"mode": "append", "content": "c"}, {"mode": "customize", "content": "c", "sections": {}}),
        (
            {
                "mode": "customize",
                "sections": {"tone": {"action": "remove"}, "environment_context": {"action": "append"}},
            },
            {"mode": "customize", "sections": {"tone": {"action": "remove"}}},
        ),
    ],
)
def test_the_host_is_taken_out_of_the_system_message(asked, passed):
    sections = {**passed["sections"], "environment_context": {"action": "remove"}}
    assert create(systemMessage=asked)["systemMessage"] == {**passed, "sections": sections}


def test_a_system_message_that_replaces_everything_stays():
    message = {"mode": "replace", "content": "c"}
    assert create(systemMessage={**message, "sections": {"environment_context": {}}})["systemMessage"] == message


def test_the_host_is_taken_out_of_a_models_own_system_message_too():
    model = {"id": "m", "provider": "p", "systemMessage": {"mode": "append", "content": "c"}, "secretMember": 1}
    hardened = create(models=[model, {"id": "n", "provider": "p"}])["models"]
    assert hardened[0]["systemMessage"]["sections"] == {"environment_context": {"action": "remove"}}
    assert hardened[1] == {"id": "n", "provider": "p"}


def test_a_provider_of_policy_passes_without_what_is_not_known():
    wanted = provider(
        headers={"X-Trace": "1", "Authorization": "Bearer t"}, wireApi="responses", hasBearerTokenProvider=True
    )
    assert create(provider={**wanted, "apiKeyCommand": "", "other": 1})["provider"] == wanted
    assert create(providers=[{**wanted, "name": "p"}])["providers"] == [{**wanted, "name": "p"}]


@pytest.mark.parametrize("harden", OPENINGS)
@pytest.mark.parametrize(
    "bad",
    [
        {"baseUrl": "https://elsewhere.example/v1"},
        {"baseUrl": "https://models.example/other/v1"},
        {"baseUrl": "https://models.example.evil.example/team/v1"},
        {"baseUrl": f"{MODEL}/../../admin"},
        {"baseUrl": "https://u:p@models.example/team/v1"},
        {"baseUrl": None},
        {"baseUrl": [MODEL]},
        {"apiKeyCommand": "touch /tmp/x"},
        {"type": "copilot"},
        {"type": "azure"},
        {"headers": {"Host": "h"}},
    ],
    ids=str,
)
def test_a_provider_outside_policy_is_refused_by_name(harden, bad):
    member = next(iter(bad)) if bad != {"type": "azure"} else "baseUrl"
    with pytest.raises(errors.PolicyRejected, match=rf"provider\.{member}"):
        harden({"provider": provider(**bad)}, POLICY)
    with pytest.raises(errors.PolicyRejected, match=rf"providers\[1\]\.{member}"):
        harden({"providers": [provider(name="a"), provider(name="b", **bad)]}, POLICY)


def test_a_refusal_does_not_repeat_what_a_url_may_hold():
    with pytest.raises(errors.PolicyRejected) as refused:
        create(provider=provider(baseUrl="https://user:hunter2@elsewhere.example/"))
    assert "hunter2" not in str(refused.value)


def test_an_azure_provider_needs_its_whole_origin_because_its_path_holds_the_models_name():
    wanted = provider(type="azure", azure={"apiVersion": "2024-10-21", "more": 1})
    hardened = hardening.harden_create({"provider": wanted}, WHOLE_ORIGIN)
    assert hardened["provider"]["azure"] == {"apiVersion": "2024-10-21"}


@pytest.mark.parametrize("version", ["2024&x=1", "1/../..", "1#", "", 7, "x" * 33])
def test_an_azure_version_that_is_more_than_a_version_is_refused(version):
    with pytest.raises(errors.InvalidParams, match="apiVersion"):
        hardening.harden_create({"provider": provider(type="azure", azure={"apiVersion": version})}, WHOLE_ORIGIN)


ROUTING = [
    "Host", "hOsT", "Content-Length", "content_length", "Transfer-Encoding", "Connection", "TE", "Upgrade", "Expect", "Forwarded",
    "Via", "X-Forwarded-For", "x_forwarded_host", "Proxy-Authorization", "X-Original-URL", "X-Rewrite-URL",
    "X-HTTP-Method-Override", "Sec-WebSocket-Key", "Keep-Alive", "Trailer", "Content-Encoding",
]  # fmt: skip


@pytest.mark.parametrize("header", ROUTING)
def test_a_header_that_frames_or_routes_a_request_is_refused_wherever_headers_are_given(header):
    headers = {"X-Fine": "1", header: "1"}
    remote = {"type": "http", "url": MCP, "headers": headers}
    refresh = {"sessionId": "s", "requestId": "r", "result": {"kind": "headers", "headers": headers}}
    for method, params in [
        ("session.create", {"provider": provider(headers=headers)}),
        ("session.create", {"mcpServers": {"m": remote}}),
        ("session.create", {"customAgents": [{"name": "a", "mcpServers": {"m": remote}}]}),
        ("session.send", {"sessionId": "s", "prompt": "p", "requestHeaders": headers}),
        ("session.provider.sync", {"sessionId": "s", "providers": [provider(name="p", headers=headers)]}),
        ("session.mcp.headers.handlePendingHeadersRefreshRequest", refresh),
    ]:
        with pytest.raises(errors.PolicyRejected, match=header):
            narrow(method, params)


@pytest.mark.parametrize(
    "headers",
    [
        {"X A": "1"},
        {"": "1"},
        {"X-A:": "1"},
        {"X-A": "1\r\nHost: h"},
        {"X-A": "1\n"},
        {"X-A": "\x00"},
        {"X-A": 1},
        {"X-Ä": "1"},
    ],
    ids=str,
)
def test_a_header_that_is_none_is_refused(headers):
    with pytest.raises(errors.InvalidParams, match="headers"):
        create(provider=provider(headers=headers))


@pytest.mark.parametrize("header", ["Authorization", "API-Key", "x_api_key", "Cookie"])
def test_a_turns_own_headers_do_not_replace_the_credential(header):
    send = {"sessionId": "s", "prompt": "p", "requestHeaders": {header: "x"}}
    with pytest.raises(errors.PolicyRejected, match=header):
        hardening.harden_call("session.send", send, POLICY)


@pytest.mark.parametrize(
    "server",
    [
        {"type": "local", "command": "sh", "args": []},
        {"type": "stdio", "command": "sh"},
        {"command": "sh"},
        {"type": "http", "url": MCP, "command": "sh"},
        {"type": "http", "url": "https://elsewhere.example/mcp"},
        {"type": "sse"},
        {"type": "memory"},
        {"type": ["http"], "url": MCP},
        {"url": MCP},
    ],
    ids=str,
)
def test_an_mcp_server_outside_policy_is_refused_by_name(server):
    with pytest.raises(errors.PolicyRejected, match=r"mcpServers\.mine"):
        create(mcpServers={"mine": server})
    with pytest.raises(errors.PolicyRejected, match=r"customAgents\[0\]\.mcpServers\.mine"):
        create(customAgents=[{"name": "a", "mcpServers": {"mine": server}}])


def test_a_remote_mcp_server_of_policy_passes_without_what_is_not_known():
    server = {"type": "http", "url": f"{MCP}/x", "headers": {"Authorization": "t"}, "tools": ["*"]}
    assert create(mcpServers={"m": {**server, "cwd": "/", "env": {"A": "b"}}})["mcpServers"] == {"m": server}


def test_an_agents_hooks_are_refused():
    with pytest.raises(errors.PolicyRejected, match=r"customAgents\[0\]\.hooks"):
        create(customAgents=[{"name": "a", "hooks": {"sessionStart": [{"bash": "x"}]}}])


UUID = "0b9e4c1a-77d2-4f0e-9a55-3c8d6e21f7ab"


@pytest.mark.parametrize("length", range(7, 36))
@pytest.mark.parametrize("change", [str, str.upper])
def test_an_id_that_reads_like_the_beginning_of_another_is_refused(length, change):
    assert hardening.is_abbreviation(change(UUID[:length]))
    with pytest.raises(errors.InvalidParams, match="sessionId"):
        create(sessionId=change(UUID[:length]))


@pytest.mark.parametrize(
    "session_id",
    [UUID, UUID.upper(), UUID[:6], "1234", "deadbeefdeadbeef", "0" * 32, "chat-1", "user-7-2024-01-01", "-" * 9],
)
def test_an_id_that_cannot_be_misread_is_the_clients_to_choose(session_id):
    assert not hardening.is_abbreviation(session_id)
    assert create(sessionId=session_id)["sessionId"] == session_id


def test_large_output_stays_without_a_directory():
    assert create(largeOutput={"enabled": True, "maxSizeBytes": 9, "x": 1})["largeOutput"] == {
        "enabled": True,
        "maxSizeBytes": 9,
    }
    for member in ("outputDir", "outputDirectory"):
        with pytest.raises(errors.PolicyRejected, match="largeOutput"):
            create(largeOutput={member: "/etc"})


@pytest.mark.parametrize("method", ["session.send", "session.sendAndWait"])
def test_an_ordinary_send_passes_without_what_is_not_known(method):
    blob = {"type": "blob", "data": "aGk=", "mimeType": "text/plain", "displayName": "d"}
    marked = {
        "type": "selection",
        "filePath": "a.py",
        "displayName": "a",
        "text": "t",
        "selection": {"start": {}, "end": {}},
    }
    send = {
        "sessionId": "s",
        "prompt": "p",
        "mode": "enqueue",
        "agentMode": "plan",
        "attachments": [blob, marked],
        "requestHeaders": {"X-Trace": "1"},
        "responseFormat": {"type": "json_schema"},
    }
    unknown = {"source": "system", "billable": False, "runCommand": "x"}
    asked = {**send, **unknown, "attachments": [{**blob, "assetId": "a"}, {**marked, "path": "/etc"}]}
    assert hardening.harden_call(method, asked, POLICY) == send


SENDS = {
    "session.send": lambda message: {"sessionId": "s", **message},
    "session.sendMessages": lambda message: {"sessionId": "s", "messages": [message]},
    "session.queue.insertAt": lambda message: {"sessionId": "s", "position": 0, "message": message},
    "session.queue.appendSteering": lambda message: {"sessionId": "s", "messageId": "m", **message},
}


@pytest.mark.parametrize("method", SENDS)
@pytest.mark.parametrize(
    "more",
    [
        {"attachments": [{"type": "file", "path": "/etc/passwd"}]},
        {"attachments": [{"type": "directory", "path": "/etc"}]},
        {"attachments": [{"type": "github_url", "url": "http://x"}]},
        {"attachments": [{"type": "extension_context", "payload": {}}]},
        {"attachments": [{"path": "/etc/passwd"}]},
        {"attachments": [{"type": ["blob"]}]},
        {"agentMode": "shell"},
        {"requestHeaders": {"Authorization": "x"}},
    ],
    ids=str,
)
def test_a_message_that_reaches_the_host_is_refused_however_it_is_sent(method, more):
    with pytest.raises(errors.PolicyRejected, match=next(iter(more))):
        hardening.harden_call(method, SENDS[method]({"prompt": "p", **more}), POLICY)


def test_options_keep_to_the_rules_of_create():
    asked = {
        "sessionId": "s",
        "availableTools": ["bash"],
        "skipCustomInstructions": False,
        "enableSkills": True,
        "model": "m",
    }
    assert hardening.harden_call("session.options.update", asked, POLICY) == {
        "sessionId": "s",
        "availableTools": ["custom:bash", "mcp:bash"],
        "skipCustomInstructions": True,
        "enableSkills": False,
        "model": "m",
    }


@pytest.mark.parametrize(
    "bad",
    [
        {"workingDirectory": "/etc"},
        {"copilotUrl": "http://x"},
        {"trajectoryFile": "/tmp/x"},
        {"eventsLogDirectory": "/tmp"},
        {"shell": {"initScripts": []}},
        {"hookDirectories": ["/tmp"]},
        {"installedPlugins": [{"name": "p"}]},
        {"includedBuiltinSkills": ["x"]},
        {"provider": {"baseUrl": "http://x"}},
        {"featureFlags": {"X": True}},
    ],
    ids=str,
)
def test_options_that_reach_the_host_are_refused_by_name(bad):
    with pytest.raises(errors.PolicyRejected, match=next(iter(bad))):
        hardening.harden_call("session.options.update", {"sessionId": "s", **bad}, POLICY)


def test_what_is_sent_after_every_opening_passes_the_clients_own_rules_unchanged():
    sent = {"sessionId": "s", **hardening.OPTIONS_AFTER_OPEN}
    assert hardening.harden_call("session.options.update", sent, POLICY) == sent


@pytest.mark.parametrize(
    ("method", "asked", "passed"),
    [
        ("models.list", {"gitHubToken": "t", "selectionId": "s"}, {}),
        ("session.list", {"filter": {"cwd": "/"}, "metadataLimit": 1}, {"filter": {"cwd": "/"}}),
        ("sessions.list", {"source": "remote", "includeDetached": True, "metadataLimit": 1}, {"includeDetached": True}),
        ("sessions.getSizes", {"x": 1}, {}),
        ("session.permissions.resetSessionApprovals", {"sessionId": "s", "includeLocation": True},
         {"sessionId": "s", "includeLocation": False}),
        ("session.permissions.modifyRules", {"sessionId": "s", "scope": "session", "removeAll": True},
         {"sessionId": "s", "scope": "session", "removeAll": True}),
        ("session.permissions.modifyRules", {"sessionId": "s", "add": []}, {"sessionId": "s", "scope": "session", "add": []}),
        ("session.permissions.modifyRules", {"sessionId": "s", "scope": None}, {"sessionId": "s", "scope": "session"}),
        ("session.model.switchTo", {"sessionId": "s", "modelId": "m", "pickerPersistence": {}, "repoScope": "/"},
         {"sessionId": "s", "modelId": "m"}),
        ("session.mode.set", {"sessionId": "s", "mode": "plan", "persistPlanSelection": True, "pickerSettingsContext": {}},
         {"sessionId": "s", "mode": "plan"}),
        ("session.model.setAllowedModels", {"sessionId": "s", "allowedModels": ["m"], "x": 1},
         {"sessionId": "s", "allowedModels": ["m"]}),
        ("session.tools.set", {"sessionId": "s", "tools": [{"name": "t", "command": "x"}]},
         {"sessionId": "s", "tools": [{"name": "t"}]}),
        ("session.provider.add", {"sessionId": "s", "providers": [provider(name="p")], "models": [{"id": "m", "provider": "p"}]},
         {"sessionId": "s", "providers": [provider(name="p")], "models": [{"id": "m", "provider": "p"}]}),
    ],
)  # fmt: skip
def test_what_would_count_choose_or_keep_beyond_the_session_is_dropped(method, asked, passed):
    assert hardening.harden_call(method, asked, POLICY) == passed


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("session.commands.invoke", {"name": "add-dir"}),
        ("session.commands.execute", {"commandName": "mine"}),
        ("session.commands.enqueue", {"command": "/help"}),
        ("session.metadata.setWorkingDirectory", {"workingDirectory": "/etc"}),
        ("session.mode.set", {"mode": "shell"}),
        ("session.permissions.modifyRules", {"scope": "location"}),
        ("session.permissions.modifyRules", {"scope": ["session"]}),
        ("session.permissions.handlePendingPermissionRequest", {"result": {"kind": ["approve-once"]}}),
        ("session.permissions.handlePendingPermissionRequest", {"result": {"kind": "approve-for-location"}}),
        ("session.provider.add", {"providers": [provider(baseUrl="http://x")]}),
        ("session.provider.sync", {"providers": [provider(apiKeyCommand="x")]}),
    ],
)
def test_a_call_without_a_safe_form_is_refused(method, params):
    with pytest.raises(errors.PolicyRejected):
        hardening.harden_call(method, {"sessionId": "s", **params}, POLICY)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_MEMBERS = st.sampled_from(
    [
        "sessionId", "availableTools", "provider", "providers", "mcpServers", "customAgents", "systemMessage",
        "attachments", "requestHeaders", "messages", "message", "models", "tools", "hooks", "commands", "result",
        "headers", "type", "largeOutput", "workingDirectory", "agentMode", "kind", "scope",
    ]
)  # fmt: skip


@given(st.dictionaries(_MEMBERS, _JSON), st.sampled_from(["session.create", *hardening_calls.CALLS]))
def test_whatever_the_params_hold_they_are_hardened_or_refused_with_one_of_our_errors(params, method):
    try:
        hardened = narrow(method, params)
    except (errors.PolicyRejected, errors.InvalidParams):
        return
    assert isinstance(hardened, dict)
