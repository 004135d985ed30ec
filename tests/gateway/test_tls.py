"""The listener behind TLS: who gets in, what a renewed certificate does, and what hostile peers cost."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from aerodrome import errors
from aerodrome.core.audit import Outcome
from aerodrome.core.backoff import Backoff
from aerodrome.forward import dialing
from aerodrome.forward.carrier import Limits
from aerodrome.forward.dialing import GatewayOptions
from aerodrome.forward.server import Forwarder
from aerodrome.gateway.listener import Listener
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.testing import peer
from aerodrome.testing.certificates import Authority
from aerodrome.testing.peer import Peer, RpcError
from aerodrome.transport import tls
from aerodrome.transport.asgi import AsgiServer
from aerodrome.transport.tls import ServerCertificate, TlsFiles

WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server(authority):
    return authority.issue("127.0.0.1")


@asynccontextmanager
async def listening(serve, files, client_ca=None, **limits):
    settings = GatewaySettings(**{"listen_port": 0, "handshake_seconds": 5.0, **limits})
    listener = Listener(serve, settings, ServerCertificate(TlsFiles(files.certificate, files.key, client_ca)))
    listener.address = await listener.start()
    try:
        yield listener
    finally:
        await listener.aclose()


async def open_encrypted(listener, authority, client=None, **options):
    context = tls.client_context(authority.certificate, *([client.certificate, client.key] if client else []))
    for name, value in options.items():
        setattr(context, name, value)
    async with asyncio.timeout(WAIT_SECONDS):
        return Peer(*await asyncio.open_connection(*listener.address, ssl=context))


async def echo(link):
    while batch := await link.receive():
        for body in batch:
            link.send(body)
        link.flush()
        await link.drain(5.0)


async def until(condition):
    """Wait until a condition about the listener or a peer holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110  neither has events
            await asyncio.sleep(0.001)


async def ended(reader):
    """Wait until the other side closes; return what it said before."""
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            return await reader.read()
        except (ConnectionError, ssl.SSLError):
            return b""


async def test_a_client_is_served_through_tls_1_3_and_1_2_and_nothing_older(rig, authority, server):
    async with listening(rig.gateway.serve, server) as listener:
        for newest, spoken in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
            client = await open_encrypted(listener, authority, maximum_version=newest)
            assert client.writer.get_extra_info("ssl_object").version() == spoken
            answer = await client.call("connect", {"token": await rig.token("alone", "ann")})
            assert answer["ok"] is True
            await client.aclose()


async def test_a_frame_larger_than_every_buffer_comes_back_whole(authority, server):
    async with listening(echo, server, handshake_frame_bytes=16 * 1024 * 1024) as listener:
        client = await open_encrypted(listener, authority)
        text = "x" * (8 * 1024 * 1024)
        asked = client.ask("big", {"text": text})
        await until(lambda: client.heard)
        assert client.heard[0].params == {"text": text}
        asked.cancel()
        await client.aclose()


def test_on_uvloop_too_frames_come_back_and_plain_bytes_and_slow_handshakes_end_the_connection(authority, server):
    """The gateway runs on it where it is installed; its TLS is another implementation than asyncio's."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario():
        await test_a_frame_larger_than_every_buffer_comes_back_whole(authority, server)
        await test_plain_bytes_on_a_tls_port_end_the_connection_without_a_word_or_a_handshake(authority, server)
        await test_who_does_not_finish_a_handshake_in_time_is_cut_off_and_counts_as_a_link_until_then(
            authority, server, b"\x16\x03\x01\x02\x00\x01"
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_plain_bytes_on_a_tls_port_end_the_connection_without_a_word_or_a_handshake(authority, server):
    reached = []
    async with listening(reached.append, server) as listener:
        reader, writer = await asyncio.open_connection(*listener.address)
        writer.write(b"Content-Length: 2\r\n\r\n{}")
        assert await ended(reader) == b""
        writer.close()
    assert reached == []


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_who_does_not_finish_a_handshake_in_time_is_cut_off_and_counts_as_a_link_until_then(
    authority, server, said
):
    async with listening(echo, server, handshake_seconds=1.0, max_links=1) as listener:
        reader, writer = await asyncio.open_connection(*listener.address)
        writer.write(said)
        await until(lambda: listener.links)
        refused, second = await asyncio.open_connection(*listener.address)
        assert await ended(refused) == b""
        await ended(reader)
        await until(lambda: not listener.links)
        client = await open_encrypted(listener, authority)
        await client.aclose()
        writer.close()
        second.close()


async def test_a_client_of_tls_1_2_cannot_renegotiate(server):
    """OpenSSL's own client asks for it with `R`; Python's cannot."""
    async with listening(echo, server) as listener:
        host, port = listener.address
        program = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(WAIT_SECONDS):
            while b"Verify return code" not in await program.stdout.readline():
                pass
            program.stdin.write(b"R\n")
            said = await program.stdout.read()
            await program.wait()
    assert b"RENEGOTIATING" in said
    assert b"no renegotiation" in said.lower()


async def test_a_client_that_does_not_read_is_cut_off_through_tls_too(authority, server):
    async def pour(link):
        while not link.is_closing:
            link.send(b"x" * 65536)
            link.flush()
            await link.drain(0.3)

    async with listening(pour, server) as listener:
        client = await open_encrypted(listener, authority)
        client.stop_reading()
        await until(lambda: not listener.links)
        await client.aclose()


async def test_a_client_that_is_not_read_is_held_back_after_a_bounded_amount(authority, server):
    links = []

    async def look_away(link):
        links.append(link)
        await link.closed

    async with listening(look_away, server, handshake_frame_bytes=1024 * 1024) as listener:
        client = await open_encrypted(listener, authority)
        client.writer.transport.set_write_buffer_limits(high=0)
        sent = 0
        while sent < 64:
            client.send_body(b"y" * 1024 * 1024)
            try:
                await asyncio.wait_for(client.writer.drain(), 0.5)
            except TimeoutError:
                break
            sent += 1
        # What loopback's socket buffers hold, a frame, and the queue's 256 KiB.
        assert sent < 16
        assert links[0]._queued_bytes < 3 * 1024 * 1024
        await client.aclose()


async def test_with_a_client_authority_only_its_certificates_get_in(rig, authority, server, tmp_path):
    stranger = Authority(tmp_path, "other authority").issue("mallory")
    async with listening(rig.gateway.serve, server, client_ca=authority.certificate) as listener:
        token = await rig.token("alone", "ann")
        member = await open_encrypted(listener, authority, authority.issue("ann"))
        assert (await member.call("connect", {"token": token}))["ok"] is True
        await member.aclose()
        for client in (None, stranger):
            # Under TLS 1.3 a client has its handshake behind it when it is refused.
            outsider = await open_encrypted(listener, authority, client)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await outsider.call("connect", {"token": token})
            await outsider.aclose()


async def test_a_certificate_may_have_to_name_the_tenant(open_rig, authority, server):
    rig = await open_rig(client_names_tenant=True)
    async with listening(rig.gateway.serve, server, client_ca=authority.certificate) as listener:
        for tenant, is_served in (("alone", True), ("team", False)):
            client = await open_encrypted(listener, authority, authority.issue("alone"))
            connecting = client.call("connect", {"token": await rig.token(tenant, "ann")})
            if is_served:
                assert (await connecting)["ok"] is True
            else:
                with pytest.raises(RpcError, match="AUTHENTICATION_FAILED"):
                    await connecting
            await client.aclose()
    assert [entry.outcome for entry in rig.audit_log.entries] == [Outcome.DONE, Outcome.REFUSED]


async def test_a_renewed_certificate_is_shown_to_new_links_while_open_ones_go_on(rig, tmp_path):
    old, new = Authority(tmp_path, "old authority"), Authority(tmp_path, "new authority")
    files = old.issue("127.0.0.1", "server")
    async with listening(rig.gateway.serve, files) as listener:
        before = await open_encrypted(listener, old)
        await before.call("connect", {"token": await rig.token("alone", "ann")})
        broken = files.key.read_bytes()
        files.key.write_bytes(b"half a renewal")
        await (await open_encrypted(listener, old)).aclose()
        files.key.write_bytes(broken)
        new.issue("127.0.0.1", "server")
        after = await open_encrypted(listener, new)
        assert (await before.call("ping", {"message": "still"}))["message"] == "pong: still"
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_encrypted(listener, old)
        await before.aclose()
        await after.aclose()


def test_a_key_that_others_can_read_is_refused_with_what_to_do(server):
    server.key.chmod(0o644)
    with pytest.raises(errors.ConfigError, match=r"has mode 0644.*make it 0600"):
        ServerCertificate(TlsFiles(server.certificate, server.key))


@pytest.mark.parametrize("broken", ["certificate", "key"])
def test_files_that_cannot_be_used_are_named(server, broken, tmp_path):
    paths = {"certificate": server.certificate, "key": server.key}
    bad = tmp_path / "bad.pem"
    bad.touch(mode=0o600)
    bad.write_text("not PEM")
    with pytest.raises(errors.ConfigError, match=r"bad\.pem"):
        ServerCertificate(TlsFiles(**{**paths, broken: bad}))
    with pytest.raises(errors.ConfigError, match=r"absent\.pem"):
        ServerCertificate(TlsFiles(**{**paths, broken: tmp_path / "absent.pem"}))


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving_http(files, client_ca=None):
    context = ServerCertificate(TlsFiles(files.certificate, files.key, client_ca)).following_context()
    server = AsgiServer(app, 16, context)
    try:
        yield f"https://127.0.0.1:{await server.start()}"
    finally:
        await server.aclose()


async def test_the_http_listener_shows_a_renewed_certificate_to_the_next_connection(authority, tmp_path):
    before = authority.issue("127.0.0.1", "http-renewed")
    context = tls.client_context(authority.certificate)
    async with serving_http(before) as url, httpx.AsyncClient(verify=context) as client:

        async def serial() -> int:
            async with client.stream("GET", url, headers={"Connection": "close"}) as answer:
                shown = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
                return int(shown["serialNumber"], 16)

        first = await serial()
        assert first == await serial()
        authority.issue("127.0.0.1", "http-renewed")
        second = await serial()
        assert second != first
        before.certificate.write_text("half a renewal")
        assert await serial() == second


async def test_the_http_listener_wants_the_client_certificates_that_the_other_listener_wants(authority, server):
    known = authority.issue("client")
    async with serving_http(server, authority.certificate) as url:
        context = tls.client_context(authority.certificate, known.certificate, known.key)
        async with httpx.AsyncClient(verify=context) as client:
            assert (await client.get(url)).status_code == 200
        async with httpx.AsyncClient(verify=tls.client_context(authority.certificate)) as stranger:
            with pytest.raises(httpx.TransportError):
                await stranger.get(url)


async def make_session(client):
    await client.call("connect", {})
    return await client.call("session.create", {"sessionId": "s1"})


async def test_a_forwarder_shows_its_certificate_and_one_without_is_told_why_nothing_comes(rig, authority, server):
    async with listening(rig.gateway.serve, server, client_ca=authority.certificate) as listener:
        options = GatewayOptions(
            url=f"tls://127.0.0.1:{listener.address[1]}",
            ca=authority.certificate,
            token=await rig.token("alone", "ann"),
        )
        with_certificate = replace(options, certificate=(shown := authority.issue("ann")).certificate, key=shown.key)
        for given, is_served in ((with_certificate, True), (options, False)):
            quick = Limits(
                backoff=Backoff(first_seconds=0.01, limit_seconds=0.02), patience_seconds=10.0 if is_served else 0.5
            )
            forwarder = Forwarder(dialing.open_upstream(given), quick)
            host, _, port = (await forwarder.start("127.0.0.1:0")).rpartition(":")
            client = await peer.open_peer(host, int(port))
            try:
                if is_served:
                    assert (await make_session(client))["sessionId"] == "s1"
                else:
                    with pytest.raises(RpcError):
                        await make_session(client)
            finally:
                await client.aclose()
                await forwarder.aclose()
