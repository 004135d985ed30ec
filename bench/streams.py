"""What many open event streams cost a gateway, how late events are in them, and what slow readers lose.

    python bench/streams.py [--streams 1000] [--sessions 20] [--turns 2] [--slow 20] [--seconds 10] [--stall 5]

Users of a `shared` tenant have a session each; readers follow them over HTTP, spread evenly. Turns are taken in all sessions at
once, first with one reader each, then with all of them: how late an event is, is what lies between the runtime's timestamp in it
and its arrival here (both in milliseconds, by one clock). Then some readers stop reading while large answers are given:
the gateway must drop them, and they come back with `Last-Event-ID`; what they heard in all is held against what a fast reader of
the same session heard. Memory is the gateway's process alone (RSS). Readers and gateway share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import gateways
from aerodrome import demo
from gateways import Place, percentile

TENANT = "globex"
RUNTIME = {"shared_runtimes": 1, "warm_runtimes": 0, "freeze_seconds": 0, "live_sessions": 1000, "live_memory_bytes": 0}
MIB = 1024 * 1024
_EVENT = re.compile(rb"id: ([^\n]+)\nevent: ([^\n]+)\ndata: ([^\n]+)\n\n")
_TIME = re.compile(rb'"timestamp":"([^"]+)"')
_WAIT_SECONDS = 120.0
_PIECES = 20
#: Answers that no socket's buffers hold.
_LARGE = "[size 3000000]"


class Stream(asyncio.Protocol):
    """One reader of one session."""

    def __init__(self, path: str, token: str, last: str = "", is_timed: bool = False) -> None:
        self.ids: list[str] = []
        self.late_seconds: list[float] = []
        self.ends = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opened = asyncio.Event()
        self.more = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self._rest = b""
        self._raw = b""
        self._has_head = False
        self._is_timed = is_timed
        resumed = f"Last-Event-ID: {last}\r\n" if last else ""
        self._head = f"GET {path}/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n{resumed}\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._head.encode())

    def data_received(self, data: bytes) -> None:
        """Note the events that have come."""
        self.opened.set()
        now, self._rest, at = time.time(), self._rest + self._dechunk(data), 0
        for found in _EVENT.finditer(self._rest):
            at = found.end()
            self.ids.append(found[1].decode())
            self.ends += found[2] == b"turn.ended"
            if self._is_timed and found[2] == b"assistant.message_delta" and (said := _TIME.search(found[3])):
                self.late_seconds.append(now - datetime.datetime.fromisoformat(said[1].decode()).timestamp())
        self._rest = self._rest[at:]
        self.more.set()

    def _dechunk(self, data: bytes) -> bytes:
        """Take the framing of a chunked answer off (RFC 9112, section 7.1); its head is a first chunk of no interest."""
        self._raw += data
        found = []
        if not self._has_head:
            _, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return b""
            self._has_head, self._raw = True, rest
        while b"\r\n" in self._raw:
            size, _, rest = self._raw.partition(b"\r\n")
            length = int(size, 16)
            if len(rest) < length + 2:
                break
            found.append(rest[:length])
            self._raw = rest[length + 2 :]
        return b"".join(found)

    def connection_lost(self, _: Exception | None) -> None:
        """Note that it is over."""
        if not self.closed.done():
            self.closed.set_result(None)
        self.more.set()

    async def until_ends(self, count: int) -> None:
        """Wait until so many turns have ended."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while self.ends < count:
                if self.closed.done():
                    raise RuntimeError(f"a reader lost its stream after {len(self.ids)} events")
                self.more.clear()
                await self.more.wait()

    @property
    def kept(self) -> list[str]:
        """Return the events that a runtime keeps, as they came."""
        return [one for one in self.ids if "." not in one]


@dataclass(slots=True)
class Hall:
    """A gateway, its users' sessions, and who reads them."""

    place: Place
    port: int
    caller: httpx.AsyncClient
    options: argparse.Namespace
    sessions: list[str] = field(default_factory=list)

    def token(self, number: int) -> str:
        """Return the token of a session's user."""
        return self.place.tokens[TENANT][number]

    async def open(self, count: int) -> None:
        """Make a session for each user."""
        for number in range(count):
            made = await self._post(number, "/v1/sessions", {"session_id": f"s{number}"})
            self.sessions.append(f"/v1/sessions/{made['session_id']}")

    async def turn(self, number: int, prompt: str) -> None:
        """Take a turn. Raises RuntimeError: it did not complete."""
        turn = await self._post(number, f"{self.sessions[number]}/messages", {"prompt": prompt})
        if turn["status"] != "completed":
            raise RuntimeError(f"a turn is {turn['status']}: {turn['error']}")

    async def follow(self, number: int, last: str = "", is_timed: bool = False, receive_bytes: int = 0) -> Stream:
        """Open a stream."""
        loop = asyncio.get_running_loop()
        reader = socket.socket()
        if receive_bytes:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        reader.setblocking(False)
        await loop.sock_connect(reader, ("127.0.0.1", self.port))
        path, token = self.sessions[number], self.token(number)
        _, stream = await loop.create_connection(lambda: Stream(path, token, last, is_timed), sock=reader)
        async with asyncio.timeout(_WAIT_SECONDS):
            await stream.opened.wait()  # from here on it hears everything
        return stream

    def resident_bytes(self) -> int:
        """Return what the gateway's process has in memory."""
        for line in Path(f"/proc/{self.place.pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the gateway is gone")

    async def _post(self, number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token(number)}"}
        answer = await self.caller.post(path, json=body, headers=headers)
        answer.raise_for_status()
        said: dict[str, Any] = answer.json()
        return said


@asynccontextmanager
async def hall(options: argparse.Namespace) -> AsyncIterator[Hall]:
    """Run a gateway with a session for each of its users, and one more for slow readers."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with demo.open_model() as model:
        with tempfile.TemporaryDirectory(prefix="aerodrome-bench-key-") as directory:
            key = Path(directory) / "key"
            key.touch(mode=0o600)
            key.write_text(model["api_key"])
            provider = {"base_url": model["base_url"], "api_key": f"file:{key}", "models": [model["name"]]}
            settings = {
                "http": {"listen": f"127.0.0.1:{port}", "stall_seconds": options.stall, "open_requests_per_user": 0},
                "providers": {"demo": provider},
            }
            tenants = {TENANT: {"isolation": "shared", "trust": "limited", "provider": "demo"}}
            async with gateways.gateway(model, tenants, options.sessions + 1, RUNTIME, settings) as place:
                url = f"http://127.0.0.1:{port}"
                limits = httpx.Limits(max_connections=None)
                async with httpx.AsyncClient(base_url=url, timeout=_WAIT_SECONDS, limits=limits) as caller:
                    found = Hall(place, port, caller, options)
                    await found.open(options.sessions + 1)
                    yield found


async def measure_turns(found: Hall, streams: list[Stream]) -> list[float]:
    """Take turns in all sessions at once; return how late the pieces of their answers were."""
    before, turns = [stream.ends for stream in streams], found.options.turns
    prompt = f"[stream {_PIECES} {found.options.seconds:g}]"
    for _ in range(turns):
        await asyncio.gather(*(found.turn(number, prompt) for number in range(found.options.sessions)))
    for stream, ends in zip(streams, before, strict=True):
        await stream.until_ends(ends + turns)
    late = [seconds for stream in streams for seconds in stream.late_seconds]
    for stream in streams:
        stream.late_seconds.clear()
    return late


async def measure_slow(found: Hall, number: int, slow: int) -> tuple[int, int, int]:
    """Have readers stall; return how many were dropped, what each had to hear, and how many missed or doubled anything."""
    await found.turn(number, "first")
    fast = await found.follow(number)
    stalled = [await found.follow(number, receive_bytes=8192) for _ in range(slow)]
    await found.turn(number, "second")
    for stream in (fast, *stalled):
        await stream.until_ends(1)
    for stream in stalled:
        assert stream.transport is not None
        stream.transport.pause_reading()
    for _ in range(3):
        await found.turn(number, _LARGE)
    await fast.until_ends(4)
    await asyncio.sleep(found.options.stall * 2)
    dropped = wrong = 0
    for stream in stalled:
        assert stream.transport is not None
        stream.transport.resume_reading()
        done, _ = await asyncio.wait((stream.closed,), timeout=60.0)
        dropped += bool(done)
        stream.transport.abort()
        again = await found.follow(number, last=stream.ids[-1])
        async with asyncio.timeout(_WAIT_SECONDS):
            while fast.kept[-1] not in again.ids:
                again.more.clear()
                await again.more.wait()
        heard = [*stream.kept, *again.kept]
        wrong += heard != fast.kept
        assert again.transport is not None
        again.transport.abort()
    assert fast.transport is not None
    fast.transport.abort()
    return dropped, len(fast.kept), wrong


def show(name: str, late: list[float]) -> float:
    """Print how late events were; return the median."""
    median = percentile(late, 0.5)
    print(
        f"{name:>14}: {len(late):7} events, late p50 {median * 1000:6.1f} ms, p99 {percentile(late, 0.99) * 1000:6.1f} ms"
    )
    return median


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    streams, sessions, slow = options.streams, options.sessions, options.slow
    print(gateways.describe_machine())
    async with hall(options) as found:
        for number in range(sessions):
            await found.turn(number, "hello")
        few = [await found.follow(number, is_timed=True) for number in range(sessions)]
        alone = show(f"{sessions} streams", await measure_turns(found, few))
        before = found.resident_bytes()
        many = few + [await found.follow(number % sessions, is_timed=True) for number in range(sessions, streams)]
        await asyncio.sleep(1.0)
        idle = found.resident_bytes()
        together = show(f"{streams} streams", await measure_turns(found, many))
        busy = found.resident_bytes()
        for stream in many:
            assert stream.transport is not None
            stream.transport.abort()
        await asyncio.sleep(1.0)
        after = found.resident_bytes()
        opened = max(1, streams - sessions)
        print(f"ratio of medians: {together / max(alone, 0.0005):.1f}")
        print(
            f"gateway RSS in MiB: {before / MIB:.1f} with {sessions} streams, {idle / MIB:.1f} with {streams} idle, "
            f"{busy / MIB:.1f} after turns, {after / MIB:.1f} after they left"
        )
        print(
            f"for each stream: {(idle - before) / opened / 1024:.1f} KiB idle, {(busy - before) / opened / 1024:.1f} KiB busy"
        )
        dropped, each, wrong = await measure_slow(found, sessions, slow)
        peak = found.resident_bytes()
        print(f"slow readers: {dropped} of {slow} dropped, {each} kept events each, {wrong} missed or doubled any")
        print(f"gateway RSS in MiB after large answers: {peak / MIB:.1f}")
        if wrong or dropped != slow:
            raise SystemExit("slow readers were not dropped, or lost something")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--slow", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="over which an answer is streamed")
    parser.add_argument("--stall", type=float, default=5.0, help="after which the gateway drops a reader")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
