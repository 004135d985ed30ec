"""The admin socket: every verb over a gateway with scripted runtimes, who may use it, and what bad callers can do."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import structlog.testing

from aerodrome import errors
from aerodrome.admin import client as admin
from aerodrome.admin import operations as operations_module
from aerodrome.admin import server as server_module
from aerodrome.admin.operations import Operations
from aerodrome.admin.server import AdminServer
from aerodrome.admin.views import Facts
from aerodrome.core.identity import Owner
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.protocol import framing, messages
from aerodrome.testing import peer as peers
from aerodrome.testing import rig as rigs
from aerodrome.testing.peer import Peer
from aerodrome.testing.rig import Rig
from aerodrome.testing.scripted_host import ScriptedHost

FACTS = Facts("tenants", "127.0.0.1:1", "state", 50, 120, 60.0, 300.0, 30.0)
SECONDS = 30.0


class Site:
    """A gateway with its admin socket."""

    def __init__(self, rig: Rig, server: AdminServer, directory: Path) -> None:
        self.rig = rig
        self.server = server
        self.directory = directory
        self.path = directory / "admin.sock"
        self.drains = 0

    def ask_to_drain(self) -> None:
        self.drains += 1

    async def call(self, verb: str, **params):
        async with admin.open_client(self.directory) as client:
            return await client.call(verb, **params)

    async def peer(self) -> Peer:
        reader, writer = await asyncio.open_unix_connection(self.path)
        return Peer(reader, writer)


@asynccontextmanager
async def opened(directory: Path, has_tenants: bool = True, **limits) -> AsyncIterator[Site]:
    settings = GatewaySettings(listen_port=0, handshake_seconds=5.0, stall_seconds=5.0)
    fleet = rigs.fleet_settings(directory, idle_seconds=60.0)
    async with rigs.open_rig(ScriptedHost(), fleet, settings) as rig:
        server = AdminServer(directory, **limits)
        site = Site(rig, server, directory)
        gateway = rig.gateway if has_tenants else None
        try:
            minter = rig.minter if has_tenants else None
            assert await server.start(Operations(rig.pool, FACTS, gateway, site.ask_to_drain, minter))
            yield site
        finally:
            await server.aclose()


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    async with opened(tmp_path) as opened_site:
        yield opened_site


async def turn(client: Peer, session_id: str, prompt: str = "x") -> None:
    before = client.events(session_id).count("session.idle")
    await client.call("session.send", {"sessionId": session_id, "prompt": prompt})
    await client.wait_for_event(session_id, "session.idle", before + 1)


async def opened_sessions(site: Site, tenant: str, *session_ids: str, user: str = "user") -> Peer:
    client = await site.rig.client(tenant, user)
    for session_id in session_ids:
        await client.call("session.create", {"sessionId": session_id, "model": "demo"})
        await turn(client, session_id)
    return client


async def begin_turn(client: Peer, session_id: str) -> None:
    await client.call("session.send", {"sessionId": session_id, "prompt": "[hold]"})
    await client.wait_until(lambda: client.events(session_id).count("assistant.turn_start") >= 2)


# -- seeing -----------------------------------------------------------------------------------------------------------


async def test_runtimes_are_shown_with_whom_they_serve_and_what_is_live_in_them(site):
    await opened_sessions(site, "alone", "a", "b")
    await opened_sessions(site, "shared", "c")
    found = await site.call("show.runtimes")
    assert [(row["runtime"]["realm"], row["live_sessions"], row["runtime"]["links"]) for row in found] == [
        ("shared", 1, 1),
        ("user:alone/user", 2, 1),
    ]
    runtime = found[0]["runtime"]
    assert (runtime["state"], runtime["is_frozen"], runtime["cordoned"]) == ("ready", False, None)
    assert runtime["pid"] > 0
    assert runtime["age_seconds"] >= 0
    assert runtime["memory_bytes"] == 80_000_000


async def test_sessions_are_shown_with_owner_place_and_state(site):
    client = await opened_sessions(site, "alone", "idle", "busy")
    await begin_turn(client, "busy")
    await opened_sessions(site, "shared", "c")
    page = await site.call("show.sessions")
    assert page["next"] is None
    shared, busy, idle = page["sessions"]
    assert (shared["session_id"], shared["realm"], shared["tenant"], shared["user"]) == (
        "c",
        "shared",
        "shared",
        "user",
    )
    assert (busy["session_id"], busy["state"], busy["is_at_work"]) == ("busy", "turn", True)
    assert (idle["session_id"], idle["state"], idle["is_at_work"], idle["links"]) == ("idle", "idle", False, 1)
    assert idle["runtime_id"] == busy["runtime_id"] != shared["runtime_id"]
    assert 0 <= idle["idle_seconds"] < 60
    only = await site.call("show.sessions", tenant="shared")
    assert [found["session_id"] for found in only["sessions"]] == ["c"]


async def test_a_connection_token_is_minted_and_opens_a_link_of_its_user(site):
    minted = await site.call("token.mint", tenant="shared", user="ann", expires_seconds=60)
    client = await peers.open_client(*site.rig.address, minted["token"])
    await client.call("session.create", {"sessionId": "s"})
    await client.aclose()
    assert (await site.rig.registry.find("s")).owner == Owner("shared", "ann")
    for wrong, said in (
        ({"tenant": "nowhere", "user": "ann"}, "no tenant"),
        ({"tenant": "shared", "user": "A b"}, "user name"),
        ({"tenant": "shared", "user": "ann", "expires_seconds": 1e9}, "lifetime"),
        ({"tenant": "shared"}, "user"),
    ):
        with pytest.raises(errors.ConfigError, match=said):
            await site.call("token.mint", **wrong)


async def test_the_transparent_policy_mints_no_tokens(tmp_path):
    async with opened(tmp_path, has_tenants=False) as site:
        with pytest.raises(errors.ConfigError, match="transparent policy has one token"):
            await site.call("token.mint", tenant="shared", user="ann")


async def test_pages_are_whole_and_none_is_larger_than_asked_for(site):
    names = [f"s{number}" for number in range(5)]
    await opened_sessions(site, "alone", *names)
    for _ in range(2):
        await site.rig.client("shared")
    found, after = [], None
    for expected in (2, 2, 1):
        page = await site.call("show.sessions", limit=2, after=after)
        assert len(page["sessions"]) == expected
        found += [view["session_id"] for view in page["sessions"]]
        after = page["next"]
    assert (found, after) == (names, None)

    first = await site.call("show.links", limit=2)
    rest = await site.call("show.links", limit=2, after=first["next"])
    assert (len(first["links"]), len(rest["links"]), rest["next"]) == (2, 1, None)


async def test_links_are_shown_with_what_they_hold_and_wait_for(site):
    client = await opened_sessions(site, "alone", "a", "b")
    [link] = (await site.call("show.links", tenant="alone"))["links"]
    host, port = client.writer.get_extra_info("sockname")
    assert link["peer"] == f"{host}:{port}"
    assert (link["tenant"], link["user"], link["sessions"], link["upstreams"]) == ("alone", "user", 2, 1)
    assert link["requests"] == 0
    assert link["age_seconds"] >= 0
    assert (await site.call("show.links", tenant="shared"))["links"] == []


async def test_the_pool_is_shown_with_counts_and_settings(site):
    client = await opened_sessions(site, "alone", "a")
    await begin_turn(client, "a")
    found = await site.call("show.pool")
    assert (found["links"], found["sessions"], found["at_work"], found["is_draining"]) == (1, 1, 1, False)
    assert found["pool"]["runtimes"] == 1
    assert found["settings"]["drain_seconds"] == 30.0
    assert found["pid"] == os.getpid()


async def test_nothing_that_a_client_said_is_in_any_view(site):
    client = await site.rig.client("alone")
    secret = "hunter" + str(2)
    params = {"sessionId": "a", "model": secret, "name": secret, "provider": {"type": "openai", "apiKey": secret}}
    await client.call("session.create", {**params, "systemMessage": {"content": secret}})
    await turn(client, "a", secret)
    token = await site.rig.token("alone", "user")
    for verb in ("show.runtimes", "show.sessions", "show.links", "show.pool"):
        said = messages.encode(await site.call(verb)).decode()
        assert secret not in said
        assert token not in said


# -- changing ---------------------------------------------------------------------------------------------------------


async def test_an_evicted_session_comes_back_at_its_next_call(site):
    client = await opened_sessions(site, "alone", "a", "b")
    assert (await site.call("evict", session_id="a"))["outcome"] == "evicted"
    assert set(site.rig.scripted.runtimes[0].sessions) == {"b"}
    evicted, kept = (await site.call("show.sessions"))["sessions"]
    assert (evicted["state"], evicted["runtime_id"], kept["state"]) == ("evicted", None, "idle")
    assert (await site.call("evict", session_id="a"))["outcome"] == "absent"

    await turn(client, "a", "back")

    assert {view["state"] for view in (await site.call("show.sessions"))["sessions"]} == {"idle"}
    assert "session.resume" not in client.events("a")


async def test_a_session_is_migrated_and_goes_on_where_it_is_said_to_be(site):
    client = await opened_sessions(site, "alone", "a", "b")
    moved = await site.call("migrate", session_id="a")
    assert (moved["outcome"], set(site.rig.scripted.runtimes[1].sessions)) == ("migrated", {"a"})
    views = {view["session_id"]: view["runtime_id"] for view in (await site.call("show.sessions"))["sessions"]}
    assert views["a"] == moved["runtime_id"] != views["b"]
    await turn(client, "a", "on")
    with pytest.raises(errors.ConfigError, match="expected another runtime that takes sessions"):
        await site.call("migrate", session_id="a", to_runtime_id=moved["runtime_id"])


async def test_a_session_at_work_is_not_evicted(site):
    client = await opened_sessions(site, "alone", "a")
    await begin_turn(client, "a")
    assert (await site.call("evict", session_id="a"))["outcome"] == "at_work"
    assert (await site.call("show.sessions"))["sessions"][0]["state"] == "turn"


async def test_the_log_says_who_changed_what_and_nothing_of_who_looked(site):
    await opened_sessions(site, "alone", "a")
    with structlog.testing.capture_logs() as logs:
        await site.call("show.sessions")
        await site.call("evict", session_id="a")
    called = [entry for entry in logs if entry["event"].startswith("admin.")]
    assert called == [
        {
            "event": "admin.called",
            "log_level": "info",
            "verb": "evict",
            "caller": f"uid {os.geteuid()}, pid {os.getpid()}",
            "target": "a",
        }
    ]


async def test_a_session_that_nobody_holds_is_said_to_be_missing(site):
    await opened_sessions(site, "alone", "a")
    with pytest.raises(errors.ConfigError, match="no link holds a session b; 1 others are held"):
        await site.call("evict", session_id="b")
    with pytest.raises(errors.ConfigError, match="no link holds a session a of tenant shared"):
        await site.call("evict", session_id="a", tenant="shared")


async def test_a_cordoned_runtime_gets_nothing_new_and_goes_when_its_sessions_are_idle(site):
    client = await opened_sessions(site, "alone", "a")
    await begin_turn(client, "a")
    [row] = await site.call("show.runtimes")
    old = row["runtime"]["runtime_id"]
    done = await site.call("cordon", runtime_id=old, reason="kernel update")
    assert done == {"runtime_id": old, "reason": "kernel update", "was_cordoned": False}
    again = await site.call("cordon", runtime_id=old)
    assert (again["was_cordoned"], again["reason"]) == (True, "kernel update")
    [row] = await site.call("show.runtimes")
    assert (row["runtime"]["state"], row["runtime"]["cordoned"]) == ("cordoned", "kernel update")

    await client.call("session.abort", {"sessionId": "a"})
    await client.wait_for_event("a", "session.idle", 2)
    await site.rig.settled(lambda: not site.rig.pool.describe())
    await turn(client, "a")
    [row] = await site.call("show.runtimes")
    assert row["runtime"]["runtime_id"] != old


async def test_a_cordoned_runtime_without_links_goes_at_once(site):
    client = await opened_sessions(site, "alone", "a")
    await client.aclose()
    await site.rig.settled(lambda: site.rig.links() == 0)
    [row] = await site.call("show.runtimes")
    await site.call("cordon", runtime_id=row["runtime"]["runtime_id"])
    assert await site.call("show.runtimes") == []


@pytest.mark.parametrize("verb", ["cordon", "recycle"])
async def test_an_unknown_runtime_is_answered_with_those_that_are_there(site, verb):
    await opened_sessions(site, "alone", "a")
    [row] = await site.call("show.runtimes")
    with pytest.raises(
        errors.ConfigError, match=f"no runtime rt-x serves here; there is {row['runtime']['runtime_id']}"
    ):
        await site.call(verb, runtime_id="rt-x")


@pytest.mark.parametrize("reason", ["", "two\nlines", "\x1b[2J", "x" * 201])
async def test_a_reason_is_one_short_printable_line(site, reason):
    await opened_sessions(site, "alone", "a")
    [row] = await site.call("show.runtimes")
    with pytest.raises(errors.ConfigError, match="xpected"):
        await site.call("cordon", runtime_id=row["runtime"]["runtime_id"], reason=reason)


async def test_one_runtime_is_recycled_and_waited_for(site):
    await opened_sessions(site, "alone", "a")
    await opened_sessions(site, "team", "b")
    old = next(row["runtime"] for row in await site.call("show.runtimes") if row["runtime"]["realm"] == "tenant:team")
    done = await site.call("recycle", patient=True, runtime_id=old["runtime_id"], wait=True)
    assert done == {"runtimes": [old["runtime_id"]], "left": []}
    assert [row["runtime"]["realm"] for row in await site.call("show.runtimes")] == ["user:alone/user"]


async def test_all_runtimes_are_recycled_while_turns_go_on_and_none_is_lost(site):
    clients = [await opened_sessions(site, tenant, f"{tenant}-1") for tenant in ("alone", "team", "shared")]
    before = {row["runtime"]["runtime_id"] for row in await site.call("show.runtimes")}
    told = []
    await begin_turn(clients[0], "alone-1")  # so that the others have turns before all is done
    async with admin.open_client(site.directory, lambda method, params: told.append((method, params))) as operator:
        recycling = asyncio.ensure_future(operator.call("recycle", patient=True, wait=True))
        async with asyncio.timeout(SECONDS):
            for number in range(3):
                await turn(clients[1], "team-1")
                await turn(clients[2], "shared-1")
                assert not recycling.done(), number
            await clients[0].call("session.abort", {"sessionId": "alone-1"})
            await clients[0].wait_for_event("alone-1", "session.idle", 2)
            while not recycling.done():
                for client, tenant in zip(clients, ("alone", "team", "shared"), strict=True):
                    await turn(client, f"{tenant}-1")
        done = await recycling
    assert set(done["runtimes"]) == before
    assert done["left"] == []
    assert {params["runtime_id"] for method, params in told if params["is_gone"]} == before
    for client, tenant in zip(clients, ("alone", "team", "shared"), strict=True):
        assert "session.error" not in client.events(f"{tenant}-1")
        assert client.stray == []
    assert not before & {row["runtime"]["runtime_id"] for row in await site.call("show.runtimes")}


async def test_recycling_goes_on_to_the_next_runtime_of_a_realm_when_one_does_not_go(site):
    clients = []
    for number in range(2):
        client = await opened_sessions(site, "shared", f"s{number}", user=f"user{number}")
        await begin_turn(client, f"s{number}")
        clients.append(client)
        if number == 0:
            # The next is placed on another: this one is as full as can be.
            [handle] = site.rig.pool.handles()
            handle.links += 1000
    told = []
    async with admin.open_client(site.directory, lambda _, params: told.append(params["is_gone"])) as operator:
        done = await operator.call("recycle", wait=True, each_seconds=0.05)
    assert len(done["runtimes"]) == len(done["left"]) == 2
    assert told == [False, False]
    assert {row["runtime"]["cordoned"] for row in await site.call("show.runtimes")} == {"recycled by the operator"}


async def test_who_stops_watching_does_not_stop_the_recycling_and_a_second_is_refused(site):
    client = await opened_sessions(site, "alone", "a")
    await begin_turn(client, "a")
    watcher = await site.peer()
    watching = watcher.ask("recycle", {"wait": True})
    await site.rig.settled(lambda: site.rig.pool.describe()[0].cordoned)
    await watcher.aclose()
    with pytest.raises(ConnectionError):
        await watching
    with pytest.raises(errors.ConfigError, match="already"):
        await site.call("recycle")

    await client.call("session.abort", {"sessionId": "a"})
    await site.rig.settled(lambda: not site.rig.pool.describe())
    assert await site.call("recycle") == {"runtimes": [], "left": []}


async def test_a_drain_is_asked_for_once_however_often_an_operator_says_so(site):
    client = await opened_sessions(site, "alone", "a")
    await begin_turn(client, "a")
    assert await site.call("drain") == {"at_work": 1, "drain_seconds": 30.0}
    assert site.drains == 1
    await site.call("drain")
    assert site.drains == 1
    assert (await site.call("show.pool"))["is_draining"] is True


async def test_who_watches_a_drain_hears_how_far_it_is_and_that_it_is_over(site, monkeypatch):
    monkeypatch.setattr(operations_module, "_PROGRESS_SECONDS", 0.01)
    client = await opened_sessions(site, "alone", "a")
    await begin_turn(client, "a")
    told = []
    async with admin.open_client(site.directory, lambda _, params: told.append(params["at_work"])) as operator:
        watching = asyncio.ensure_future(operator.call("drain", patient=True, wait=True))
        await site.rig.settled(lambda: told.count(1) > 1)
        await client.call("session.abort", {"sessionId": "a"})
        await site.rig.settled(lambda: told[-1] == 0)
        await site.server.aclose()
        async with asyncio.timeout(SECONDS):
            assert await watching is None
    assert sorted(set(told)) == [0, 1]


async def test_where_no_sessions_are_known_runtimes_and_pool_are_shown_all_the_same(tmp_path):
    async with opened(tmp_path, has_tenants=False) as site:
        await opened_sessions(site, "alone", "a")
        [row] = await site.call("show.runtimes")
        assert row["live_sessions"] is None
        assert (await site.call("show.pool"))["sessions"] is None
        for verb, params in (("show.sessions", {}), ("show.links", {}), ("evict", {"session_id": "a"})):
            with pytest.raises(errors.ConfigError, match="transparent policy"):
                await site.call(verb, **params)


@pytest.mark.parametrize(
    ("verb", "params", "words"),
    [
        ("show.everything", {}, "no such verb; there are show.runtimes"),
        ("show.sessions", {"limit": 0}, "show.sessions: expected `int` >= 1"),
        ("show.sessions", {"limit": 201}, "show.sessions: expected `int` <= 200"),
        ("show.sessions", {"users": "x"}, "unknown field"),
        ("cordon", {}, "missing required field `runtime_id`"),
        ("cordon", {"runtime_id": "x" * 251}, "expected `str` of length <= 250"),
        ("recycle", {"each_seconds": 0}, "each_seconds"),
    ],
)
async def test_what_is_no_verb_or_no_form_of_one_is_refused_in_one_line(site, verb, params, words):
    with pytest.raises(errors.ConfigError, match=words):
        await site.call(verb, **params)


# -- who may use it, and what it costs --------------------------------------------------------------------------------


async def test_the_socket_is_its_owners_alone_and_goes_with_the_gateway(tmp_path):
    async with opened(tmp_path) as site:
        status = os.stat(site.path)
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert not site.path.exists()
    with pytest.raises(errors.ConfigError, match=f"no gateway runs over {tmp_path}; start it with aerodrome serve"):
        await site.call("show.pool")


async def test_a_socket_that_an_earlier_life_left_is_replaced(tmp_path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "admin.sock"))
    stale.close()
    with pytest.raises(errors.ConfigError, match="no gateway runs"):
        async with admin.open_client(tmp_path):
            pass
    async with opened(tmp_path) as site:
        assert (await site.call("show.pool"))["links"] == 0


async def test_what_is_no_socket_is_not_removed_and_the_gateway_goes_without(tmp_path):
    (tmp_path / "admin.sock").write_text("precious")
    server = AdminServer(tmp_path)
    async with rigs.open_rig(ScriptedHost(), rigs.fleet_settings(tmp_path)) as rig:
        assert await server.start(Operations(rig.pool, FACTS, rig.gateway, None)) is False
        await server.aclose()
    assert (tmp_path / "admin.sock").read_text() == "precious"


async def test_a_state_directory_whose_name_is_too_long_for_a_socket_works_all_the_same(tmp_path):
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    async with opened(directory) as site:
        assert stat.S_IMODE(os.stat(site.path).st_mode) == 0o600
        assert (await site.call("show.pool"))["links"] == 0
    assert not site.path.exists()


KNOCK = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
knocking = socket.socket(socket.AF_UNIX)
try:
    knocking.connect(sys.argv[1])
    knocking.sendall(bytes.fromhex(sys.argv[2]))
    print("heard", len(knocking.recv(100)))
except PermissionError:
    print("not permitted")
except ConnectionError:
    print("heard 0")
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def public_directory():
    """A directory that everyone may enter."""
    directory = Path(tempfile.mkdtemp(prefix="admin-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@as_root
@pytest.mark.parametrize(("mode", "heard"), [(0o600, "not permitted"), (0o666, "heard 0")])
async def test_another_user_is_kept_out_by_mode_and_where_that_fails_by_who_it_is(public_directory, mode, heard):
    async with opened(public_directory) as site:
        site.path.chmod(mode)
        frame = framing.encode(messages.request(1, "drain")).hex()
        command = [sys.executable, "-c", KNOCK, str(site.path), frame]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.stdout.strip(), done.stderr) == (heard, "")
        assert site.drains == 0
        assert (await site.call("show.pool"))["links"] == 0


@as_root
def test_another_users_command_says_whom_to_run_it_as(public_directory):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(public_directory / "admin.sock"))
        os.chmod(public_directory / "admin.sock", 0o600)
        listening.listen()
        script = (
            "import os, pwd, sys; from aerodrome.cli import main; main.load('show'); os.setgid(65534); os.setuid(65534);"
            f"sys.argv[1:] = ['show', 'pool', '--state-directory', '{public_directory}']; main.main()"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "not permitted to use" in done.stderr
    assert "run this as the gateway's user (root)" in done.stderr


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 10_000, b"Content-Length: 99999999\r\n\r\n", b"Content-Length: x\r\n\r\n"],
)
async def test_what_is_no_frame_is_answered_and_ends_that_link_only(site, data):
    async with admin.open_client(site.directory) as other:
        peer = await site.peer()
        peer.send_bytes(data)
        await peer.wait_closed()
        assert [found.error is not None for found in peer.stray] == [True]
        assert await other.call("show.runtimes") == []
        await peer.aclose()
    await site.rig.settled(lambda: site.server.links == 0)


async def test_what_is_no_request_is_answered_and_the_link_goes_on(site):
    peer = await site.peer()
    for body in (b"[]", b"{}", b"nonsense", b'{"jsonrpc":"2.0","id":1.5,"method":"drain"}'):
        peer.send_body(body)
    for body in (b'{"jsonrpc":"2.0","method":"drain"}', b'{"jsonrpc":"2.0","id":1,"result":{}}'):
        peer.send_body(body)
    assert (await peer.call("show.pool"))["links"] == 0
    assert len(peer.stray) == 4
    assert site.drains == 0
    with pytest.raises(Exception, match="object"):
        await peer.call("show.sessions", [1])
    await peer.aclose()


async def test_a_caller_who_neither_asks_nor_leaves_is_cut_off(tmp_path):
    async with opened(tmp_path, idle_seconds=0.1) as site:
        peer = await site.peer()
        peer.send_bytes(b"Content-Length: 10\r\n\r\n{")
        await peer.wait_closed()
        await peer.aclose()


async def test_a_caller_who_does_not_read_is_cut_off_and_disturbs_nobody(tmp_path):
    async with opened(tmp_path, stall_seconds=0.2) as site:
        await opened_sessions(site, "alone", *(f"s{number}" for number in range(20)))
        peer = await site.peer()
        await peer.call("show.pool")
        peer.stop_reading()
        peer.writer.transport.pause_reading()
        for _ in range(1000):
            peer.ask("show.sessions")
        await site.rig.settled(lambda: site.server.links == 0)
        assert len((await site.call("show.sessions"))["sessions"]) == 20
        await peer.aclose()


async def test_a_caller_who_is_half_gone_is_let_go(site):
    peer = await site.peer()
    watching = peer.ask("drain", {"wait": True})
    await peer.wait_until(lambda: peer.notifications("drain.progress"))
    peer.writer.write_eof()
    await peer.wait_closed()
    with pytest.raises(ConnectionError):
        await watching
    await site.rig.settled(lambda: site.server.links == 0)
    await peer.aclose()


async def test_there_are_so_many_links_at_once_and_no_more(site):
    peers = [await site.peer() for _ in range(server_module._MAX_LINKS)]
    for peer in peers:
        await peer.call("show.pool")
    with pytest.raises(errors.ConfigError, match="closed the link"):
        await site.call("show.pool")
    await peers.pop().aclose()
    await site.rig.settled(lambda: site.server.links < server_module._MAX_LINKS)
    await site.call("show.pool")
    for peer in peers:
        await peer.aclose()


async def test_a_verb_that_fails_unexpectedly_is_answered_and_logged(site, monkeypatch):
    def fail() -> None:
        raise ValueError("broken")

    monkeypatch.setattr(site.rig.pool, "describe_pool", fail)
    with pytest.raises(errors.ConfigError, match="its log says why"):
        await site.call("show.pool")
    assert await site.call("show.runtimes") == []


async def test_a_gateway_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "_ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "admin.sock"))
        deaf.listen()
        async with admin.open_client(tmp_path) as client:
            with pytest.raises(errors.ConfigError, match=r"did not answer within 0\.1 s"):
                await client.call("show.pool")


# -- audit ------------------------------------------------------------------------------------------------------------


async def test_what_operators_change_is_in_the_audit_log_with_who_and_what_and_views_are_not(site):
    client = await opened_sessions(site, "alone", "a")
    site.rig.audit_log.entries.clear()
    for verb in ("show.sessions", "show.links", "show.runtimes", "show.pool"):
        await site.call(verb)
    await site.call("evict", session_id="a")
    with pytest.raises(errors.ConfigError):
        await site.call("cordon", runtime_id="nothing")
    found = [(e.method, e.session_id or e.target, e.outcome.value, e.reason) for e in site.rig.audit_log.entries]
    assert site.rig.audit_log.entries[0].session_owner == Owner("alone", "user")
    assert found == [
        ("evict", "a", "asked", None),
        ("cordon", "nothing", "asked", None),
        ("cordon", "nothing", "failed", "params_invalid"),
    ]
    assert {entry.by for entry in site.rig.audit_log.entries} == {f"uid {os.getuid()}, pid {os.getpid()}"}
    await client.aclose()
