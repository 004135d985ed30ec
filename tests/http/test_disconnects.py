"""Callers who leave in the middle: of every call that waits or streams nothing is left, and what it began goes on.

Generated over the API's own document: a new call that waits or streams is not covered by nobody's fault but yours; say below how
it is made.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from aerodrome.http import turn_routes
from aerodrome.http.callers import Caller
from aerodrome.http.events import Event
from aerodrome.http.site import HttpSettings
from aerodrome.http.sse import StreamSettings
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events

from .scenes import make, say

SSE = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Waiting:
    """A call that waits while a turn runs; `begins`: the turn is its own."""

    method: str
    path: str
    begins: bool = False
    body: dict | None = None
    headers: dict[str, str] = field(default_factory=dict)
    #: What waits in the gateway for the turn ends with the turn.
    ends_with_turn: bool = False


#: By operation, and how: `json` waits, `sse` streams.
WAITING = {
    ("sendMessage", "json"): Waiting("POST", "/messages", True, {"prompt": "[hold]"}),
    ("sendMessage", "sse"): Waiting("POST", "/messages", True, {"prompt": "[hold]"}, SSE),
    ("getTurn", "json"): Waiting("GET", "/turns/{turn}?wait_seconds=60"),
    ("acquireLease", "json"): Waiting("POST", "/lease", body={"wait_seconds": 60}, ends_with_turn=True),
    ("streamEvents", "sse"): Waiting("GET", "/events?start=beginning"),
}


def waiting_operations(document: dict) -> set[tuple[str, str]]:
    """Return the calls that wait or stream, by what the document says of them."""
    found = set()
    for path, operations in document["paths"].items():
        if "{session_id}" not in path:
            continue  # a one-shot question has no session to go on with: test_asks.py
        for operation in operations.values():
            name = operation["operationId"]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            schema = document["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
            named = {one["name"] for one in operation.get("parameters", ())} | set(schema.get("properties", ()))
            if "wait_seconds" in named:
                found.add((name, "json"))
            if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
                found.add((name, "sse"))
    return found


async def test_every_call_that_waits_or_streams_is_tried_here(http):
    document = (await (await http.stranger()).get("/v1/openapi.json")).json()

    assert waiting_operations(document) == set(WAITING)


async def settled_at(http, baseline) -> None:
    """Wait until no more is held than then; less may be, where a connection was just being closed."""
    members = ("tasks", "descriptors", "routes", "links")

    def is_settled() -> bool:
        now = http.rig.baseline()
        return all(getattr(now, name) <= getattr(baseline, name) for name in members)

    async with asyncio.timeout(WAIT_SECONDS):
        while not is_settled():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("operation", WAITING, ids="-".join)
async def test_a_caller_who_leaves_in_the_middle_leaves_nothing_behind_and_the_turn_goes_on(http, operation):
    wanted = WAITING[operation]
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "first")
    turn = {} if wanted.begins else await say(caller, session, "[hold]", wait_seconds=0)
    (user,) = http.edge.users.users
    held = user.conversations["s1"]
    baseline = http.rig.baseline()

    other = await http.caller("shared")
    path = session + wanted.path.format(turn=turn.get("turn_id"))
    call = asyncio.create_task(leave_in_the_middle(other, wanted, path))
    await http.rig.settled(lambda: held.is_busy and len(http.edge._server._server.server_state.tasks) > 0)
    await asyncio.wait((call,), timeout=0.1)
    call.cancel()
    await asyncio.wait((call,))
    await other.aclose()

    assert held.is_busy, "the turn goes on"
    await http.rig.settled(lambda: held._readers.count == 0 and not http.rig.gateway.guests)
    is_late = wanted.begins or wanted.ends_with_turn
    if not is_late:
        await settled_at(http, baseline)
    assert (await caller.post(f"{session}/abort")).json() == {"aborted": True}
    await http.rig.settled(lambda: not held.is_busy)
    if is_late:
        await settled_at(http, baseline)
    replayed = []
    async with caller.stream("GET", f"{session}/events", params={"start": "beginning"}) as answer:
        async for event in read_events(answer):
            replayed.append(event.kind)
            if replayed.count("turn.ended") == 2:
                break
    assert replayed.count("user.message") == 2


async def leave_in_the_middle(caller, wanted: Waiting, path: str) -> None:
    async with caller.stream(wanted.method, path, json=wanted.body, headers=wanted.headers) as answer:
        async for _ in answer.aiter_bytes():
            pass


async def test_a_reader_that_stalls_loses_its_stream_and_its_connection_and_misses_nothing(open_http):
    http = await open_http(HttpSettings(stream=StreamSettings(stall_seconds=0.2)))
    caller = await http.caller("shared")
    session = await make(caller)
    await say(caller, session, "first")
    (user,) = http.edge.users.users
    where = urlsplit(http.url)
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        baseline = http.rig.baseline()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await loop.sock_connect(slow, (where.hostname, where.port))
        head = f"GET {session}/events HTTP/1.1\r\nHost: x\r\nAuthorization: {caller.headers['Authorization']}\r\n\r\n"
        await loop.sock_sendall(slow, head.encode())
        await http.rig.settled(lambda: user.conversations["s1"]._readers.count == 1)
        for number in range(3):
            await say(caller, session, f"[size 2000000] {number}")
        # Nobody has read a byte of it, and the connection is gone all the same.
        await settled_at(http, baseline)
    history = (await caller.get(f"{session}/history")).json()["events"]
    assert len([one for one in history if one["type"] == "assistant.message"]) == 4


async def test_a_reader_slower_than_the_log_hears_every_kept_event_once(http, monkeypatch):
    monkeypatch.setattr("aerodrome.http.events.LOG_BYTES", 20_000)
    caller = await http.caller("shared")
    session = await make(caller)
    (user,) = http.edge.users.users
    held = user.conversations["s1"]
    held.log.limit_bytes = 20_000
    reading = held.read_from("")
    heard = []
    for number in range(12):
        await say(caller, session, f"[size 3000] {number}")
        if number % 4 == 0:
            heard += await anext(reading)
    history = (await caller.get(f"{session}/history")).json()["events"]
    async with asyncio.timeout(WAIT_SECONDS):
        while {one["id"] for one in history} - {event.cursor.partition("_")[0] for event in heard}:
            heard += await anext(reading)
    await reading.aclose()

    kept = [event.cursor.partition("_")[0] for event in heard if event.is_kept]
    assert kept == [one["id"] for one in history]


async def test_a_reader_of_a_turn_that_is_slower_than_the_log_hears_all_of_it(http):
    caller = await http.caller("shared")
    session = await make(caller)
    (user,) = http.edge.users.users
    held = user.conversations["s1"]
    held.log.limit_bytes = 20_000
    turn = held.ask("[flood 12 3000]", "user")
    reading = held.read_turn(turn)
    heard = list(await anext(reading))
    await held.wait_over(turn)
    assert held.log.first > turn.position, "the log has let go of its beginning"

    async with asyncio.timeout(WAIT_SECONDS):
        async for batch in reading:
            heard += batch

    history = (await caller.get(f"{session}/history")).json()["events"]
    assert [one.cursor.partition("_")[0] for one in heard if one.is_kept] == [one["id"] for one in history]
    assert (heard[-1].kind, heard[-1].data["status"]) == ("turn.ended", "completed")


async def test_a_stream_of_a_turn_goes_on_when_another_turn_is_withdrawn(http):
    caller = await http.caller("shared")
    session = await make(caller)
    ends = []
    request = {"json": {"prompt": "[hold]"}, "headers": SSE}
    async with asyncio.timeout(WAIT_SECONDS), caller.stream("POST", f"{session}/messages", **request) as answer:
        async for event in read_events(answer):
            if event.kind == "user.message":
                other = await say(caller, session, "second", wait_seconds=0)
                assert (await caller.delete(f"{session}/turns/{other['turn_id']}")).status_code == 200
                await caller.post(f"{session}/abort")
            if event.kind == "turn.ended":
                ends.append(event.data["data"]["status"])

    assert ends == ["aborted"]


async def test_a_reader_who_is_gone_before_the_first_event_leaves_nothing_behind(http):
    caller = await http.caller("shared")
    await make(caller)
    (user,) = http.edge.users.users
    answer = turn_routes.stream(Caller(http.edge.site, user.principal, "?"), _nothing())
    assert len(http.rig.gateway.guests) == 1

    async def never(_) -> None:
        await asyncio.get_running_loop().create_future()

    async def left() -> dict:
        return {"type": "http.disconnect"}

    await answer({"type": "http"}, left, never)

    assert http.rig.gateway.guests == set()


async def _nothing():
    yield []


@pytest.mark.parametrize("start", ["beginning", "after"])
async def test_a_reader_who_waits_holds_nothing_of_the_history_it_has_read(http, start):
    caller = await http.caller("shared")
    session = await make(caller)
    for number in range(3):
        await say(caller, session, f"[size 1000] {number}")
    history = (await caller.get(f"{session}/history")).json()["events"]
    (user,) = http.edge.users.users
    held = user.conversations["s1"]
    held.log.clear()
    wanted = {"start": "beginning"} if start == "beginning" else {"after": history[0]["id"]}

    async with asyncio.timeout(WAIT_SECONDS), caller.stream("GET", f"{session}/events", params=wanted) as answer:
        async for event in read_events(answer):
            if event.data.get("id") == history[-1]["id"]:
                break
        await http.rig.settled(lambda: held._readers.count == 1)
        gc.collect()
        left = [one for one in gc.get_objects() if isinstance(one, Event) and one.position < 0]

    assert left == []


async def test_a_long_history_is_read_in_parts_each_event_once(http, monkeypatch):
    monkeypatch.setattr("aerodrome.http.reading._HISTORY_BYTES", 3000)
    caller = await http.caller("shared")
    session = await make(caller)
    for number in range(6):
        await say(caller, session, f"[size 1000] {number}")
    history = (await caller.get(f"{session}/history")).json()["events"]
    (user,) = http.edge.users.users
    held = user.conversations["s1"]
    held.log.clear()

    reading, parts = held.read_from(""), []
    async with asyncio.timeout(WAIT_SECONDS):
        while sum(map(len, parts)) < len(history):
            parts.append(await anext(reading))
    await reading.aclose()

    heard = [event.cursor.partition("_")[0] for part in parts for event in part]
    assert heard == [one["id"] for one in history]
    assert max(sum(len(event.sse) for event in part) for part in parts) < 3000 + 1500
