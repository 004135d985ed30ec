"""The pages in a headless Chromium: signed in by the demo's printed address, against the real runtime.

One demo and one browser for all; each test has browser contexts of its own. Screenshots go to build/screenshots.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from aerodrome.testing.demo_process import DemoProcess

from . import browsing, quickstart
from .browsing import DESKTOP, PHONE, Visits, picture

CHROMIUM = browsing.find_chromium()
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no Chromium: apt install chromium (make setup does, as root)"
    ),
]
BASH = '[tool bash {"command":"echo landed","description":"Say that it landed"}]'
ASK = '[tool ask_user {"question":"Tea or coffee?","choices":["Tea","Coffee"]}]'
SignIn = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of the module."""
    chromium = browsing.find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium: apt install chromium (make setup does, as root)")
    with browsing.open_browser(chromium) as opened:
        yield opened


@pytest.fixture
def visits(browser: Browser, demo: DemoProcess) -> Iterator[Visits]:
    """Pages that must have nothing to complain of, and ask nobody else for anything."""
    opened = Visits(browser, demo.described["http"])
    yield opened
    opened.close()
    assert opened.wrong == []


@pytest.fixture
def sign_in(visits: Visits, demo: DemoProcess) -> SignIn:
    """Sign a fresh browser in by the printed address, as one of the demo's users."""

    def signed_in(user: str = "alice", **options: object) -> Page:
        page = visits.open(**options)
        page.goto(demo.described["playground"])
        page.get_by_test_id("door").filter(has_text=user).click()
        page.wait_for_url("**/" if user == "operator" else "**/playground")
        return page

    return signed_in


def say(page: Page, prompt: str) -> None:
    page.get_by_label("Message").fill(prompt)
    page.get_by_label("Message").press("Enter")


def last(page: Page, name: str = "answer"):
    return page.get_by_test_id(name).last


def test_the_printed_address_lets_in_and_its_code_is_nowhere_afterwards(sign_in, visits, demo):
    code = demo.described["playground"].partition("#")[2]
    page = sign_in("carol")

    assert code not in page.url
    expect(page.get_by_test_id("who")).to_have_text("carol · globex")
    expect(page.get_by_test_id("empty")).to_be_visible()
    assert page.context.cookies()[0]["httpOnly"]
    picture(page, "playground-empty-light")
    page.emulate_media(color_scheme="dark")
    picture(page, "playground-empty-dark")

    visits.expected.append("403")
    stranger = visits.open()
    stranger.goto(f"{demo.described['http']}/playground")
    assert "/sign-in" in stranger.url
    stranger.goto(f"{demo.described['http']}/demo#wrong")
    expect(stranger.get_by_test_id("problem")).to_contain_text("not the code of this demo")
    assert stranger.get_by_test_id("door").count() == 0


def test_an_answer_is_read_while_it_streams_and_stopped_when_that_is_enough(sign_in):
    page = sign_in()
    say(page, "[delay 2] [stream 600 60]")
    expect(page.get_by_test_id("prompt")).to_have_text("[delay 2] [stream 600 60]")
    expect(page.get_by_test_id("typing").last).to_be_visible()

    expect(last(page)).to_contain_text("1 2 3")
    assert "600" not in last(page).inner_text()
    picture(page, "playground-streaming-light")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="Stop").click()

    expect(page.locator(".turn-state").last).to_have_text("Stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert "600" not in last(page).inner_text()
    # The next one is answered to its end, and says what it took.
    say(page, "hello **you**")
    expect(last(page)).to_have_text("You said: hello you")
    expect(last(page).locator("strong")).to_have_text("you")
    expect(last(page, "turn-foot")).to_contain_text(" in · ")
    expect(page.get_by_test_id("sessions").locator("[aria-current]")).to_contain_text("[delay 2] [stream 600 60]")


def test_who_reads_further_up_is_left_there(sign_in):
    page = sign_in("heidi")
    thread = page.locator("#thread")
    say(page, "[size 9000] [stream 30 2]")
    expect(last(page)).to_contain_text("quick brown fox")
    expect(page.get_by_role("button", name="Newest")).to_be_hidden()
    expect(last(page)).to_have_text(re.compile(r"[\s\S]{4000}"))  # more than the window holds
    assert thread.evaluate("(part) => part.scrollTop") > 100
    thread.evaluate("(part) => { part.scrollTop = 50; }")
    expect(last(page, "turn-foot")).to_contain_text(" in · ")

    assert thread.evaluate("(part) => part.scrollTop") < 100
    page.get_by_role("button", name="Newest").click()
    expect(last(page, "turn-foot")).to_be_in_viewport()


def test_a_first_message_arrives_though_its_sender_looks_elsewhere_meanwhile(sign_in):
    page, held = sign_in("grace"), []
    say(page, "old")
    expect(last(page)).to_have_text("You said: old")
    page.get_by_role("link", name="New chat").click()
    page.route("**/v1/sessions", lambda route: held.append(route))  # noqa: PLW0108  it looks at what it is given
    say(page, "new")
    expect(last(page, "prompt")).to_have_text("new")
    page.get_by_test_id("sessions").get_by_text("old").click()
    expect(last(page)).to_have_text("You said: old")

    (route,) = browsing.wait_until(page, lambda: held)
    route.continue_()
    page.get_by_test_id("sessions").get_by_text("new").click()

    expect(last(page)).to_have_text("You said: new")


def test_who_moves_up_in_the_moment_in_which_a_word_comes_is_left_there(sign_in):
    """The browser tells of a move with its next frame only: here it does not tell at all."""
    page = sign_in("heidi")
    thread = page.locator("#thread")
    say(page, "[size 9000] [stream 30 2]")
    expect(last(page)).to_have_text(re.compile(r"[\s\S]{4000}"))
    page.evaluate("document.addEventListener('scroll', (event) => event.stopImmediatePropagation(), true)")
    thread.evaluate("(part) => { part.scrollTop = 50; }")
    expect(last(page, "turn-foot")).to_contain_text(" in · ")

    assert thread.evaluate("(part) => part.scrollTop") < 100


def test_a_command_runs_when_it_is_approved_and_not_when_it_is_rejected(sign_in):
    page = sign_in()
    say(page, BASH)
    card = last(page, "request")
    expect(card).to_contain_text("echo landed")
    expect(page.get_by_test_id("typing").last).to_be_hidden()
    picture(page, "playground-permission-light")
    page.emulate_media(color_scheme="dark")
    picture(page, "playground-permission-dark")
    card.get_by_role("button", name="Approve", exact=True).click()

    expect(card).to_contain_text("Approved")
    expect(last(page)).to_contain_text("tool said: landed")
    tool = last(page, "tool")
    expect(tool).to_contain_text("done")
    tool.locator("summary").click()
    expect(tool).to_contain_text("exit code 0")

    say(page, BASH)
    expect(page.get_by_test_id("request")).to_have_count(2)
    card = last(page, "request")
    card.get_by_label("Reason for a rejection").fill("not now")
    card.get_by_role("button", name="Reject").click()
    expect(card).to_contain_text("Rejected")
    expect(page.get_by_test_id("answer")).to_have_count(2)
    expect(last(page)).to_contain_text("not now")


def test_questions_and_tools_are_answered_by_hand(sign_in):
    page = sign_in("erin")
    assert page.get_by_text("Approve a command").count() == 0  # nothing that her tenant's agents may not do
    page.get_by_text("Answer a tool yourself").click()
    card = last(page, "request")
    expect(card).to_contain_text("lookup_order")
    card.get_by_label("Result of the tool").fill("order 4711 is on its way")
    card.get_by_role("button", name="Return it").click()
    expect(last(page)).to_have_text("tool said: order 4711 is on its way")

    say(page, ASK)
    expect(page.get_by_test_id("request")).to_have_count(2)
    last(page, "request").get_by_role("button", name="Coffee").click()
    expect(last(page)).to_contain_text("Coffee")


def test_two_tabs_on_one_session_see_the_same_and_either_may_answer(sign_in):
    first = sign_in("bob")
    say(first, "[stream 30 2]")
    first.wait_for_url("**/playground#s=*")
    second = first.context.new_page()
    second.goto(first.url)

    expect(last(second)).to_contain_text("1 2 3")
    expect(last(second)).to_contain_text("30")
    expect(last(first)).to_contain_text("30")
    assert [text.strip() for text in second.get_by_test_id("answer").all_inner_texts()] == [
        " ".join(map(str, range(1, 31)))
    ]

    say(second, BASH)
    expect(first.get_by_test_id("prompt")).to_have_text(["[stream 30 2]", BASH])
    last(first, "request").get_by_role("button", name="Approve", exact=True).click()
    expect(last(second, "request")).to_contain_text("Approved")
    for page in (first, second):
        expect(last(page)).to_contain_text("tool said: landed")
        expect(page.get_by_test_id("prompt")).to_have_count(2)

    # A prompt sent while another runs waits, in both, and can be taken back.
    say(first, "[stream 400 40]")
    expect(last(second)).to_contain_text("1 2 3")
    say(second, "later")
    expect(first.locator('.turn[data-status="queued"]')).to_contain_text("later")
    first.get_by_role("button", name="Withdraw").click()
    expect(second.locator(".turn-state").last).to_contain_text("Withdrawn")
    first.get_by_label("Message").press("Escape")
    expect(second.locator('.turn[data-status="aborted"]')).to_have_count(1)


def test_two_people_in_one_session_see_each_other_and_who_said_what(sign_in):
    owner, guest = sign_in("alice"), sign_in("bob")
    say(owner, "hello")
    expect(last(owner)).to_have_text("You said: hello")
    owner.get_by_role("button", name="Options").click()
    owner.get_by_role("button", name="Make a link to share it").click()
    expect(owner.get_by_test_id("share-link")).to_contain_text("#join=")
    guest.goto(owner.get_by_test_id("share-link").inner_text())
    guest.wait_for_url("**/playground#s=*")

    expect(guest.get_by_test_id("title")).to_have_text("Shared by alice")
    expect(last(guest)).to_have_text("You said: hello")
    owner.get_by_role("button", name="Cancel").click()
    expect(owner.get_by_test_id("company")).to_contain_text("Here: you, bob")
    expect(guest.get_by_test_id("company")).to_contain_text("Here: alice, you")

    say(guest, "good evening")
    expect(last(owner)).to_have_text("You said: good evening")
    expect(last(owner, "sender")).to_have_text("bob")
    expect(last(guest)).to_have_text("You said: good evening")
    # Each waits for the other's turn, and both see the same order.
    say(owner, "[stream 600 60]")
    expect(last(guest)).to_contain_text("1 2 3")
    say(guest, "after you")
    expect(owner.get_by_test_id("company")).to_contain_text("next: bob")
    picture(owner, "playground-shared-light")
    owner.get_by_role("button", name="Stop").click()
    for page in (owner, guest):
        expect(page.get_by_test_id("prompt")).to_have_text(["hello", "good evening", "[stream 600 60]", "after you"])
        expect(last(page)).to_have_text("You said: after you")
        expect(page.get_by_test_id("answer")).to_have_count(4)
    expect(guest.locator("[data-session][aria-current]")).to_contain_text("Shared by alice")
    guest.reload()
    expect(guest.get_by_test_id("sender").filter(has_text="alice")).to_have_count(1)


def test_a_prompt_shows_once_when_its_turn_is_heard_of_before_it_is_answered_for(sign_in):
    page = sign_in("grace")
    held = []
    page.route("**/messages", lambda route: held.append((route, route.fetch())))
    say(page, "[stream 12 1]")
    expect(last(page)).to_contain_text("12")
    expect(page.get_by_test_id("prompt")).to_have_text(["[stream 12 1]"])
    [(route, response)] = browsing.wait_until(page, lambda: held)
    route.fulfill(response=response)
    page.unroute("**/messages")

    say(page, "and now?")
    expect(last(page)).to_have_text("You said: and now?")
    expect(page.get_by_test_id("prompt")).to_have_text(["[stream 12 1]", "and now?"])


def test_what_was_said_while_the_network_was_away_is_there_when_it_is_back(sign_in, visits):
    visits.expected += ["ERR_INTERNET_DISCONNECTED", "ERR_NETWORK"]
    page = sign_in("dave")
    say(page, "[stream 30 3]")
    expect(last(page)).to_contain_text("1 2 3")
    page.context.set_offline(True)
    expect(page.get_by_test_id("link")).to_be_visible()
    picture(page, "playground-connection-lost-light")
    say(page, "are you there?")
    page.context.set_offline(False)

    expect(page.get_by_test_id("link")).to_be_hidden()
    expect(page.get_by_test_id("answer")).to_have_text([" ".join(map(str, range(1, 31))), "You said: are you there?"])
    expect(page.get_by_test_id("prompt")).to_have_count(2)


def test_everything_can_be_done_by_keyboard(sign_in):
    page = sign_in()
    keyboard = page.keyboard
    expect(page.get_by_label("Message")).to_be_focused()
    keyboard.type("one")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    keyboard.press("Enter")
    expect(last(page)).to_contain_text("two")
    expect(page.get_by_test_id("prompt")).to_have_text("one\ntwo")

    keyboard.type(BASH)
    keyboard.press("Enter")
    # Who waits is taken to the card, onto none of its buttons.
    expect(last(page, "request")).to_be_focused()
    for _ in range(8):
        keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Approve":
            break
    keyboard.press("Enter")
    expect(last(page)).to_contain_text("landed")
    expect(page.get_by_label("Message")).to_be_focused()

    keyboard.type("[stream 600 60]")
    keyboard.press("Enter")
    expect(last(page)).to_contain_text("1 2 3")
    keyboard.press("Escape")
    expect(page.locator(".turn-state").last).to_have_text("Stopped")


def test_a_phone_shows_it_all_without_scrolling_sideways(sign_in):
    page = sign_in(viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
    assert not browsing.is_wider_than_its_window(page)
    picture(page, "playground-empty-phone-dark")
    page.get_by_text("See formatted text").click()
    expect(last(page, "turn-foot")).to_be_visible()
    assert not browsing.is_wider_than_its_window(page)
    picture(page, "playground-answer-phone-dark")
    say(page, BASH)
    expect(last(page, "request")).to_be_visible()
    assert not browsing.is_wider_than_its_window(page)
    picture(page, "playground-permission-phone-dark")
    last(page, "request").get_by_role("button", name="Approve", exact=True).click()

    page.get_by_role("button", name="Chats").click()
    expect(page.get_by_role("link", name="New chat")).to_be_focused()
    assert not browsing.is_wider_than_its_window(page)
    picture(page, "playground-chats-phone-dark")
    page.get_by_role("link", name="New chat").click()
    expect(page.get_by_test_id("empty")).to_be_visible()


def test_errors_say_what_to_do(sign_in, visits, demo):
    visits.expected += ["404", "401"]
    page = sign_in("frank")
    say(page, "[error 400 x1] [say all is well]")
    expect(last(page, "trouble")).to_contain_text("400")
    expect(last(page, "trouble")).to_contain_text("Send it again, or put it another way")
    picture(page, "playground-error-light")
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_test_id("prompt")).to_have_count(2)

    # Someone else's session is as good as none.
    session = page.url.partition("#s=")[2]
    other = sign_in("grace")
    other.goto(f"{demo.described['http']}/playground#s={session}")
    expect(other.get_by_role("alert").filter(has_text="gone, or it is not yours")).to_be_visible()
    other.get_by_role("link", name="Start a new chat").click()
    expect(other.get_by_test_id("empty")).to_be_visible()

    # Renamed, then deleted in two steps.
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Title").fill("Mine")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_test_id("title")).to_have_text("Mine")
    page.get_by_role("button", name="Options").click()
    page.get_by_role("button", name="Delete chat").click()
    page.get_by_role("button", name="Delete it with its files").click()
    expect(page.get_by_test_id("empty")).to_be_visible()

    # Signed out elsewhere: the page says so where the next call fails.
    page.context.clear_cookies()
    say(page, "hello")
    expect(page.get_by_role("alert").filter(has_text="Authorization")).to_be_visible()


def test_the_dashboard_changes_as_a_runtime_is_killed_and_replaced(sign_in, visits, demo):
    chat = sign_in("carol")
    say(chat, "hello")
    expect(last(chat)).to_have_text("You said: hello")
    [(killed, process)] = demo.runtimes("carol").items()

    operator = sign_in("operator")
    operator.get_by_role("link", name="Fleet").click()
    row = operator.locator(f'[data-runtime="{killed}"]')
    expect(row).to_contain_text("carol")
    expect(row).to_contain_text(str(process.pid))
    assert operator.context.cookies() != chat.context.cookies()

    os.kill(process.pid, signal.SIGKILL)
    expect(row).to_have_count(0)  # the page has drawn itself anew
    # Her next prompt is answered by another runtime, in the same conversation.
    say(chat, "[recall]")
    expect(last(chat)).to_have_text("hello | [recall]")
    expect(operator.locator("[data-runtime]").filter(has_text="carol")).to_have_count(1)
    [replaced] = demo.runtimes("carol")
    assert replaced != killed
    expect(operator.locator(f'[data-runtime="{replaced}"]')).to_be_visible()

    # An action is asked about first, and its button is found again afterwards though the table is drawn anew.
    button = operator.locator(f"#recycle-{replaced}")
    button.focus()
    operator.keyboard.press("Enter")
    dialog = operator.get_by_role("dialog")
    expect(dialog).to_contain_text(replaced)
    picture(operator, "dashboard-recycle-light")
    operator.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    button.click()
    dialog.get_by_role("button", name="Recycle").click()
    expect(operator.get_by_test_id("notice")).to_be_visible()
    expect(operator.locator(f'[data-runtime="{replaced}"]')).to_have_count(0)
    say(chat, "[recall]")
    expect(last(chat)).to_have_text("hello | [recall] | [recall]")


def test_the_dashboard_is_read_on_a_desk_and_on_a_phone(sign_in, demo):
    chat = sign_in("bob")
    for prompt in ("hello", "[stream 5 0.5]"):
        say(chat, prompt)
        expect(chat.get_by_test_id("turn-foot").get_by_text(" in · ")).to_have_count(1 if prompt == "hello" else 2)
    session = chat.url.partition("#s=")[2]

    operator = sign_in("operator")
    home = demo.described["http"]
    for name in ("", "fleet", "sessions", f"sessions/{session}", "tenants", "tenants/acme", "keys", "audit"):
        title = name.replace(session, "one").replace("/", "-") or "overview"
        for width, scheme, size in (("desk", "light", DESKTOP), ("phone", "dark", PHONE)):
            operator.set_viewport_size(size)
            operator.emulate_media(color_scheme=scheme)
            operator.goto(f"{home}/{name}")
            expect(operator.locator("h1")).to_be_visible()
            assert not browsing.is_wider_than_its_window(operator), (name, width)
            picture(operator, f"dashboard-{title}-{width}-{scheme}")


def test_a_user_sees_nothing_of_the_fleet_or_of_others(sign_in, visits, demo):
    visits.expected.append("403")
    page = sign_in("grace")
    expect(page.get_by_role("link", name="Fleet")).to_have_count(0)
    expect(page.get_by_role("link", name="Tenants")).to_have_count(0)
    for path in ("/fleet", "/tenants", "/audit"):
        assert page.goto(demo.described["http"] + path).status == 403
    page.goto(demo.described["http"] + "/sessions")
    assert "acme" not in page.locator("main").inner_text()


def test_the_quickstart_for_a_page_runs_as_it_stands(sign_in):
    page = sign_in("heidi")
    program = quickstart.program("JavaScript: a page of the gateway")
    with page.expect_console_message(lambda said: said.text.startswith("You said")) as said:
        page.evaluate(f"async () => {{ {program} }}")
    assert said.value.text == "You said: Hello from a page!"


SHOW_CARD = """async (request) => {
  const address = document.querySelector('script[src*="playground"]').src.replace("main.js", "requests.js");
  const { Card } = await import(address);
  window.answers = [];
  window.card = new Card(request, async (answer) => { window.answers.push(answer); });
  document.querySelector("#turns").replaceChildren(window.card.element);
}"""
FIELDS = {
    "where": {"type": "string", "title": "Where to"},
    "count": {"type": "integer", "minimum": 1},
    "seat": {"type": "string", "enum": ["aisle", "window"]},
    "bags": {"type": "boolean", "description": "Are there any?"},
    "note": {"type": "string"},
}


def test_forms_plans_and_approvals_for_a_session_are_answered_in_the_form_that_is_asked_for(sign_in):
    page = sign_in("grace")
    card = page.get_by_test_id("request")
    schema = {"type": "object", "properties": FIELDS, "required": ["where", "count"]}
    data = {"message": "Book a flight", "requestedSchema": schema}
    page.evaluate(SHOW_CARD, {"request_id": "1", "kind": "form", "data": data})
    card.get_by_role("button", name="Send").click()
    assert page.evaluate("answers") == []  # what is required is asked for
    card.get_by_label("Where to").fill("Oslo")
    card.get_by_label("count").fill("2")
    card.get_by_label("seat").select_option("window")
    card.get_by_label("bags").check()
    card.get_by_role("button", name="Send").click()
    content = {"where": "Oslo", "count": 2, "seat": "window", "bags": True}
    expect(card).to_contain_text("Sent")
    assert page.evaluate("answers") == [{"kind": "form", "action": "accept", "content": content}]

    page.evaluate(SHOW_CARD, {"request_id": "2", "kind": "form", "data": data})
    card.get_by_role("button", name="Decline").click()
    expect(card).to_contain_text("Declined")
    assert page.evaluate("answers") == [{"kind": "form", "action": "decline"}]

    page.evaluate(SHOW_CARD, {"request_id": "3", "kind": "plan", "data": {"summary": "1. Land"}})
    expect(card).to_contain_text("1. Land")
    card.get_by_label("What to change").fill("go around first")
    card.get_by_role("button", name="Reject").click()
    expect(card).to_have_class(re.compile("over"))
    assert page.evaluate("answers") == [{"kind": "plan", "approved": False, "feedback": "go around first"}]

    page.evaluate(SHOW_CARD, {"request_id": "4", "kind": "permission", "data": {"kind": "read", "path": "/work/a"}})
    card.get_by_role("button", name="Approve for this session").click()
    expect(card).to_contain_text("Approved for this session")
    expect(card.get_by_role("button", name="Copy")).to_be_enabled()
    assert page.evaluate("answers") == [{"kind": "permission", "decision": "approve_for_session"}]


#: Another turn runs; what this tab sent is answered for before the stream says that it waits.
SHOW_QUEUE = """async () => {
  const address = document.querySelector('script[src*="playground"]').src.replace("main.js", "transcript.js");
  const { Transcript } = await import(address);
  const names = ["company", "again", "changed", "caught", "announce", "asked", "ended"];
  const host = { path: "", user: "grace", ...Object.fromEntries(names.map((name) => [name, () => {}])) };
  const all = new Transcript(document.querySelector("#turns"), document.querySelector("#thread"), host);
  await all.send("later", Promise.resolve({ turn_id: "2", status: "queued" }));
  all.hear({ type: "turn.started", data: { turn_id: "1" } });
  all.hear({ type: "user.message", data: { content: "later" } });
  all.hear({ type: "turn.queued", data: { turn_id: "2" } });
}"""


def test_a_prompt_that_waits_says_so_though_its_answer_comes_before_the_stream_does(sign_in):
    page = sign_in("grace")
    page.evaluate(SHOW_QUEUE)
    waiting = page.locator('.turn[data-status="queued"]')
    expect(waiting.get_by_test_id("prompt")).to_have_text("later")
    expect(waiting).to_contain_text("Waits for the turn before it")
    expect(waiting.get_by_role("button", name="Withdraw")).to_be_visible()
    expect(page.get_by_test_id("prompt")).to_have_text(["later", "later"])  # another's may have the same words


#: Two answers of the gateway come in the other order than they were asked for.
SHOW_LIST = """async () => {
  const address = document.querySelector('script[src*="playground"]').src.replace("main.js", "sessions.js");
  const { SessionList } = await import(address);
  const place = () => document.createElement("div");
  const [root, asked, usual] = [place(), [], window.fetch];
  window.fetch = () => new Promise((answer) => asked.push(answer));
  const list = new SessionList(root, place(), place(), () => null, "grace");
  const [older, newer] = [list.refresh(), list.refresh()];
  window.fetch = usual;
  const session = { session_id: "s", owner: "grace", options: { title: "The newest" }, state: "idle", used_at: 0 };
  const answer = (sessions) => new Response(JSON.stringify({ sessions }), { headers: { "Content-Type": "application/json" } });
  asked[1](answer([session]));
  await newer;
  asked[0](answer([]));
  await older;
  return root.textContent;
}"""


def test_a_list_of_sessions_that_comes_late_does_not_replace_a_newer_one(sign_in):
    assert "The newest" in sign_in("grace").evaluate(SHOW_LIST)


HOSTILE = """
<script>document.title = "taken"</script> <img src=x onerror="document.title='taken'">
[click](javascript:document.title='taken') ![spy](http://192.0.2.1/pixel.png) [data](data:text/html,x)
<a href="javascript:alert(1)" onclick="alert(1)">raw</a>

| a | b |
|---|---|
| <b>x</b> | [ok](https://example.com/a_b_c) |
"""
SAMPLES = {
    "# A *b*": "<h3>A <em>b</em></h3>",
    "a **b** ~~c~~ `d <e>`": "<p>a <strong>b</strong> <del>c</del> <code>d &lt;e&gt;</code></p>",
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    "- a\n- b\n  - c": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "> a\n> b": "<blockquote><p>a\nb</p></blockquote>",
    "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
    "**open": "<p>**open</p>",
    "\\*not\\*": "<p>*not*</p>",
}


DRAW = """async (text) => {
  const address = document.querySelector('script[src*="playground"]').src.replace("main.js", "markdown.js");
  const { render } = await import(address);
  const place = document.createElement("div");
  place.append(render(text));
  document.body.append(place);
  const parts = [...place.querySelectorAll("*")];
  const found = {
    html: place.innerHTML,
    tags: parts.map((part) => part.tagName.toLowerCase()),
    links: parts.map((part) => part.getAttribute("href") ?? part.getAttribute("src")).filter(Boolean),
    handlers: parts.flatMap((part) => part.getAttributeNames().filter((name) => name.startsWith("on"))),
  };
  place.remove();
  return found;
}"""
TIRING = ["*a " * 1600, "[" * 4000, "> " * 2000, "`" * 4001 + "a", "_a_" * 1500, "- " * 2000 + "\n" * 500, "|-" * 2000]


def test_markdown_is_drawn_and_nothing_in_it_is_markup(sign_in):
    page = sign_in()
    found = page.evaluate(DRAW, HOSTILE)
    assert not {"script", "img", "b", "iframe", "style"} & set(found["tags"])
    # A picture is a link with its words: nothing is loaded that nobody clicked.
    assert found["links"] == ["http://192.0.2.1/pixel.png", "https://example.com/a_b_c"]
    assert found["handlers"] == []
    assert page.title() != "taken"
    for text, html in SAMPLES.items():
        assert page.evaluate(DRAW, text)["html"] == html, text
    # Text that only looks like much markup does not hold the page up.
    began = time.monotonic()
    for text in TIRING:
        page.evaluate(DRAW, text)
    assert time.monotonic() - began < 20
