"""`aerodrome policy show | explain` and `aerodrome tenant set --user`, as a user and a script see them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from aerodrome import errors
from aerodrome.cli import main
from aerodrome.core.identity import Tenant
from aerodrome.core.override import Override
from aerodrome.core.policy import HostTools, Isolation, Policy, Trust
from aerodrome.protocol.explanation import Explainer

CONFIG = """
[tenants.globex]
isolation = "tenant"
tools = ["custom:*", "mcp:github/*", "!custom:rm"]
providers = ["https://models.example.com/v1"]

[tenants.globex.users."ann@globex.example"]
models = ["large"]
max_turns_per_user = 9
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on a state directory of the test's own; return its exit code and what it prints, read if it is JSON."""
    monkeypatch.setenv("AERODROME_STATE_DIRECTORY", str(tmp_path / "state"))
    config = tmp_path / "aerodrome.toml"
    config.write_text(CONFIG)

    def invoke(*words: str):
        result = CliRunner().invoke(main.app, [*words, "--config", str(config)])
        if isinstance(result.exception, errors.AerodromeError):
            raise result.exception
        return result.exit_code, json.loads(result.stdout) if "--json" in words else result.stdout

    return invoke


def test_a_policy_is_shown_with_where_each_value_comes_from(run):
    _, rows = run("policy", "show", "globex/ann@globex.example", "--json")
    shown = {row["field"]: (row["value"], row["from"]) for row in rows}
    assert shown["models"] == ("large", "user ann@globex.example in the configuration")
    assert shown["max_turns_per_user"] == ("9", "user ann@globex.example in the configuration")
    assert shown["isolation"] == ("tenant", "tenant in the configuration")
    assert shown["session_idle_ttl"] == ("never", "default")
    assert "the realm's" in run("policy", "show", "globex")[1]


@pytest.mark.parametrize(
    ("whose", "subject", "code", "why"),
    [
        ("globex", "session.send", 0, "POLICY by column 'guarded' of the method table"),
        ("globex", "session.shell.exec", 1, "any shell command on the host"),
        ("globex", "session.unheard", 1, "not in the method table"),
        ("globex", "tool:custom:x", 0, "'custom:*' (tools, tenant in the configuration)"),
        ("globex", "tool:custom:rm", 1, "'!custom:rm'"),
        ("globex", "tool:mcp:gitlab/x", 1, "no pattern matches"),
        ("globex", "tool:builtin:bash", 1, "host_tools = false (default)"),
        ("globex", "model:small", 0, "there are no patterns (models, default)"),
        ("globex/ann@globex.example", "model:small", 1, "user ann@globex.example in the configuration"),
        ("globex/ben", "model:small", 0, "default"),
        ("globex", "url:https://models.example.com/v1/chat", 0, "as a model provider: allowed"),
        ("globex", "url:https://models.example.com/v2", 1, "providers = https://models.example.com/v1"),
    ],
)
def test_an_explanation_says_what_applies_and_why_and_its_exit_code_whether(run, whose, subject, code, why):
    assert run("policy", "explain", whose, subject)[0] == code
    done, told = run("policy", "explain", whose, subject, "--json")
    assert (done, told["allowed"]) == (code, code == 0)
    assert why in "\n".join(told["reasons"])


@pytest.mark.parametrize("subject", ["tool:bash", "tool:mcp:github", "shell:x", "model:"])
def test_a_subject_that_is_none_is_refused_with_the_forms_there_are(run, subject):
    with pytest.raises(errors.ConfigError, match="expected"):
        run("policy", "explain", "globex", subject)


def test_nobodys_policy_is_no_policy(run):
    with pytest.raises(errors.TenantMissing, match="tenant list"):
        run("policy", "show", "nobody")


def test_what_differs_for_a_user_is_said_replaced_and_taken_back_and_the_tenants_part_stays(run):
    run("tenant", "add", "acme", "--model", "demo", "--tool", "custom:*")
    run(
        "tenant",
        "set",
        "acme",
        "--user",
        "ann",
        "--model",
        "large",
        "--max-turns-per-user",
        "2",
        "--egress",
        "x.example",
    )
    assert run("policy", "explain", "acme/ann", "model:large")[0] == 0
    assert run("policy", "explain", "acme/ben", "model:large")[0] == 1

    run("tenant", "set", "acme", "--user", "ann", "--session-idle-ttl", "never")
    assert run("policy", "explain", "acme/ann", "model:large")[0] == 1
    run("tenant", "set", "acme", "--isolation", "tenant", "--model", "other")
    assert run("tenant", "list", "--json")[1][1]["users"] == "ann"
    run("tenant", "set", "acme", "--user", "ann")
    assert run("tenant", "list", "--json")[1][1]["users"] == ""
    assert run("policy", "explain", "acme/ann", "model:other")[0] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--user", "ann", "--isolation", "shared"), "the tenant's alone"),
        (("--user", "ann", "--host-tools"), "share runtimes"),
        (("--isolation", "shared", "--host-tools"), "set isolation to user or tenant"),
        (("--isolation", "user", "--trust", "full", "--model", "m"), "cannot be held"),
        (("--isolation", "tenant", "--tool", "mcp:x"), "SERVER/TOOL"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_changes(run, words, reason):
    run("tenant", "add", "acme", "--isolation", "tenant")
    before = run("tenant", "list", "--json")
    with pytest.raises(errors.ConfigError, match=reason):
        run("tenant", "set", "acme", *words)
    assert run("tenant", "list", "--json") == before


def refused() -> tuple[HostTools, str]:
    return HostTools.REFUSED, "there is no sandbox (no bwrap)"


def sandboxed() -> tuple[HostTools, str]:
    return HostTools.SANDBOXED, "in a sandbox of /bin/bwrap"


def unasked() -> tuple[HostTools, str]:
    raise AssertionError("no sandbox is tried for a policy without host tools")


def test_host_tools_are_explained_with_what_holds_them():
    tenant = Tenant("t", Policy(Isolation.USER, host_tools=True), users={"ann": Override(tools=("builtin:view",))})
    found = Explainer(tenant, None, refused).explain("tool:builtin:bash")
    assert not found.is_allowed
    assert "runtimes with host tools are refused: there is no sandbox (no bwrap)" in found.reasons[-1]
    found = Explainer(tenant, None, sandboxed).explain("tool:builtin:bash")
    assert found.is_allowed
    assert found.reasons[-1] == "runtimes with host tools are started in a sandbox of /bin/bwrap"
    assert not Explainer(tenant, "ann", sandboxed).explain("tool:builtin:bash").is_allowed


def test_where_host_tools_have_no_sandbox_nothing_else_is_had_either_but_what_the_gateway_answers():
    explainer = Explainer(Tenant("t", Policy(Isolation.USER, host_tools=True)), None, refused)
    for subject in ("tool:custom:x", "model:any", "session.create"):
        assert not explainer.explain(subject).is_allowed, subject
    assert explainer.explain("connect").is_allowed
    limited = Tenant("t", Policy(Isolation.USER))
    assert Explainer(limited, None, unasked).explain("tool:custom:x").is_allowed
    assert not Explainer(limited, None, unasked).explain("tool:builtin:bash").is_allowed


def test_an_address_is_explained_with_what_a_sandbox_lets_out():
    tenant = Tenant("t", Policy(Isolation.USER, egress=("*.example.com:443",), host_tools=True))
    explainer = Explainer(tenant, None, sandboxed)
    said = "\n".join(explainer.explain("url:https://git.example.com/x").reasons)
    assert "for programs of agents git.example.com:443: allowed by a sandbox; egress = *.example.com:443" in said
    assert "git.example.com:80: refused" in "\n".join(explainer.explain("url:http://git.example.com/x").reasons)


def test_where_the_host_is_open_everything_is_allowed_for_that_reason_if_a_sandbox_holds_it():
    tenant = Tenant("t", Policy(trust=Trust.FULL))
    for subject in ("tool:builtin:bash", "model:any", "url:http://localhost", "session.shell.exec"):
        found = Explainer(tenant, None, sandboxed).explain(subject)
        assert found.is_allowed
        assert "trust = full (tenant in the database)" in "\n".join(found.reasons)
        assert not Explainer(tenant, None, refused).explain(subject).is_allowed


@pytest.mark.parametrize(
    ("section", "is_allowed", "reason"),
    [
        ({"mode": "off"}, False, "sandbox.mode is off"),
        ({"mode": "auto", "bubblewrap": "/nonexistent/bwrap"}, False, "/nonexistent/bwrap"),
        ({"mode": "off", "unsandboxed": "agents run commands as the gateway's user"}, True, "without a sandbox"),
    ],
)
def test_the_command_says_what_a_gateway_of_these_settings_would_do(run, monkeypatch, section, is_allowed, reason):
    for name, value in section.items():
        monkeypatch.setenv(f"AERODROME_SANDBOX__{name.upper()}", value)
    run("tenant", "add", "acme", "--isolation", "tenant", "--host-tools")
    code, said = run("policy", "explain", "acme", "tool:builtin:bash")
    assert (code == 0) is is_allowed
    assert reason in str(said)
