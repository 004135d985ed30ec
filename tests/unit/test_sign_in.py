"""core.sign_in and core.device_flow: what is kept of a sign-in, whom a provider may say someone is, when a device asks again."""

from __future__ import annotations

import dataclasses

import pytest

from aerodrome import errors
from aerodrome.core import github, sign_in
from aerodrome.core.device_flow import DeviceGrant, Waiting
from aerodrome.core.envelope import Envelopes
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret
from aerodrome.core.sign_in import Identity, Role, Rules

BACK = "https://gateway.example.com/callback"
ENVELOPES = Envelopes([b"m" * 32], "sign-in")
ANN = Owner("acme", "ann")


def who(**claims) -> Identity:
    return Identity("https://login.example.com", claims.pop("sub", "u-1"), claims=claims)


def refusal(rules: Rules, identity: Identity) -> str:
    with pytest.raises(errors.SignInFailed) as caught:
        rules.read(identity)
    return caught.value.reason


def test_what_is_kept_comes_back_from_a_browser_as_it_was_and_shows_nothing_meanwhile():
    for owner in (None, ANN):
        kept = sign_in.begin("oidc", BACK, 1000.0, owner)
        sealed = sign_in.seal(ENVELOPES, kept)
        assert sign_in.unseal(ENVELOPES, sealed) == kept
        assert len(sealed) < 1000
        secrets = [kept.state.reveal(), kept.verifier.reveal(), kept.nonce.reveal()]
        assert not any(word in sealed or word in repr(kept) for word in secrets)
        assert len(set(secrets)) == 3
        assert min(map(len, secrets)) == 43


def test_what_another_gateway_or_the_browser_made_up_is_not_taken():
    sealed = sign_in.seal(ENVELOPES, sign_in.begin("oidc", BACK, 1000.0))
    other = Envelopes([b"n" * 32], "sign-in")
    tokens = Envelopes([b"m" * 32], "tokens")
    flipped = sealed[:-9] + ("A" if sealed[-9] != "A" else "B") + sealed[-8:]
    for envelopes, text in (
        (other, sealed),
        (tokens, sealed),
        (ENVELOPES, flipped),
        (ENVELOPES, ""),
        (ENVELOPES, "a.b"),
    ):
        with pytest.raises(errors.SignInFailed, match="begin again"):
            sign_in.unseal(envelopes, text)


def test_a_code_is_read_only_from_the_answer_to_this_sign_in():
    kept = sign_in.begin("oidc", BACK, 1000.0)
    state = kept.state.reveal()
    assert sign_in.read_code({"state": state, "code": "c"}, kept, "oidc", 1599.0) == Secret("c")
    for params, purpose, now in (
        ({"state": f"{state}x", "code": "c"}, "oidc", 1000.0),
        ({"code": "c"}, "oidc", 1000.0),
        ({"state": state, "code": "c"}, "github-token", 1000.0),
        ({"state": state, "code": "c"}, "oidc", 1600.0),
        ({"state": state, "code": ""}, "oidc", 1000.0),
        ({"state": state}, "oidc", 1000.0),
        ({"state": state, "error": "access_denied", "code": "c"}, "oidc", 1000.0),
    ):
        with pytest.raises(errors.SignInFailed):
            sign_in.read_code(params, kept, purpose, now)


@pytest.mark.parametrize("code", ["a b", "<script>", "x" * 65, "", None, 7, ["access_denied"]])
def test_an_error_that_is_no_code_is_not_repeated(code):
    assert sign_in.refusal(code).message == "the provider refused the sign-in (an error of no usual form)"


def test_a_fixed_tenant_has_whoever_the_provider_vouches_for_as_plain_users():
    found = Rules(frozenset({"acme"})).read(who())
    assert (found.owner, found.role) == (Owner("acme", "u-1"), Role.USER)


def test_a_claim_names_the_tenant_among_those_that_it_may():
    rules = Rules(frozenset({"acme", "globex"}), tenant_claim="org")
    assert rules.read(who(org="globex")).owner.tenant == "globex"
    for org in ("initech", None, ["acme"], 7):
        assert "tenant" in refusal(rules, who(org=org))
    assert "tenant" in refusal(rules, who())


def test_only_listed_users_are_let_in_where_there_is_a_list():
    rules = Rules(frozenset({"acme"}), user_claim="login", users=frozenset({"ann"}))
    assert rules.read(who(login="ann")).owner.user == "ann"
    assert "users allowed" in refusal(rules, who(login="ben"))


@pytest.mark.parametrize("login", ["", "Ann", "a/b", "../x", "a" * 65, None, 7, ["ann"]])
def test_a_name_that_no_user_can_have_is_nobody(login):
    refusal(Rules(frozenset({"acme"}), user_claim="login"), who(login=login))


def test_an_address_counts_only_when_the_provider_has_verified_it():
    rules = Rules(frozenset({"acme"}), user_claim="email")
    assert rules.read(who(email="ann@example.com", email_verified=True)).owner.user == "ann@example.com"
    for verified in (False, None, "true", 1):
        assert "verified" in refusal(rules, who(email="ann@example.com", email_verified=verified))
    for email in (None, "Ann@Example.com"):  # never changed into another: two users must not become one
        refusal(rules, who(email=email, email_verified=True))


def test_no_claim_stands_in_for_the_subject_that_was_proved():
    identity = dataclasses.replace(who(sub="ann"), claims={"sub": "ben"})
    assert Rules(frozenset({"acme"})).read(identity).owner.user == "ann"


def test_the_highest_role_that_a_claim_gives_counts_and_none_is_a_plain_user():
    roles = {"leads": Role.TENANT_ADMIN, "sre": Role.OPERATOR}
    rules = Rules(frozenset({"acme"}), role_claim="groups", roles=roles)
    for said, role in (
        ("leads", Role.TENANT_ADMIN),
        (["leads", "sre", "cooks"], Role.OPERATOR),
        (["sre", "leads"], Role.OPERATOR),
        (["cooks"], Role.USER),
        ("operator", Role.USER),
        ({"sre": True}, Role.USER),
        ([["sre"], 7, None], Role.USER),
        (None, Role.USER),
    ):
        assert rules.read(who(groups=said)).role is role
    assert Rules(frozenset({"acme"}), roles=roles).read(who(groups="sre")).role is Role.USER


def test_a_device_slows_down_by_five_seconds_or_to_what_it_is_told_and_never_speeds_up():
    waiting = Waiting(DeviceGrant(Secret("d"), "CODE", "https://github.com/login/device", 900.0), 0.0)
    told = [
        ("authorization_pending", None),
        ("slow_down", None),
        ("slow_down", 20),
        ("slow_down", 1),
        ("slow_down", "x"),
    ]
    intervals = []
    for error, interval in told:
        waiting.hear(error, interval)
        intervals.append(waiting.interval)
    assert intervals == [5, 10, 20, 25, 30]
    for _ in range(3):
        waiting.miss()
    assert waiting.interval == 60
    waiting.check(839.0)
    with pytest.raises(errors.SignInFailed, match="expired"):
        waiting.check(840.0)


@pytest.mark.parametrize(
    ("host", "api", "found"),
    [
        ("https://github.com", None, "https://api.github.com"),
        ("https://github.com/", None, "https://api.github.com"),
        ("https://acme.ghe.com", None, "https://api.acme.ghe.com"),
        ("https://git.acme.example", None, "https://git.acme.example/api/v3"),
        ("https://git.acme.example", "https://api.acme.example/", "https://api.acme.example"),
        ("http://127.0.0.1:80", None, "http://127.0.0.1:80/api/v3"),
    ],
)
def test_githubs_api_is_found_by_its_host(host, api, found):
    assert github.endpoints(host, api).api == found
    assert not github.endpoints(host, api).host.endswith("/")


@pytest.mark.parametrize(
    ("host", "api"),
    [
        ("http://git.acme.example", None),
        ("https://github.com", "http://api.github.com"),
        ("https://u:p@github.com", None),
        ("*", None),
        ("github.com", None),
    ],
)
def test_a_github_that_would_have_tokens_in_clear_is_refused(host, api):
    with pytest.raises(errors.ConfigError, match=r"github\.(host|api)"):
        github.endpoints(host, api)
