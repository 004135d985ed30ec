"""The programs whose calls are timed: a raw client that acknowledges at once, the Python SDK, the Node SDK.

Each does the same: create a session, take turns in it, ping, let go of it. Times are in seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from copilot import CopilotClient, RuntimeConnection
from copilot.session import ProviderConfig

from aerodrome.transport import control

Times = dict[str, list[float]]
_NODE = Path(__file__).with_name("overhead_node.mjs")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client connects, and the model it names."""

    port: int
    token: str
    model: dict[str, Any]

    @property
    def provider(self) -> dict[str, Any]:
        """Return the provider as it goes over the wire."""
        return {"type": "openai", "baseUrl": self.model["base_url"], "apiKey": self.model["api_key"]}


async def raw(target: Target, sessions: int, turns: int) -> Times:
    """Time a bare JSON-RPC client with TCP_NODELAY and immediate acknowledgement on its side."""
    times: Times = defaultdict(list)
    idle = asyncio.Event()

    def note(method: str, body: bytes) -> None:
        if method == "session.event" and msgspec.json.decode(body)["params"]["event"]["type"] == "session.idle":
            idle.set()

    link, _ = await control.open_control("127.0.0.1", target.port, target.token, note)
    try:
        for _ in range(sessions):
            create = {
                "model": target.model["name"],
                "provider": target.provider,
                "availableTools": [],
                "streaming": True,
            }
            async with timed(times, "create"):
                session_id = (await link.call("session.create", create))["sessionId"]
            for _ in range(turns):
                idle.clear()
                async with timed(times, "turn"), asyncio.timeout(30):
                    await link.call("session.send", {"sessionId": session_id, "prompt": "hello"})
                    await idle.wait()
                async with timed(times, "ping"):
                    await link.call("ping")
            await link.call("session.detach", {"sessionId": session_id})
    finally:
        await link.aclose()
    return times


async def python_sdk(target: Target, sessions: int, turns: int) -> Times:
    """Time the published Python SDK."""
    times: Times = defaultdict(list)
    # It logs a traceback for each `session.sendAndWait`, which this runtime does not know: that is not what is measured.
    logging.getLogger("copilot").setLevel(logging.CRITICAL)
    connection = RuntimeConnection.for_uri(f"127.0.0.1:{target.port}", connection_token=target.token)
    provider = ProviderConfig(type="openai", base_url=target.model["base_url"], api_key=target.model["api_key"])
    async with CopilotClient(connection=connection) as client:
        await client.ping()
        for _ in range(sessions):
            async with timed(times, "create"):
                session = await client.create_session(
                    model=target.model["name"], provider=provider, available_tools=[], streaming=True
                )
            for _ in range(turns):
                async with timed(times, "turn"):
                    await session.send_and_wait("hello", timeout=30)
                async with timed(times, "ping"):
                    await client.ping()
            await session.disconnect()
    return times


async def node_sdk(target: Target, sessions: int, turns: int) -> Times:
    """Time the published Node SDK, in a process of its own that does the timing."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("node is not installed")
    order = json.dumps(
        {"port": target.port, "token": target.token, "model": target.model, "sessions": sessions, "turns": turns}
    )
    started = await asyncio.create_subprocess_exec(
        node, str(_NODE), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(300):
            output, _ = await started.communicate(order.encode())
    finally:
        with suppress(ProcessLookupError):
            started.kill()
    return {name: [ms / 1000 for ms in values] for name, values in json.loads(output).items()}


class timed:
    """Time a block into `times[name]`."""

    def __init__(self, times: Times, name: str) -> None:
        self.times, self.name = times, name

    async def __aenter__(self) -> None:
        self.began = time.perf_counter()

    async def __aexit__(self, *_: object) -> None:
        self.times[self.name].append(time.perf_counter() - self.began)
