"""A runtime, a transparent gateway before another one, and what must be the same at both.

For end-to-end tests of the `transparent` policy: run a scenario against each endpoint, `normalise` both outcomes, compare. The
gateway is the real command in a process of its own, its upstream a fixed port at which one runtime after another may listen.
Deliberately knows no SDK; `Wire` speaks bytes.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aerodrome.adapters.distribution import locate
from aerodrome.protocol import framing, messages

READY_SECONDS = 20.0
_CLI = "from aerodrome.cli.main import main; main()"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a scenario connects, and with which token."""

    host: str
    port: int
    token: str | None = field(repr=False)

    @property
    def address(self) -> str:
        """Return host:port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RuntimeProcess:
    """A runtime of a test's own."""

    process: asyncio.subprocess.Process
    endpoint: Endpoint
    home: Path


@asynccontextmanager
async def running_runtime(token: str | None, port: int = 0) -> AsyncIterator[RuntimeProcess]:
    """Run the native runtime in a home of its own, with nothing of this process's environment but the path."""
    release = await asyncio.to_thread(locate.locate)
    with tempfile.TemporaryDirectory(prefix="direct-", ignore_cleanup_errors=True) as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "COPILOT_HOME": home, "COPILOT_OFFLINE": "true"}
        if token is not None:
            environment["COPILOT_CONNECTION_TOKEN"] = token
        options = ("--headless", "--port", str(port), "--no-auto-update", "--no-auto-login", "--log-level", "none")
        process = await asyncio.create_subprocess_exec(
            release.entry, *options, cwd=home, env=environment, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(READY_SECONDS):
                line = await process.stdout.readline()
            yield RuntimeProcess(process, Endpoint("127.0.0.1", int(line.split()[-1]), token), Path(home))
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """`aerodrome serve` as a child, listening."""

    process: subprocess.Popen[str]
    endpoint: Endpoint
    log: Path

    def stop(self, seconds: float = 10.0) -> int:
        """End it as a service manager would; return the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)


@contextmanager
def running_gateway(
    *options: str, tokens: Mapping[str, str] | None = None, listen: str = "127.0.0.1:0"
) -> Iterator[GatewayProcess]:
    """Run `aerodrome serve --policy transparent`; `tokens` are environment variables, the client's one goes to the endpoint."""
    with tempfile.TemporaryDirectory(prefix="through-") as directory:
        log = Path(directory, "log")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AERODROME_")}
        environment |= {"AERODROME_STATE_DIRECTORY": str(Path(directory, "state")), **(tokens or {})}
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _CLI, "serve", "--listen", listen, "--policy", "transparent", *options],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise AssertionError(f"expected 'listening on HOST:PORT', found {line!r} and {log.read_text()!r}")
            host, _, port = line.removeprefix("listening on ").strip().rpartition(":")
            token = (tokens or {}).get("AERODROME_CLIENT_TOKEN")
            yield GatewayProcess(process, Endpoint(host.strip("[]"), int(port), token), log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(READY_SECONDS)
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def reserved_port() -> Iterator[int]:
    """Hold a port for a block: nobody else is given it, and who is started there must be able to reuse the address."""
    with socket.socket() as holding:
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holding.bind(("127.0.0.1", 0))
        yield int(holding.getsockname()[1])


class Wire:
    """A connection that says exactly what it is told to and keeps exactly what it hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = framing.FrameDecoder(64 * 1024 * 1024)
        self.bodies: list[bytes] = []

    def send(self, *bodies: bytes) -> None:
        """Write frames in one call."""
        self._writer.write(b"".join(map(framing.encode, bodies)))

    def send_bytes(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._writer.write(data)

    def send_end(self) -> None:
        """Say that nothing more comes, and go on listening."""
        self._writer.write_eof()

    async def hear(self, count: int = 1, seconds: float = READY_SECONDS) -> list[bytes]:
        """Wait until `count` bodies have come, or the peer has closed or reset; return and forget all that came."""
        async with asyncio.timeout(seconds):
            with suppress(ConnectionResetError):
                while len(self.bodies) < count and (data := await self._reader.read(1 << 18)):
                    self.bodies += self._decoder.feed(data)
        heard, self.bodies = self.bodies, []
        return heard

    async def hear_end(self, seconds: float = READY_SECONDS) -> list[bytes]:
        """Wait until the peer has closed or reset; return all that came before."""
        heard: list[bytes] = []
        while more := await self.hear(1, seconds):
            heard += more
        return heard

    def stop_reading(self) -> None:
        """Leave what comes unread."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def send_until_stalled(self, frame: bytes, limit: int = 500) -> int:
        """Send a frame again and again until the peer takes no more; return how often."""
        return await send_until_stalled(self._writer, frame, limit)

    async def ask(self, method: str, params: Any = None, request_id: int | str = 1) -> bytes:
        """Send a request and return the first body that comes."""
        self.send(messages.request(request_id, method, messages.encode(params or {})))
        return (await self.hear())[0]

    def close(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


async def send_until_stalled(writer: asyncio.StreamWriter, frame: bytes, limit: int = 500) -> int:
    """Write a frame again and again until the peer takes no more for a while; return how often.

    Raises:
        AssertionError: it took all of `limit` frames.
    """
    for sent in range(1, limit):
        writer.write(frame)
        if await _is_stalled(writer):
            return sent
    raise AssertionError(f"{limit} frames of {len(frame)} bytes went somewhere: nothing holds this sender back")


async def _is_stalled(writer: asyncio.StreamWriter) -> bool:
    """Say whether the peer takes nothing at all, however often one looks: on a busy machine it may not come to take any."""
    for _ in range(4):
        left = writer.transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(0.15):
                await writer.drain()
            return False
        except TimeoutError:
            if writer.transport.get_write_buffer_size() != left:
                return False
    return True


@asynccontextmanager
async def wire(endpoint: Endpoint) -> AsyncIterator[Wire]:
    """Open a connection for the length of a block."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    opened = Wire(reader, writer)
    try:
        yield opened
    finally:
        opened.close()


#: UUIDs, and what the demo model calls its answers and tool calls.
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:call_|chatcmpl-|resp_)[0-9a-f]{16}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?")


class Normaliser:
    """Makes outcomes of two runs comparable: ids by order of appearance, times and given names by what they stand for."""

    def __init__(self, names: Mapping[str, str], varying: frozenset[str] = frozenset()) -> None:
        self._names = names
        self._varying = varying
        self._ids: dict[str, str] = {}

    def apply(self, value: Any) -> Any:
        """Return a copy without what differs between any two runs; members called one of `varying` lose their value."""
        if isinstance(value, dict):
            return {
                self._text(str(key)): "(varies)" if key in self._varying and member is not None else self.apply(member)
                for key, member in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.apply(member) for member in value]
        return value if value is None or isinstance(value, (bool, int, float)) else self._text(str(value))

    def _text(self, text: str) -> str:
        for found, name in self._names.items():
            text = text.replace(found, name)
        text = _ID.sub(lambda match: self._ids.setdefault(match[0], f"(id {len(self._ids) + 1})"), text)
        return _TIME.sub("(time)", text)
