"""A gateway that is told to stop lets turns finish, and the next one goes on with every session."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from copilot._jsonrpc import JsonRpcError

from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess

from . import place as places
from .python_sdk import Programs, Recorder, begin_turn, say

pytestmark = pytest.mark.runtime


@pytest.fixture
def drained():
    """A demo that drains for up to half a minute."""
    with demo_process.running(environment={"AERODROME_DRAIN_SECONDS": "30"}) as running:
        yield running


async def begin(running: DemoProcess, programs: Programs, prompt: str):
    """Begin a turn; return the task that waits for it."""
    program = await programs.connect(running.principals[0])
    session = await program.create()
    heard = Recorder()
    session.on(heard)
    waiting = asyncio.create_task(say(session, prompt, 60))
    await heard.first("assistant.message_delta")
    return waiting


async def test_a_turn_finishes_and_is_heard_before_the_gateway_ends(drained):
    programs = Programs(drained)
    program = await programs.connect(drained.principals[0])
    other = await program.create()
    _, tool, turn = await begin_turn(program)  # it goes on until it is told otherwise, however slow the machine is
    drained.process.send_signal(signal.SIGTERM)

    async def refused() -> JsonRpcError:
        while True:
            try:
                await program.ask("session.send", {"sessionId": other.session_id, "prompt": "now?"})
            except JsonRpcError as error:
                return error

    async with asyncio.timeout(30):
        error = await refused()
    assert (error.code, error.data["code"], error.data["retryable"]) == (-32012, "draining", True)
    tool.may_answer.set()
    assert await turn == "tool said: a fact about the moon"
    assert await asyncio.to_thread(drained.process.wait, 30) == 0
    assert drained.leftovers() == []
    await programs.aclose()


async def test_a_second_signal_stops_at_once(drained):
    programs = Programs(drained)
    waiting = await begin(drained, programs, "[stream 1000 300]")
    drained.process.send_signal(signal.SIGTERM)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(_wait, drained, 1.0)
    started = time.monotonic()
    drained.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(drained.process.wait, 60) == 0
    assert time.monotonic() - started < 20, "less than it drains after one signal"
    assert drained.leftovers() == []
    waiting.cancel()
    await programs.aclose()


def _wait(running: DemoProcess, seconds: float) -> None:
    if not demo_process.wait_for(lambda: running.process.poll() is not None, seconds):
        raise TimeoutError


async def test_a_restarted_gateway_goes_on_with_every_session(tmp_path):
    ids: dict[str, list[str]] = {"user": [], "shared": []}
    for life in range(3):
        async with places.open_place(tmp_path / "state") as place:
            for tenant, known in ids.items():
                program = await place.connect(tenant)
                for born, session_id in enumerate(known):
                    resumed = await program.resume(session_id)
                    said = [f"life {number}" for number in range(born, life)]
                    assert await say(resumed, f"life {life}") == f"You said: life {life}"
                    assert await say(resumed, "[recall]") == " | ".join(_recalled(said, life))
                created = await program.create()
                assert await say(created, f"life {life}") == f"You said: life {life}"
                known.append(created.session_id)
                assert await program.list_ids() == set(known)


def _recalled(said: list[str], life: int) -> list[str]:
    """Return all prompts of a session that was asked what it remembers once in each life but its first."""
    first, *later = [*said, f"life {life}"]
    return [first, *(word for text in later for word in (text, "[recall]"))]
