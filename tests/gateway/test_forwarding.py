"""The forwarder before a gateway of scripted runtimes: what a local program sees while connections to the gateway come and go."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from aerodrome import errors
from aerodrome.core.backoff import Backoff
from aerodrome.forward import neighbours
from aerodrome.forward.carrier import Limits, Upstream
from aerodrome.forward.server import Forwarder
from aerodrome.testing import peer
from aerodrome.testing.peer import Peer, RpcError
from aerodrome.transport.link import Link

WAIT_SECONDS = 30.0
RETRYABLE = (-32013, -32014)


class Way:
    """The way from a forwarder to a rig, which a test can cut and close."""

    def __init__(self, rig, token):
        self.rig = rig
        self.token = token
        self.is_open = True
        self.links = []

    async def dial(self):
        if not self.is_open:
            raise errors.RuntimeUnavailable("the way is closed")
        _, link = await asyncio.get_running_loop().create_connection(lambda: Link(1 << 26), *self.rig.address)
        self.links.append(link)
        return link

    def cut(self):
        for link in self.links:
            link.abort()
        self.links.clear()


@asynccontextmanager
async def forwarding(way, local_token=None, **limits):
    quick = Backoff(first_seconds=0.01, limit_seconds=0.05, attempts=1 << 30)
    upstream = Upstream("gateway.test:4321", way.dial, lambda: way.token)
    forwarder = Forwarder(upstream, Limits(**{"backoff": quick, "patience_seconds": 5.0, **limits}), local_token)
    host, _, port = (await forwarder.start("127.0.0.1:0")).rpartition(":")
    try:
        yield host, int(port)
    finally:
        await forwarder.aclose()


@pytest.fixture
async def way(rig):
    return Way(rig, await rig.token("alone", "ann"))


@pytest.fixture
async def program(way):
    """A local program behind a forwarder."""
    async with forwarding(way) as address:
        local = await peer.open_client(*address, None)
        yield local
        await local.aclose()


async def heard(program: Peer, method, where=lambda _: True):
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            found = [note.params for note in program.heard if note.method == method and where(note.params)]
            if found:
                return found[0]
            await asyncio.sleep(0.002)


def kinds(program, session_id):
    return [
        note.params["event"]["type"]
        for note in program.heard
        if note.method == "session.event" and note.params["sessionId"] == session_id
    ]


async def test_a_program_without_any_token_is_answered_as_the_gateway_answers(program):
    assert (await program.call("ping", {"message": "hi"}))["message"] == "pong: hi"
    created = await program.call("session.create", {"sessionId": "s1"})
    assert created["sessionId"] == "s1"
    with pytest.raises(RpcError) as raised:
        await program.call("no.such")
    assert raised.value.number == -32601


async def test_a_cut_way_is_opened_again_under_the_programs_link_and_its_sessions_are_resumed(rig, way, program):
    await program.call("session.create", {"sessionId": "s1", "model": "m"})
    await program.call("session.send", {"sessionId": "s1", "prompt": "hello"})
    await heard(program, "session.event", lambda params: params["event"]["type"] == "session.idle")
    for _ in range(3):
        way.cut()
        assert "messageId" in await program.call("session.send", {"sessionId": "s1", "prompt": "again"})
    assert not program.closed.done()


async def test_a_session_that_never_had_a_turn_is_made_again_on_a_fresh_gateway(rig, way, program):
    await program.call("session.create", {"sessionId": "s1", "model": "m"})
    way.cut()
    assert "messageId" in await program.call("session.send", {"sessionId": "s1", "prompt": "hello"})


async def test_a_session_resumed_before_its_first_turn_is_made_again_on_a_fresh_gateway(rig, way, program):
    await program.call("session.create", {"sessionId": "s1", "model": "m"})
    await program.call("session.resume", {"sessionId": "s1", "model": "m"})
    way.cut()
    await rig.settled(lambda: not any(runtime.sessions for runtime in rig.scripted.runtimes))
    assert "messageId" in await program.call("session.send", {"sessionId": "s1", "prompt": "hello"})


async def test_requests_wait_while_there_is_no_gateway_and_fail_retryably_when_patience_ends(way):
    async with forwarding(way, patience_seconds=0.3) as address:
        program = await peer.open_client(*address, None)
        way.is_open = False
        way.cut()
        waiting = [program.ask("ping", {"message": str(number)}) for number in range(3)]
        for asked in waiting:
            with pytest.raises(RpcError, match=r"gateway\.test:4321 cannot be reached") as raised:
                await asyncio.wait_for(asked, WAIT_SECONDS)
            assert raised.value.number in RETRYABLE
            assert raised.value.data["retryable"] is True
        with pytest.raises(RpcError):
            await program.call("ping")
        way.is_open = True
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    await program.call("ping")
                    break
                except RpcError:
                    await asyncio.sleep(0.005)
        await program.aclose()


async def test_more_requests_than_may_wait_are_refused(way):
    async with forwarding(way, waiting_requests=5) as address:
        program = await peer.open_client(*address, None)
        way.is_open = False
        way.cut()
        asked = [program.ask("ping", {"message": str(number)}) for number in range(8)]
        for late in asked[5:]:
            with pytest.raises(RpcError, match="too many requests"):
                await asyncio.wait_for(late, WAIT_SECONDS)
        way.is_open = True
        answers = await asyncio.wait_for(asyncio.gather(*asked[:5]), WAIT_SECONDS)
        assert [answer["message"] for answer in answers] == [f"pong: {number}" for number in range(5)]
        await program.aclose()


async def test_a_token_that_the_gateway_does_not_take_is_said_and_ends_the_link(way):
    way.token = "aero_wrong_wrong"
    async with forwarding(way) as address:
        with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
            await peer.open_client(*address, None)


async def test_with_a_local_token_only_programs_that_show_it_are_heard(way):
    async with forwarding(way, local_token="l0cal") as address:
        for wrong in (None, "other"):
            with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
                await peer.open_client(*address, wrong)
        stranger = await peer.open_peer(*address)
        with pytest.raises(RpcError, match="AUTHENTICATION_REQUIRED"):
            await stranger.call("ping")
        await stranger.aclose()
        program = await peer.open_client(*address, "l0cal")
        assert (await program.call("ping"))["message"] == "pong"
        await program.aclose()


async def test_a_program_of_another_user_is_not_let_in(way, monkeypatch):
    async with forwarding(way) as address:
        for found in (65534, None):
            monkeypatch.setattr(neighbours, "uid_of_peer", lambda _, found=found: found)
            stranger = await peer.open_peer(*address)
            async with asyncio.timeout(WAIT_SECONDS):
                await stranger.closed
            await stranger.aclose()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:0", "[::]:0", "example.com:0", "127.0.0.1:x"])
async def test_nothing_but_loopback_is_listened_on(way, address):
    forwarder = Forwarder(Upstream("gateway.test:4321", way.dial, lambda: way.token))
    with pytest.raises(errors.ConfigError):
        await forwarder.start(address)


async def test_a_unix_socket_is_its_users_alone_and_removed_at_the_end(way, tmp_path):
    path = tmp_path / "gateway.sock"
    for _ in range(2):
        forwarder = Forwarder(Upstream("gateway.test:4321", way.dial, lambda: way.token))
        await forwarder.start(f"unix:{path}")
        assert path.stat().st_mode & 0o777 == 0o600
        reader, writer = await asyncio.open_unix_connection(str(path))
        program = Peer(reader, writer)
        assert (await program.call("ping"))["message"] == "pong"
        await program.aclose()
        await forwarder.aclose()
        assert not path.exists()
