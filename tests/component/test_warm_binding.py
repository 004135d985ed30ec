"""A warm runtime of the real release: bound to a realm it works in that realm's directories, and nowhere else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aerodrome import demo
from aerodrome.adapters.distribution import locate
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Isolation
from aerodrome.fleet import spec
from aerodrome.fleet.pool import RuntimePool
from aerodrome.fleet.spec import HealthSettings
from aerodrome.ports.fleet import RuntimeHandle
from aerodrome.testing import rig as rigs
from aerodrome.transport import control
from aerodrome.transport.control import ControlLink

pytestmark = pytest.mark.runtime

ANN, BEN = Realm("user:acme/ann", Isolation.USER), Realm("user:acme/ben", Isolation.USER)
#: What the runtime writes at its start, before it is anybody's: an id of the machine.
OF_NOBODY = {"home/.cache/Microsoft/DeveloperTools/deviceid"}


@pytest.fixture
async def pool(tmp_path) -> AsyncIterator[RuntimePool]:
    release = await asyncio.to_thread(locate.locate)
    settings = rigs.fleet_settings(
        tmp_path,
        entry=release.entry,
        environment={"COPILOT_OFFLINE": "true"},
        ready_seconds=20.0,
        warm_runtimes=1,
        health=HealthSettings(0),
    )
    opened = RuntimePool(ProcessHost(), settings)
    opened.start()
    yield opened
    await opened.aclose()
    assert os.listdir(tmp_path / "runtimes") == []


@pytest.fixture
async def model() -> AsyncIterator[dict[str, Any]]:
    async with demo.open_model() as opened:
        yield opened


class Program:
    """Talks to one runtime as the gateway would."""

    link: ControlLink

    def __init__(self, model: dict[str, Any], handle: RuntimeHandle) -> None:
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Event()
        self._model = model
        self._handle = handle

    def parameters(self, session_id: str) -> dict[str, Any]:
        provider = {"type": "openai", "baseUrl": self._model["base_url"], "apiKey": self._model["api_key"]}
        return {
            "sessionId": session_id,
            "model": self._model["name"],
            "provider": provider,
            "streaming": True,
            "workingDirectory": str(self._handle.work_directory),
        }

    def hear(self, method: str, body: bytes) -> None:
        if method == "session.event":
            self.events.append(msgspec.json.decode(body)["params"]["event"])
            self.changed.set()

    async def say(self, session_id: str, prompt: str) -> str:
        """Have a turn; return the answer."""
        self.events.clear()
        await self.link.call("session.send", {"sessionId": session_id, "prompt": prompt})
        async with asyncio.timeout(20):
            while not any(event["type"] == "session.idle" for event in self.events):
                self.changed.clear()
                await self.changed.wait()
        return "".join(event["data"]["content"] for event in self.events if event["type"] == "assistant.message")


@asynccontextmanager
async def program(handle: RuntimeHandle, model: dict[str, Any]) -> AsyncIterator[Program]:
    opened = Program(model, handle)
    opened.link, _ = await control.open_control(handle.host, handle.port, handle.token, opened.hear)
    try:
        yield opened
    finally:
        await opened.link.aclose()


async def eventually(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  processes have no events for tests
            await asyncio.sleep(0.005)


def is_warm(pool: RuntimePool) -> bool:
    return pool.describe_pool().warm == 1


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


async def acquire_warm(pool: RuntimePool, realm: Realm) -> RuntimeHandle:
    await eventually(lambda: is_warm(pool))
    [waiting] = pool._warm.runtimes
    handle = await pool.acquire(realm)
    assert handle.runtime_id == waiting.runtime_id
    return handle


async def test_sessions_of_a_bound_runtime_are_in_its_realm_and_nothing_of_them_is_elsewhere(pool, model, tmp_path):
    handle = await acquire_warm(pool, ANN)
    realm = spec.directories_of(ANN, tmp_path)
    before = spec.placeholders(handle.runtime_id, tmp_path).root
    async with program(handle, model) as ann:
        await ann.link.call("session.create", ann.parameters("of-ann"))
        assert await ann.say("of-ann", "remember the moon") == "You said: remember the moon"
        state = realm.copilot_home / "session-state" / "of-ann"
        assert (state / "events.jsonl").is_file()
        assert list(state.glob("inuse.*"))
        command = "touch in-work; touch ~/in-home; touch $TMPDIR/in-tmp; touch $COPILOT_HOME/in-copilot"
        await ann.link.call("session.shell.exec", {"sessionId": "of-ann", "command": command})
        wanted = {"work/in-work", "home/in-home", "tmp/in-tmp", "copilot/in-copilot"}
        await eventually(lambda: wanted <= files(realm.root))
        await ann.link.call("session.detach", {"sessionId": "of-ann"})
    assert files(before) <= OF_NOBODY
    assert not OF_NOBODY & files(realm.root)
    pool.retire(handle, "done")
    await eventually(lambda: not before.exists())
    assert (state / "events.jsonl").is_file()


async def test_a_session_goes_on_on_the_next_warm_runtime_and_another_realm_sees_nothing_of_it(pool, model):
    first = await acquire_warm(pool, ANN)
    async with program(first, model) as ann:
        await ann.link.call("session.create", ann.parameters("of-ann"))
        await ann.say("of-ann", "remember the moon")
        await ann.link.call("session.detach", {"sessionId": "of-ann"})
    pool.retire(first, "idle")

    second = await acquire_warm(pool, ANN)
    assert second.runtime_id != first.runtime_id
    async with program(second, model) as ann:
        await ann.link.call("session.resume", ann.parameters("of-ann"))
        assert (await ann.say("of-ann", "[recall]")).startswith("remember the moon")

    other = await acquire_warm(pool, BEN)
    async with program(other, model) as ben:
        assert await ben.link.call("session.list") == {"sessions": []}
        with pytest.raises(control.RemoteError, match="not found"):
            await ben.link.call("session.resume", ben.parameters("of-ann"))
