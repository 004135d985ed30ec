"""Browsers sign in with a token and have a cookie from then on; nobody else's page can use it."""

from __future__ import annotations

import re
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from aerodrome.core.identity import Scope
from aerodrome.http.browsers import BrowserSettings
from aerodrome.http.pages import page
from aerodrome.http.site import HttpSettings
from aerodrome.testing.http_rig import WAIT_SECONDS

SAME = {"Sec-Fetch-Site": "same-origin"}


@asynccontextmanager
async def browser(http, token: str | None = None):
    """A browser's client: keeps cookies, says where its requests come from, follows nothing by itself."""
    async with httpx.AsyncClient(base_url=http.url, timeout=WAIT_SECONDS, headers=SAME) as client:
        if token is not None:
            answer = await client.post("/sign-in", data={"token": token})
            assert answer.status_code == 303, answer.text
        yield client


def csrf_of(text: str) -> str:
    return re.search(r'<meta name="csrf-token" content="([^"]+)">', text)[1]


async def test_a_stranger_is_led_to_the_sign_in_and_back(http):
    async with browser(http) as client:
        led = await client.get("/sessions?page=2")
        asked = await client.get(led.headers["location"])
        answer = await client.post(
            "/sign-in", data={"token": await http.rig.token("shared", "ann"), "next": "/sessions?page=2"}
        )

    assert (led.status_code, led.headers["location"]) == (303, "/sign-in?next=%2Fsessions%3Fpage%3D2")
    assert 'value="/sessions?page=2"' in asked.text
    assert (answer.status_code, answer.headers["location"]) == (303, "/sessions?page=2")


@pytest.mark.parametrize(
    "where", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:1", "/a\nb", "//[", "http://["]
)
async def test_a_sign_in_leads_nowhere_else(http, where):
    async with browser(http) as client:
        answer = await client.post("/sign-in", data={"token": await http.rig.token("shared", "ann"), "next": where})

    assert answer.headers["location"] == "/"


async def test_the_cookie_is_kept_from_scripts_and_other_sites_and_says_nothing(http):
    token = await http.rig.token("shared", "ann")
    async with browser(http) as client:
        answer = await client.post("/sign-in", data={"token": token})

    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("aerodrome=")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie
    assert token not in cookie


async def test_behind_tls_the_cookie_is_bound_to_this_host(open_http):
    http = await open_http(HttpSettings(public_url="https://aerodrome.example"))
    async with browser(http) as client:
        answer = await client.post("/sign-in", data={"token": await http.rig.token("shared", "ann")})

    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-aerodrome=")
    assert "Secure" in cookie
    assert "Domain" not in cookie


async def test_a_wrong_token_signs_nobody_in_and_is_audited(http):
    async with browser(http) as client:
        answer = await client.post("/sign-in", data={"token": "aero_000000000000_" + "x" * 43})

    assert answer.status_code == 401
    assert "wrong, expired or revoked" in answer.text
    assert "set-cookie" not in answer.headers
    assert [entry.outcome.value for entry in http.rig.audit_log.entries] == ["refused"]


async def test_a_signing_key_signs_nobody_in(http):
    async with browser(http) as client:
        token = await http.token_with("shared", "backend", Scope.SIGN)
        assert (await client.post("/sign-in", data={"token": token})).status_code == 401


async def test_a_browser_calls_the_api_as_the_user_it_signed_in_as(http):
    caller = await http.caller("shared", "ann")
    await caller.post("/v1/sessions", json={"session_id": "s1"})
    async with browser(http, await http.rig.token("shared", "ann")) as ann:
        mine = (await ann.get("/v1/sessions")).json()
    async with browser(http, await http.rig.token("shared", "ben")) as ben:
        theirs = (await ben.get("/v1/sessions")).json()

    assert [one["session_id"] for one in mine["sessions"]] == ["s1"]
    assert theirs["sessions"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "SELF"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {},
    ],
    ids=str,
)
async def test_another_sites_page_cannot_use_the_cookie_to_change_something(http, headers):
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        del client.headers["Sec-Fetch-Site"]
        sent = {name: http.url if value == "SELF" else value for name, value in headers.items()}
        answers = [
            await client.post("/v1/sessions", json={"session_id": "s1"}, headers=sent),
            await client.post("/sign-in", data={"token": await http.rig.token("shared", "eve")}, headers=sent),
            await client.post("/sign-out", data={"csrf": "x"}, headers=sent),
        ]
        there = (await client.get("/v1/sessions", headers=sent)).json()["sessions"]

    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert there == []


async def test_a_browser_that_only_says_its_origin_is_our_own_page_too(http):
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        del client.headers["Sec-Fetch-Site"]
        made = await client.post("/v1/sessions", json={"session_id": "s1"}, headers={"Origin": http.url})

    assert made.status_code == 201


async def test_a_form_without_the_browsers_own_secret_does_nothing(http):
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        for form in ({}, {"csrf": "x"}, {"csrf": ""}):
            assert (await client.post("/sign-out", data=form)).status_code == 403
        assert (await client.get("/")).status_code == 200


async def test_signing_out_ends_it_here_and_there(http):
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        kept = dict(client.cookies)
        left = await client.post("/sign-out", data={"csrf": csrf_of((await client.get("/")).text)})
        forgotten = dict(client.cookies)
        client.cookies.update(kept)
        after = await client.get("/v1/sessions")

    assert (left.status_code, left.headers["location"]) == (303, "/sign-in")
    assert forgotten == {}
    assert after.status_code == 401


async def test_a_revoked_key_ends_its_browsers_at_once(http):
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        [key] = await http.rig.keys.list_all("shared")
        await http.rig.keys.revoke(key.key_id, time.time())
        page_after, api_after = await client.get("/"), await client.get("/v1/sessions")
        part_after = await client.get("/", headers={"HX-Request": "true"})

    assert (page_after.status_code, page_after.headers["location"]) == (303, "/sign-in")
    assert api_after.status_code == 401
    assert (part_after.status_code, part_after.headers["hx-redirect"]) == (401, "/sign-in")


@pytest.mark.parametrize("limits", [BrowserSettings(0.05, 60.0), BrowserSettings(60.0, 0.05)], ids=["age", "idle"])
async def test_a_browser_is_signed_out_after_a_time(open_http, limits):
    http = await open_http(HttpSettings(browsers=limits))
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        ends_at = time.time() + 0.06
        await http.rig.settled(lambda: time.time() > ends_at)
        assert (await client.get("/v1/sessions")).status_code == 401
    assert await http.edge.site.browsers.count() == 0


async def test_a_page_loads_nothing_from_elsewhere_and_runs_no_script_of_its_own(http):
    async with browser(http, await http.rig.token("shared", "ann")) as client:
        answer = await client.get("/")
        addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        files = [await client.get(each) for each in addresses if each.startswith("/static/")]

    assert answer.headers["content-security-policy"] == page.CONTENT_SECURITY_POLICY
    assert answer.headers["cache-control"] == "no-store"
    assert "unsafe" not in page.CONTENT_SECURITY_POLICY
    assert all(not urlsplit(each).netloc for each in addresses)
    assert not re.search(r"<script(?![^>]*src=)|<style|\son[a-z]+=|\sstyle=", answer.text)
    assert len(files) >= 4
    assert all(each.status_code == 200 and "immutable" in each.headers["cache-control"] for each in files)


async def test_a_file_that_is_not_there_is_not_served(http):
    async with browser(http) as client:
        for name in ("nothing.js", "..%2fpage.py", "%2e%2e%2fpage.py"):
            assert (await client.get(f"/static/{name}")).status_code == 404
