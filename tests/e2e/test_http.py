"""HTTP sessions on real runtimes: a reader loses nothing over deaths, departures and restarts; what waits survives; webhooks.

One gateway process, started three times on the same state. What a reader has heard is held against what the runtime has written.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from aerodrome import app, demo, settings
from aerodrome.core import identity, webhook
from aerodrome.core.identity import Owner
from aerodrome.http import events
from aerodrome.testing import direct_and_through, process_table
from aerodrome.testing.http_rig import ServerEvent, read_events
from aerodrome.transport.asgi import AsgiServer

pytestmark = pytest.mark.runtime

SECONDS = 90.0
CLI = [sys.executable, "-c", "from aerodrome.cli.main import main; main()"]
OVER = ("completed", "failed", "aborted")


class Place:
    """A gateway process that serves HTTP, its configuration and its state."""

    def __init__(self, directory: Path, model: dict[str, Any], port: int, hook_port: int) -> None:
        self.config = directory / "aerodrome.toml"
        self.state = directory / "state"
        self.log = directory / "log"
        key = directory / "model.key"
        key.touch(mode=0o600)
        key.write_text(model["api_key"])
        master = directory / "master.key"
        master.touch(mode=0o600)
        master.write_text("a master key for tests, 32 or more")
        self.port = port
        self.hook = f"http://127.0.0.1:{hook_port}/tools"
        environment = {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}
        said = "\n".join(f'{name} = "{value}"' for name, value in environment.items())
        self.config.write_text(
            f'listen = "127.0.0.1:0"\nstate_directory = "{self.state}"\ndrain_seconds = 0\n'
            f'[http]\nlisten = "127.0.0.1:{self.port}"\n'
            f"stall_seconds = 0.5\n"
            f"[runtime]\nwarm_runtimes = 0\nidle_seconds = 1.0\n[runtime.environment]\n{said}\n"
            f'[providers.demo]\nbase_url = "{model["base_url"]}"\napi_key = "file:{key}"\nmodels = ["{model["name"]}"]\n'
            f'[tenants.acme]\nisolation = "user"\nprovider = "demo"\nwebhooks = ["{self.hook}"]\n'
        )
        self.environment = {**os.environ, "AERODROME_MASTER_KEY_FILE": str(master)}
        self.process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self.process = self._spawn()
        assert self.process.stdout is not None
        assert await asyncio.to_thread(self.process.stdout.readline), self.log.read_text()

    def _spawn(self) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            words = [*CLI, "serve", "--config", str(self.config)]
            return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment)

    def stop(self, sign: int = signal.SIGTERM) -> None:
        """Stop it."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(sign)
        self.process.wait(SECONDS)
        self.process.stdout.close()

    async def token(self, user: str) -> str:
        """Make a user's key."""
        key, token = identity.create_key(Owner("acme", user), time.time())
        async with app.open_stores(settings.load(self.config)) as stores:
            await stores.keys.add(key)
        return token

    def runtimes(self) -> list[int]:
        """Return the runtimes of this gateway; what one has just forked looks like it until it has become another program."""
        alike = [pid for pid in process_table.find(str(self.state), "environ") if b"runtime" in _command(pid)]
        return [pid for pid in alike if _parent(pid) not in (None, *alike)]

    def journal(self, session_id: str) -> list[dict[str, Any]]:
        """Return what a runtime has written of a session."""
        (path,) = self.state.glob(f"realms/*/copilot/session-state/{session_id}/events.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    async def written(self, session_id: str, kind: str, count: int = 1) -> None:
        """Wait until a runtime has written so many events of a type: it does so a moment after saying them."""

        def is_there() -> bool:
            with suppress(ValueError):
                return sum(event["type"] == kind for event in self.journal(session_id)) >= count
            return False

        await process_table.eventually(is_there, SECONDS)


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return process_table.parent_of(pid)
    return None


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return process_table.read(pid, "cmdline").split(b"\0")[0]
    return b""


class Reader:
    """Follows a session as a browser does: connects again with the last id, whatever ended the stream."""

    def __init__(self, caller: httpx.AsyncClient, session: str) -> None:
        self.heard: list[ServerEvent] = []
        self.connections = 0
        self._caller = caller
        self._session = session
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            last = self.heard[-1].event_id if self.heard else ""
            headers = {"Last-Event-ID": last} if last else {}
            with suppress(httpx.HTTPError):
                path = f"{self._session}/events"
                async with self._caller.stream("GET", path, params={"start": "beginning"}, headers=headers) as answer:
                    if answer.status_code == 200:
                        self.connections += 1
                        async for event in read_events(answer):
                            self.heard.append(event)
                            self._more.set()
            await asyncio.sleep(0.02)

    async def until(self, kind: str, count: int) -> None:
        """Wait until so many events of a type were heard."""
        async with asyncio.timeout(SECONDS):
            while sum(event.kind == kind for event in self.heard) < count:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def following(caller: httpx.AsyncClient, session: str) -> AsyncIterator[Reader]:
    reader = Reader(caller, session)
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.wait((task,))


def assert_whole(reader: Reader, journal: list[dict[str, Any]]) -> None:
    """Check that a reader has heard each event that a runtime has written once, in that order, and nothing twice."""
    heard = [event.event_id for event in reader.heard]
    assert len(set(heard)) == len(heard)
    kept = [event.event_id.partition("_")[0] for event in reader.heard if "." not in event.event_id]
    written = [event["id"] for event in journal if not events.is_noise(event["type"]) and not event.get("ephemeral")]
    assert [one for one in kept if one in written] == written


def whole_events(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Return id and type of each event of a stream that has come as a whole."""
    return re.findall(rb"id: ([^\n]+)\nevent: ([^\n]+)\ndata: [^\n]+\n\n", dechunked(raw))


def dechunked(raw: bytes) -> bytes:
    """Return the body of a chunked answer as far as it came (RFC 9112, section 7.1)."""
    rest, body = raw.partition(b"\r\n\r\n")[2], b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


class Service:
    """Answers a webhook."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        body = (await receive()).get("body", b"")
        headers = dict(scope["headers"])
        self.calls.append((headers[b"aerodrome-signature"].decode(), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"result": {"euros": 7}}'})


async def make(caller: httpx.AsyncClient, session_id: str, **options: Any) -> str:
    made = await caller.post("/v1/sessions", json={"session_id": session_id, **options})
    assert made.status_code == 201, made.text
    return f"/v1/sessions/{session_id}"


async def say(caller: httpx.AsyncClient, session: str, prompt: str, **more: Any) -> dict[str, Any]:
    answer = await caller.post(f"{session}/messages", json={"prompt": prompt, **more})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


async def over(caller: httpx.AsyncClient, session: str, turn: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(SECONDS):
        while True:
            found = await caller.get(f"{session}/turns/{turn['turn_id']}", params={"wait_seconds": 2})
            if found.json()["status"] in OVER:
                return found.json()
            await asyncio.sleep(0.02)


async def answer_tool(caller: httpx.AsyncClient, session: str, result: str) -> None:
    """Answer the call that waits, again where the gateway had not noticed yet that its runtime was killed."""
    async with asyncio.timeout(SECONDS):
        while True:
            while not (waiting := (await caller.get(f"{session}/requests")).json()["requests"]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            (asked,) = waiting
            assert asked["data"]["tool"] == "lookup"
            path = f"{session}/requests/{asked['request_id']}"
            answered = await caller.post(path, json={"kind": "tool", "result": result})
            if answered.status_code != 503:
                break
            assert answered.json()["retryable"] is True
    assert answered.status_code == 200, answered.text


TOOL = {"name": "lookup", "description": "looks something up"}


async def hibernated(place: Place) -> None:
    await process_table.eventually(lambda: not place.runtimes(), SECONDS)


async def kill(place: Place) -> None:
    """Kill the runtime that serves, once one that was hibernated before it is gone."""
    pid = await process_table.eventually(lambda: pids[0] if len(pids := place.runtimes()) == 1 else 0, SECONDS)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def port() -> Iterator[int]:
    with direct_and_through.reserved_port() as reserved:
        yield reserved


@pytest.mark.timeout(600)  # it is half a minute long on a quiet machine
async def test_nothing_is_lost_on_the_way_from_a_runtime_to_an_http_caller(tmp_path: Path, port: int) -> None:
    service = Service()
    hooks = AsgiServer(service, 16)
    async with demo.open_model() as model:
        place = Place(tmp_path, model, port, await hooks.start())
        await place.start()
        headers = {"Authorization": f"Bearer {await place.token('ann')}"}
        url = f"http://127.0.0.1:{place.port}"
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=SECONDS) as caller:
                await _webhook_is_called(place, caller, service)
                await _what_waits_survives_its_runtime(place, caller)
                await _a_slow_reader_is_dropped_and_misses_nothing(place, caller)
                await _a_reader_hears_all_of_it_once(place, caller)
                await _a_gateway_is_killed_in_a_turn(place, caller)
        finally:
            place.stop(signal.SIGINT)
            await hooks.aclose()


async def _webhook_is_called(place: Place, caller: httpx.AsyncClient, service: Service) -> None:
    tool = {"type": "webhook", "name": "price", "description": "a price", "url": place.hook}
    session = await make(caller, "hooked", tools=[tool])

    turn = await say(caller, session, '[tool price {"item": "tea"}]')

    assert (turn["status"], turn["content"]) == ("completed", 'tool said: {"euros":7}')
    ((signature, body),) = service.calls
    assert json.loads(body)["arguments"] == {"item": "tea"}
    words = [*CLI, "tenant", "webhook-secret", "acme", "--config", str(place.config)]
    told = await asyncio.to_thread(subprocess.check_output, words, text=True, env=place.environment)
    assert webhook.is_signed(told.strip(), time.time(), body, signature)


async def _what_waits_survives_its_runtime(place: Place, caller: httpx.AsyncClient) -> None:
    session = await make(caller, "waits", tools=[TOOL])
    turn = await say(caller, session, "[tool lookup {}]")
    assert turn["status"] == "waiting"
    await place.written("waits", "external_tool.requested")

    await kill(place)
    await answer_tool(caller, session, "42")

    found = await over(caller, session, turn)
    assert (found["status"], found["content"]) == ("completed", "tool said: 42")


async def _a_slow_reader_is_dropped_and_misses_nothing(place: Place, caller: httpx.AsyncClient) -> None:
    session = await make(caller, "slow")
    await say(caller, session, "first")
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        slow.setblocking(False)
        await loop.sock_connect(slow, ("127.0.0.1", place.port))
        bearer = caller.headers["Authorization"]
        head = f"GET {session}/events?start=beginning HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\n\r\n"
        await loop.sock_sendall(slow, head.encode())
        read = await loop.sock_recv(slow, 65536)
        while not any(kind == b"turn.ended" for _, kind in whole_events(read)):
            read += await loop.sock_recv(slow, 65536)
        for _ in range(2):
            await say(caller, session, "[size 4000000]")
        with suppress(ConnectionResetError):
            while part := await loop.sock_recv(slow, 65536):
                read += part
    heard = whole_events(read)
    assert 0 < sum(kind == b"turn.ended" for _, kind in heard) < 3, "dropped in the middle"
    ids = [one.decode() for one, _ in heard]

    reader = Reader(caller, session)
    reader.heard = [ServerEvent(one, "before", None) for one in ids]
    task = asyncio.create_task(reader.run())
    await place.written("slow", "assistant.turn_end", 3)
    journal = place.journal("slow")
    last = [event["id"] for event in journal if event["type"] == "assistant.turn_end"][-1]
    async with asyncio.timeout(SECONDS):
        while not any(event.event_id.startswith(last) for event in reader.heard):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait((task,))
    assert_whole(reader, journal)


async def _a_reader_hears_all_of_it_once(place: Place, caller: httpx.AsyncClient) -> None:
    session = await make(caller, "whole", tools=[TOOL], permissions="reject", instructions="Speak of tea only.")
    async with following(caller, session) as reader:
        await say(caller, session, "one")
        # The reader alone keeps no runtime alive.
        await hibernated(place)
        await say(caller, session, "two")
        await place.written("whole", "assistant.turn_end", 2)

        running = await say(caller, session, "[stream 200 30]", wait_seconds=0)
        await reader.until("assistant.message_delta", 20)
        await kill(place)
        failed = await over(caller, session, running)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "runtime_lost")
        assert failed["error"]["retryable"] is True
        assert (await say(caller, session, "three"))["content"] == "You said: three"

        waiting = await say(caller, session, "[tool lookup {}]")
        assert waiting["status"] == "waiting"
        await place.written("whole", "external_tool.requested")
        connections = reader.connections
        place.stop()
        await place.start()
        # Asked before anything was said in it: what waited is brought back.
        await answer_tool(caller, session, "43")
        await reader.until("session.idle", 4)
        assert reader.connections > connections
        after = await say(caller, session, "[tools]")
        await place.written("whole", "assistant.turn_end", 5)
        options = (await caller.get(session)).json()["options"]
        journal = place.journal("whole")
        said = [event["data"].get("content") for event in journal if event["type"] == "assistant.message"]

        # That of the one that waited over the restart among them.
        await reader.until("turn.ended", 6)
        assert_whole(reader, journal)
    assert "lookup" in after["content"]
    assert (options["permissions"], options["instructions"]) == ("reject", "Speak of tea only.")
    system = [event["data"]["content"] for event in journal if event["type"] == "system.message"]
    assert "Speak of tea only." in system[-1]
    assert "tool said: 43" in said


async def _a_gateway_is_killed_in_a_turn(place: Place, caller: httpx.AsyncClient) -> None:
    session, held = await make(caller, "killed"), await make(caller, "held", tools=[TOOL])
    page = httpx.AsyncClient(base_url=caller.base_url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=SECONDS)
    async with page, following(caller, session) as reader, following(caller, held) as other:
        token = caller.headers["Authorization"].removeprefix("Bearer ")
        assert (await page.post("/sign-in", data={"token": token})).status_code == 303
        await say(caller, session, "one")
        waiting = await say(caller, held, "[tool lookup {}]")
        await place.written("held", "external_tool.requested")
        running = await say(caller, session, "[stream 200 30]", wait_seconds=0)
        await reader.until("assistant.message_delta", 10)
        connections = reader.connections

        place.stop(signal.SIGKILL)
        await process_table.eventually(lambda: not place.runtimes(), SECONDS)
        await place.start()

        await reader.until("turn.ended", 2)
        lost = (await caller.get(f"{session}/turns/{running['turn_id']}")).json()
        await answer_tool(caller, held, "44")
        await other.until("turn.ended", 1)
        after = await say(caller, session, "two")
        await reader.until("turn.ended", 3)
        await place.written("killed", "assistant.turn_end", 2)
        signed_in = (await page.get("/v1/sessions")).status_code

        assert reader.connections > connections
        assert_whole(reader, place.journal("killed"))
        assert_whole(other, place.journal("held"))
    ends = [event.data["data"] for one in (reader, other) for event in one.heard if event.kind == "turn.ended"]
    assert [end["status"] for end in ends] == ["completed", "failed", "completed", "completed"]
    assert [end["turn_id"] for end in ends[1:]] == [one["turn_id"] for one in (running, after, waiting)]
    assert ends[1]["error"] == lost["error"] == {**lost["error"], "code": "runtime_lost", "retryable": True}
    assert after["content"] == "You said: two"
    assert (await over(caller, held, waiting))["content"] == "tool said: 44"
    assert signed_in == 200
