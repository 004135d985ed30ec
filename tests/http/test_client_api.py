"""aerodrome.client beyond sessions: one-shot questions, forks, who calls, and requests that are done once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from aerodrome import client as api
from aerodrome.client import Aerodrome

QUICK = api.Retry(first_seconds=0.01, most_seconds=0.05)


@pytest.fixture
async def client(http) -> AsyncIterator[Aerodrome]:
    """A client of one user's."""
    async with Aerodrome(http.url, await http.rig.token("shared", "user"), retry=QUICK) as connected:
        yield connected


async def test_a_question_is_answered_in_a_session_that_is_gone_afterwards(client):
    turn = await client.ask("hello")

    assert (turn.status, turn.text) == ("completed", "hello")
    assert [one async for one in client.sessions()] == []


async def test_a_question_that_needs_an_answer_of_its_own_is_refused_with_what_to_do(client):
    with pytest.raises(api.ApiError, match="permissions") as refused:
        await client.ask("hello", permissions="ask")
    assert refused.value.status == 400


async def test_a_fork_is_a_session_of_its_own(client):
    session = await client.create_session(title="first")
    await session.ask("one")

    fork = await session.fork(title="second")

    assert fork.session_id != session.session_id
    assert (await fork.info()).title == "second"


async def test_a_program_learns_who_it_is_and_which_models_it_has(client):
    me = await client.me()

    assert (me.tenant, me.user, me.isolation) == ("shared", "user", "shared")
    assert all(model.provider in me.providers for model in await client.models())


async def test_a_prompt_whose_answer_was_lost_on_the_way_is_asked_once(http):
    lost: list[str] = []

    class Losing(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await super().handle_async_request(request)
            if request.url.path.endswith("/messages") and not lost:
                lost.append(request.headers["Idempotency-Key"])
                await answer.aread()
                raise httpx.ReadError("lost")
            return answer

    async with Aerodrome(http.url, await http.rig.token("shared", "user"), retry=QUICK, transport=Losing()) as client:
        session = await client.create_session()
        turn = await session.ask("once")

        assert lost
        assert turn.text == "once"
        assert [one.turn_id for one in await session.turns()] == [turn.turn_id]
