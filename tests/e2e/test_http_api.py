"""The HTTP API on the real runtime: the guide's own client, forks, usage, questions, and what a killed gateway leaves of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.testing import direct_and_through

pytestmark = pytest.mark.runtime
NODE_TESTS = Path(__file__).with_name("node")
CLI = [sys.executable, "-c", "from aerodrome.cli.main import main; main()"]
SECONDS = 60.0


def caller(demo, principal) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {principal.token}"}
    return httpx.AsyncClient(base_url=json.loads(demo.line)["http"], headers=headers, timeout=SECONDS)


@pytest.mark.node
def test_an_app_written_against_the_guide_works_when_it_is_pointed_here(demo, isolation):
    owner = demo.tenants(isolation)[0][0]
    done = subprocess.run(
        ["node", "guide.mjs"],
        cwd=NODE_TESTS,
        env={**os.environ, "AERODROME_URL": json.loads(demo.line)["http"], "AERODROME_TOKEN": owner.token},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["result"], said["first"], said["success"]) == ("analyzed", {"content": "one"}, True)
    assert said["second"] == {"content": "user messages: 2"}
    assert said["team"] == {"content": "team"}


async def test_a_fork_has_the_history_and_usage_is_counted(demo, isolation):
    owner = demo.tenants(isolation)[0][1]
    async with caller(demo, owner) as client:
        session = f"/v1/sessions/{(await client.post('/v1/sessions', json={'title': 'a'})).json()['session_id']}"
        assert (await client.post(f"{session}/messages", json={"prompt": "[say one]"})).json()["content"] == "one"
        forked = await client.post(f"{session}/fork", json={"title": "b"})
        assert forked.status_code == 201, forked.text
        branch = forked.headers["location"]
        said = await client.post(f"{branch}/messages", json={"prompt": "[count]"})
        origin = await client.post(f"{session}/messages", json={"prompt": "[count]"})
        told, after = list[dict](), ""
        while True:
            page = (await client.get(f"{session}/history", params={"limit": 2, "after": after})).json()
            told, after = [*told, *page["events"]], page["next"]
            if after is None:
                break
        whole = (await client.get(f"{session}/history")).json()["events"]
        session_usage = (await client.get(f"{session}/usage")).json()
        usage = (await client.get("/v1/usage")).json()

    assert (said.json()["content"], origin.json()["content"]) == ("user messages: 2",) * 2
    assert told == whole
    assert [one["data"]["content"] for one in told if one["type"] == "user.message"] == ["[say one]", "[count]"]
    assert session_usage["user_requests"] >= 2
    assert session_usage["models"][0]["input_tokens"] > 0
    assert usage["total"]["model_calls"] == 3
    assert usage["total"]["input_tokens"] > usage["total"]["output_tokens"] > 0


async def test_a_question_leaves_nothing_on_disk(demo, isolation):
    owner = demo.tenants(isolation)[1][0]
    async with caller(demo, owner) as client:
        answer = await client.post("/v1/ask", json={"prompt": "[say once]"})
        assert answer.json()["content"] == "once", answer.text
        session_id = answer.json()["session_id"]
        async with asyncio.timeout(SECONDS):
            while names_with(demo.directory, session_id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await client.get("/v1/sessions")).json()["sessions"] == []


def names_with(directory: Path, text: str) -> list[str]:
    """Return the paths below a directory whose last name holds a text."""
    found = []
    for place, directories, files in os.walk(directory):
        found += [f"{place}/{name}" for name in [*directories, *files] if text in name]
    return found


def journals(state: Path) -> list[Path]:
    """Return the journals of all sessions."""
    return [Path(path) for path in names_with(state, "events.jsonl")]


@asynccontextmanager
async def serving(config: Path, url: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run `aerodrome serve` until the block ends, or it was killed in it."""
    process = subprocess.Popen(  # noqa: ASYNC220
        [*CLI, "serve", "--config", str(config)], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(SECONDS), httpx.AsyncClient(base_url=url) as client:
            while True:
                assert process.poll() is None
                try:
                    await client.get("/healthz")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


@pytest.fixture
def port() -> Iterator[int]:
    """A port for the gateway of more than one life."""
    with direct_and_through.reserved_port() as reserved:
        yield reserved


async def test_what_a_killed_gateway_was_asked_is_not_asked_again_and_leaves_nothing(tmp_path, port):
    state = tmp_path / "state"
    url = f"http://127.0.0.1:{port}"
    async with demo.open_model() as model:
        key_file = tmp_path / "model.key"
        key_file.touch(0o600)
        key_file.write_text(model["api_key"])
        config = tmp_path / "aerodrome.toml"
        config.write_text(
            f"""
            listen = "127.0.0.1:0"
            state_directory = "{state}"
            drain_seconds = 0
            http.listen = "127.0.0.1:{port}"
            runtime.environment.COPILOT_OFFLINE = "true"
            providers.house = {{ base_url = "{model["base_url"]}", api_key = "file:{key_file}", models = ["{model["name"]}"] }}
            tenants.acme = {{ isolation = "shared", provider = "house" }}
            """
        )
        token = await _token(config)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=SECONDS) as client:
            async with serving(config, url) as process:
                kept = await client.post(
                    "/v1/sessions", json={"session_id": "kept"}, headers={"Idempotency-Key": "make"}
                )
                assert kept.status_code == 201, kept.text
                done = {"json": {"prompt": "[say done]"}, "headers": {"Idempotency-Key": "done"}}
                first = await client.post("/v1/sessions/kept/messages", **done)
                mid = {"json": {"prompt": "[stream 30 30] [say never]"}, "headers": {"Idempotency-Key": "mid"}}
                asks = [
                    asyncio.create_task(client.post("/v1/ask", json={"prompt": "[stream 30 30] [say never]"})),
                    asyncio.create_task(client.post("/v1/sessions/kept/messages", **mid)),
                ]
                async with asyncio.timeout(SECONDS):
                    while sum("never" in path.read_text() for path in journals(state)) < 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                process.kill()
                await asyncio.wait(asks)
            async with serving(config, url):
                again = await client.post("/v1/sessions/kept/messages", **done)
                unknown = await client.post("/v1/sessions/kept/messages", **mid)
                async with asyncio.timeout(SECONDS):
                    while names_with(state, "ask-"):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                listed = (await client.get("/v1/sessions")).json()["sessions"]
                history = (await client.get("/v1/sessions/kept/history")).json()["events"]

    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    assert (unknown.status_code, unknown.json()["code"]) == (409, "idempotency_outcome_unknown")
    assert [one["session_id"] for one in listed] == ["kept"]
    assert [one["data"]["content"] for one in history if one["type"] == "user.message"] == [
        "[say done]",
        "[stream 30 30] [say never]",
    ]


async def _token(config: Path) -> str:
    async with app.open_stores(settings_module.load(config)) as stores:
        key, token = identity.create_key(Owner("acme", "ann"), time.time())
        await stores.keys.add(key)
    return token
