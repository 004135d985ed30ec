"""aerodrome.client where things break: connections that are cut anywhere, gateways that are busy, answers that get lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import client as api
from aerodrome.client import Aerodrome, sse
from aerodrome.testing.http_rig import WAIT_SECONDS

QUICK = api.Retry(attempts=4, first_seconds=0.001, most_seconds=0.01, total_seconds=5)


@asynccontextmanager
async def cutting(url: str, lengths: Callable[[int], int]) -> AsyncIterator[tuple[str, list[int]]]:
    """Stand before a server and cut each connection after so many bytes of its answers; yield the address and the cuts."""
    target = httpx.URL(url)
    cuts: list[int] = []
    number = 0
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        task.add_done_callback(serving.discard)
        left = lengths(number)
        up_reader, up_writer = await asyncio.open_connection(target.host, target.port)

        async def forward() -> None:
            while data := await reader.read(65536):
                up_writer.write(data)

        forwarding = asyncio.create_task(forward())
        try:
            while left > 0 and (data := await up_reader.read(left)):
                left -= len(data)
                writer.write(data)
                await writer.drain()
            if left <= 0:
                cuts.append(number)
        finally:
            forwarding.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await forwarding
            for one in (up_writer, writer):
                one.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cuts
    finally:
        server.close()
        await server.wait_closed()
        for task in list(serving):
            task.cancel()
        if serving:
            await asyncio.wait(serving)


async def test_events_are_heard_once_each_and_in_order_though_every_connection_is_cut(http):
    token = await http.rig.token("shared", "user")
    async with asyncio.timeout(WAIT_SECONDS), Aerodrome(http.url, token) as direct:
        session = await direct.create_session()
        for number in range(5):
            await session.ask(f"[delta 3] {number}")
        events = session.events(start="beginning")
        async with aclosing(events):
            expected = [await anext(events)]
            while sum(event.type == "turn.ended" for event in expected) < 5:
                expected.append(await anext(events))

        # Each connection is given a few bytes more than the one before, so that the cuts fall anywhere in an event.
        async with (
            cutting(url=http.url, lengths=lambda number: 700 + 37 * (number % 40)) as (url, cuts),
            Aerodrome(url, token, retry=api.Retry(attempts=50, first_seconds=0.001, most_seconds=0.01)) as client,
        ):
            heard = []
            async with aclosing(client.session(session.session_id).events(start="beginning")) as events:
                async for event in events:
                    heard.append(event)
                    if len(heard) == len(expected):
                        break

    assert [event.cursor for event in heard] == [event.cursor for event in expected]
    assert len(cuts) > 5


async def test_a_streamed_turn_is_whole_though_its_stream_is_cut(http):
    token = await http.rig.token("shared", "user")
    async with asyncio.timeout(WAIT_SECONDS), Aerodrome(http.url, token) as direct:
        session_id = (await direct.create_session()).session_id
        async with (
            cutting(url=http.url, lengths=lambda number: 1500 + number) as (url, cuts),
            Aerodrome(url, token, retry=api.Retry(attempts=50, first_seconds=0.001, most_seconds=0.01)) as client,
        ):
            # The prompt is sent on a connection of its own; without idempotency it would be asked as often as it was cut.
            stream = client.session(session_id).stream("[delta 20]")
            text = "".join([part async for part in stream.text()])

        turns = await direct.session(session_id).turns()
    assert text == "".join(f"{number} " for number in range(20))
    assert stream.turn.status == "completed"
    assert len(turns) == 1
    assert cuts


def answering(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """Return a server that gives these answers, one to each request, and the requests that it had."""
    left, had = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        had.append(request)
        following = left.pop(0)
        if isinstance(following, Exception):
            raise following
        return following

    return httpx.MockTransport(answer), had


def problem(status: int, code: str, retryable: bool, **headers: str) -> httpx.Response:
    body = {"status": status, "code": code, "detail": "so it is", "retryable": retryable, "limit": 3}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): said for name, said in headers.items()})


MADE = {"session_id": "s1", "state": "idle", "a_later_member": {}}


async def test_a_call_that_changes_something_is_tried_again_with_the_same_key():
    transport, had = answering(
        httpx.ReadError("cut"),
        problem(503, "runtime_unavailable", True, Retry_After="0"),
        problem(429, "over_capacity", True, Retry_After="Thu, 01 Jan 2026 00:00:00 GMT"),
        httpx.Response(201, json=MADE),
    )
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        session = await client.create_session(title="once")

    assert session.session_id == "s1"
    assert len({request.headers["Idempotency-Key"] for request in had}) == 1
    assert [json.loads(request.content) for request in had] == [{"title": "once"}] * 4
    assert had[0].headers["Authorization"] == "Bearer t"


async def test_each_call_has_a_key_of_its_own():
    transport, had = answering(httpx.Response(201, json=MADE), httpx.Response(201, json=MADE))
    async with Aerodrome("http://gateway", "t", transport=transport) as client:
        await client.create_session()
        await client.create_session()
    assert len({request.headers["Idempotency-Key"] for request in had}) == 2


async def test_tries_are_bounded_and_the_last_error_is_told():
    transport, had = answering(*[problem(429, "over_capacity", True)] * 9)
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        with pytest.raises(api.ApiError) as refused:
            await client.list_sessions()
    assert len(had) == QUICK.attempts
    error = refused.value
    assert (error.status, error.code, error.retryable, error.details) == (429, "over_capacity", True, {"limit": 3})
    assert str(error) == "so it is"


async def test_a_gateway_that_is_not_there_is_told_as_lost_after_some_tries():
    transport, had = answering(*[httpx.ConnectError("refused")] * 9)
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        with pytest.raises(api.ConnectionLost, match="refused") as lost:
            await client.list_sessions()
    assert len(had) == QUICK.attempts
    assert lost.value.retryable


async def test_a_refusal_that_trying_again_cannot_mend_is_told_at_once():
    for refusal in (
        problem(409, "already_exists", False),
        problem(503, "some", False),
        problem(400, "params_invalid", False),
    ):
        transport, had = answering(refusal)
        async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
            with pytest.raises(api.ApiError):
                await client.create_session()
        assert len(had) == 1


async def test_retry_after_is_waited_for_and_one_beyond_the_time_for_the_call_is_told_at_once():
    transport, _ = answering(problem(429, "over_capacity", True, Retry_After="1"), httpx.Response(201, json=MADE))
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        began = time.monotonic()
        await client.create_session()
        assert time.monotonic() - began >= 1

    transport, had = answering(problem(429, "over_capacity", True, Retry_After="3600"))
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        with pytest.raises(api.ApiError):
            await client.create_session()
    assert len(had) == 1


async def test_an_answer_that_is_no_problem_document_is_told_by_its_status():
    transport, _ = answering(httpx.Response(404, text="<html>a proxy</html>"), httpx.Response(200, text="<html>"))
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        with pytest.raises(api.ApiError) as refused:
            await client.list_sessions()
        assert (refused.value.status, refused.value.code) == (404, "http_404")
        with pytest.raises(api.ApiError) as unknown:
            await client.list_sessions()
        assert unknown.value.code == "answer_unknown"


async def test_a_stream_that_only_breaks_is_given_up_after_some_tries():
    transport, had = answering(*[httpx.Response(200, content=b"retry: 1000\n\n")] * 9)
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        with pytest.raises(api.ConnectionLost):
            await anext(client.session("s1").events())
    assert len(had) == QUICK.attempts


async def test_a_stream_goes_on_from_where_the_gateway_said_it_is_also_before_its_first_event():
    event = b'id: c2\nevent: turn.ended\ndata: {"type": "turn.ended", "data": {}}\n\n'
    transport, had = answering(
        httpx.Response(200, content=b"retry: 1000\nid: c1\n\n"),
        httpx.Response(200, content=event + event[:30]),
        httpx.Response(200, content=event.replace(b"c2", b"c3")),
    )
    async with Aerodrome("http://gateway", "t", retry=QUICK, transport=transport) as client:
        events = client.session("s1").events()
        async with aclosing(events):
            assert [(await anext(events)).cursor, (await anext(events)).cursor] == ["c2", "c3"]
    assert [request.headers.get("Last-Event-ID") for request in had] == [None, "c1", "c2"]


STREAM = (
    b": hello\nretry: 250\nid: 1\n\nevent: a\ndata: x\ndata:  y\nid: 2\n\n"
    b"data\n\n:\nid: 3\nid: 4\0\nevent: b\ndata: caf\xc3\xa9\nunknown: z\n\nevent: never\n\ndata: late\n\ndata: torn"
)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@given(data=st.data())
def test_a_stream_is_read_the_same_however_it_is_cut(ending, data):
    stream = STREAM.replace(b"\n", ending)
    reader, found, at = sse.Reader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 20))
        found += reader.feed(stream[at : at + size])
        at += size

    assert [(one.event_id, one.kind, one.data) for one in found] == [
        ("2", "a", "x\n y"),
        ("2", "message", ""),
        ("3", "b", "café"),
        ("3", "message", "late"),
    ]
    assert reader.retry_seconds == 0.25


async def test_a_stream_of_a_turn_whose_end_passed_while_nobody_listened_ends_all_the_same(http, monkeypatch):
    monkeypatch.setattr("aerodrome.client.sessions._LAST_SECONDS", 0.2)
    async with asyncio.timeout(WAIT_SECONDS), Aerodrome(http.url, await http.rig.token("shared", "user")) as direct:
        session = await direct.create_session()
        (user,) = http.edge.users.users
        held = user.conversations[session.session_id]
        stream, heard = session.stream("[hold]"), []
        async for event in stream:
            heard.append(event.type)
            if event.type == "user.message":
                (guest,) = http.rig.gateway.guests
                guest.dismiss()
                await http.rig.settled(lambda: not held._readers.count)
                await session.abort()
                await http.rig.settled(lambda: not held.is_busy)
                held.log.clear()
                held._readers.begin_anew()

    assert stream.turn is not None
    assert stream.turn.status == "aborted"
    assert "assistant.message" in heard
    assert "turn.ended" not in heard
