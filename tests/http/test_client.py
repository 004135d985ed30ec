"""aerodrome.client against the HTTP edge: sessions, turns, streams and answers as a Python program has them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

import pytest

from aerodrome import client as api
from aerodrome.client import Aerodrome
from aerodrome.testing.http_rig import WAIT_SECONDS

Connect = Callable[..., Awaitable[Aerodrome]]


@pytest.fixture
async def connect(http) -> AsyncIterator[Connect]:
    """Make clients, each as a user of a tenant; they are closed with the test."""
    async with AsyncExitStack() as stack, asyncio.timeout(WAIT_SECONDS):

        async def connected(tenant: str = "shared", user: str = "user", url: str = "") -> Aerodrome:
            token = await http.rig.token(tenant, user)
            retry = api.Retry(first_seconds=0.01, most_seconds=0.05)
            return await stack.enter_async_context(Aerodrome(url or http.url, token, retry=retry))

        yield connected


async def test_a_prompt_is_answered_with_its_turn(connect):
    client = await connect()
    session = await client.create_session(title="mine")

    turn = await session.ask("hello")

    assert (turn.status, turn.content, turn.text, turn.is_over) == ("completed", "hello", "hello", True)
    assert (await session.info()).title == "mine"
    assert [one.turn_id for one in await session.turns()] == [turn.turn_id]


async def test_a_turn_that_failed_says_so_where_its_text_is_wanted(connect):
    session = await (await connect()).create_session()

    turn = await session.ask("[fail]")

    assert turn.status == "failed"
    with pytest.raises(api.TurnFailed, match="failed") as failure:
        _ = turn.text
    assert failure.value.status == "failed"


async def test_a_streamed_turn_has_its_events_from_start_to_end_and_no_others(connect):
    session = await (await connect()).create_session()
    await session.ask("before")
    stream = session.stream("[delta 3]")

    kinds = [event.type async for event in stream]

    assert kinds[0] in ("turn.queued", "turn.started")
    assert kinds[-1] == "turn.ended"
    assert kinds.count("assistant.message_delta") == 3
    assert stream.turn is not None
    assert stream.turn.status == "completed"


async def test_the_text_of_a_stream_is_the_answer_in_parts(connect):
    session = await (await connect()).create_session()

    parts = [text async for text in session.stream("[delta 3]").text()]

    assert len(parts) == 3


async def test_a_stream_that_waits_its_turn_has_nothing_of_the_turn_before(connect):
    session = await (await connect()).create_session()
    held = await session.send("[hold]")
    stream = session.stream("second")
    events = []
    async with aclosing(aiter(stream)) as reading:
        async for event in reading:
            if event.type == "turn.queued":
                assert await session.abort()
            events.append(event)

    assert [event.type for event in events[:2]] == ["turn.queued", "turn.started"]
    assert {event.data["turn_id"] for event in events if "turn_id" in event.data} == {stream.turn.turn_id}
    assert (await session.turn(held.turn_id)).status == "aborted"


async def test_a_handler_answers_permissions(connect):
    asked = []

    def decide(request: api.Pending) -> bool:
        asked.append(request)
        return True

    session = await (await connect()).create_session(on_permission=decide)

    turn = await session.ask("[permit]")

    assert (turn.status, turn.content) == ("completed", "approve-once")
    assert [one.tool for one in asked] == ["lookup"]


async def test_a_handler_that_is_a_coroutine_answers_while_a_turn_streams(connect):
    async def decide(_: api.Pending) -> api.answering.Decision:
        await asyncio.sleep(0)
        return "reject"

    session = await (await connect()).create_session(on_permission=decide)
    stream = session.stream("[permit]")

    kinds = [event.type async for event in stream]

    assert stream.turn.content == "reject"
    assert "request.opened" in kinds


async def test_a_question_without_a_handler_waits_for_an_answer_and_the_turn_goes_on(connect):
    session = await (await connect()).create_session()

    turn = await session.ask("[ask userInput.request]")
    assert turn.status == "waiting"
    with pytest.raises(api.TurnFailed):
        _ = turn.text
    (asked,) = turn.pending
    assert asked.kind == "question"
    assert [one.request_id for one in await session.pending()] == [asked.request_id]
    await session.answer(asked, answer="blue")

    turn = await session.wait(turn)
    assert turn.status == "completed"
    assert "blue" in turn.text
    with pytest.raises(api.ApiError) as late:
        await session.answer(asked, answer="red")
    assert late.value.status == 404


async def test_sessions_are_listed_page_by_page_changed_and_deleted(connect):
    client = await connect()
    made = [(await client.create_session(title=f"number {number}")).session_id for number in range(3)]

    page = await client.list_sessions(limit=2)
    rest = await client.list_sessions(limit=2, after=page.next)
    assert sorted(one.session_id for one in (*page.sessions, *rest.sessions)) == sorted(made)
    assert rest.next is None
    assert sorted([one.session_id async for one in client.sessions()]) == sorted(made)

    session = client.session(made[0])
    assert (await session.change(title="other")).title == "other"
    await session.delete()
    await session.delete()  # gone already is as good
    with pytest.raises(api.ApiError) as missing:
        await session.info()
    assert (missing.value.status, missing.value.code, missing.value.retryable) == (404, "session_missing", False)


async def test_history_goes_on_into_events_without_gap(connect):
    session = await (await connect()).create_session()
    await session.ask("one")
    history = await session.history()

    await session.ask("two")

    said = []
    async with aclosing(session.events(after=history.cursor)) as events:
        async for event in events:
            said.append(event)
            if event.type == "assistant.message":
                break
    assert [event.data["content"] for event in history.events if event.type == "assistant.message"] == ["one"]
    assert said[-1].data["content"] == "two"
    assert not {event.cursor for event in said} & {event.cursor for event in history.events}


async def test_a_wrong_token_is_told_as_an_error_with_a_code(http):
    async with Aerodrome(http.url, "wrong") as client:
        with pytest.raises(api.ApiError) as refused:
            await client.list_sessions()
        assert (refused.value.status, refused.value.code) == (401, "authentication_failed")
        session = client.session("some")
        with pytest.raises(api.ApiError):
            await anext(session.events())


async def test_a_token_can_be_a_function_that_is_asked_before_each_call(http):
    tokens = [await http.rig.token("shared", "user")]

    async def token() -> str:
        return tokens[-1]

    async with Aerodrome(http.url, token) as client:
        await client.list_sessions()
        tokens.append("ended")
        with pytest.raises(api.ApiError):
            await client.list_sessions()


def test_importing_the_client_loads_no_server():
    program = (
        "import sys, aerodrome.client; "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "('fastapi', 'starlette', 'uvicorn', 'pydantic', 'sqlalchemy', 'typer', 'structlog')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=30)
    assert done.stdout == "[]\n"
