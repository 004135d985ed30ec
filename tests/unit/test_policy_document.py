"""Policies as they are written, how a user's part is merged, and what does not go together."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import policy_document
from aerodrome.core.identity import Tenant
from aerodrome.core.override import FIELDS, Override
from aerodrome.core.policy import ClientLoss, GitHubAccess, Isolation, Policy, Trust
from aerodrome.protocol import hardening_tools

NAMES = st.lists(st.sampled_from(["a", "b*", "c"]), max_size=3).map(tuple)
VALUES = {
    "provider_urls": st.just(("https://one.example",)),
    "mcp_urls": st.just(("https://two.example",)),
    "webhook_urls": st.just(("https://three.example",)),
    "session_idle_seconds": st.none() | st.floats(1, 1000),
    "session_age_seconds": st.none() | st.floats(1, 1000),
    "client_loss": st.sampled_from(ClientLoss),
    "provider": st.none() | st.just("house"),
    "provider_names": st.just(("house", "other")),
    "github": st.sampled_from(GitHubAccess),
    "models": st.none() | NAMES,
    "tools": st.none() | NAMES.map(lambda names: tuple(f"custom:{name}" for name in names)),
    "max_sessions_per_user": st.integers(0, 9),
    "max_turns_per_user": st.integers(0, 9),
    "work_root": st.none() | st.just("/srv/work"),
    "egress": st.just(("one.example",)),
    "host_tools": st.booleans(),
}
OVERRIDES = st.fixed_dictionaries({}, optional=VALUES)
POLICIES = st.fixed_dictionaries({}, optional={**VALUES, "isolation": st.sampled_from(Isolation)})


def test_every_field_has_a_word_and_every_word_a_field():
    fields = {field.name for field in dataclasses.fields(Policy)}
    assert set(policy_document.WORD_OF) == fields
    assert set(VALUES) == FIELDS <= fields


@given(POLICIES, OVERRIDES)
def test_a_users_field_goes_before_the_tenants_and_the_rest_is_the_tenants(policy, override):
    policy = Policy(**policy)
    tenant = Tenant("acme", policy, users={"ann": Override(**override)})

    merged = tenant.policy_for("ann")

    for field in dataclasses.fields(Policy):
        expected = override.get(field.name, getattr(policy, field.name))
        assert getattr(merged, field.name) == expected
    assert tenant.policy_for("ben") == policy


@given(POLICIES)
def test_what_is_not_said_at_all_is_the_default(policy):
    merged = Policy(**policy)
    for field in dataclasses.fields(Policy):
        if field.name not in policy:
            assert getattr(merged, field.name) == field.default


@pytest.mark.parametrize("word", ["isolation", "trust", "max_sessions_per_tenant", "max_turns_per_tenant"])
def test_what_is_the_tenants_alone_cannot_be_said_for_a_user(word):
    with pytest.raises(errors.ConfigError, match=f"u.{word}: this is the tenant's alone"):
        policy_document.override_of("u", {word: "x"})


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("tools", ["mcp:github"]),
        ("tools", "custom:*"),
        ("models", [""]),
        ("providers", ["ftp://x"]),
        ("egress", ["https://x.example"]),
        ("egress", ["x.example:99999"]),
        ("egress", ["10.0.0.0/8"]),
        ("work_root", "relative"),
        ("work_root", "/srv/../etc"),
        ("max_turns_per_user", -1),
        ("max_turns_per_user", True),
        ("session_idle_ttl", "30 days"),
        ("host_tools", "yes"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(word, value):
    with pytest.raises(errors.ConfigError, match=rf"^t\.{word}: "):
        policy_document.policy_of("t", {word: value})


@pytest.mark.parametrize(
    "host", ["models.example.com", "*.example.com", "10.1.2.3:8080", "[fe80::1]:443", "localhost:80"]
)
def test_a_host_that_a_sandbox_can_hold_is_taken(host):
    assert policy_document.policy_of("t", {"egress": [host]}).egress == (host,)


def test_host_tools_are_refused_where_strangers_share_runtimes():
    said = {"isolation": "shared", "host_tools": True}
    with pytest.raises(errors.ConfigError, match=r"t\.host_tools: .* set isolation to user or tenant"):
        policy_document.policy_of("t", said)
    assert policy_document.policy_of("t", {**said, "isolation": "tenant"}).gives_host_tools


@pytest.mark.parametrize("said", [{"models": ["m"]}, {"tools": []}, {"work_root": "/srv"}])
def test_what_cannot_be_held_where_the_host_is_open_is_refused(said):
    with pytest.raises(errors.ConfigError, match="cannot be held where trust is"):
        policy_document.policy_of("t", {"trust": "full", **said})
    tenant = Tenant("t", Policy(trust=Trust.FULL), users={"ann": policy_document.override_of("u", said)})
    with pytest.raises(errors.ConfigError, match=r"users\.ann"):
        policy_document.check_tenant("t", tenant)


@pytest.mark.parametrize("said", [{"egress": ["x.example"]}, {"host_tools": True}])
def test_a_user_has_a_runtime_of_another_kind_only_where_it_is_theirs_alone(said):
    users = {"ann": policy_document.override_of("u", said)}
    policy_document.check_tenant("t", Tenant("t", Policy(Isolation.USER), users=users))
    with pytest.raises(errors.ConfigError, match="share runtimes"):
        policy_document.check_tenant("t", Tenant("t", Policy(Isolation.TENANT), users=users))


@pytest.mark.parametrize("said", [{"providers": ["http://x.example"]}, {"mcp_servers": []}, {"work_root": "/srv"}])
def test_users_that_share_a_sandbox_share_what_it_holds(said):
    users = {"ann": policy_document.override_of("u", said)}
    for policy in (Policy(Isolation.USER, host_tools=True), Policy(Isolation.TENANT)):
        policy_document.check_tenant("t", Tenant("t", policy, users=users))
    with pytest.raises(
        errors.ConfigError, match=rf"users\.ann\.{next(iter(said))}: users of this tenant share runtimes"
    ):
        policy_document.check_tenant("t", Tenant("t", Policy(Isolation.TENANT, host_tools=True), users=users))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "*.localhost", "0.0.0.0"])
def test_this_machine_is_let_out_to_only_at_ports_that_are_named(host):
    with pytest.raises(errors.ConfigError, match="at the ports that are named"):
        policy_document.policy_of("t", {"egress": [host]})
    assert policy_document.policy_of("t", {"egress": [f"{host}:80"]}).egress == (f"{host}:80",)


@pytest.mark.parametrize(
    ("policy", "gives"),
    [
        (Policy(Isolation.USER, host_tools=True), True),
        (Policy(Isolation.TENANT, host_tools=True), True),
        (Policy(Isolation.SHARED, host_tools=True), False),
        (Policy(Isolation.USER, Trust.FULL), True),
        (Policy(Isolation.TENANT, Trust.FULL), False),
        (Policy(Isolation.USER), False),
    ],
)
def test_tools_that_reach_the_host_are_given_where_policy_says_so_and_never_where_strangers_share(policy, gives):
    assert policy.gives_host_tools is gives
    assert ("bash" in hardening_tools.builtin_tools(policy)) is gives
