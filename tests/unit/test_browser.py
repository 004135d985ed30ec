"""What is kept of a signed-in browser, and what only the browser itself holds."""

from __future__ import annotations

import pytest

from aerodrome import errors
from aerodrome.core import browser, sign_in
from aerodrome.core.browser import Browser
from aerodrome.core.identity import Owner, Principal
from aerodrome.core.policy import Policy
from aerodrome.http import sealed_cookies
from aerodrome.http.sealed_cookies import BegunSignIns, Notice

BACK = "https://gateway.example.com/sign-in/callback"


@pytest.mark.parametrize(
    ("now", "is_over"), [(129.9, False), (130.0, True), (159.0, True)], ids=["used", "unused", "long unused"]
)
def test_a_browser_is_over_when_it_was_not_used_for_long(now, is_over):
    kept = Browser("hash", Principal(Owner("t", "u"), Policy(), "k"), 100.0, 120.0, 160.0)
    assert kept.is_over(now, idle_seconds=10.0) is is_over


@pytest.mark.parametrize(("now", "is_over"), [(159.9, False), (160.0, True)])
def test_a_browser_is_over_at_its_end_however_much_it_is_used(now, is_over):
    kept = Browser("hash", Principal(Owner("t", "u"), Policy(), "k"), 100.0, now, 160.0)
    assert kept.is_over(now, idle_seconds=10.0) is is_over


def test_what_is_kept_and_what_forms_bring_say_nothing_of_each_other_or_of_the_token():
    tokens = [browser.create_token() for _ in range(2)]
    words = [*tokens, *map(browser.hash_token, tokens), *map(browser.csrf_of, tokens)]
    assert len(set(words)) == 6
    assert all(len(word) >= 43 for word in words)


def test_a_notice_opens_for_the_browser_it_was_sealed_for_and_for_no_other():
    notices = [Notice("Key k is made.", secret="aero_canary"), Notice("no key has id x", is_error=True)]
    sealed = sealed_cookies.seal_notices("mine", notices)

    assert sealed_cookies.open_notices("mine", sealed) == notices
    assert sealed_cookies.open_notices("other", sealed) == []
    assert "canary" not in sealed
    for text in (None, "", "x", sealed[:-2], sealed.replace("v1", "v2")):
        assert sealed_cookies.open_notices("mine", text) == []


@pytest.mark.parametrize("letter", ["x", "가", '"', "\x00"])
def test_notices_fit_into_a_cookie_and_the_last_one_is_always_there(letter):
    notices = [Notice(letter * 5000, secret=f"token {number}") for number in range(9)]
    sealed = sealed_cookies.seal_notices("mine", notices)

    opened = sealed_cookies.open_notices("mine", sealed)
    assert len(sealed) <= sealed_cookies.MOST_COOKIE_CHARACTERS
    assert opened[-1].secret == "token 8"
    assert opened[-1].text.startswith(letter * 250)


def test_a_begun_sign_in_is_gone_on_with_by_who_has_the_same_master_key():
    kept = sign_in.begin("oidc", BACK, 1000.0)
    sealed = BegunSignIns([b"m" * 32]).begin(kept, "/keys")
    found = BegunSignIns([b"n" * 32, b"m" * 32]).find(sealed)

    assert (found.state, found.verifier, found.nonce) == (kept.state, kept.verifier, kept.nonce)
    assert found.following == "/keys"
    assert kept.state.reveal() not in sealed
    for other in (BegunSignIns([b"n" * 32]), BegunSignIns([])):
        with pytest.raises(errors.SignInFailed, match="begin again"):
            other.find(sealed)


def test_without_a_master_key_a_begun_sign_in_is_its_own_gateways():
    gateway = BegunSignIns([])
    sealed = gateway.begin(sign_in.begin("oidc", BACK, 1000.0), "/")

    assert gateway.find(sealed).following == "/"
    with pytest.raises(errors.SignInFailed, match="begin again"):
        BegunSignIns([]).find(sealed)
