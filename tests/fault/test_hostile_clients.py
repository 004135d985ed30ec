"""Hostile clients against a gateway in a process of its own: everyone else goes on, memory is bounded, nothing is left behind.

Each attack states how far the gateway's memory may rise above what it was. Latencies are a bystander's, who pings and reads a
session in a process of its own meanwhile; their bound is generous, because two cores are shared with the attackers, and more so
where the machine has a bystander wait who asks for nothing, or the gateway wait for a processor: then it is not the attack
that is measured.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from aerodrome.protocol import framing, messages
from aerodrome.testing import bystander
from aerodrome.testing import peer as peers

from .conftest import HANDSHAKE_SECONDS, Target, wait_for

MB = 1024 * 1024
P99_MS = 250.0
LONGEST_MS = 1500.0
#: A gateway of these tests closes who says nothing after a tenth of this.
PATIENCE_SECONDS = 15.0
#: So many processes take their turns in one call: the bystander, the gateway and the runtime, there and back.
TURNS = 5


@contextmanager
def nobody_notices(target: Target, rise_bytes: int, rest_seconds: float = 0.3) -> Iterator[None]:
    """Have a bystander live through the block; then all must be as it was before.

    Memory may rise by `rise_bytes` at most, and the file descriptors of the attack must be gone at the end.
    """
    before = target.descriptors()
    present = target.reset_peak()
    ran_before, waited_before = target.ran_and_waited()
    with bystander.watching(target.host, target.port, target.token, target.create) as other:
        yield
        time.sleep(rest_seconds)
        met = other.leave()
    assert met.error == ""
    assert met.calls > 20
    ran, waited = target.ran_and_waited()
    crowding = 1 + (waited - waited_before) / max(1, ran - ran_before)
    assert met.p99 < P99_MS * crowding + TURNS * met.late_p99, (met, crowding)
    assert met.longest < LONGEST_MS * crowding + TURNS * met.late_longest, (met, crowding)
    risen = target.peak() - present
    assert risen < rise_bytes, f"memory rose by {risen / MB:.1f} MB"
    wait_for(lambda: target.descriptors() <= before)


def connect(target: Target) -> socket.socket:
    return socket.create_connection((target.host, target.port), timeout=20)


def greeted(target: Target, token: str | None = None) -> socket.socket:
    """Connect and prove a token."""
    opened = connect(target)
    body = messages.request("hello", "connect", messages.encode({"token": token or target.hostile_token}))
    opened.sendall(framing.encode(body))
    assert b'"ok":true' in opened.recv(65536)
    return opened


def drain_until_closed(opened: socket.socket, seconds: float) -> bytes:
    """Read until the other side closes. Raises TimeoutError if it does not in time."""
    opened.settimeout(seconds)
    heard = b""
    try:
        while data := opened.recv(65536):
            heard += data
    except ConnectionResetError:
        pass
    return heard


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\n\r\n",
    bytes.fromhex("16030100c8010000c40303") + bytes(range(256)) * 4,  # the hello of a TLS client
    os.urandom(4096),
    b"Content-Length: 1073741824\r\n\r\n",
    b"Content-Length: 209715200\r\n\r\n" + b"x" * 65536,
    b"Content-Length: 0x10\r\n\r\n",
    bytes(65536),
    b"X: y\r\n" * 20_000,
]


def test_garbage_before_the_handshake_is_closed_and_costs_nothing(target):
    with nobody_notices(target, rise_bytes=8 * MB):
        for data in GARBAGE * 10:
            with closing(connect(target)) as opened:
                send_what_is_taken(opened, data)
                drain_until_closed(opened, PATIENCE_SECONDS)


def send_what_is_taken(opened: socket.socket, data: bytes) -> None:
    """Send as much as the other side takes."""
    with suppress(BrokenPipeError, ConnectionResetError):
        opened.sendall(data)


def test_a_frame_over_the_limit_is_not_buffered_though_its_sender_is_known(target):
    with nobody_notices(target, rise_bytes=8 * MB):
        for declared in (200 * MB, 1024 * MB, 2**63, 10**19):
            with closing(greeted(target)) as opened:
                opened.sendall(b"Content-Length: %d\r\n\r\n" % declared)
                chunk = b"x" * MB
                for _ in range(100):
                    send_what_is_taken(opened, chunk)
                drain_until_closed(opened, PATIENCE_SECONDS)


def test_a_frame_within_the_limit_that_never_ends_costs_its_size_and_no_more(target):
    """The limit is 64 MB: half received, it is held once, and for a moment twice when it is complete."""
    with nobody_notices(target, rise_bytes=112 * MB), closing(greeted(target)) as opened:
        opened.sendall(b"Content-Length: %d\r\n\r\n" % (60 * MB))
        chunk = b"x" * MB
        for _ in range(50):
            opened.sendall(chunk)
        time.sleep(0.3)


def test_a_handshake_that_dawdles_is_closed_in_time(target):
    with nobody_notices(target, rise_bytes=8 * MB):
        loris = [connect(target) for _ in range(100)]
        started = time.monotonic()
        slowly = b"Content-Length: 60000\r\n\r\n" + b" " * 1000
        try:
            while time.monotonic() - started < HANDSHAKE_SECONDS / 2:
                for opened in loris:
                    send_what_is_taken(opened, slowly[:1])
                slowly = slowly[1:]
                time.sleep(0.05)
            for opened in loris:
                drain_until_closed(opened, PATIENCE_SECONDS)
            assert time.monotonic() - started < PATIENCE_SECONDS
        finally:
            for opened in loris:
                opened.close()


@pytest.mark.parametrize("known", [False, True])
def test_a_thousand_idle_connections_disturb_nobody(target, known):
    count = (
        1000 if not known or target.name == "tenants" else 300
    )  # each is an upstream link too where it is transparent
    with nobody_notices(target, rise_bytes=32 * MB):
        idle = []
        try:
            for _ in range(count):
                idle.append(greeted(target) if known else connect(target))
            time.sleep(0.5)
            if not known:
                for opened in idle:
                    drain_until_closed(opened, PATIENCE_SECONDS)
        finally:
            for opened in idle:
                opened.close()


def test_ten_thousand_pings_in_one_breath_are_answered_and_wait_for_nobody(target):
    frames = b"".join(framing.encode(messages.request(number, "ping")) for number in range(10_000))
    with nobody_notices(target, rise_bytes=24 * MB), closing(greeted(target)) as opened:
        opened.sendall(frames)
        decoder, answered = framing.FrameDecoder(MB), 0
        opened.settimeout(60)
        while answered < 10_000:
            answered += len(decoder.feed(opened.recv(MB)))
        assert answered == 10_000


def test_ten_thousand_pings_whose_answers_are_never_read_are_bounded(target):
    with nobody_notices(target, rise_bytes=24 * MB), closing(greeted(target)) as opened:
        opened.settimeout(1.0)
        frames = b"".join(
            framing.encode(messages.request(n, "ping", b'{"message":"%b"}' % (b"x" * 500))) for n in range(10_000)
        )
        try:
            for _ in range(20):
                opened.sendall(frames)
        except TimeoutError:
            pass  # as it should be: who does not read is not read
        else:
            # A transparent gateway passes on what its upstream takes: here, a double that takes all.
            assert target.name == "transparent", "100 MB of requests were taken in from one who reads no answers"


def test_a_client_that_never_reads_its_turns_is_held_back_and_bounded(target):
    """Five such clients with six megabytes of answers each, in messages of up to one; the gateway keeps three of those."""

    async def attack() -> None:
        silent = []
        for number in range(5):
            client = await peers.open_client(target.host, target.port, target.hostile_token)
            silent.append(client)
            session_id = f"never-reads-{number}-{time.monotonic_ns()}"
            await client.call("session.create", {**target.create, "sessionId": session_id, "streaming": True})
            client.stop_reading()
            for _ in range(6):
                client.ask("session.send", {"sessionId": session_id, "prompt": f"[size {MB}]"})
        await asyncio.sleep(2.0)
        for client in silent:
            await client.aclose()

    with nobody_notices(target, rise_bytes=5 * 4 * MB + 8 * MB):
        asyncio.run(attack())


def test_connections_that_come_and_go_leave_nothing_behind(target):
    with nobody_notices(target, rise_bytes=16 * MB):
        for number in range(300):
            opened = greeted(target) if number % 3 == 0 else connect(target)
            if number % 3 == 1:
                opened.sendall(b"Content-Length: 100\r\n\r\n{")
            if number % 2:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if number % 6 == 0:
                body = messages.request(
                    1, "session.create", messages.encode({**target.create, "sessionId": f"churn-{number}"})
                )
                opened.sendall(framing.encode(body))
            opened.close()
    gc.collect()


def test_guessing_tokens_is_slow_work_that_disturbs_nobody(target):
    body = messages.request(1, "connect", messages.encode({"token": "aero_000000000000_" + "x" * 43}))
    with nobody_notices(target, rise_bytes=8 * MB):
        for _ in range(50):
            with closing(connect(target)) as opened:
                send_what_is_taken(opened, framing.encode(body) * 1000)
                heard = drain_until_closed(opened, PATIENCE_SECONDS)
                assert b'"ok"' not in heard
                assert heard.count(b"AUTHENTICATION_FAILED") <= 1000
