"""The playground's page and the demo's door: who is let in, and what goes along. What the page does is tested in Chromium."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from aerodrome.core.identity import Scope
from aerodrome.http.pages import static_files
from aerodrome.http.pages.demo_routes import DemoUser

CODE = "the-code-of-this-demo"
SAME = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def browser(http):
    """A browser that follows nothing by itself."""
    async with httpx.AsyncClient(base_url=http.url, headers=SAME) as client:
        yield client


@pytest.fixture
async def demo(http) -> DemoUser:
    """The demo's door, open for one user."""
    user = DemoUser("shared", "ann", "a shared runtime", await http.rig.token("shared", "ann"))
    http.edge.open_demo(CODE, [user])
    return user


async def test_without_a_demo_there_is_no_door(browser):
    assert (await browser.get("/demo")).status_code == 404
    assert (await browser.post("/demo/sign-in", data={"code": "", "who": "shared/ann"})).status_code == 404


async def test_the_code_opens_the_door_and_the_user_is_signed_in(browser, demo):
    asked = await browser.get("/demo")
    assert CODE not in asked.text
    assert demo.token not in asked.text
    chosen = await browser.post("/demo", data={"code": CODE})
    assert "ann" in chosen.text
    assert demo.token not in chosen.text

    let_in = await browser.post("/demo/sign-in", data={"code": CODE, "who": "shared/ann"})

    assert (let_in.status_code, let_in.headers["location"]) == (303, "/playground")
    page = await browser.get("/playground")
    assert page.status_code == 200
    assert "Try the agent" in page.text
    assert (await browser.get("/v1/sessions")).status_code == 200


@pytest.mark.parametrize("code", ["", "wrong", CODE + "x", "é"])
@pytest.mark.parametrize("path", ["/demo", "/demo/sign-in"])
async def test_without_the_code_nobody_is_let_in_or_told_who_there_is(browser, demo, path, code):
    answer = await browser.post(path, data={"code": code, "who": "shared/ann"})

    assert answer.status_code == 403
    assert 'value="shared/ann"' not in answer.text
    assert "set-cookie" not in answer.headers


async def test_the_door_is_for_its_own_page_and_its_own_users(browser, demo):
    elsewhere = await browser.post(
        "/demo/sign-in", data={"code": CODE, "who": "shared/ann"}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert elsewhere.status_code == 403
    assert "set-cookie" not in elsewhere.headers
    assert (await browser.post("/demo/sign-in", data={"code": CODE, "who": "shared/bob"})).status_code == 400


async def test_the_page_is_for_who_has_signed_in_and_may_use_sessions(browser, http):
    stranger = await browser.get("/playground")
    assert (stranger.status_code, stranger.headers["location"]) == (303, "/sign-in?next=%2Fplayground")

    token = await http.token_with("shared", "ann", Scope.ADMIN)
    await browser.post("/sign-in", data={"token": token})
    assert (await browser.get("/playground")).status_code == 403


async def test_the_page_brings_nothing_that_its_policy_forbids(browser, http):
    await browser.post("/sign-in", data={"token": await http.rig.token("shared", "ann")})
    page = await browser.get("/playground")

    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", page.text)
    addresses = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert addresses
    assert all(address.startswith("/") and not address.startswith("//") for address in addresses)
    # No example of the demo model's where there is no demo: a real model would make nothing of it.
    assert "[tool" not in page.text


async def test_the_modules_are_kept_by_browsers_until_one_of_them_changes(browser, http):
    await browser.post("/sign-in", data={"token": await http.rig.token("shared", "ann")})
    page = (await browser.get("/playground")).text
    [main] = re.findall(r'src="(/static/playground/[^"]+/main\.js)"', page)

    served = await browser.get(main)
    assert served.headers["content-type"].startswith("text/javascript")
    assert "immutable" in served.headers["cache-control"]
    for name in re.findall(r'from "\./([\w.]+)"', served.text):
        assert (await browser.get(main.replace("main.js", name))).status_code == 200
    other = await browser.get("/static/playground/0000000000000000/main.js")
    assert other.headers["cache-control"] == "no-cache"
    assert (await browser.get(main.replace("main.js", "none.js"))).status_code == 404
    assert (await browser.get("/static/templates/x/base.html")).status_code == 404


async def test_folders_that_are_not_there_leave_nothing_in_memory(browser):
    static_files._folder_digest.cache_clear()

    for number in range(3):
        assert (await browser.get(f"/static/stranger-{number}/0000000000000000/main.js")).status_code == 404

    assert static_files._folder_digest.cache_info().currsize == 0


#: Enough of a page for markdown.js, which makes elements and reads none.
_NO_PAGE = """
class Part { append() {} setAttribute() {} addEventListener() {} }
const make = () => new Part();
globalThis.window = { matchMedia: () => ({}) };
globalThis.document = { createElement: make, createElementNS: make, createDocumentFragment: make, createTextNode: make };
const { render } = await import(process.argv[1]);
const { readFileSync } = await import("node:fs");
for (const text of JSON.parse(readFileSync(0, "utf8"))) render(text);
"""
_BLANK = " " * 30_000
_TIRING = [f"# a{_BLANK}x", f"```{'a' * 60_000}`", f"~~~ {_BLANK}`", f"a|b\n{_BLANK}-x", f"a{_BLANK}b"]


def test_a_long_line_that_looks_like_markup_does_not_hold_the_page_up():
    module = Path(static_files.__file__).parent / "static" / "playground" / "markdown.js"
    command = ["node", "--input-type=module", "-e", _NO_PAGE, "--", module.as_uri()]

    # Where a line is read once, this takes a few milliseconds; where it is not, minutes.
    subprocess.run(command, input=json.dumps(_TIRING), text=True, timeout=10, check=True)
