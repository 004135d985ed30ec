"""Stored GitHub tokens: each user's sessions have that user's, renewed in time, also while they are live."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aerodrome.adapters.github.oauth import GitHubIssuer
from aerodrome.adapters.memory.tokens import MemoryTokenStore
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core import github
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import GitHubToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Reference, Secret
from aerodrome.gateway.github_tokens import GitHubTokens, TokenCourier
from aerodrome.gateway.supplying import Supplier
from aerodrome.testing.peer import RpcError
from aerodrome.transport.asgi import AsgiServer

from .test_evictions import open_sessions, turn

ENVELOPES = Envelopes([b"m" * 32], "tokens")
ANN, BEN = Owner("signed-in", "ann"), Owner("signed-in", "ben")


class FakeGitHub:
    """GitHub's token endpoint: a refresh token is good once."""

    def __init__(self) -> None:
        self.good = {"ghr_1"}
        self.renewals = 0
        self.status = 200
        self.host = ""

    def application(self) -> Starlette:
        return Starlette(routes=[Route("/login/oauth/access_token", self.renew, methods=["POST"])])

    async def renew(self, request: Request) -> JSONResponse:
        form = dict(pair.split("=") for pair in (await request.body()).decode().split("&"))
        await asyncio.sleep(0)
        if self.status != 200:
            return JSONResponse({}, self.status)
        known = (
            form["client_id"] == "app" and form["client_secret"] == "s3cret" and form["grant_type"] == "refresh_token"
        )
        if not known or form["refresh_token"] not in self.good:
            return JSONResponse({"error": "bad_refresh_token", "error_description": form["refresh_token"]})
        self.renewals += 1
        number = self.renewals + 1
        self.good = {f"ghr_{number}"}
        return JSONResponse({"access_token": f"ghu_{number}", "refresh_token": f"ghr_{number}", "expires_in": 28800})


class Place:
    """The stored tokens, GitHub, and a gateway between."""

    def __init__(self, hub: FakeGitHub, issuer: GitHubIssuer) -> None:
        self.hub = hub
        self.store = MemoryTokenStore()
        self.tokens = GitHubTokens(self.store, ENVELOPES, issuer, SystemClock(), 1800.0)
        self.supplier = Supplier()
        self.supplier.tokens = self.tokens

    async def put(self, owner: Owner, access: str, refresh: str | None = None, seconds: float | None = None) -> None:
        """Store a token that expires in so many seconds."""
        token = GitHubToken(
            Secret(access), Secret(refresh) if refresh else None, None if seconds is None else time.time() + seconds
        )
        await self.store.put(github.seal(ENVELOPES, owner, token, time.time()))


@pytest.fixture
async def place():
    async with AsyncExitStack() as stack:
        hub = FakeGitHub()
        server = AsgiServer(hub.application(), 100)
        stack.push_async_callback(server.aclose)
        host = f"http://127.0.0.1:{await server.start()}"
        secrets = EnvironmentSource({"APP": "s3cret"})
        issuer = GitHubIssuer(host, "app", Reference("env", "APP"), secrets, SystemClock())
        stack.push_async_callback(issuer.aclose)
        yield Place(hub, issuer)


def opened(rig, method="session.create"):
    return [call.get("gitHubToken") for runtime in rig.scripted.runtimes for call in runtime.called(method)]


async def test_each_users_sessions_have_that_users_token_and_store_the_word_for_it(open_rig, place):
    rig = await open_rig(supplier=place.supplier)
    await place.put(ANN, "gho_ann")
    await place.put(BEN, "gho_ben")
    ann, ben = await rig.client("signed-in", "ann"), await rig.client("signed-in", "ben")
    # A token of the client's own, another user's for example, is left out.
    await ann.call("session.create", {"sessionId": "a", "gitHubToken": "gho_ben"})
    await ben.call("session.create", {"sessionId": "b", "gitHubTokenProviderRegistrationId": "x"})
    tokens = [{call["gitHubToken"] for call in one.called("session.create")} for one in rig.scripted.runtimes]
    assert tokens == [{"gho_ann"}, {"gho_ben"}]
    held = [one.attachments for one in rig.gateway.clients]
    assert "gho_" not in repr(held)
    assert "gho_" not in repr([ann.heard, ben.heard])


async def test_a_session_that_comes_back_has_the_present_token_and_a_removed_one_is_refused(open_rig, place):
    rig = await open_rig(supplier=place.supplier, live_sessions=1)
    await place.put(ANN, "gho_first")
    client = await rig.client("signed-in", "ann")
    await open_sessions(client, "a", "b")
    await rig.settled(lambda: "a" not in rig.scripted.runtimes[0].sessions)
    await place.put(ANN, "gho_second")
    await turn(client, "a")
    assert opened(rig, "session.resume") == ["gho_second"]
    await place.store.remove(ANN)
    with pytest.raises(RpcError, match="no GitHub token of yours"):
        await client.call("session.create", {"sessionId": "c"})


async def test_a_session_with_a_provider_has_no_token_and_other_tenants_cannot_ask_for_one(open_rig, place):
    rig = await open_rig(supplier=place.supplier)
    await place.put(ANN, "gho_ann")
    client = await rig.client("signed-in", "ann")
    own = {"type": "openai", "baseUrl": "https://models.example.com/v1"}
    await client.call("session.create", {"sessionId": "a", "provider": own})
    for tenant in ("alone", "shared"):
        other = await rig.client(tenant, "ann")
        await other.call("session.create", {"sessionId": tenant, "gitHubToken": github.STORED})
        await other.call("session.create", {"sessionId": f"own-{tenant}", "gitHubToken": "gho_own"})
    assert opened(rig) == [None, None, "gho_own", None, "gho_own"]


async def test_a_token_is_renewed_once_before_it_expires_however_many_ask(place):
    await place.put(ANN, "ghu_1", "ghr_1", seconds=600)
    found = await asyncio.gather(*(place.tokens.current(ANN) for _ in range(10)))
    assert {token.reveal() for token in found} == {"ghu_2"}
    assert place.hub.renewals == 1
    stored = github.unseal(ENVELOPES, await place.store.find(ANN))
    assert stored.refresh == Secret("ghr_2")
    assert (await place.tokens.current(ANN)).reveal() == "ghu_2"
    assert place.hub.renewals == 1


async def test_a_renewal_whose_caller_gives_up_is_waited_for_by_the_next_one(place):
    await place.put(ANN, "ghu_1", "ghr_1", seconds=-1)
    asked, may_answer = asyncio.Event(), asyncio.Event()
    refresh = place.tokens._issuer.refresh

    async def refresh_slowly(token):
        fresh = await refresh(token)
        asked.set()
        await may_answer.wait()
        return fresh

    place.tokens._issuer.refresh = refresh_slowly
    leaving = asyncio.create_task(place.tokens.current(ANN))
    await asyncio.wait_for(asked.wait(), 30)
    leaving.cancel()
    await asyncio.wait((leaving,))
    staying = asyncio.create_task(place.tokens.current(ANN))
    await asyncio.sleep(0)
    may_answer.set()

    assert (await asyncio.wait_for(staying, 30)).reveal() == "ghu_2"
    assert place.hub.renewals == 1
    del leaving, staying
    assert len(place.tokens._renewing) == 0


async def test_a_token_that_cannot_be_renewed_serves_until_it_expires(place):
    for status, refresh in ((503, "ghr_1"), (200, "ghr_wrong")):
        place.hub.status = status
        await place.put(ANN, "ghu_1", refresh, seconds=600)
        assert (await place.tokens.current(ANN)).reveal() == "ghu_1"
        await place.put(ANN, "ghu_1", refresh, seconds=-1)
        with pytest.raises(Exception, match="expired") as raised:
            await place.tokens.current(ANN)
        assert "gh" not in str(raised.value).replace("github", "")


async def test_a_token_set_while_another_is_renewed_goes_before_it(place):
    await place.put(ANN, "ghu_1", "ghr_1", seconds=600)
    before = await place.store.find(ANN)
    await place.put(ANN, "gho_set")
    token = await place.tokens._exchange(place.tokens._issuer, before, Secret("ghr_1"))
    assert token.access.reveal() == "gho_set"


async def test_a_live_session_is_told_its_users_new_token_once(open_rig, place):
    rig = await open_rig(supplier=place.supplier)
    courier = TokenCourier(place.supplier, rig.services.residents, "https://github.com", 60.0)
    await place.put(ANN, "gho_first")
    await place.put(BEN, "gho_ben")
    ann, ben = await rig.client("signed-in", "ann"), await rig.client("signed-in", "ben")
    await open_sessions(ann, "a")
    await open_sessions(ben, "b")
    told = []

    async def take(_peer, params):
        told.append(params)
        return {"success": True}

    for runtime in rig.scripted.runtimes:
        runtime.on["session.gitHubAuth.setCredentials"] = take
    await courier.visit()
    assert told == []
    await place.put(ANN, "gho_second")
    await courier.visit()
    await courier.visit()
    credentials = {"type": "token", "host": "https://github.com", "token": "gho_second"}
    assert told == [{"sessionId": "a", "credentials": credentials}]
    await ann.call("session.detach", {"sessionId": "a"})
    await rig.settled(lambda: len(place.supplier.supplied) == 1)
