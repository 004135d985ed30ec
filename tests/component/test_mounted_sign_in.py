"""Both sign-ins as an HTTP edge mounts them: what is kept between the halves is in the browser's own cookie, sealed."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from aerodrome import errors, settings, signing_in
from aerodrome.adapters.memory.tokens import MemoryTokenStore
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core import sign_in
from aerodrome.core.identity import Owner
from aerodrome.gateway.token_sign_in import TokenSignIn
from aerodrome.signing_in import BrowserSignIn
from aerodrome.testing import fake_github, fake_oidc
from aerodrome.testing.fake_github import FakeGitHub
from aerodrome.testing.fake_oidc import FakeOidc
from aerodrome.transport.asgi import AsgiServer

COOKIE = "kept"
SECRETS = EnvironmentSource({"HUB": fake_github.CLIENT_SECRET, "OIDC": fake_oidc.CLIENT_SECRET})


class Edge:
    """A small HTTP edge: who is signed in is said by a header, which stands for a session cookie."""

    def __init__(self, browsers: BrowserSignIn, tokens: TokenSignIn, envelopes) -> None:
        self.browsers = browsers
        self.tokens = tokens
        self.envelopes = envelopes
        routes = [
            Route("/sign-in", self.begin),
            Route("/sign-in/callback", self.finish),
            Route("/github/sign-in", self.begin_token),
            Route("/github/callback", self.finish_token),
        ]
        failed = {errors.SignInFailed: self.failed}
        self.server = AsgiServer(Starlette(routes=routes, exception_handlers=failed), 100)

    async def begin(self, request: Request) -> Response:
        return self._send_off(await self.browsers.provider.begin(str(request.url_for("finish"))))

    async def finish(self, request: Request) -> Response:
        identity = await self.browsers.provider.finish(dict(request.query_params), self._kept(request))
        found = self.browsers.rules.read(identity)
        return JSONResponse([found.owner.tenant, found.owner.user, found.role.value])

    async def begin_token(self, request: Request) -> Response:
        return self._send_off(await self.tokens.begin(self._owner(request), str(request.url_for("finish_token"))))

    async def finish_token(self, request: Request) -> Response:
        account = await self.tokens.finish(self._owner(request), dict(request.query_params), self._kept(request))
        return JSONResponse(account.login)

    async def failed(self, _: Request, error: Exception) -> Response:
        return JSONResponse({"message": str(error)}, errors.wire(error).http)

    def _send_off(self, begun: sign_in.Begun) -> Response:
        answer = RedirectResponse(begun.url, 303)
        answer.set_cookie(COOKIE, sign_in.seal(self.envelopes, begun.kept), 600, httponly=True, samesite="lax")
        return answer

    def _kept(self, request: Request) -> sign_in.Kept:
        return sign_in.unseal(self.envelopes, request.cookies.get(COOKIE, ""))

    def _owner(self, request: Request) -> Owner:
        return Owner("acme", request.headers["x-user"])


@pytest.fixture
async def place(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("AERODROME_MASTER_KEY", "m" * 32)
    async with AsyncExitStack() as stack:
        hub, provider = FakeGitHub(), FakeOidc()
        for fake in (hub, provider):
            stack.push_async_callback(fake.aclose)
            await fake.start()
        path = tmp_path / "aerodrome.toml"
        path.write_text(
            f'[github]\nhost = "{hub.host}"\nclient_id = "{fake_github.CLIENT_ID}"\nclient_secret = "env:HUB"\n'
            f'[sign_in]\nissuer = "{provider.issuer}"\nclient_id = "aerodrome"\nclient_secret = "env:OIDC"\n'
            'tenant = "acme"\nrole_claim = "groups"\nroles = { leads = "tenant-admin" }\n'
        )
        loaded, clock = settings.load(path), SystemClock()
        browsers = signing_in.open_browser_sign_in(loaded, SECRETS, clock)
        granter = signing_in.open_granter(loaded, SECRETS, clock)
        for opened in (browsers.provider, granter):
            stack.push_async_callback(opened.aclose)
        store = MemoryTokenStore()
        tokens = signing_in.open_token_sign_in(loaded, granter, store, clock)
        edge = Edge(browsers, tokens, loaded.envelopes("sign-in"))
        stack.push_async_callback(edge.server.aclose)
        yield hub, provider, store, f"http://127.0.0.1:{await edge.server.start()}"


async def test_a_browser_signs_in_and_only_the_one_that_began_can(place):
    _, provider, _, edge = place
    provider.claims["groups"] = ["leads"]
    async with fake_github.new_browser() as mine, fake_github.new_browser() as other:
        off = await mine.get(f"{edge}/sign-in")
        back = (await mine.get(off.headers["location"])).headers["location"]
        for cookies in (None, await other.get(f"{edge}/sign-in")):
            refused = await other.get(back)
            assert refused.status_code == 401, cookies
            assert "begin again" in refused.json()["message"]
        done = await mine.get(back)
        assert done.json() == ["acme", "u-1", "tenant-admin"]
        assert (await mine.get(back)).status_code == 401
        assert all(len(value) < 2000 for value in mine.cookies.values())


async def test_a_signed_in_user_connects_github_and_a_browser_that_changes_users_does_not(place):
    hub, _, store, edge = place
    async with fake_github.new_browser() as browser:
        off = await browser.get(f"{edge}/github/sign-in", headers={"x-user": "ann"})
        back = (await browser.get(off.headers["location"])).headers["location"]
        refused = await browser.get(back, headers={"x-user": "ben"})
        assert (refused.status_code, await store.list_all()) == (401, [])
        assert (await browser.get(back, headers={"x-user": "ann"})).json() == "octocat"
    (stored,) = await store.list_all()
    assert stored.owner == Owner("acme", "ann")
    hub.status = 502
    async with fake_github.new_browser() as browser:
        off = await browser.get(f"{edge}/github/sign-in", headers={"x-user": "ann"})
        back = (await browser.get(off.headers["location"])).headers["location"]
        assert (await browser.get(back, headers={"x-user": "ann"})).status_code == 503
