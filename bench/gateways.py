"""A tenant gateway in a process of its own with users of a benchmark's making, and raw clients whose turns are timed.

The gateway is `aerodrome serve` with a configuration file, as an operator would have it; tenants are in the file, keys go into
its database before it starts. What it did is counted in its log.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import proxies
from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.adapters.distribution import install
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.transport import control
from aerodrome.transport.control import ControlLink

TURN_SECONDS = 120.0
Tenants = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Place:
    """A runtime or a gateway that can be connected to, and the model that sessions there are to use."""

    port: int
    model: dict[str, Any]
    pid: int
    entry: str
    log: Path | None = None
    #: By tenant, a token for each of its users.
    tokens: dict[str, list[str]] = field(default_factory=dict)

    def count_events(self) -> Counter[str]:
        """Return how often the gateway logged each event."""
        assert self.log is not None
        lines = self.log.read_text("utf-8").splitlines()
        return Counter(json.loads(line)["event"] for line in lines if line.startswith("{"))

    def complaints(self) -> list[str]:
        """Return what the gateway logged as a warning or worse, or wrote otherwise."""
        assert self.log is not None
        lines = self.log.read_text("utf-8").splitlines()
        return [line for line in lines if not line.startswith("{") or json.loads(line)["level"] != "info"]


@asynccontextmanager
async def gateway(
    model: dict[str, Any], tenants: Tenants, users: int, runtime: Mapping[str, Any], settings: Mapping[str, Any] = {}
) -> AsyncIterator[Place]:
    """Run a gateway with so many users in each tenant; `runtime` is its `[runtime]` section."""
    found = await asyncio.to_thread(install.install)
    with tempfile.TemporaryDirectory(prefix="aerodrome-bench-") as directory:
        config, log = Path(directory) / "aerodrome.toml", Path(directory) / "log"
        options = {
            "listen": "127.0.0.1:0",
            "state_directory": str(Path(directory) / "state"),
            "log_json": True,
            "drain_seconds": 0,
            # What a sandbox costs is bench/sandbox.py; the others are to run without bubblewrap, too.
            "sandbox": {"mode": "off", "unsandboxed": "agents run commands as the gateway's user"},
            **settings,
            "runtime": dict(runtime),
            "tenants": {name: {"providers": [model["base_url"]], **policy} for name, policy in tenants.items()},
        }
        options["runtime"]["environment"] = {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}
        config.write_text(_toml(options), "utf-8")
        tokens = await _make_keys(config, tenants, users)
        with log.open("wb") as output:
            started = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aerodrome", "serve", "--config", str(config)),
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        async with proxies.ending(started):
            port = await proxies.port_of(started)
            yield Place(port, model, started.pid, str(found.entry), log, tokens)


async def _make_keys(config: Path, tenants: Tenants, users: int) -> dict[str, list[str]]:
    settings = settings_module.load(config)
    settings.state_directory.mkdir(parents=True, mode=0o700)
    tokens: dict[str, list[str]] = {name: [] for name in tenants}
    async with app.open_stores(settings) as stores:
        for name, known in tokens.items():
            for number in range(users):
                key, token = identity.create_key(Owner(name, f"user-{number}"), time.time())
                await stores.keys.add(key)
                known.append(token)
    return tokens


def _toml(values: Mapping[str, Any], name: str = "") -> str:
    """Write a table; JSON writes every value that occurs here as TOML does."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    tables = [
        _toml(value, f"{name}.{key}" if name else key) for key, value in values.items() if isinstance(value, Mapping)
    ]
    return "\n".join([*([f"[{name}]"] if name else []), *plain, *tables]) + "\n"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn took, in seconds from the moment its first byte was sent, and its answer."""

    first: float
    whole: float
    answer: str


class _Event(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Params(msgspec.Struct):
    sessionId: str
    event: _Event


class _Notification(msgspec.Struct):
    params: _Params


class _Content(msgspec.Struct):
    content: str | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Notification).decode
_decode_content = msgspec.json.Decoder(_Content).decode


@dataclass(slots=True)
class Waiting:
    """A turn that runs: when it began, and what has been heard of it."""

    began: float
    done: asyncio.Future[Turn]
    first: float = 0.0
    answer: str = ""
    error: str = ""


class Talk:
    """A raw client with any number of sessions: TCP_NODELAY, immediate acknowledgement, one turn in a session at a time."""

    def __init__(self, model: dict[str, Any]) -> None:
        self._model = model
        self._link: ControlLink | None = None
        self._turns: dict[str, Waiting] = {}
        self.said: dict[str, list[str]] = {}

    @property
    def link(self) -> ControlLink:
        """Return the connection."""
        assert self._link is not None
        return self._link

    async def connect(self, port: int, token: str | None) -> Talk:
        """Connect and prove the token; no runtime need be there for it."""
        self._link, _ = await control.open_control("127.0.0.1", port, token, self._note, 60.0)
        return self

    async def aclose(self) -> None:
        """Leave."""
        if self._link is not None:
            await self._link.aclose()

    async def create(self) -> str:
        """Create a session; return its id."""
        create = {
            "model": self._model["name"],
            "provider": {"type": "openai", "baseUrl": self._model["base_url"], "apiKey": self._model["api_key"]},
            "availableTools": [],
            "streaming": True,
        }
        session_id = str((await self.link.call("session.create", create, TURN_SECONDS))["sessionId"])
        self.said[session_id] = []
        return session_id

    async def turn(self, session_id: str, prompt: str, began: float | None = None) -> Turn:
        """Take a turn; its times count from `began` if something else was asked first.

        Raises:
            RuntimeError: it ended with an error. errors.AerodromeError: it was refused. TimeoutError: it did not end.
        """
        running = Waiting(time.perf_counter() if began is None else began, asyncio.get_running_loop().create_future())
        self._turns[session_id] = running
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self.link.call("session.send", {"sessionId": session_id, "prompt": prompt}, TURN_SECONDS)
                turn = await running.done
        finally:
            del self._turns[session_id]
        if running.error:
            raise RuntimeError(running.error)
        self.said[session_id].append(prompt)
        return turn

    async def recall(self, session_id: str, mark: str, began: float | None = None) -> Turn:
        """Take a turn whose answer must be all that was said in this session and nothing else.

        Raises:
            RuntimeError: it was not.
        """
        prompt = f"{mark} [recall]"
        turn = await self.turn(session_id, prompt, began)
        expected = " | ".join(self.said[session_id])
        if turn.answer != expected:
            raise RuntimeError(f"a wrong answer: expected {expected!r}, found {turn.answer!r}")
        return turn

    def _note(self, method: str, body: bytes) -> None:
        if method != "session.event":
            return
        params = _decode(body).params
        running = self._turns.get(params.sessionId)
        if running is None or running.done.done():
            return
        kind = params.event.type
        if kind == "assistant.message_delta" and not running.first:
            running.first = time.perf_counter() - running.began
        elif kind == "assistant.message":
            running.answer = _decode_content(params.event.data).content or ""
        elif kind == "session.error":
            running.error = _decode_content(params.event.data).message or "an error without words"
        elif kind == "session.idle":
            whole = time.perf_counter() - running.began
            running.done.set_result(Turn(running.first or whole, whole, running.answer))


def percentile(values: list[float], share: float) -> float:
    """Return a percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def describe_machine() -> str:
    """Return what a figure is worth: cores, memory, load, when."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{time.strftime('%Y-%m-%d %H:%M')}: {os.cpu_count()} cores, {total:.0f} GiB, load {load}"
