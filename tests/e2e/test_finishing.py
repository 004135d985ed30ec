"""A turn of a patient tenant outlives its SDK program, and the next program hears the answer."""

from __future__ import annotations

import asyncio

import pytest

from . import place as places
from .python_sdk import FactTool, Recorder

pytestmark = pytest.mark.runtime


@pytest.fixture(params=["user", "shared"])
def tenant(request):
    """Where runtimes are one user's, and where strangers share them."""
    return request.param


@pytest.fixture
async def place(tmp_path):
    """A gateway whose tenants' turns outlive their clients."""
    async with places.open_place(tmp_path / "state", {"client_loss": "finish"}) as opened:
        yield opened


async def test_an_answer_goes_on_and_is_heard_whole_by_the_program_that_comes_back(place, tenant):
    before = await place.connect(tenant)
    session = await before.create()
    heard = Recorder()
    session.on(heard)
    await session.send("[stream 20 2]")
    await heard.first("assistant.message_delta")
    await before.client.force_stop()

    after = await place.connect(tenant)
    again = Recorder()
    await after.resume(session.session_id, on_event=again)

    answer = await again.first("assistant.message")
    assert answer.data.content == " ".join(str(number) for number in range(1, 21))
    await again.first("session.idle")
    ids = [event.id for _, event in again.notes]
    assert len(ids) == len(set(ids))
    heard_before = {event.id for _, event in heard.notes}
    assert not heard_before & set(ids)


async def test_an_answer_that_ended_meanwhile_is_heard_too(place, tenant):
    before = await place.connect(tenant)
    session = await before.create()
    heard = Recorder()
    session.on(heard)
    await session.send("[stream 5 2]")  # it must not have ended before its program is gone
    await heard.first("assistant.message_delta")
    await before.client.force_stop()
    after = await place.connect(tenant)
    services = place.application.services
    await place.settled(lambda: not len(services.finishing) and not len(services.residents))

    again = Recorder()
    await after.resume(session.session_id, on_event=again)

    answer = await again.first("assistant.message")
    assert answer.data.content == "1 2 3 4 5"


async def test_a_tool_of_the_turn_is_answered_by_the_program_that_comes_back(place, tenant):
    before = await place.connect(tenant)
    begun = asyncio.Event()

    class Waiting(FactTool):
        async def _tell(self, invocation):
            begun.set()
            await asyncio.get_running_loop().create_future()

    session = await before.create(tools=[Waiting(skip_permission=True).tool])
    await session.send('[tool fact {"topic": "the moon"}]')
    async with asyncio.timeout(30):
        await begun.wait()
    await before.client.force_stop()

    after = await place.connect(tenant)
    fact, again = FactTool(skip_permission=True), Recorder()
    resumed = await after.resume(session.session_id, tools=[fact.tool], on_event=again)
    pending = await after.ask("session.tools.listPendingRequests", {"sessionId": resumed.session_id})
    [call] = next(iter(value for value in pending.values() if isinstance(value, list)))
    answer = {"sessionId": resumed.session_id, "requestId": call["requestId"], "result": "told later"}
    await after.ask("session.tools.handlePendingToolCall", answer)

    said = await again.first("assistant.message", lambda event: "told later" in event.data.content)
    assert said.data.content == "tool said: told later"
