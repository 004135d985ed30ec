"""The pages: each role sees its own, what is done is asked for by our own forms, and the figures are true."""

from __future__ import annotations

import re
import time
from contextlib import AsyncExitStack

import httpx
import pytest

from aerodrome.core import identity
from aerodrome.core.identity import Owner, Scope
from aerodrome.http.pages import charts, formats, page
from aerodrome.http.pages.charts import Row
from aerodrome.testing.http_rig import WAIT_SECONDS

PAGES = ("/", "/fleet", "/sessions", "/sessions/s1", "/tenants", "/tenants/shared", "/users", "/keys", "/audit")
#: Status by role for each page, in the order of ROLES.
ROLES = ("operator", "admin", "other admin", "user", "other user", "stranger")
EXPECTED = {
    "/": (200, 200, 200, 200, 200, 303),
    "/fleet": (200, 403, 403, 403, 403, 303),
    "/sessions": (200, 200, 200, 200, 200, 303),
    "/sessions/s1": (200, 200, 404, 200, 404, 303),
    "/tenants": (200, 403, 403, 403, 403, 303),
    "/tenants/shared": (200, 200, 404, 403, 403, 303),
    "/users": (403, 200, 200, 403, 403, 303),
    "/keys": (200, 200, 200, 200, 200, 303),
    "/audit": (200, 200, 200, 403, 403, 303),
}


class Browser:
    """A browser that has signed in."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def show(self, path: str) -> str:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def submit(self, path: str, **fields) -> str:
        """Send a form as a page would; return the page that it leads to."""
        csrf = re.search(r'name="csrf-token" content="([^"]+)"', await self.show("/"))[1]
        answer = await self.client.post(path, data={"csrf": csrf, **fields})
        assert answer.status_code == 303, answer.text
        return await self.show(answer.headers["location"])


@pytest.fixture
async def sign_in(http):
    """Sign browsers in with keys of these scopes."""
    async with AsyncExitStack() as stack:

        async def signed_in(tenant: str, user: str, *scopes: Scope) -> Browser:
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=http.url, timeout=WAIT_SECONDS, headers={"Sec-Fetch-Site": "same-origin"})
            )
            if scopes:
                token = await http.token_with(tenant, user, *scopes)
                assert (await client.post("/sign-in", data={"token": token})).status_code == 303
            return Browser(client)

        yield signed_in


async def turn(caller, session_id: str = "s1", prompt: str = "hello") -> None:
    await caller.post("/v1/sessions", json={"session_id": session_id})
    await caller.post(f"/v1/sessions/{session_id}/messages", json={"prompt": prompt})


def notice(text: str) -> str:
    found = re.search(r'data-testid="notice">\s*<div>\s*(.*?)\s*(?:<div|</div>)', text, re.S)
    assert found, text
    return found[1]


async def test_each_role_has_its_own_pages(http, sign_in):
    await turn(await http.caller("shared", "ann"))
    browsers = [
        await sign_in("", "ops", Scope.OPERATE),
        await sign_in("shared", "boss", Scope.ADMIN),
        await sign_in("alone", "chief", Scope.CONNECT, Scope.ADMIN),
        await sign_in("shared", "ann", Scope.CONNECT),
        await sign_in("shared", "ben", Scope.CONNECT),
        await sign_in("", ""),
    ]
    found = {path: [await browser.client.get(path) for browser in browsers] for path in PAGES}

    assert {path: tuple(one.status_code for one in answers) for path, answers in found.items()} == EXPECTED
    for path, answers in found.items():
        for role, answer in zip(ROLES, answers, strict=True):
            assert answer.headers["content-security-policy"] == page.CONTENT_SECURITY_POLICY
            assert not re.search(r"<script(?![^>]*src=)|<style|\son[a-z]+=|\sstyle=|https?://(?!127)", answer.text), (
                path
            )
            if role in ("other admin", "other user"):
                assert "s1" not in re.findall(r">([^<]*)<", answer.text), (path, role)
                assert ">ann<" not in answer.text, (path, role)
            if answer.status_code in (403, 404):
                assert "<h1>" in answer.text


async def test_the_navigation_leads_to_pages_that_the_visitor_may_see(http, sign_in):
    for scopes in ((Scope.OPERATE,), (Scope.ADMIN,), (Scope.CONNECT,)):
        browser = await sign_in("" if scopes == (Scope.OPERATE,) else "shared", "ann", *scopes)
        links = re.findall(
            r'<a href="(/[^"]*)"', re.search(r'<ul class="nav">(.*?)</ul>', await browser.show("/"), re.S)[1]
        )
        assert len(links) >= 3
        for link in links:
            await browser.show(link)


@pytest.mark.parametrize("path", ["/", "/fleet", "/sessions", "/sessions/s1"])
async def test_the_part_of_a_page_that_changes_is_drawn_alone(http, sign_in, path):
    await turn(await http.caller("shared", "ann"))
    browser = await sign_in("", "ops", Scope.OPERATE)
    part = await browser.client.get(path, headers={"HX-Request": "true"})
    assert part.status_code == 200
    assert "<html" not in part.text
    assert "shared" in part.text or path == "/"


async def test_the_fleet_is_shown_and_a_runtime_cordoned_with_its_reason(http, sign_in):
    await turn(await http.caller("shared", "ann"))
    [runtime] = http.rig.pool.handles()
    browser = await sign_in("", "ops", Scope.OPERATE)
    shown = await browser.show("/fleet")
    assert f'data-runtime="{runtime.runtime_id}"' in shown

    done = await browser.submit(f"/fleet/runtimes/{runtime.runtime_id}/cordon", reason='too "hot" <b>')

    assert notice(done) == f"Runtime {runtime.runtime_id} is cordoned: too &#34;hot&#34; &lt;b&gt;."
    assert runtime.cordoned.done()


async def test_what_cannot_be_done_is_said_on_the_page(http, sign_in):
    browser = await sign_in("", "ops", Scope.OPERATE)
    assert notice(await browser.submit("/fleet/runtimes/rt-none/cordon", reason="x")).startswith("no runtime rt-none")
    assert notice(await browser.submit("/fleet/reload")).startswith("this gateway has no tenants of a configuration")
    assert notice(await browser.submit("/fleet/recycle")).startswith("No runtime serves now")
    assert notice(await browser.submit("/sessions/nothing/evict")) == "no link holds such a session"


async def test_a_drain_is_begun_from_the_page(http, sign_in):
    browser = await sign_in("", "ops", Scope.OPERATE)
    done = await browser.submit("/fleet/drain")
    assert "drains for at most 30 s" in notice(done)
    assert http.rig.drains.is_set()


async def test_a_sessions_timeline_says_what_it_did_and_where_it_was_and_not_what_was_said(http, sign_in):
    caller = await http.caller("shared", "ann")
    await turn(caller)
    admin = await sign_in("shared", "boss", Scope.ADMIN)
    assert notice(await admin.submit("/sessions/s1/migrate", back="/sessions/s1")).startswith(
        "Session s1 is in runtime"
    )
    assert notice(await admin.submit("/sessions/s1/evict", back="/sessions/s1")).startswith("Session s1 is evicted")
    await turn(caller, prompt="[fail]")

    shown = await admin.show("/sessions/s1")

    for words in (
        "evicted: migration",
        "evicted: operator",
        "brought back",
        "opened",
        "completed",
        "failed",
        "error: query",
    ):
        assert words in shown, words
    assert "hello" not in shown


async def test_sessions_are_filtered_and_come_page_by_page(http, sign_in, monkeypatch):
    monkeypatch.setattr("aerodrome.http.pages.session_pages._PAGE", 2)
    caller = await http.caller("shared", "ann")
    for number in range(5):
        await turn(caller, f"s{number}")
    for browser in (await sign_in("", "ops", Scope.OPERATE), await sign_in("shared", "ann", Scope.CONNECT)):
        seen, address = [], "/sessions"
        while address:
            shown = await browser.show(address)
            seen += re.findall(r'class="id" href="/sessions/(s\d)', shown)
            following = re.search(r'href="([^"]+)">Next page', shown)
            address = following[1].replace("&amp;", "&") if following else ""
        assert sorted(seen) == ["s0", "s1", "s2", "s3", "s4"]
        assert re.findall(r'href="/sessions/(s\d)', await browser.show("/sessions?search=S3")) == ["s3"]
        assert "s1" not in re.findall(r'href="/sessions/(s\d)', await browser.show("/sessions?state=turn"))


async def test_keys_are_made_shown_once_and_revoked(http, sign_in):
    admin = await sign_in("shared", "boss", Scope.ADMIN)

    made = await admin.submit("/keys", user="new", scopes="connect", expires="86400")
    token = re.search(r'data-testid="secret">([^<]+)<', made)[1]
    again = await admin.show("/keys")
    key_id = token.split("_")[1]
    assert token not in again
    assert f'data-key="{key_id}"' in again
    assert (await (await http.bearer(token)).get("/v1/sessions")).status_code == 200

    rotated = await admin.submit(f"/keys/{key_id}/rotate", overlap="0")
    assert re.search(r'data-testid="secret">([^<]+)<', rotated)[1] != token
    own = next(key for key in await http.rig.keys.list_all("shared") if key.owner.user == "boss")
    answer = await admin.client.post(f"/keys/{own.key_id}/revoke", data={"csrf": "x"})
    assert answer.status_code == 403
    for fields in ({"user": "Not OK", "scopes": "connect"}, {"user": "new"}, {"user": "new", "scopes": "operate"}):
        assert 'role="alert"' in await admin.submit("/keys", **fields)


async def test_a_user_manages_their_own_keys_and_nobody_elses(http, sign_in):
    ann = await sign_in("shared", "ann", Scope.CONNECT)
    ben = await sign_in("shared", "ben", Scope.CONNECT)
    [of_ann] = [key for key in await http.rig.keys.list_all("shared") if key.owner.user == "ann"]

    assert of_ann.key_id not in await ben.show("/keys")
    assert notice(await ben.submit(f"/keys/{of_ann.key_id}/revoke")).startswith("no key has id")
    assert 'role="alert"' in await ben.submit("/keys", user="ben", scopes="connect")
    rotated = await ann.submit(f"/keys/{of_ann.key_id}/rotate", overlap="3600")
    assert "takes the place of" in notice(rotated)


async def test_a_user_does_not_make_a_key_that_outlives_the_one_they_were_given(http, sign_in):
    ann = await sign_in("shared", "ann", Scope.CONNECT)
    ends_at = http.rig.clock.now() + 60
    given, _ = identity.create_key(Owner("shared", "ann"), http.rig.clock.now(), ends_at)
    await http.rig.keys.add(given)

    assert "takes the place of" in notice(await ann.submit(f"/keys/{given.key_id}/rotate", overlap="0"))

    [made] = [key for key in await http.rig.keys.list_all("shared") if key.expires_at == ends_at]
    assert made.key_id != given.key_id


async def test_revoking_the_key_one_signed_in_with_leads_to_the_sign_in(http, sign_in):
    ann = await sign_in("shared", "ann", Scope.CONNECT)
    [key] = await http.rig.keys.list_all("shared")
    csrf = re.search(r'name="csrf-token" content="([^"]+)"', await ann.show("/"))[1]
    await ann.client.post(f"/keys/{key.key_id}/revoke", data={"csrf": csrf})
    assert (await ann.client.get("/keys")).headers["location"] == "/sign-in?next=%2Fkeys"


async def test_what_others_chose_is_text_on_every_page(http, sign_in):
    """Names cannot hold markup; prompts, models and tools can."""
    caller = await http.caller("shared", "ann")
    await turn(caller)
    [session] = [one.sessions["s1"] for one in http.rig.scripted.runtimes if "s1" in one.sessions]
    await caller.post("/v1/sessions/s1/messages", json={"prompt": "[hold]", "wait_seconds": 0})
    await http.rig.settled(lambda: http.rig.services.drainer.at_work)
    runtime = next(one for one in http.rig.scripted.runtimes if "s1" in one.sessions)
    runtime.emit(session, "tool.execution_start", {"toolCallId": "1", "toolName": "<script>alert(1)</script>"})
    runtime.emit(session, "assistant.usage", {"model": '"><img src=x>'})
    flight = http.rig.services.recorder.find("shared", "s1")
    await http.rig.settled(lambda: flight.turns[-1].tokens.calls)

    shown = await (await sign_in("", "ops", Scope.OPERATE)).show("/sessions/s1")

    assert "<script>alert" not in shown
    assert "<img src=x" not in shown
    assert "&lt;script&gt;alert(1)" in shown


async def test_the_overview_shows_what_happened(http, sign_in):
    await turn(await http.caller("shared", "ann"))
    await turn(await http.caller("shared", "ann"), prompt="[fail]")
    await (await http.bearer("aero_wrong")).get("/v1/sessions")
    shown = await (await sign_in("", "ops", Scope.OPERATE)).show("/")

    figures = dict(re.findall(r'data-testid="([a-z-]+)"><dt>[^<]*</dt><dd>([^<]*)<', shown))
    assert (figures["turns"], figures["failed"], figures["rejections"], figures["active-sessions"]) == (
        "2",
        "1",
        "1",
        "1",
    )
    assert {"latency", "sessions", "turns", "errors"} <= set(re.findall(r'data-testid="chart-([a-z]+)"', shown))
    mine = await (await sign_in("shared", "ann", Scope.CONNECT)).show("/")
    assert "chart-" not in mine
    assert dict(re.findall(r'data-testid="([a-z-]+)"><dt>[^<]*</dt><dd>([^<]*)<', mine))["turns"] == "2"


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_a_line_is_broken_where_there_is_nothing_and_a_lone_value_is_seen():
    chart = charts.lines("c", "C", [Row("p50", [1.0, 2.0, None, 0.5, None], 1)], "nothing")
    [path] = re.findall(r' d="([^"]*)"', str(chart.svg))
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert path.endswith("h4")
    assert (chart.top, chart.is_empty, chart.summary) == ("2.0 s", False, "Latest: p50 500 ms.")


def test_a_chart_of_nothing_says_so():
    chart = charts.bars("c", "C", [Row("Turns", [0, 0], 1)], "No turns.")
    assert (chart.is_empty, chart.summary) == (True, "No turns.")
    assert charts.lines("c", "C", [Row("p50", [None], 1)], "No turns.").summary == "No turns."


def test_bars_stand_upon_one_another_and_stay_inside():
    chart = charts.bars("c", "C", [Row("A", [3], 1), Row("B", [5], 2)], "")
    tops = [
        (float(y), float(height))
        for y, height in re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', str(chart.svg))
    ]
    assert tops[0][0] + tops[0][1] == charts.HEIGHT
    assert tops[1][0] + tops[1][1] == pytest.approx(tops[0][0])
    assert tops[1][0] >= 0
    assert chart.summary == "In this hour: 3 a, 5 b; a bar is a minute."


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0.0423, "42 ms"), (3.21, "3.2 s"), (61, "61 s"), (600, "10 min"), (10_000, "3 h"), (400_000, "5 d")],
)
def test_a_length_of_time_is_as_exact_as_its_size_asks_for(value, words):
    assert formats.span(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(None, "–"), (12, "12 B"), (2048, "2 KiB"), (5_500_000, "5.2 MiB"), (3 << 30, "3.0 GiB")]
)
def test_bytes_have_the_unit_that_suits(value, words):
    assert formats.size(value) == words


def test_a_time_is_said_in_utc():
    assert formats.moment(0) == "1970-01-01 00:00:00"
    assert formats.moment(None) == "–"
    assert len(formats.clock(time.time())) == 8


async def test_of_tenants_and_users_by_the_thousand_a_page_shows_the_first_and_says_where_all_are(
    http, sign_in, monkeypatch
):
    monkeypatch.setattr("aerodrome.http.pages.people_pages._ROWS", 2)
    for user in ("ann", "ben", "cyd"):
        await http.caller("shared", user)
    browser = await sign_in("", "ops", Scope.OPERATE)

    tenants, users = await browser.show("/tenants"), await browser.show("/tenants/shared")

    assert "The first 2 are shown" in tenants
    assert "The first 2 are shown" in users
    assert ("ben" in users, "cyd" in users) == (True, False)
