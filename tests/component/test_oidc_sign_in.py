"""Signing in at an OpenID provider, over HTTP with one that may lie: only a proved id_token of this sign-in signs anybody in."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import AsyncExitStack
from urllib.parse import parse_qsl, urlsplit

import pytest
import structlog.testing
from joserfc.jwk import ECKey

from aerodrome import errors
from aerodrome.adapters.jwks.keys import JwksKeys
from aerodrome.adapters.oauth.client import Client
from aerodrome.adapters.oauth.oidc import OidcSettings, OidcSignIn
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core.secret import Reference, Secret
from aerodrome.testing import fake_github, fake_oidc
from aerodrome.testing.fake_oidc import FakeOidc

BACK = "https://gateway.example.com/v1/sign-in/callback"
SECRETS = EnvironmentSource({"OIDC_SECRET": fake_oidc.CLIENT_SECRET})
PUBLIC, CONFIDENTIAL = Client(fake_oidc.CLIENT_ID), Client(fake_oidc.CLIENT_ID, Reference("env", "OIDC_SECRET"))
#: What an id_token says in place of the truth, and why it is refused.
LIES = [
    ({"iss": "https://evil.example"}, "another issuer"),
    ({"aud": "another-client"}, "another audience"),
    ({"aud": ["another-client", "third"]}, "another audience"),
    ({"aud": ["aerodrome", "another-client"]}, "another party"),
    ({"aud": ["aerodrome", "another-client"], "azp": "another-client"}, "another party"),
    ({"azp": "another-client"}, "another party"),
    ({"exp": 1}, "expired"),
    ({"exp": None}, "no expiry"),
    ({"iat": 4_000_000_000}, "not valid yet"),
    ({"nonce": "of another sign-in"}, "nonce"),
    ({"nonce": None}, "nonce"),
    ({"nonce": 7}, "nonce"),
    ({"sub": None}, "no subject"),
    ({"sub": 7}, "no subject"),
]
OTHER_KEY = ECKey.generate_key("P-256", {"kid": "one"})


class MovableClock(SystemClock):
    """The real clock, with hours added by hand to what schedules go by."""

    def __init__(self) -> None:
        self.added = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.added


class Place:
    """A provider and who asks it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.clock = MovableClock()
        self.provider = FakeOidc()
        self._stack = stack

    def open(self, client: Client = CONFIDENTIAL) -> OidcSignIn:
        settings = OidcSettings(self.provider.issuer, client)
        found = OidcSignIn(settings, SECRETS, lambda issuer: JwksKeys(issuer, self.clock), self.clock)
        self._stack.push_async_callback(found.aclose)
        return found

    async def sign_in(self, sign_in: OidcSignIn):
        begun = await sign_in.begin(BACK)
        return await sign_in.finish(await fake_github.browse(begun.url), begun.kept)


@pytest.fixture
async def place(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with AsyncExitStack() as stack:
        found = Place(stack)
        stack.push_async_callback(found.provider.aclose)
        await found.provider.start()
        yield found


async def refused(work) -> errors.SignInFailed:
    """Return the error of a sign-in that fails; nothing secret is in it or in the log."""
    with structlog.testing.capture_logs() as logs, pytest.raises(errors.SignInFailed) as caught:
        await work
    assert "canary" not in repr((str(caught.value), caught.value.reason, logs))
    assert "eyJ" not in repr((str(caught.value), caught.value.reason, logs))
    return caught.value


async def test_who_signs_in_is_known_by_the_providers_word(place):
    sign_in = place.open()
    begun = await sign_in.begin(BACK)
    asked = dict(parse_qsl(urlsplit(begun.url).query))
    assert (asked["scope"], asked["response_type"], asked["redirect_uri"]) == ("openid profile email", "code", BACK)
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    assert begun.kept.verifier.reveal() not in begun.url
    identity = await sign_in.finish(await fake_github.browse(begun.url), begun.kept)
    assert (identity.issuer, identity.subject, identity.name) == (place.provider.issuer, "u-1", "Ann")
    assert identity.email == "ann@example.com"
    assert "canary" not in repr((begun, identity))


async def test_a_client_proves_itself_as_the_provider_wants_it_or_is_told_so_without_the_secret(place):
    for client, method in (
        (CONFIDENTIAL, "client_secret_post"),
        (PUBLIC, "none"),
        (CONFIDENTIAL, "client_secret_basic"),
    ):
        place.provider.auth_methods = [method]
        assert (await place.sign_in(place.open(client))).subject == "u-1"
    assert "invalid_client" in (await refused(place.sign_in(place.open(PUBLIC)))).message


async def test_an_id_token_that_says_something_else_signs_nobody_in(place):
    sign_in = place.open()
    for changes, reason in LIES:
        place.provider.changes = changes
        error = await refused(place.sign_in(sign_in))
        assert reason in error.reason, changes
        assert reason not in error.message
    place.provider.changes = {}
    assert (await place.sign_in(sign_in)).subject == "u-1"


async def test_an_id_token_of_a_party_among_others_that_is_us_is_taken(place):
    place.provider.changes = {"aud": ["aerodrome", "another-client"], "azp": "aerodrome"}
    assert (await place.sign_in(place.open())).subject == "u-1"


async def test_an_id_token_by_a_key_that_the_provider_does_not_show_signs_nobody_in(place):
    place.provider.key = OTHER_KEY
    assert "signature" in (await refused(place.sign_in(place.open()))).reason


async def test_a_provider_that_changes_its_key_is_believed_by_its_new_one(place):
    sign_in = place.open()
    await place.sign_in(sign_in)
    place.provider.key, place.provider.shown = OTHER_KEY, [OTHER_KEY]
    place.clock.added += 601
    assert (await place.sign_in(sign_in)).subject == "u-1"


async def test_an_answer_with_another_state_verifier_or_redirect_address_signs_nobody_in(place):
    sign_in = place.open()
    stranger = await sign_in.begin(BACK)
    params = await fake_github.browse(stranger.url)
    mine = await sign_in.begin(BACK)
    assert "begun here" in (await refused(sign_in.finish(params, mine.kept))).message
    for change in ({"verifier": Secret("v" * 43)}, {"redirect_uri": f"{BACK}/other"}):
        begun = await sign_in.begin(BACK)
        params = await fake_github.browse(begun.url)
        assert (
            "invalid_grant"
            in (await refused(sign_in.finish(params, dataclasses.replace(begun.kept, **change)))).message
        )


async def test_an_answer_that_names_another_provider_is_refused_before_its_code_is_used(place):
    place.provider.back = {"iss": "https://evil.example"}
    sign_in = place.open()
    assert "another identity provider" in (await refused(place.sign_in(sign_in))).message
    assert all("code_verifier" not in asked for asked in place.provider.heard)
    place.provider.back = {"iss": place.provider.issuer}
    assert (await place.sign_in(sign_in)).subject == "u-1"


async def test_a_provider_that_names_itself_in_answers_must_do_so(place):
    place.provider.about = {"authorization_response_iss_parameter_supported": True}
    assert "another issuer" in (await refused(place.sign_in(place.open()))).reason


async def test_a_sign_in_that_is_denied_says_so(place):
    place.provider.denies = True
    assert "denied" in (await refused(place.sign_in(place.open()))).message


async def test_a_provider_that_is_another_or_would_have_secrets_in_clear_is_not_used(place):
    for about in (
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://login.example.com/token"},
        {"authorization_endpoint": None},
        {"jwks_uri": "file:///etc/passwd"},
    ):
        place.provider.about = about
        assert isinstance(await refused(place.open().begin(BACK)), errors.SignInUnavailable)


async def test_what_a_provider_says_of_itself_is_read_once_an_hour_and_serves_while_it_is_away(place):
    sign_in = place.open()
    for _ in range(3):
        await place.sign_in(sign_in)
    assert place.provider.discoveries == 1
    place.provider.status = 503
    place.clock.added += 3600
    for _ in range(3):
        await place.sign_in(sign_in)
    assert place.provider.discoveries == 2
    place.clock.added += 60
    place.provider.status = 200
    await place.sign_in(sign_in)
    assert place.provider.discoveries == 3


async def test_those_who_wait_for_a_provider_that_is_away_wait_for_one_attempt_together(place):
    place.provider.status = 503
    sign_in = place.open()

    told = await asyncio.gather(*(sign_in.begin(BACK) for _ in range(5)), return_exceptions=True)

    assert {type(one) for one in told} == {errors.SignInUnavailable}
    assert place.provider.discoveries == 1


async def test_a_provider_that_was_never_reached_is_tried_again_at_the_next_sign_in(place):
    place.provider.status = 503
    sign_in = place.open()
    assert isinstance(await refused(sign_in.begin(BACK)), errors.SignInUnavailable)
    place.provider.status = 200
    assert (await place.sign_in(sign_in)).subject == "u-1"
