"""Signing in at GitHub, over HTTP with one that holds its clients to the protocol: web flow, device flow, as an identity."""

from __future__ import annotations

import dataclasses
from contextlib import AsyncExitStack
from urllib.parse import parse_qsl, urlsplit

import pytest
import structlog.testing

from aerodrome import errors
from aerodrome.adapters.github.oauth import GitHubIssuer
from aerodrome.adapters.oauth.client import Client
from aerodrome.adapters.oauth.github import GitHubApp, GitHubGranter, GitHubSignIn
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.core import github
from aerodrome.core.secret import Reference, Secret
from aerodrome.testing import fake_github
from aerodrome.testing.fake_github import FakeGitHub

BACK = "http://127.0.0.1:9/callback"
SECRET = Reference("env", "APP_SECRET")


class HandClock:
    """Time that passes only by sleeping; `visits` run before each waking, by its number."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0
        self.slept: list[float] = []
        self.visits = {}

    def now(self) -> float:
        return self.seconds

    monotonic = now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        self.visits.get(len(self.slept), lambda: None)()


class Place:
    """GitHub and who asks it for tokens."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.clock = HandClock()
        self.hub = FakeGitHub(self.clock.now)
        self._stack = stack

    def granter(
        self, client: Client | None = None, scopes: tuple[str, ...] = (), secret: str = fake_github.CLIENT_SECRET
    ):
        app = GitHubApp(github.endpoints(self.hub.host), client or Client(fake_github.CLIENT_ID, SECRET), scopes)
        found = GitHubGranter(app, EnvironmentSource({"APP_SECRET": secret}), self.clock, self.clock.sleep)
        self._stack.push_async_callback(found.aclose)
        return found


@pytest.fixture
async def place(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with AsyncExitStack() as stack:
        found = Place(stack)
        stack.push_async_callback(found.hub.aclose)
        await found.hub.start()
        yield found


async def refused(work) -> errors.SignInFailed:
    """Return the error of a sign-in that fails; nothing secret is in it, nor in what led to it."""
    with pytest.raises(errors.SignInFailed) as caught:
        await work
    said = "".join((str(caught.value), repr(caught.value), caught.value.reason))
    assert "canary" not in said
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


async def test_the_web_flow_gives_a_token_with_its_expiry_and_what_renews_it(place):
    granter = place.granter()
    begun = await granter.begin(BACK)
    asked = dict(parse_qsl(urlsplit(begun.url).query))
    assert asked["redirect_uri"] == BACK
    assert asked["code_challenge_method"] == "S256"
    assert "scope" not in asked
    assert not {begun.kept.verifier.reveal(), fake_github.CLIENT_SECRET} & set(asked.values())
    token = await granter.finish(await fake_github.browse(begun.url), begun.kept)
    assert token.expires_at == place.clock.now() + 28800
    assert (await granter.find_account(token)).login == "octocat"
    assert token.refresh is not None
    issuer = GitHubIssuer(
        place.hub.host,
        fake_github.CLIENT_ID,
        SECRET,
        EnvironmentSource({"APP_SECRET": fake_github.CLIENT_SECRET}),
        place.clock,
    )
    renewed = await issuer.refresh(token.refresh)
    await issuer.aclose()
    assert (await granter.find_account(renewed)).login == "octocat"
    assert "canary" not in repr((begun, token, place.granter()))


async def test_an_oauth_apps_token_lives_for_ever_and_has_the_scopes_asked_for(place):
    place.hub.seconds = None
    granter = place.granter(scopes=("read:user", "read:org"))
    begun = await granter.begin(BACK)
    token = await granter.finish(await fake_github.browse(begun.url), begun.kept)
    assert (token.expires_at, token.refresh) == (None, None)
    assert place.hub.heard[0]["scope"] == "read:user read:org"


async def test_an_answer_with_another_state_or_to_another_sign_in_is_not_even_asked_about(place):
    granter = place.granter()
    mine, stranger = await granter.begin(BACK), await granter.begin(BACK)
    params = await fake_github.browse(stranger.url)
    asked = len(place.hub.heard)
    for wrong in (params, {"code": params["code"]}, {**params, "state": ""}, {"error": "access_denied", "state": "x"}):
        assert "begun here" in (await refused(granter.finish(wrong, mine.kept))).message
    other = dataclasses.replace(stranger.kept, purpose="oidc")
    assert "begun here" in (await refused(granter.finish(params, other))).message
    place.clock.seconds += 600
    assert "too long" in (await refused(granter.finish(params, stranger.kept))).message
    assert len(place.hub.heard) == asked


async def test_a_code_is_good_for_its_verifier_and_its_redirect_address_only_and_once(place):
    granter = place.granter()
    for change in ({"verifier": Secret("v" * 43)}, {"redirect_uri": "http://127.0.0.1:8/callback"}):
        begun = await granter.begin(BACK)
        params = await fake_github.browse(begun.url)
        assert (
            "begin again" in (await refused(granter.finish(params, dataclasses.replace(begun.kept, **change)))).message
        )
        assert "begin again" in (await refused(granter.finish(params, begun.kept))).message
    assert place.hub.tokens == {}


async def test_a_sign_in_that_its_user_denies_says_so(place):
    place.hub.denies = True
    granter = place.granter()
    begun = await granter.begin(BACK)
    assert "denied" in (await refused(granter.finish(await fake_github.browse(begun.url), begun.kept))).message


async def test_what_github_refuses_is_said_with_what_to_do_and_never_in_its_own_words(place):
    granter = place.granter()
    begun = await granter.begin(BACK)
    params = await fake_github.browse(begun.url)
    for word, advice in (
        ("redirect_uri_mismatch", "callback URLs"),
        ("incorrect_client_credentials", "github.client_id"),
        ("unverified_user_email", "unverified_user_email"),
        ("<b>canary</b>", "no usual form"),
        ("canary" * 20, "no usual form"),
    ):
        place.hub.refuses_with = word
        assert advice in (await refused(granter.finish(params, begun.kept))).message


async def test_a_wrong_client_secret_shows_in_no_error(place):
    granter = place.granter(secret="canary-wrong")
    begun = await granter.begin(BACK)
    assert (
        "github.client_secret"
        in (await refused(granter.finish(await fake_github.browse(begun.url), begun.kept))).message
    )


async def test_the_web_flow_without_a_client_secret_is_refused_at_its_beginning(place):
    with pytest.raises(errors.ConfigError, match=r"github\.client_secret"):
        await place.granter(Client(fake_github.CLIENT_ID)).begin(BACK)


async def test_a_github_that_is_away_or_broken_can_be_tried_again(place):
    granter = place.granter()
    begun = await granter.begin(BACK)
    params = await fake_github.browse(begun.url)
    place.hub.status = 502
    error = await refused(granter.finish(params, begun.kept))
    assert isinstance(error, errors.SignInUnavailable)
    assert "HTTP 502" in error.message
    place.hub.status = 200
    await granter.finish(params, begun.kept)
    await place.hub.aclose()
    error = await refused(granter.finish(params, begun.kept))
    assert isinstance(error, errors.SignInUnavailable)
    assert "ConnectError" in error.message


async def test_a_device_waits_as_long_as_it_is_told_and_slows_down_when_it_is_told(place):
    # Our clock seems right and GitHub's is two seconds late: the second question comes too early for it.
    granter = place.granter(Client(fake_github.CLIENT_ID))
    grant = await granter.begin_device()
    assert (grant.url, grant.interval) == (f"{place.hub.host}/login/device", 5)
    device = place.hub.devices[grant.user_code]
    place.clock.visits = {
        2: lambda: setattr(device, "asked_at", place.clock.now() - 3),
        4: lambda: place.hub.enter(grant.user_code),
    }
    token = await granter.wait(grant)
    assert place.clock.slept == [5, 5, 10, 10]
    assert (await granter.find_account(token)).login == "octocat"
    assert all("client_secret" not in asked for asked in place.hub.heard)


async def test_a_device_asks_less_often_while_github_does_not_answer(place):
    granter = place.granter()
    grant = await granter.begin_device()
    place.clock.visits = {
        1: lambda: setattr(place.hub, "status", 503),
        6: lambda: (setattr(place.hub, "status", 200), place.hub.enter(grant.user_code)),
    }
    await granter.wait(grant)
    assert place.clock.slept == [5, 10, 20, 40, 60, 60]


async def test_a_device_whose_code_is_denied_or_expires_ends(place):
    granter = place.granter()
    for verdict, words in (("access_denied", "denied"), ("expired_token", "expired")):
        grant = await granter.begin_device()
        place.hub.enter(grant.user_code, verdict)
        assert words in (await refused(granter.wait(grant))).message
        assert "canary" not in repr(grant)
    assert place.clock.slept == [5, 5]


async def test_a_device_gives_up_when_its_code_has_expired_though_nobody_says_so(place):
    granter = place.granter()
    grant = await granter.begin_device()
    place.hub.status = 503
    assert "expired" in (await refused(granter.wait(grant))).message
    assert sum(place.clock.slept) < 900


async def test_an_app_without_the_device_flow_is_told_where_it_is_enabled(place):
    place.hub.refuses_with = "device_flow_disabled"
    assert "enable it" in (await refused(place.granter().begin_device())).message


async def test_a_token_that_github_does_not_know_is_nobodys(place):
    with structlog.testing.capture_logs() as logs:
        await refused(place.granter().find_account(github.GitHubToken(Secret("ghu_canary"))))
    assert "canary" not in repr(logs)


async def test_github_says_who_signed_in_and_of_which_organization(place):
    place.hub.members = {"acme": ["Octocat"], "globex": ["Octocat", "Hubot"]}
    sign_in = GitHubSignIn(place.granter(scopes=("read:org",)), place.hub.host, ("acme", "globex", "initech"))
    begun = await sign_in.begin(BACK)
    identity = await sign_in.finish(await fake_github.browse(begun.url), begun.kept)
    assert identity.claims["login"] == "octocat"
    assert identity.claims["organizations"] == ["acme", "globex"]
    assert identity.subject == identity.claims["id"]
    place.hub.user = "Mallory"
    begun = await sign_in.begin(BACK)
    assert (
        "none of the organizations"
        in (await refused(sign_in.finish(await fake_github.browse(begun.url), begun.kept))).message
    )


async def test_an_answer_to_a_tokens_sign_in_says_nobodys_identity(place):
    granter = place.granter()
    sign_in = GitHubSignIn(granter, place.hub.host)
    begun = await granter.begin(BACK)
    params = await fake_github.browse(begun.url)
    assert "begun here" in (await refused(sign_in.finish(params, begun.kept))).message
