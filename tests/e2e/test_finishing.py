"""A turn of a patient tenant outlives its SDK program, and the next program hears the answer."""

from __future__ import annotations

import asyncio
import time

import pytest

from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.testing.demo_process import Principal

from .python_sdk import FactTool, Program, Recorder
from .test_draining import Place

pytestmark = pytest.mark.runtime


@pytest.fixture(params=[("user", "full"), ("shared", "limited")], ids=["user", "shared"])
async def connect(request, tmp_path):
    """Connect programs of one user of a patient tenant."""
    isolation, trust = request.param
    async with demo.open_model() as model:
        settings = settings_module.load(
            None,
            listen="127.0.0.1:0",
            state_directory=tmp_path / "state",
            runtime={"environment": {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}},
            tenants={
                "patient": {
                    "isolation": isolation,
                    "trust": trust,
                    "providers": [model["base_url"]],
                    "client_loss": "finish",
                }
            },
        )
        async with app.open_application(settings) as application:
            key, token = identity.create_key(Owner("patient", "ann"), time.time())
            await application.stores.keys.add(key)
            place = Place(f"{application.host}:{application.port}", model)
            programs = []

            async def connected() -> Program:
                program = Program(place, Principal("patient", "ann", token, isolation), "copilot-cli")
                programs.append(program)
                await program.client.start()
                return program

            connected.services = application.services
            yield connected
            for program in programs:
                await program.client.force_stop()


async def test_an_answer_goes_on_and_is_heard_whole_by_the_program_that_comes_back(connect):
    before = await connect()
    session = await before.create()
    heard = Recorder()
    session.on(heard)
    await session.send("[stream 20 2]")
    await heard.first("assistant.message_delta")
    await before.client.force_stop()

    after = await connect()
    again = Recorder()
    await after.resume(session.session_id, on_event=again)

    answer = await again.first("assistant.message")
    assert answer.data.content == " ".join(str(number) for number in range(1, 21))
    await again.first("session.idle")
    ids = [event.id for _, event in again.notes]
    assert len(ids) == len(set(ids))
    heard_before = {event.id for _, event in heard.notes}
    assert not heard_before & set(ids)


async def test_an_answer_that_ended_meanwhile_is_heard_too(connect):
    before = await connect()
    session = await before.create()
    heard = Recorder()
    session.on(heard)
    await session.send("[stream 5 0.5]")
    await heard.first("assistant.message_delta")
    await before.client.force_stop()
    after = await connect()
    async with asyncio.timeout(10):
        while len(connect.services.finishing) or len(connect.services.residents):  # noqa: ASYNC110  it has no events
            await asyncio.sleep(0.01)

    again = Recorder()
    await after.resume(session.session_id, on_event=again)

    answer = await again.first("assistant.message")
    assert answer.data.content == "1 2 3 4 5"


async def test_a_tool_of_the_turn_is_answered_by_the_program_that_comes_back(connect):
    before = await connect()
    begun = asyncio.Event()

    class Waiting(FactTool):
        async def _tell(self, invocation):
            begun.set()
            await asyncio.get_running_loop().create_future()

    session = await before.create(tools=[Waiting(skip_permission=True).tool])
    await session.send('[tool fact {"topic": "the moon"}]')
    async with asyncio.timeout(10):
        await begun.wait()
    await before.client.force_stop()

    after = await connect()
    fact, again = FactTool(skip_permission=True), Recorder()
    resumed = await after.resume(session.session_id, tools=[fact.tool], on_event=again)
    pending = await after.ask("session.tools.listPendingRequests", {"sessionId": resumed.session_id})
    [call] = next(iter(value for value in pending.values() if isinstance(value, list)))
    answer = {"sessionId": resumed.session_id, "requestId": call["requestId"], "result": "told later"}
    await after.ask("session.tools.handlePendingToolCall", answer)

    said = await again.first("assistant.message", lambda event: "told later" in event.data.content)
    assert said.data.content == "tool said: told later"
