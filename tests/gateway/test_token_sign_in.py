"""Users sign in at GitHub, and their sessions have what they granted: each user their own, sealed at rest, renewed, in no log."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
import structlog.testing

from aerodrome import errors
from aerodrome.adapters.github.oauth import GitHubIssuer
from aerodrome.adapters.memory.tokens import MemoryTokenStore
from aerodrome.adapters.oauth.client import Client
from aerodrome.adapters.oauth.github import GitHubApp, GitHubGranter
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core import github
from aerodrome.core.envelope import Envelopes
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Reference
from aerodrome.gateway.github_tokens import GitHubTokens
from aerodrome.gateway.supplying import Supplier
from aerodrome.gateway.token_sign_in import TokenSignIn
from aerodrome.testing import fake_github
from aerodrome.testing.fake_github import FakeGitHub

ENVELOPES = Envelopes([b"m" * 32], "tokens")
ANN, BEN = Owner("signed-in", "ann"), Owner("signed-in", "ben")
BACK = "https://gateway.example.com/v1/github/callback"


async def at_once(_: float) -> None:
    """Sleep no time."""
    await asyncio.sleep(0)


class Place:
    """GitHub, who signs users in there, and the gateway's tokens."""

    def __init__(self, hub: FakeGitHub, granter: GitHubGranter, issuer: GitHubIssuer) -> None:
        self.hub = hub
        self.store = MemoryTokenStore()
        self.noted: list[Owner] = []
        self.signer = TokenSignIn(granter, self.store, ENVELOPES, SystemClock(), self._note)
        self.supplier = Supplier()
        self.supplier.tokens = GitHubTokens(self.store, ENVELOPES, issuer, SystemClock(), 1800.0)

    async def _note(self, owner: Owner) -> None:
        self.noted.append(owner)

    async def sign_in(self, owner: Owner, login: str) -> None:
        """Go through the web flow as `login`."""
        self.hub.user = login
        begun = await self.signer.begin(owner, BACK)
        account = await self.signer.finish(owner, await fake_github.browse(begun.url), begun.kept)
        assert account.login == login.lower()


@pytest.fixture
async def place(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with AsyncExitStack() as stack:
        hub = FakeGitHub()
        stack.push_async_callback(hub.aclose)
        host = await hub.start()
        secrets, reference = EnvironmentSource({"APP": fake_github.CLIENT_SECRET}), Reference("env", "APP")
        app = GitHubApp(github.endpoints(host), Client(fake_github.CLIENT_ID, reference))
        granter = GitHubGranter(app, secrets, SystemClock(), at_once)
        stack.push_async_callback(granter.aclose)
        issuer = GitHubIssuer(host, fake_github.CLIENT_ID, reference, secrets, SystemClock())
        stack.push_async_callback(issuer.aclose)
        yield Place(hub, granter, issuer)


async def test_each_users_sessions_have_what_that_user_granted_and_no_other_has_it(open_rig, place):
    rig = await open_rig(supplier=place.supplier)
    with structlog.testing.capture_logs() as logs:
        await asyncio.gather(place.sign_in(ANN, "Octocat"))
        await place.sign_in(BEN, "Hubot")
        ann, ben = await rig.client("signed-in", "ann"), await rig.client("signed-in", "ben")
        await ann.call("session.create", {"sessionId": "a"})
        await ben.call("session.create", {"sessionId": "b"})
        await ann.call("session.create", {"sessionId": "a2", "gitHubToken": "gho_bens"})
    given = [{call["gitHubToken"] for call in one.called("session.create")} for one in rig.scripted.runtimes]
    assert [{place.hub.tokens[token] for token in tokens} for tokens in given] == [{"Octocat"}, {"Hubot"}]
    assert len(given[0] | given[1]) == 2
    assert place.noted == [ANN, BEN]
    assert "canary" not in repr(logs)
    assert "ghu_" not in repr([ann.heard, ben.heard, await place.store.list_all()])


async def test_a_sign_in_that_one_user_began_stores_no_token_for_another(place):
    begun = await place.signer.begin(ANN, BACK)
    params = await fake_github.browse(begun.url)
    for owner in (BEN, Owner("other", "ann")):
        with pytest.raises(errors.SignInFailed, match="another user"):
            await place.signer.finish(owner, params, begun.kept)
    bens = await place.signer.begin(BEN, BACK)
    with pytest.raises(errors.SignInFailed, match="begun here"):
        await place.signer.finish(BEN, params, bens.kept)
    assert await place.store.list_all() == []
    assert place.hub.tokens == {}
    await place.signer.finish(ANN, params, begun.kept)
    assert [stored.owner for stored in await place.store.list_all()] == [ANN]


async def test_a_user_who_signs_in_again_has_the_new_token_and_one_whom_github_refuses_keeps_the_old(place):
    await place.sign_in(ANN, "Octocat")
    first = await place.supplier.tokens.current(ANN)
    await place.sign_in(ANN, "Octocat")
    second = await place.supplier.tokens.current(ANN)
    assert first != second
    place.hub.denies = True
    with pytest.raises(errors.SignInFailed, match="denied"):
        await place.sign_in(ANN, "Octocat")
    assert await place.supplier.tokens.current(ANN) == second


async def test_a_granted_token_is_renewed_by_what_came_with_it(place):
    place.hub.seconds = 600
    grant = await place.signer.begin_device()
    place.hub.enter(grant.user_code)
    # GitHub's hand-made clock stands still, so the device seems to ask too early; it is patient.
    place.hub.devices[grant.user_code].interval = 0
    await place.signer.finish_device(ANN, grant)
    stored = await place.store.find(ANN)
    assert stored is not None
    assert stored.can_refresh
    assert stored.expires_at == pytest.approx(time.time() + 600, abs=60)
    granted = github.unseal(ENVELOPES, stored)
    assert await place.supplier.tokens.current(ANN) != granted.access


async def test_what_cannot_be_recorded_is_not_stored(place):
    async def fail(_: Owner) -> None:
        raise errors.StoreUnavailable("the audit log cannot be written")

    place.signer._note = fail
    with pytest.raises(errors.StoreUnavailable):
        await place.sign_in(ANN, "Octocat")
    assert await place.store.list_all() == []
