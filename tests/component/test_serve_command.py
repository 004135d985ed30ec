"""`aerodrome serve --policy transparent` as a real process, before upstreams that are scripts: how links open, close and fail.

What passes between link and link is tests/e2e/test_transparent.py, on the real runtime.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aerodrome.protocol import framing, messages
from aerodrome.testing import direct_and_through
from aerodrome.testing.direct_and_through import GatewayProcess, wire

CLIENT_TOKEN = "token-of-the-client"
UPSTREAM_TOKEN = "token-of-the-runtime"
TOKENS = {"AERODROME_CLIENT_TOKEN": CLIENT_TOKEN, "AERODROME_UPSTREAM_TOKEN": UPSTREAM_TOKEN}
AT_ONCE_SECONDS = 0.5
STALL_SECONDS = 1.0
#: Less than one that closes waits for a peer that does not read.
STOP_SECONDS = 4.0
FRAME_LIMIT_BYTES = 1024 * 1024
CLI = [sys.executable, "-c", "from aerodrome.cli.main import main; main()"]


class FakeUpstream:
    """A runtime by script: answers `connect` to whoever brings the token, keeps everything else."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[FakeLink] = asyncio.Queue()
        self.accepts: Callable[[FakeLink], Awaitable[None]] = greet

    async def next_link(self) -> FakeLink:
        """Return the next link that was opened."""
        async with asyncio.timeout(direct_and_through.READY_SECONDS):
            return await self.links.get()


class FakeLink:
    """What a scripted upstream sees of one link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read_frame(self) -> dict[str, Any]:
        """Return the next message."""
        header = await self.reader.readuntil(b"\r\n\r\n")
        return dict(json.loads(await self.reader.readexactly(int(header[16:]))))

    def send(self, message: dict[str, Any]) -> None:
        """Write a message."""
        self.writer.write(framing.encode(messages.encode(message)))

    async def seconds_until_end(self) -> float:
        """Read until the peer has closed; return how long that took."""
        started = time.monotonic()
        async with asyncio.timeout(direct_and_through.READY_SECONDS):
            with suppress(ConnectionResetError):
                while await self.reader.read(1 << 18):
                    pass
        return time.monotonic() - started


async def greet(link: FakeLink) -> None:
    """Answer `connect` as a runtime does."""
    asked = await link.read_frame()
    if asked["params"].get("token") == UPSTREAM_TOKEN:
        link.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"ok": True}})
    else:
        error = {"code": -32002, "message": "AUTHENTICATION_FAILED"}
        link.send({"jsonrpc": "2.0", "id": asked["id"], "error": error})


@pytest.fixture(scope="module")
def upstream_port() -> Iterator[int]:
    """Where the gateways expect their runtime."""
    with direct_and_through.reserved_port() as port:
        yield port


@pytest.fixture(scope="module")
def gateway(upstream_port: int) -> Iterator[GatewayProcess]:
    """A gateway with tokens on both sides and tight limits."""
    limits = {
        "AERODROME_LIMITS__STALL_SECONDS": str(STALL_SECONDS),
        "AERODROME_LIMITS__MAX_FRAME_BYTES": str(FRAME_LIMIT_BYTES),
    }
    address = f"127.0.0.1:{upstream_port}"
    with direct_and_through.running_gateway("--upstream", address, tokens=TOKENS | limits) as running:
        yield running


@pytest.fixture(scope="module")
def misinformed_gateway(upstream_port: int) -> Iterator[GatewayProcess]:
    """A gateway that has the wrong token for its upstream."""
    tokens = {"AERODROME_CLIENT_TOKEN": CLIENT_TOKEN, "AERODROME_UPSTREAM_TOKEN": "outdated-token"}
    with direct_and_through.running_gateway("--upstream", f"127.0.0.1:{upstream_port}", tokens=tokens) as running:
        yield running


@pytest.fixture
async def upstream(upstream_port: int) -> AsyncIterator[FakeUpstream]:
    """A scripted runtime where the gateways look for one."""
    async with fake_upstream(upstream_port) as fake:
        yield fake


@asynccontextmanager
async def fake_upstream(port: int) -> AsyncIterator[FakeUpstream]:
    fake, opened = FakeUpstream(), []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = FakeLink(reader, writer)
        opened.append(link)
        await fake.accepts(link)
        fake.links.put_nowait(link)

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    try:
        yield fake
    finally:
        server.close()
        for link in opened:
            link.writer.transport.abort()


def connect_body(token: str | None = CLIENT_TOKEN, request_id: int = 1) -> bytes:
    return messages.request(request_id, "connect", messages.encode({} if token is None else {"token": token}))


async def quickest(attempt: Callable[[], Awaitable[float]]) -> float:
    """Return the shortest of three times: on a busy machine any one of them may be long."""
    return min([await attempt() for _ in range(3)])


async def test_a_closed_client_link_closes_its_upstream_link_at_once(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async def attempt() -> float:
        async with wire(gateway.endpoint) as link:
            link.send(connect_body())
            await link.hear()
            behind = await upstream.next_link()
        return await behind.seconds_until_end()

    assert await quickest(attempt) < AT_ONCE_SECONDS


async def test_a_client_that_leaves_before_the_upstream_has_answered_closes_its_link(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async def say_nothing(_: FakeLink) -> None:
        return

    async def attempt() -> float:
        async with wire(gateway.endpoint) as link:
            link.send(connect_body())
            behind = await upstream.next_link()
        return await behind.seconds_until_end()

    upstream.accepts = say_nothing
    assert await quickest(attempt) < AT_ONCE_SECONDS


async def test_what_a_client_said_before_it_closed_still_arrives(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async def attempt() -> float:
        async with wire(gateway.endpoint) as link:
            link.send(connect_body())
            await link.hear()
            behind = await upstream.next_link()
            for number in range(100):
                link.send(messages.notification("last.words", messages.encode({"number": number})))
            link.send_end()
            heard = [(await behind.read_frame())["params"]["number"] for _ in range(100)]
            assert heard == list(range(100))
            return await behind.seconds_until_end()

    assert await quickest(attempt) < AT_ONCE_SECONDS


@pytest.mark.parametrize("how", ["politely", "by a reset"])
async def test_a_closed_upstream_link_closes_the_client_at_once(
    how: str, gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async def attempt() -> float:
        async with wire(gateway.endpoint) as link:
            link.send(connect_body())
            await link.hear()
            behind = await upstream.next_link()
            behind.send({"jsonrpc": "2.0", "method": "last.words", "params": {}})
            if how == "politely":
                behind.writer.close()
            else:
                await link.hear()
                reset = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # linger on, for no time
                behind.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                behind.writer.transport.abort()
            started = time.monotonic()
            heard = await link.hear_end()
            assert len(heard) == (how == "politely")
            return time.monotonic() - started

    assert await quickest(attempt) < AT_ONCE_SECONDS


async def test_a_half_closed_client_hears_what_the_upstream_still_says(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async with wire(gateway.endpoint) as link:
        link.send(connect_body())
        await link.hear()
        behind = await upstream.next_link()
        link.send_end()
        await behind.seconds_until_end()
        behind.send({"jsonrpc": "2.0", "method": "late.words", "params": {}})
        assert len(await link.hear()) == 1
        behind.writer.close()
        assert await link.hear_end() == []


async def test_an_upstream_out_of_reach_is_an_error_that_says_so(gateway: GatewayProcess) -> None:
    async with wire(gateway.endpoint) as link:
        link.send(connect_body())
        answer = json.loads((await link.hear())[0])
        assert answer["id"] == 1
        assert answer["error"]["code"] == -32013
        assert "cannot connect to the runtime" in answer["error"]["message"]
        assert answer["error"]["data"]["retryable"] is True
        assert await link.hear_end() == []
    assert "upstream.unavailable" in gateway.log.read_text()


async def test_a_refused_upstream_token_is_the_operators_fault_not_the_clients(
    misinformed_gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async with wire(misinformed_gateway.endpoint) as link:
        link.send(connect_body())
        answer = json.loads((await link.hear())[0])
        assert answer["error"]["code"] == -32013
        assert "refuses the token of this gateway" in answer["error"]["message"]
        assert await link.hear_end() == []
    log = misinformed_gateway.log.read_text()
    assert "upstream.refused_token" in log
    assert "AERODROME_UPSTREAM_TOKEN" in log
    assert "outdated-token" not in log


async def test_an_upstream_that_speaks_something_else_is_an_error(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async def speak_http(link: FakeLink) -> None:
        link.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    upstream.accepts = speak_http
    async with wire(gateway.endpoint) as link:
        link.send(connect_body())
        answer = json.loads((await link.hear())[0])
        assert answer["error"]["code"] == -32013
        assert await link.hear_end() == []
    assert "upstream.broke_framing" in gateway.log.read_text()


async def test_nothing_reaches_the_upstream_before_the_clients_token_does(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async with wire(gateway.endpoint) as link, wire(gateway.endpoint):
        for token in ("wrong", None, UPSTREAM_TOKEN):
            link.send(connect_body(token))
            assert b'"code":-32002,"message":"AUTHENTICATION_FAILED"' in (await link.hear())[0]
            assert b'"code":-32001' in await link.ask("ping")
        assert upstream.links.empty()
        link.send(connect_body())
        assert b'"ok":true' in (await link.hear())[0]
        await upstream.next_link()
        assert upstream.links.empty()


async def test_a_client_that_guesses_too_often_is_cut_off(gateway: GatewayProcess) -> None:
    async with wire(gateway.endpoint) as link:
        link.send(*(connect_body(f"guess-{number}") for number in range(40)))
        assert len(await link.hear_end()) < 40


async def test_the_tokens_are_exchanged_and_the_rest_of_connect_is_kept(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    seen: list[dict[str, Any]] = []

    async def note(link: FakeLink) -> None:
        seen.append(await link.read_frame())
        link.send({"jsonrpc": "2.0", "id": seen[-1]["id"], "result": {}})

    upstream.accepts = note
    params = {"token": CLIENT_TOKEN, "supportedTaskKinds": ["client"], "clientInfo": {"editorName": "x"}}
    async with wire(gateway.endpoint) as link:
        assert b'"id":"mine"' in await link.ask("connect", params, "mine")
    params["token"] = UPSTREAM_TOKEN
    assert seen == [{"jsonrpc": "2.0", "id": "mine", "method": "connect", "params": params}]


async def test_a_frame_over_the_limit_is_refused_and_its_link_closed(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async def attempt() -> float:
        async with wire(gateway.endpoint) as link:
            link.send(connect_body())
            await link.hear()
            behind = await upstream.next_link()
            link.send_bytes(b"Content-Length: %d\r\n\r\n{" % (FRAME_LIMIT_BYTES + 1))
            answer = json.loads((await link.hear())[0])
            assert answer["error"]["code"] == -32600
            assert answer["error"]["data"]["limit_bytes"] == FRAME_LIMIT_BYTES
            assert await link.hear_end() == []
            return await behind.seconds_until_end()

    assert await quickest(attempt) < AT_ONCE_SECONDS


async def test_without_frame_boundaries_no_more_than_one_frame_passes(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async with wire(gateway.endpoint) as link:
        link.send(connect_body())
        await link.hear()
        behind = await upstream.next_link()
        reading = asyncio.create_task(behind.seconds_until_end())
        link.send_bytes(b"Content-Length: x\r\n\r\n" + b"y" * 2 * FRAME_LIMIT_BYTES)
        assert b"-32600" in (await link.hear())[0]
        assert await link.hear_end() == []
        await reading


async def test_an_upstream_that_does_not_read_holds_its_client_back_and_loses_nothing(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async with wire(gateway.endpoint) as link:
        link.send(connect_body())
        await link.hear()
        behind = await upstream.next_link()
        large = framing.encode(messages.notification("n", messages.encode({"text": "x" * 900_000})))
        sent = await link.send_until_stalled(large)
        for _ in range(sent):
            assert len((await behind.read_frame())["params"]["text"]) == 900_000


async def test_a_client_that_never_reads_is_cut_off_and_stalls_only_itself(
    gateway: GatewayProcess, upstream: FakeUpstream
) -> None:
    async with wire(gateway.endpoint) as lazy, wire(gateway.endpoint) as other:
        lazy.send(connect_body())
        await lazy.hear()
        behind = await upstream.next_link()
        lazy.stop_reading()
        frame = framing.encode(messages.notification("n", messages.encode({"text": "x" * 900_000})))
        await direct_and_through.send_until_stalled(behind.writer, frame)
        before = _resident_bytes(gateway.process.pid)
        other.send(connect_body())
        assert b'"ok":true' in (await other.hear())[0]
        assert await behind.seconds_until_end() < STALL_SECONDS + 10.0
        assert before < 250 * 1024 * 1024


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_no_token_is_ever_shown(gateway: GatewayProcess) -> None:
    shown = Path(f"/proc/{gateway.process.pid}/cmdline").read_bytes().decode() + gateway.log.read_text()
    assert "gateway.started" in shown
    assert CLIENT_TOKEN not in shown
    assert UPSTREAM_TOKEN not in shown


async def test_an_ipv6_loopback_needs_no_token_and_sigterm_ends_open_and_stalled_links(upstream_port: int) -> None:
    address = f"127.0.0.1:{upstream_port}"
    async with fake_upstream(upstream_port) as fake:
        fake.accepts = _pass
        with direct_and_through.running_gateway("--upstream", address, listen="[::1]:0") as running:
            assert running.endpoint.host == "::1"
            assert running.endpoint.port > 0
            async with wire(running.endpoint), wire(running.endpoint) as stalled:
                stalled.send(messages.request(1, "anything"))
                behind = await fake.next_link()
                assert (await behind.read_frame())["method"] == "anything"
                stalled.stop_reading()
                frame = framing.encode(messages.notification("n", messages.encode({"text": "x" * 900_000})))
                await direct_and_through.send_until_stalled(behind.writer, frame)
                running.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(running.process.wait, STOP_SECONDS) == 0


async def _pass(_: FakeLink) -> None:
    return


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (("--listen", "0.0.0.0:0"), "AERODROME_CLIENT_TOKEN"),
        (("--listen", "nonsense"), "listen: expected HOST:PORT"),
        (("--listen", "127.0.0.1:0", "--upstream", "nowhere"), "upstream: expected HOST:PORT"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_fix(options: tuple[str, ...], fix: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AERODROME_")}
    environment["AERODROME_CLIENT_TOKEN"] = ""  # as an unset variable in a template leaves it: no token
    command = [*CLI, "serve", "--policy", "transparent", *options]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert fix in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_a_listener_that_others_can_reach_in_clear_says_so(tmp_path: Path) -> None:
    command = [*CLI, "serve", "--listen", "0.0.0.0:0", "--policy", "transparent", "--upstream", "127.0.0.1:9"]
    environment = {**os.environ, **TOKENS, "AERODROME_STATE_DIRECTORY": str(tmp_path), "AERODROME_LOG_JSON": "true"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "gateway.unencrypted":
                break
        else:
            pytest.fail("it does not say so")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert (event["level"], event["listen"]) == ("warning", "0.0.0.0:0")
    assert "tls.certificate" in event["fix"]
