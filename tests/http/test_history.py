"""The history page by page: each event once and in order, and a page costs what it holds, however long the session is."""

from __future__ import annotations

import uuid

import pytest

from aerodrome.core.identity import Owner
from aerodrome.testing import scripted_runtime

from .scenes import make, say

OWNER = Owner("shared", "user")
NOISE = "session.usage_record"


def add(session_id: str, count: int, kind: str = "assistant.message") -> list[str]:
    """Have a session's runtime keep more events, each third of them noise; return the ids of those for readers."""
    journal, told = scripted_runtime._JOURNALS[session_id], []
    for number in range(count):
        is_noise = number % 3 == 0
        event = {
            "type": NOISE if is_noise else kind,
            "data": {"content": str(number)},
            "id": str(uuid.uuid4()),
            "parentId": journal[-1]["id"],
            "timestamp": "2026-01-01T00:00:01.000Z",
        }
        journal.append(event)
        told += [] if is_noise else [event["id"]]
    return told


@pytest.fixture
async def session(http, request):
    """A session of some events, as its link holds it or on disk: a caller, its path, and the ids of its events."""
    caller = await http.caller("shared")
    path = await make(caller, f"s-{uuid.uuid4()}")
    await say(caller, path, "hi", wait_seconds=5)
    session_id = path.rpartition("/")[2]
    first = [event["id"] for event in (await caller.get(f"{path}/history")).json()["events"]]
    told = [*first, *add(session_id, 450)]
    if request.param == "disk":
        await http.edge.users.close_user(OWNER)
    return caller, path, told


both = pytest.mark.parametrize("session", ["open", "disk"], indirect=True)


def read(http) -> list[int]:
    """Return how many events each call that read some has asked for; None for all of them."""
    calls = [call for runtime in http.rig.scripted.runtimes for call in runtime.calls]
    reading = ("session.eventLog.read", "sessions.readPersistedEvents", "session.getMessages")
    return [call.params.get("max") for call in calls if call.method in reading]


async def pages(caller, path: str, limit: int, after: str | None = None) -> list[list[str]]:
    found = []
    while True:
        answer = await caller.get(f"{path}/history", params={"limit": limit} | ({"after": after} if after else {}))
        page = answer.json()
        found.append([event["id"] for event in page["events"]])
        after = page["next"]
        if after is None:
            return found


@both
@pytest.mark.parametrize("limit", [25, 120, 700])
async def test_page_by_page_each_event_comes_once_in_its_order(session, limit):
    caller, path, told = session

    found = await pages(caller, path, limit)

    assert [one for page in found for one in page] == told
    assert {len(page) for page in found[:-1]} <= {limit}


@both
async def test_a_page_reads_from_its_runtime_no_more_than_it_holds(http, session):
    caller, path, told = session
    before = len(read(http))

    found = await pages(caller, path, 200)

    asked = read(http)[before:]
    assert None not in asked
    assert max(asked) <= 200
    # What is noise is read and left out: a third of what is kept here.
    assert sum(asked) <= 2 * len(told) + 200 * len(found) / 10


@both
@pytest.mark.parametrize("limit", [3, 120])
async def test_a_page_behind_a_cursor_of_an_earlier_gateway_is_found_and_the_next_goes_on_from_there(
    http, session, limit
):
    caller, path, told = session
    cursor = (await caller.get(f"{path}/history", params={"limit": 100})).json()["cursor"]
    http.edge.users.users[0].conversations[path.rpartition("/")[2]]._history._ends.clear()

    first = (await caller.get(f"{path}/history", params={"limit": limit, "after": cursor})).json()
    again = (await caller.get(f"{path}/history", params={"limit": limit, "after": cursor})).json()
    rest = await pages(caller, path, 1000, first["next"])

    assert first == again
    assert told[100:] == [event["id"] for event in first["events"]] + [one for page in rest for one in page]


@both
async def test_who_has_read_all_asks_for_what_came_since_and_reads_no_more_than_that(http, session):
    caller, path, _ = session
    last = (await caller.get(f"{path}/history", params={"after": (await _last(caller, path))})).json()
    assert (last["events"], last["next"]) == ([], None)
    more = add(path.rpartition("/")[2], 3)

    later = (await caller.get(f"{path}/history", params={"after": last["cursor"]})).json()

    assert [event["id"] for event in later["events"]] == more


async def _last(caller, path: str) -> str:
    after = None
    while True:
        answer = await caller.get(f"{path}/history", params={"limit": 1000} | ({"after": after} if after else {}))
        page = answer.json()
        if page["next"] is None:
            return page["cursor"]
        after = page["next"]


@both
async def test_a_cursor_that_leads_nowhere_reads_from_the_beginning(session):
    caller, path, told = session

    page = (await caller.get(f"{path}/history", params={"limit": 2, "after": "nothing"})).json()

    assert [event["id"] for event in page["events"]] == told[:2]


@pytest.mark.parametrize("session", ["open"], indirect=True)
async def test_behind_an_event_that_was_lost_with_its_runtime_comes_what_is_later_than_it(session):
    caller, path, told = session

    # It was between the first turn (second 0) and what came at second 1.
    page = (await caller.get(f"{path}/history", params={"limit": 2, "after": "lost_1767225600500"})).json()

    at = told.index(page["events"][0]["id"])
    assert at > 0
    assert [event["id"] for event in page["events"]] == told[at : at + 2]
