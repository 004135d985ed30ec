"""Places that are not the caller's: addresses of the host's network, ids and links that lead out of a directory.

A listener on the host's loopback must hear nothing, in whatever notation it is named; nothing may be made or read outside.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .client import Program, Programs, is_refusal, leaks
from .site import Site
from .test_foreign_sessions import Victim

pytestmark = pytest.mark.runtime
_SECRET = "cinnamon-on-the-host"
_POLICY_REJECTED = -32010


@pytest.fixture
async def called() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A port of the loopback, by both versions of IP where there are two, and whether anybody connects to it."""
    heard = asyncio.Event()

    def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set()
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    servers = [server]
    if socket.has_dualstack_ipv6():
        servers.append(await asyncio.start_server(note, "::1", port))
    yield port, heard
    for each in servers:
        each.close()
        await each.wait_closed()


def addresses(port: int, allowed: str) -> dict[str, str]:
    """Return URLs that lead to this machine or its network, `allowed` being one that policy allows."""
    host = allowed.removeprefix("http://").removesuffix("/v1")
    return {
        "loopback": f"http://127.0.0.1:{port}/v1",
        "loopback by another number": f"http://127.9.9.9:{port}/v1",
        "loopback, short": f"http://127.1:{port}/v1",
        "loopback, one number": f"http://2130706433:{port}/v1",
        "loopback, octal": f"http://0177.0.0.1:{port}/v1",
        "loopback, hexadecimal": f"http://0x7f000001:{port}/v1",
        "this host": f"http://0:{port}/v1",
        "any address": f"http://0.0.0.0:{port}/v1",
        "loopback of IPv6": f"http://[::1]:{port}/v1",
        "loopback of IPv6, written out": f"http://[0:0:0:0:0:0:0:1]:{port}/v1",
        "IPv4 in IPv6": f"http://[::ffff:127.0.0.1]:{port}/v1",
        "IPv4 in IPv6, hexadecimal": f"http://[::ffff:7f00:1]:{port}/v1",
        "a name of loopback": f"http://localhost:{port}/v1",
        "a name below it": f"http://a.localhost:{port}/v1",
        "a name with a point": f"http://localhost.:{port}/v1",
        "a public name that leads to loopback": f"http://localtest.me:{port}/v1",
        "an address as a name": f"http://127.0.0.1.nip.io:{port}/v1",
        "link-local metadata": "http://169.254.169.254/latest/meta-data",
        "link-local metadata, one number": "http://2852039166/latest/meta-data",
        "metadata of IPv6": "http://[fd00:ec2::254]/latest/meta-data",
        "link-local of IPv6": f"http://[fe80::1]:{port}/v1",
        "a private network": "http://10.0.0.1/v1",
        "a user part": f"http://{host}@127.0.0.1:{port}/v1",
        "a user part with a port": f"http://{host.replace(':', '%3a')}:x@127.0.0.1:{port}/v1",
        "a fragment": f"http://127.0.0.1:{port}#@{host}/v1",
        "a query": f"http://127.0.0.1:{port}?@{host}/v1",
        "a backslash": f"http://127.0.0.1:{port}\\@{host}/v1",
        "digits of another script": f"http://\uff11\uff12\uff17.0.0.1:{port}/v1",
        "an escaped host": f"http://%31%32%37.0.0.1:{port}/v1",
        "a blank before": f" http://127.0.0.1:{port}/v1",
        "a line end": f"{allowed}\r\nHost: 127.0.0.1:{port}",
        "out of the allowed path": f"{allowed}/../../admin",
        "another scheme": f"ftp://127.0.0.1:{port}/v1",
        "a file": "file:///etc/passwd",
        "a socket": "unix:/var/run/docker.sock",
    }


@pytest.mark.parametrize("provider_urls", ["its own", "*"])
async def test_no_notation_of_an_inner_address_is_called(
    site: Site, programs: Programs, called: tuple[int, asyncio.Event], provider_urls: str
) -> None:
    port, heard = called
    allowed = site.demo.model["base_url"]
    urls = (allowed,) if provider_urls == "its own" else (allowed, "*")
    mallory = await site.stranger(provider_urls=urls, mcp_urls=urls[1:])
    attacker = await programs.connect(mallory)
    own = await attacker.open_session()
    passed = []
    for name, url in addresses(port, allowed).items():
        if provider_urls == "*" and name in ("a public name that leads to loopback", "an address as a name"):
            continue  # what names lead to is a matter of a sandbox (tests/component/test_sandbox.py)
        provider = {"type": "openai", "baseUrl": url, "apiKey": "k"}
        server = {"type": "http", "url": url, "tools": ["*"]}
        tries = [
            ("session.create", attacker.opening(provider=provider)),
            ("session.create", attacker.opening(providers=[{**provider, "name": "p"}])),
            ("session.create", attacker.opening(mcpServers={"m": server})),
            ("session.resume", attacker.opening(sessionId=own, provider=provider)),
            ("session.options.update", {"sessionId": own, "provider": provider}),
            ("session.provider.add", {"sessionId": own, "providers": [{**provider, "name": "p"}]}),
        ]
        for method, params in tries:
            answer = await attacker.ask(method, params)
            if not is_refusal(answer) or answer["error"]["code"] != _POLICY_REJECTED:
                passed.append((name, method, answer))
    assert passed == []
    assert not heard.is_set()
    assert await attacker.turn(own, "[say still mine]") == "still mine"
    await site.refused(
        mallory,
        ("session.create", "policy_rejected: provider.baseUrl"),
        ("session.create", "policy_rejected: providers[0].baseUrl"),
        ("session.create", "policy_rejected: mcpServers.m.url"),
        ("session.resume", "policy_rejected: provider.baseUrl"),
        ("session.options.update", "policy_rejected: provider.baseUrl"),
        ("session.provider.add", "policy_rejected: providers[0].baseUrl"),
    )


CLIMBING = [
    "..",
    ".",
    "../",
    "../../../../tmp/out",
    "..\\..\\out",
    "/etc/passwd",
    "a/../../out",
    "%2e%2e%2fout",
    "..%00",
    "a\0b",
    "a\nb",
    "~root",
    "$(touch out)",
    "a b",
    "\u202eout",
    "\uff0e\uff0e\uff0fout",
    "x" * 251,
    "x" * 100_000,
    "-rf ..",
]


async def test_an_id_that_climbs_names_nothing_makes_nothing_and_removes_nothing(
    site: Site, programs: Programs
) -> None:
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    mallory = await site.stranger()
    attacker = await programs.connect(mallory)
    aims = [f"../{victim.session_id}", f"x/../{victim.session_id}", f"./{victim.session_id}", f"{victim.session_id}/"]
    before = made(site)
    for climbing in [*CLIMBING, *aims]:
        assert is_refusal(await attacker.ask("session.create", attacker.opening(sessionId=climbing))), climbing
        for method in ("session.resume", "session.getMessages", "session.send"):
            answer = await attacker.ask(method, {"sessionId": climbing, "prompt": "hello"})
            assert is_refusal(answer), (method, climbing)
        deleted = await attacker.ask("session.delete", {"sessionId": climbing})
        assert deleted.get("result", {}).get("success") is not True
    assert made(site) == before
    await victim.check_unharmed()
    await site.refused(
        mallory,
        ("session.create", "params_invalid"),
        *((f"session.{verb}", "session_missing") for verb in ("resume", "getMessages", "send", "delete")),
    )


def made(site: Site) -> set[Path]:
    """Return what lies round the directories of sessions, where an id that climbs would make something."""
    return {*site.state.glob("realms/*/*"), *site.state.glob("realms/*"), *site.demo.directory.iterdir()}


@pytest.mark.parametrize("where", ["TENANT", "TENANT/mallory", "TENANT/mallory/SESSION"])
async def test_a_link_in_the_place_of_a_working_directory_leads_no_session_out_of_it(
    site: Site, programs: Programs, tmp_path: Path, where: str
) -> None:
    root, outside = tmp_path / "work", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(_SECRET)
    mallory = await site.stranger(work_root=str(root))
    attacker = await programs.connect(mallory)
    own = await attacker.open_session()
    await attacker.turn(own, "[say mine]")
    planned = "planned-session"
    place = root / where.replace("TENANT", mallory.tenant).replace("SESSION", planned)
    if place.exists():
        place.rename(tmp_path / "moved")
    place.symlink_to(outside)
    refused = await attacker.ask("session.create", attacker.opening(sessionId=planned))
    assert refused["error"]["code"] == _POLICY_REJECTED
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]
    assert leaks(attacker.received, _SECRET, str(outside)) == []
    await site.refused(mallory, ("session.create", "policy_rejected: workingDirectory"))
    place.unlink()
    assert await working(attacker) == "still mine"


async def test_a_new_session_does_not_find_what_others_left_where_it_would_work(
    site: Site, programs: Programs, tmp_path: Path
) -> None:
    mallory = await site.stranger(work_root=str(tmp_path))
    attacker = await programs.connect(mallory)
    left = tmp_path / mallory.tenant / "mallory" / "left"
    left.mkdir(parents=True)
    (left / "secret.txt").write_text(_SECRET)
    refused = await attacker.ask("session.create", attacker.opening(sessionId="left"))
    assert refused["error"]["code"] == _POLICY_REJECTED
    await site.refused(mallory, ("session.create", "policy_rejected: sessionId"))
    session_id = await attacker.open_session()
    assert await attacker.turn(session_id, "[say mine]") == "mine"
    await attacker.get("session.delete", {"sessionId": session_id})
    assert [path.name for path in left.parent.iterdir()] == ["left"]
    assert leaks(attacker.received, _SECRET) == []


async def working(program: Program) -> str:
    """Return what a session of the caller's says in a turn."""
    return await program.turn(await program.open_session(), "[say still mine]")
