"""A browser stays signed in over a restart and at every gateway of the registry; nothing of its secrets is in the database."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from aerodrome import errors
from aerodrome.adapters.memory.browsers import MemoryBrowserStore
from aerodrome.adapters.sql import engine, migrate
from aerodrome.adapters.sql.browsers import SqlBrowserStore
from aerodrome.adapters.sql.people import SqlPersonStore
from aerodrome.core import browser as core_browser
from aerodrome.core import erasure
from aerodrome.core.erasure import Erasure
from aerodrome.core.identity import Owner, Principal, Scope
from aerodrome.core.policy import Policy
from aerodrome.http.browsers import BrowserSessions, BrowserSettings
from aerodrome.testing import http_rig
from aerodrome.testing.http_rig import WAIT_SECONDS

SAME = {"Sec-Fetch-Site": "same-origin"}
ANN = Principal(Owner("shared", "ann"), Policy(), "k")


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Browser:
    """A browser that keeps its cookies wherever it goes, as one does for gateways behind one address."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def sign_in(self, http, token: str) -> None:
        answer = await self.client.post(f"{http.url}/sign-in", data={"token": token})
        assert answer.status_code == 303, answer.text

    async def csrf(self, http) -> str:
        return re.search(r'name="csrf-token" content="([^"]+)"', (await self.client.get(f"{http.url}/")).text)[1]

    async def post(self, http, path: str, csrf: str, **fields) -> httpx.Response:
        return await self.client.post(f"{http.url}{path}", data={"csrf": csrf, **fields})

    async def status(self, http) -> int:
        return (await self.client.get(f"{http.url}/v1/sessions")).status_code


@pytest.fixture
async def browser():
    async with httpx.AsyncClient(timeout=WAIT_SECONDS, headers=SAME) as client:
        yield Browser(client)


@asynccontextmanager
async def restarted(rig, path):
    """An edge that is new, on a database that may be there already."""
    async with AsyncExitStack() as stack:
        database = await engine.open_database(f"sqlite:///{path}")
        stack.push_async_callback(database.aclose)
        await migrate.migrate(database)
        stores = replace(http_rig.memory_stores(), browsers=SqlBrowserStore(database))
        yield await stack.enter_async_context(http_rig.open_http(rig, stores=stores)), SqlPersonStore(database)


@pytest.fixture
async def two(http):
    """Two gateways of one registry, as far as browsers are concerned."""
    async with http_rig.open_http(http.rig, stores=http.stores) as other:
        yield http, other


async def test_a_browser_stays_signed_in_over_a_restart_until_it_signs_out(http, browser, tmp_path):
    path = tmp_path / "registry.db"
    async with restarted(http.rig, path) as (before, _):
        await browser.sign_in(before, await http.rig.token("shared", "ann"))
        csrf = await browser.csrf(before)

    async with restarted(http.rig, path) as (after, _):
        assert await browser.status(after) == 200
        assert await browser.csrf(after) == csrf
        kept = dict(browser.client.cookies)
        assert (await browser.post(after, "/sign-out", csrf)).status_code == 303
        browser.client.cookies.update(kept)

    async with restarted(http.rig, path) as (again, _):
        assert await browser.status(again) == 401
        assert await again.edge.site.browsers.count() == 0


async def test_a_key_that_is_revoked_while_no_gateway_runs_ends_its_browsers(http, browser, tmp_path):
    path = tmp_path / "registry.db"
    async with restarted(http.rig, path) as (before, _):
        await browser.sign_in(before, await http.rig.token("shared", "ann"))
    [key] = await http.rig.keys.list_all("shared")
    await http.rig.keys.revoke(key.key_id, time.time())

    async with restarted(http.rig, path) as (after, people):
        assert await browser.status(after) == 401
        assert await people.count(Owner("shared", "ann")) == {}


async def test_an_erased_user_is_signed_out_and_nothing_of_it_is_left(http, browser, tmp_path):
    path, ann = tmp_path / "registry.db", Owner("shared", "ann")
    async with restarted(http.rig, path) as (edge, people):
        await browser.sign_in(edge, await http.rig.token("shared", "ann"))
        assert await people.count(ann) == {"browsers": 1}
        assert await people.erase(ann) == {"browsers": 1}
        assert await browser.status(edge) == 401

        # What an erasure notes is enough: a browser that signed in as the rows went is signed out too.
        await browser.sign_in(edge, await http.rig.token("shared", "ann"))
        now = time.time()
        await http.rig.erasures.note(Erasure(erasure.digest(ann), now, now + 60), now)
        assert await browser.status(edge) == 401
        assert await people.count(ann) == {}


async def test_neither_the_cookie_nor_what_forms_bring_nor_a_new_token_is_in_the_database(http, browser, tmp_path):
    path = tmp_path / "registry.db"
    async with restarted(http.rig, path) as (edge, _):
        await browser.sign_in(edge, await http.token_with("shared", "boss", Scope.ADMIN))
        csrf = await browser.csrf(edge)
        made = await browser.post(edge, "/keys", csrf, user="new", scopes="connect")
        shown = (await browser.client.get(f"{edge.url}/keys")).text
        token = re.search(r'data-testid="secret">([^<]+)<', shown)[1]
        files = b"".join(file.read_bytes() for file in tmp_path.glob("registry.db*"))

    assert b"boss" in files
    for secret in (browser.client.cookies["aerodrome"], csrf, token):
        assert secret.encode() not in files
        assert secret not in made.headers["set-cookie"]


async def test_who_signs_in_at_one_gateway_is_signed_in_and_out_at_the_other(two, browser):
    one, other = two
    await browser.sign_in(one, await one.rig.token("shared", "ann"))
    assert await browser.status(other) == 200
    kept = dict(browser.client.cookies)

    assert (await browser.post(other, "/sign-out", await browser.csrf(one))).status_code == 303
    browser.client.cookies.update(kept)

    assert [await browser.status(gateway) for gateway in two] == [401, 401]


async def test_what_was_done_at_one_gateway_is_said_once_by_the_page_of_the_other(two, browser):
    one, other = two
    await browser.sign_in(one, await one.token_with("shared", "boss", Scope.ADMIN))
    csrf = await browser.csrf(one)
    for user in ("new", "newer"):
        await browser.post(one, "/keys", csrf, user=user, scopes="connect")

    part = await browser.client.get(f"{other.url}/keys", headers={"HX-Request": "true"})
    first, second = [(await browser.client.get(f"{other.url}/keys")).text for _ in range(2)]

    assert [text.count('data-testid="secret"') for text in (part.text, first, second)] == [0, 2, 0]


async def test_what_was_said_to_one_browser_is_not_said_to_the_next_that_signs_in(two, browser):
    one, _ = two
    await browser.sign_in(one, await one.token_with("shared", "boss", Scope.ADMIN))
    await browser.post(one, "/keys", await browser.csrf(one), user="new", scopes="connect")
    await browser.sign_in(one, await one.rig.token("shared", "ann"))

    assert 'data-testid="secret"' not in (await browser.client.get(f"{one.url}/keys")).text


async def test_what_is_over_is_removed_as_a_gateway_starts_whatever_else_fails(http, monkeypatch):
    stores = http_rig.memory_stores()
    await stores.browsers.add(core_browser.Browser("hash", ANN, 1.0, 1.0, 2.0), 9)

    async def fail(*_):
        raise errors.StoreUnavailable("the disk is full")

    monkeypatch.setattr(stores.idempotency, "purge", fail)
    async with http_rig.open_http(http.rig, stores=stores), asyncio.timeout(WAIT_SECONDS):
        while await stores.browsers.count(0.0, 0.0):  # noqa: ASYNC110  the store has no events
            await asyncio.sleep(0.002)


class TestSessions:
    @pytest.fixture
    def clock(self):
        return HandClock()

    @pytest.fixture
    def store(self):
        return MemoryBrowserStore()

    @pytest.fixture
    def sessions(self, store, clock):
        return BrowserSessions(store, clock, BrowserSettings(longest_seconds=3600.0, idle_seconds=600.0))

    async def test_one_that_is_used_stays_until_its_longest_time(self, sessions, clock):
        token = await sessions.begin(ANN)
        for _ in range(7):
            clock.time += 500.0
            assert (await sessions.find(token)).principal == ANN
        clock.time = 1000.0 + 3600.0
        assert await sessions.find(token) is None

    async def test_one_that_is_not_used_is_over(self, sessions, clock):
        token = await sessions.begin(ANN)
        clock.time += 600.0
        assert await sessions.count() == 0
        assert await sessions.find(token) is None

    async def test_it_ends_with_what_proved_it_if_that_is_earlier(self, sessions, clock):
        token = await sessions.begin(Principal(ANN.owner, Policy(), "", clock.now() + 100.0))
        clock.time += 99.0
        assert await sessions.find(token) is not None
        clock.time += 1.0
        assert await sessions.find(token) is None

    async def test_a_use_is_written_down_once_in_a_while(self, sessions, store, clock, monkeypatch):
        noted = []
        touch = store.touch

        async def note(token_hash, used_at):
            noted.append(used_at)
            await touch(token_hash, used_at)

        monkeypatch.setattr(store, "touch", note)
        token = await sessions.begin(ANN)
        for _ in range(100):
            clock.time += 1.0
            await sessions.find(token)
        assert noted == [1030.0, 1060.0, 1090.0]

    async def test_a_browser_is_served_while_its_use_cannot_be_written_down(self, sessions, store, clock, monkeypatch):
        async def fail(*_):
            raise errors.StoreUnavailable("the disk is full")

        token = await sessions.begin(ANN)
        monkeypatch.setattr(store, "touch", fail)
        clock.time += 300.0
        assert await sessions.find(token) is not None

    async def test_a_sweep_removes_those_that_are_over(self, sessions, store, clock):
        old = await sessions.begin(ANN)
        clock.time += 600.0
        new = await sessions.begin(ANN)
        await sessions.sweep()

        assert await store.count(0.0, 0.0) == 1
        assert await sessions.find(old) is None
        assert await sessions.find(new) is not None
