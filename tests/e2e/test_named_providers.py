"""Unchanged SDK programs without a provider of their own: the gateway's serves them, and its key never comes near them."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from aerodrome.testing import demo_model
from aerodrome.testing.demo_model import DemoModel
from aerodrome.transport.asgi import AsgiServer

from . import place as places
from .python_sdk import say

pytestmark = pytest.mark.runtime

KEYS = [f"sk-canary-e2e-{number}-5d21e8" for number in range(3)]


class Endpoint:
    """The demo model behind a key that changes."""

    def __init__(self) -> None:
        self.key = KEYS[0]
        self.accepted = 0
        self._model = demo_model.create_app(DemoModel(api_key=None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (b"authorization", f"Bearer {self.key}".encode()) in scope["headers"]:
            self.accepted += 1
            await self._model(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


class House:
    """A gateway whose tenants use one endpoint, with its key in a file."""

    def __init__(self, endpoint: Endpoint, key_file: Path, place: places.Place) -> None:
        self.endpoint, self.key_file, self.place = endpoint, key_file, place

    def rotate(self, key: str) -> None:
        """Have the endpoint take another key, and the file hold it."""
        write(self.key_file, key)
        self.endpoint.key = key

    async def wait_hibernated(self) -> None:
        """Wait until the runtime that served last is stopped."""
        pool: Any = self.place.application.fleet
        await self.place.settled(lambda: not pool.handles())


def write(path: Path, key: str) -> None:
    path.touch(mode=0o600)
    path.write_text(f"{key}\n")


@asynccontextmanager
async def open_house(tmp_path: Path, sandbox: dict[str, Any] | None = None, **provider: Any):
    async with AsyncExitStack() as stack:
        endpoint = Endpoint()
        server = AsgiServer(endpoint, 100)
        stack.push_async_callback(server.aclose)
        url = f"http://127.0.0.1:{await server.start()}/v1"
        write(tmp_path / "key", KEYS[0])
        house = {"base_url": url, "api_key": f"file:{tmp_path / 'key'}", "models": ["demo"], **provider}
        policy = {"provider": "house", "providers": []}
        runtime = {"idle_seconds": 0.5, "warm_runtimes": 0}
        sections = {"providers": {"house": house}, "secrets": {"cache_seconds": 3600}}
        opening = places.open_place(tmp_path / "state", policy, runtime, sandbox, **sections)
        place = await stack.enter_async_context(opening)
        yield House(endpoint, tmp_path / "key", place)


@pytest.mark.parametrize("tenant", ["user", "shared"])
async def test_a_program_without_a_provider_has_turns_through_a_rotated_key_and_hibernation(tmp_path, tenant):
    async with open_house(tmp_path) as house:
        program = await house.place.connect(tenant)
        heard = program.overhear()
        session = await program.client.create_session(streaming=True)
        assert await say(session, "hello") == "You said: hello"

        house.rotate(KEYS[1])
        assert await say(session, "rotated") == "You said: rotated"

        await house.wait_hibernated()
        house.rotate(KEYS[2])
        assert await say(session, "awake") == "You said: awake"

        resumed = await program.client.resume_session(session.session_id, streaming=True)
        assert await say(resumed, "resumed") == "You said: resumed"
        assert house.endpoint.accepted >= 4
        messages = await program.ask("session.getMessages", {"sessionId": session.session_id})
        told = repr([heard, messages])
        assert "assistant.message" in told
        assert [key for key in KEYS if key in told] == []
        assert keys_on_disk(house.place.state) == []
        grants = house.place.application.services.supplier.grants
        assert [key for key in grants._keys.values() if key in told] == []


@pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="NOT TESTED: named providers in the sandbox, for bubblewrap is missing; install it (make setup tries to)",
)
async def test_a_runtime_in_a_sandbox_reaches_the_provider_that_its_policy_only_names(tmp_path):
    async with open_house(tmp_path, {"mode": "bubblewrap"}) as house:
        program = await house.place.connect("user")
        session = await program.client.create_session(streaming=True)
        assert await say(session, "hello") == "You said: hello"
        assert house.endpoint.accepted > 0
        [handle] = house.place.application.fleet.handles()
        assert handle.dial is not None, "it has a network of its own"


def keys_on_disk(state: Path) -> list[Path]:
    """Return the files of a gateway and its runtimes that hold a key."""
    files = {path: text for path, text in places.read_all(state).items() if text}
    assert len(files) > 3
    return [path for path, text in files.items() if any(key.encode() in text for key in KEYS)]
