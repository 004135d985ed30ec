"""What models and tools of a policy make of the parameters of guarded sessions."""

from __future__ import annotations

from typing import Any

import pytest

from aerodrome import errors
from aerodrome.core.policy import Isolation, Policy
from aerodrome.protocol import hardening, hardening_models, methods
from aerodrome.protocol.methods import Verdict

URL = "https://tools.example"
POLICY = Policy(Isolation.SHARED, provider_urls=("*",), mcp_urls=(URL,), models=("demo", "good-*"))
OPENINGS = [hardening.harden_create, hardening.harden_resume]
PROVIDER = {"type": "openai", "baseUrl": "https://m.example"}


def tools(*patterns: str, **more: Any) -> Policy:
    return Policy(Isolation.TENANT, mcp_urls=(URL,), tools=patterns, **more)


def server(**more: Any) -> dict[str, Any]:
    return {"type": "http", "url": URL, "tools": ["*"], **more}


@pytest.mark.parametrize("harden", OPENINGS)
@pytest.mark.parametrize(
    "said",
    [
        {"model": "evil"},
        {"models": [{"id": "demo", "wireModel": "evil"}]},
        {"models": [{"id": "demo", "modelId": "evil"}]},
        {"models": [{"id": "demo"}, {"id": "evil"}]},
        {"provider": {**PROVIDER, "wireModel": "evil"}},
        {"providers": [{**PROVIDER, "name": "p", "modelId": "evil"}]},
        {"customAgents": [{"name": "a", "model": "evil"}]},
        {"allowedModels": ["demo", "evil"]},
        {"allowedModels": ["*"]},
    ],
)
def test_an_opening_that_names_another_model_is_refused(harden, said):
    with pytest.raises(errors.PolicyRejected, match=r"is not among the models"):
        harden({"model": "demo", **said}, POLICY)


def test_every_call_that_may_name_a_model_is_one_that_the_table_knows():
    rows = {name: methods.TABLE[name] for name in hardening_models.NAMED}
    assert all(row.guarded is not Verdict.DENY for row in rows.values())


def test_the_runtime_is_told_the_names_that_policy_gives_in_full_and_those_the_session_names():
    assert hardening.harden_create({"model": "good-1"}, POLICY)["allowedModels"] == ["demo", "good-1"]
    assert hardening.harden_create({"model": "demo", "allowedModels": ["demo"]}, POLICY)["allowedModels"] == ["demo"]
    assert "allowedModels" not in hardening.harden_create({"model": "demo"}, Policy())


def test_a_new_session_without_a_model_has_the_first_named_in_full():
    assert hardening.harden_create({}, POLICY)["model"] == "demo"
    assert "model" not in hardening.harden_resume({}, POLICY)
    with pytest.raises(errors.PolicyRejected, match="model is missing"):
        hardening.harden_create({}, Policy(models=("good-*",)))


def test_no_models_at_all_are_told_as_a_list_that_is_not_empty():
    with pytest.raises(errors.PolicyRejected):
        hardening.harden_create({"model": "demo"}, Policy(models=()))
    assert hardening.harden_resume({}, Policy(models=()))["allowedModels"]


def test_lifting_the_restriction_of_models_goes_back_to_policys():
    params = {"sessionId": "s", "allowedModels": None}
    hardened = hardening.harden_call("session.model.setAllowedModels", params, POLICY)
    assert hardened["allowedModels"] == ["demo"]
    with pytest.raises(errors.PolicyRejected):
        hardening.harden_call("session.model.switchAutoTier", {"sessionId": "s"}, POLICY)


def test_a_model_that_is_no_name_is_an_error():
    with pytest.raises(errors.InvalidParams):
        hardening.harden_create({"model": ["demo"]}, POLICY)


@pytest.mark.parametrize("harden", OPENINGS)
def test_client_tools_that_are_denied_are_not_defined(harden):
    offered = [{"name": "a"}, {"name": "rm_all"}, {"name": "b"}]
    hardened = harden({"tools": offered}, tools("custom:*", "!custom:rm_*"))
    assert [tool["name"] for tool in hardened["tools"]] == ["a", "b"]
    assert "custom:*" in hardened["availableTools"]
    assert "mcp:*" not in hardened["availableTools"]
    assert not [name for name in hardened["availableTools"] if name.startswith("builtin:")]


@pytest.mark.parametrize(
    ("patterns", "asked", "passed"),
    [
        (("builtin:task",), ["*"], ["builtin:task"]),
        (("builtin:*",), ["builtin:*"], [f"builtin:{name}" for name in hardening.SAFE_BUILTIN_TOOLS]),
        (("builtin:*", "!builtin:task"), ["builtin:task", "builtin:ask_user"], ["builtin:ask_user"]),
        (("custom:a",), ["custom:a", "custom:b", "a", "b"], ["custom:a", "custom:a"]),
        (("mcp:s/*",), ["mcp:*", "custom:*"], ["mcp:*"]),
        (("!mcp:*",), ["mcp:*", "mcp:s-x", "custom:*"], ["custom:*"]),
    ],
)
def test_a_tool_filter_is_narrowed_to_what_policy_leaves(patterns, asked, passed):
    narrowed = hardening.harden_create({"availableTools": asked}, tools(*patterns))["availableTools"]
    assert narrowed == passed


@pytest.mark.parametrize(
    ("patterns", "given", "told"),
    [
        (("mcp:s/*",), server(), {"tools": ["*"]}),
        (("mcp:s/one", "mcp:s/two"), server(), {"tools": ["one", "two"]}),
        (("mcp:s/one",), server(tools=["one", "two"]), {"tools": ["one"]}),
        (("mcp:t/*",), server(), {"tools": []}),
        (("mcp:*", "!mcp:s/one"), server(), {"tools": ["*"], "excludeTools": ["one"]}),
        (("!mcp:s/one",), server(excludeTools=["two"]), {"tools": ["*"], "excludeTools": ["two", "one"]}),
        (("*", "!mcp:s/*"), server(), {"tools": []}),
    ],
)
def test_a_servers_tools_are_narrowed_at_the_server(patterns, given, told):
    hardened = hardening.harden_create({"mcpServers": {"s": given}}, tools(*patterns))
    agents = hardening.harden_create({"customAgents": [{"name": "a", "mcpServers": {"s": given}}]}, tools(*patterns))
    for narrowed in (hardened["mcpServers"]["s"], agents["customAgents"][0]["mcpServers"]["s"]):
        assert {name: narrowed.get(name) for name in told} == told


def test_a_runtimes_own_servers_are_off_unless_patterns_allow_them():
    assert "github-mcp-server" in hardening.harden_create({}, tools("custom:*"))["disabledMcpServers"]
    assert "github-mcp-server" not in hardening.harden_create({}, tools("mcp:*"))["disabledMcpServers"]
    assert "disabledMcpServers" not in hardening.harden_create({}, Policy())
    with pytest.raises(errors.PolicyRejected, match="MCP server"):
        hardening.harden_call(
            "session.mcp.enable", {"sessionId": "s", "serverName": "github-mcp-server"}, tools("custom:*")
        )


def test_a_call_of_a_denied_tool_by_its_name_is_refused():
    params = {"sessionId": "s", "serverName": "s", "toolName": "one", "arguments": {}}
    assert hardening.harden_call("session.mcp.apps.callTool", params, tools("mcp:s/one")) == params
    with pytest.raises(errors.PolicyRejected, match="mcp:s/one"):
        hardening.harden_call("session.mcp.apps.callTool", params, tools("mcp:s/two"))


def test_host_tools_are_there_only_where_policy_says_so_and_patterns_leave_them():
    given = Policy(Isolation.TENANT, host_tools=True)
    assert {"builtin:bash", "builtin:view"} <= set(hardening.harden_create({}, given)["availableTools"])
    assert "builtin:bash" not in hardening.harden_create({}, Policy(Isolation.TENANT))["availableTools"]
    narrowed = hardening.harden_create({"availableTools": ["*"]}, tools("builtin:*", "!builtin:bash", host_tools=True))
    assert "builtin:view" in narrowed["availableTools"]
    assert "builtin:bash" not in narrowed["availableTools"]
