"""A gateway that is told to stop lets turns finish, and the next one goes on with every session."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from copilot._jsonrpc import JsonRpcError

from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess, Principal

from .python_sdk import Program, Programs, Recorder, say

pytestmark = pytest.mark.runtime


@pytest.fixture
def drained():
    """A demo that drains for up to half a minute."""
    with demo_process.running(environment={"AERODROME_DRAIN_SECONDS": "30"}) as running:
        yield running


async def begin(running: DemoProcess, programs: Programs, prompt: str):
    """Begin a turn; return its program, its session, the task that waits for it, and another session of the program."""
    program = await programs.connect(running.principals[0])
    session, other = await program.create(), await program.create()
    heard = Recorder()
    session.on(heard)
    waiting = asyncio.create_task(say(session, prompt, 60))
    await heard.first("assistant.message_delta")
    return program, session, waiting, other


async def test_a_turn_finishes_and_is_heard_before_the_gateway_ends(drained):
    programs = Programs(drained)
    program, _, waiting, other = await begin(drained, programs, "[stream 20 2]")
    drained.process.send_signal(signal.SIGTERM)

    async def refused() -> JsonRpcError:
        while True:
            try:
                await program.ask("session.send", {"sessionId": other.session_id, "prompt": "now?"})
            except JsonRpcError as error:
                return error

    async with asyncio.timeout(5):
        error = await refused()
    assert (error.code, error.data["code"], error.data["retryable"]) == (-32012, "draining", True)
    assert (await waiting).endswith("19 20")
    assert await asyncio.to_thread(drained.process.wait, 10) == 0
    assert drained.leftovers() == []
    await programs.aclose()


async def test_a_second_signal_stops_at_once(drained):
    programs = Programs(drained)
    _, _, waiting, _ = await begin(drained, programs, "[stream 1000 300]")
    drained.process.send_signal(signal.SIGTERM)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(_wait, drained, 1.0)
    started = time.monotonic()
    drained.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(drained.process.wait, 10) == 0
    assert time.monotonic() - started < 5
    assert drained.leftovers() == []
    waiting.cancel()
    await programs.aclose()


def _wait(running: DemoProcess, seconds: float) -> None:
    if not demo_process.wait_for(lambda: running.process.poll() is not None, seconds):
        raise TimeoutError


async def test_a_restarted_gateway_goes_on_with_every_session(tmp_path):
    async with demo.open_model() as model:
        settings = settings_module.load(
            None,
            listen="127.0.0.1:0",
            state_directory=tmp_path / "state",
            runtime={"environment": {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}},
            tenants={
                "one": {"isolation": "user", "trust": "full", "providers": [model["base_url"]]},
                "two": {"isolation": "shared", "providers": [model["base_url"]]},
            },
        )
        tokens: dict[str, str] = {}
        ids: dict[str, list[str]] = {"one": [], "two": []}
        for life in range(3):
            async with app.open_application(settings) as application:
                place = Place(f"{application.host}:{application.port}", model)
                for tenant, known in ids.items():
                    if tenant not in tokens:
                        key, tokens[tenant] = identity.create_key(Owner(tenant, "ann"), time.time())
                        await application.stores.keys.add(key)
                    program = Program(place, Principal(tenant, "ann", tokens[tenant], ""), "copilot-cli")
                    await program.client.start()
                    for born, session_id in enumerate(known):
                        resumed = await program.resume(session_id)
                        said = [f"life {number}" for number in range(born, life)]
                        assert await say(resumed, f"life {life}") == f"You said: life {life}"
                        assert await say(resumed, "[recall]") == " | ".join(_recalled(said, life))
                    created = await program.create()
                    assert await say(created, f"life {life}") == f"You said: life {life}"
                    known.append(created.session_id)
                    assert await program.list_ids() == set(known)
                    await program.client.force_stop()


def _recalled(said: list[str], life: int) -> list[str]:
    """Return all prompts of a session that was asked what it remembers once in each life but its first."""
    first, *later = [*said, f"life {life}"]
    return [first, *(word for text in later for word in (text, "[recall]"))]


class Place:
    """What a program wants to know of a gateway."""

    def __init__(self, sdk: str, model: dict[str, str]) -> None:
        self.sdk = sdk
        self.model = model
