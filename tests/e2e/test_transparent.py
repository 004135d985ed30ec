"""The transparent policy against the runtime itself: each scenario runs at both, and nobody may tell the difference.

The gateway is one process for the whole file, its upstream a port; every scenario has a fresh runtime there, and another one
that it talks to directly. Scenarios are in the files beside this one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aerodrome.testing import direct_and_through
from aerodrome.testing.direct_and_through import Endpoint, GatewayProcess, Normaliser, RuntimeProcess, wire

from . import transparent_providers, transparent_raw, transparent_sessions, transparent_turns
from .transparent_program import VARYING, Model, Scenario, program, say
from .transparent_raw import connect_body

pytestmark = pytest.mark.runtime

UPSTREAM_TOKEN = "token-of-the-runtime"
CLIENT_TOKEN = "token-of-the-client"
SCENARIOS = (
    *transparent_turns.SCENARIOS,
    *transparent_sessions.SCENARIOS,
    *transparent_providers.SCENARIOS,
    *transparent_raw.SCENARIOS,
)


@pytest.fixture(scope="module")
def upstream_port() -> Iterator[int]:
    """Where the gateway expects its runtime."""
    with direct_and_through.reserved_port() as port:
        yield port


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """The demo model."""
    command = [sys.executable, "-m", "aerodrome.testing.demo_model", "--exit-with-parent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


@pytest.fixture(scope="module")
def gateway(upstream_port: int) -> Iterator[GatewayProcess]:
    """A transparent gateway with tokens on both sides."""
    tokens = {"AERODROME_CLIENT_TOKEN": CLIENT_TOKEN, "AERODROME_UPSTREAM_TOKEN": UPSTREAM_TOKEN}
    with direct_and_through.running_gateway("--upstream", f"127.0.0.1:{upstream_port}", tokens=tokens) as running:
        yield running


@pytest.fixture(scope="module")
def open_gateway(upstream_port: int) -> Iterator[GatewayProcess]:
    """One that asks its clients for no token, before the same runtimes."""
    tokens = {"AERODROME_UPSTREAM_TOKEN": UPSTREAM_TOKEN}
    with direct_and_through.running_gateway("--upstream", f"127.0.0.1:{upstream_port}", tokens=tokens) as running:
        yield running


async def outcome_of(scenario: Scenario, endpoint: Endpoint, runtime: RuntimeProcess, model: Model) -> Any:
    names = {str(runtime.home): "(home)", endpoint.address: "(address)", model["base_url"]: "(model)"}
    return Normaliser(names, VARYING).apply(await scenario(endpoint, model))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_program_cannot_tell_the_gateway_from_the_runtime(
    scenario: Scenario, gateway: GatewayProcess, upstream_port: int, model: Model
) -> None:
    async def directly() -> Any:
        async with direct_and_through.running_runtime(CLIENT_TOKEN) as runtime:
            return await outcome_of(scenario, runtime.endpoint, runtime, model)

    async def through() -> Any:
        async with direct_and_through.running_runtime(UPSTREAM_TOKEN, upstream_port) as runtime:
            return await outcome_of(scenario, gateway.endpoint, runtime, model)

    there, here = await asyncio.gather(directly(), through())

    assert here == there


async def test_where_no_token_is_asked_for_any_token_and_none_will_do(
    open_gateway: GatewayProcess, upstream_port: int, model: Model
) -> None:
    endpoint = open_gateway.endpoint
    async with direct_and_through.running_runtime(UPSTREAM_TOKEN, upstream_port):
        async with program(endpoint, model) as running:
            assert await say(await running.create(), "[say open]") == "open"
        async with program(Endpoint(endpoint.host, endpoint.port, "whatever"), model) as running:
            assert (await running.client.ping("hi")).message == "pong: hi"
        async with wire(endpoint) as link:
            assert b"pong" in await link.ask("ping")
            assert b'"ok":true' in await link.ask("connect", {"token": "whatever"})
            assert b"pong" in await link.ask("ping")
        async with wire(endpoint) as link:
            link.send(b"{nope")
            assert b"line 1 column 2" in (await link.hear())[0]


async def test_a_killed_runtime_closes_its_clients_at_once_and_the_next_one_serves(
    gateway: GatewayProcess, upstream_port: int, model: Model
) -> None:
    async with (
        direct_and_through.running_runtime(UPSTREAM_TOKEN, upstream_port) as runtime,
        wire(gateway.endpoint) as link,
    ):
        link.send(connect_body({"token": CLIENT_TOKEN}))
        await link.hear()
        killed_at = time.monotonic()
        runtime.process.send_signal(signal.SIGKILL)
        assert await link.hear_end() == []
        assert time.monotonic() - killed_at < 5
    async with (
        direct_and_through.running_runtime(UPSTREAM_TOKEN, upstream_port),
        program(gateway.endpoint, model) as running,
    ):
        assert await say(await running.create(), "[say back]") == "back"


async def test_a_spawned_runtime_serves_and_leaves_nothing_behind(model: Model) -> None:
    tokens = {"AERODROME_CLIENT_TOKEN": CLIENT_TOKEN}
    with direct_and_through.running_gateway(tokens=tokens) as spawning:
        state = spawning.log.parent / "state"
        async with program(spawning.endpoint, model) as running, program(spawning.endpoint, model) as other:
            session = await running.create(session_id="spawned")
            assert await say(session, "[say spawned]") == "spawned"
            assert [found.session_id for found in await other.client.list_sessions()] == ["spawned"]
            assert len(_processes_of(state)) > 1, (
                "the runtime does not carry the state directory: this test proves nothing"
            )
            started = time.monotonic()
            assert await asyncio.to_thread(spawning.stop) == 0
            assert time.monotonic() - started < 8.0
        assert _processes_of(state) == []
        assert CLIENT_TOKEN not in spawning.log.read_text()


def _processes_of(state: Path) -> list[int]:
    """Return the living processes whose environment names that state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.fsencode(state) in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile
    return found
