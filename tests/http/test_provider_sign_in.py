"""Browsers sign in at an identity provider: the one that began comes back as its user, with the role that the rules say."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from aerodrome import settings, signing_in
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core import erasure
from aerodrome.core.erasure import Erasure
from aerodrome.core.identity import Owner
from aerodrome.http.site import HttpSettings, SignInDoor
from aerodrome.testing import fake_github, fake_oidc, http_rig
from aerodrome.testing.fake_oidc import FakeOidc


@pytest.fixture
async def place(open_http, tmp_path, monkeypatch):
    """An HTTP edge with a provider; browsers that go between the two."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with AsyncExitStack() as stack:
        provider = FakeOidc()
        stack.push_async_callback(provider.aclose)
        await provider.start()
        path = tmp_path / "aerodrome.toml"
        path.write_text(
            f'[sign_in]\nissuer = "{provider.issuer}"\nclient_id = "aerodrome"\nclient_secret = "env:OIDC"\n'
            'tenant = "shared"\nrole_claim = "groups"\nroles = { leads = "tenant-admin", ops = "operator" }\n'
        )
        secrets = EnvironmentSource({"OIDC": fake_oidc.CLIENT_SECRET})
        opened = signing_in.open_browser_sign_in(settings.load(path), secrets, SystemClock())
        stack.push_async_callback(opened.provider.aclose)
        http = await open_http(sign_in=SignInDoor("example.com", opened.provider, opened.rules))
        browsers = [await stack.enter_async_context(fake_github.new_browser()) for _ in range(2)]
        yield provider, http, browsers


async def go(browser, http, following: str = "/"):
    """Sign a browser in; return the answer to its coming back."""
    off = await browser.get(f"{http.url}/sign-in/provider", params={"next": following})
    back = await browser.get(off.headers["location"])
    return await browser.get(back.headers["location"])


async def test_the_sign_in_page_leads_to_the_provider(place):
    _, http, [browser, _] = place
    asked = await browser.get(f"{http.url}/sign-in?next=/keys")
    assert 'href="/sign-in/provider?next=%2Fkeys"' in asked.text
    assert "Sign in with example.com" in asked.text


@pytest.mark.parametrize(
    ("groups", "role", "api", "fleet"),
    [([], "User", 403, 403), (["leads"], "Tenant admin", 200, 403), (["ops", "leads"], "Operator", 200, 200)],
    ids=["user", "admin", "operator"],
)
async def test_who_comes_back_has_the_role_that_the_rules_say(place, groups, role, api, fleet):
    provider, http, [browser, _] = place
    provider.claims["groups"] = groups

    came = await go(browser, http, "/sessions")
    first = await browser.get(f"{http.url}/")

    assert (came.status_code, came.headers["location"]) == (303, "/sessions")
    assert "u-1 · shared" in first.text
    assert role in first.text
    assert (await browser.get(f"{http.url}/v1/sessions")).status_code == 200
    assert (await browser.get(f"{http.url}/v1/admin/keys")).status_code == api
    assert (await browser.get(f"{http.url}/v1/admin/runtimes")).status_code == fleet


async def test_an_answer_to_anothers_sign_in_or_a_second_time_signs_nobody_in(place):
    _, http, [mine, other] = place
    off = await mine.get(f"{http.url}/sign-in/provider")
    back = (await mine.get(off.headers["location"])).headers["location"]
    await other.get(f"{http.url}/sign-in/provider")

    for browser in (other, other):
        refused = await browser.get(back)
        assert refused.status_code == 401
        assert "begin again" in refused.text
    assert (await mine.get(back)).status_code == 303
    assert (await mine.get(back)).status_code == 401
    assert await http.edge.site.browsers.count() == 1


@pytest.mark.parametrize(("masters", "status"), [((b"m" * 32,), 303), ((), 401)], ids=["master key", "no master key"])
async def test_a_sign_in_that_one_gateway_began_another_finishes_if_they_have_a_master_key(place, masters, status):
    _, http, [browser, _] = place
    settings = HttpSettings(masters=masters, public_url="http://127.0.0.1:1")
    door = http.edge.site.office.sign_in
    async with (
        http_rig.open_http(http.rig, settings, door, http.stores) as one,
        http_rig.open_http(http.rig, settings, door, http.stores) as other,
    ):
        off = await browser.get(f"{one.url}/sign-in/provider", params={"next": "/keys"})
        back = (await browser.get(off.headers["location"])).headers["location"]
        came = await browser.get(back.replace(settings.public_url, other.url))
        again = await browser.get(back.replace(settings.public_url, other.url))

    assert (came.status_code, came.headers.get("location")) == (status, "/keys" if status == 303 else None)
    assert again.status_code == 401


async def test_a_begun_sign_in_is_good_once_also_for_who_keeps_its_cookie(place):
    _, http, [browser, _] = place
    off = await browser.get(f"{http.url}/sign-in/provider")
    kept = dict(browser.cookies)
    back = (await browser.get(off.headers["location"])).headers["location"]
    assert (await browser.get(back)).status_code == 303
    browser.cookies.update(kept)

    assert (await browser.get(back)).status_code == 401


async def test_a_provider_that_is_away_is_said_to_be(place):
    provider, http, [browser, _] = place
    await provider.aclose()
    answer = await browser.get(f"{http.url}/sign-in/provider")
    assert answer.status_code == 503
    assert 'role="alert"' in answer.text


async def test_an_erased_user_is_signed_out(place):
    _, http, [browser, _] = place
    await go(browser, http)
    now = http.rig.clock.now()
    await http.rig.erasures.note(Erasure(erasure.digest(Owner("shared", "u-1")), now, now + 60), now)

    assert (await browser.get(f"{http.url}/v1/sessions")).status_code == 401


async def test_without_a_provider_there_is_no_such_way(http):
    stranger = await http.stranger()
    assert "provider" not in (await stranger.get("/sign-in")).text.replace("identity provider", "")
    assert (await stranger.get("/sign-in/provider")).status_code == 404
    assert (await stranger.get("/sign-in/callback?code=x&state=y")).status_code == 404
