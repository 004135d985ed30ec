"""Programs in a sandbox: signals, freezing, limits and the end of the whole tree are as they are without; and the way out."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from aerodrome import errors
from aerodrome.adapters.process import usage
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.adapters.sandbox import probe, syscalls
from aerodrome.adapters.sandbox.bubblewrap import PROXY_PORT, Network
from aerodrome.adapters.sandbox.host import SandboxHost
from aerodrome.adapters.sandbox.uids import UidRange
from aerodrome.ports.host import Confinement, ResourceLimits, RuntimeProcess, SpawnSpec
from aerodrome.testing.process_table import eventually, find, find_groups, is_alive

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="NOT TESTED: the sandbox, for bubblewrap is missing; install it (make setup tries to)",
)
FIRST_UID = 2_000_000_000
LIMITS = ResourceLimits(512, memory_bytes=160 << 20, processes=60)
LISTENING = "echo listening on port 1; "


class House:
    """A host of sandboxes and one realm."""

    def __init__(self, place: Path, network: Network) -> None:
        sandbox = probe.find(None, network, (), FIRST_UID)
        self.processes = ProcessHost()
        self.host = SandboxHost(self.processes, sandbox, UidRange(FIRST_UID, 10) if sandbox.setpriv else None)
        self.place = place

    def realm(self, name: str) -> Path:
        root = self.place / "realms" / name
        for directory in ("copilot", "home", "tmp", "work"):
            (root / directory).mkdir(parents=True, exist_ok=True, mode=0o700)
        return root

    async def spawn(self, script: str, *egress: str, realm: str = "one") -> RuntimeProcess:
        root = self.realm(realm)
        directories = tuple(root / name for name in ("copilot", "home", "tmp", "work"))
        confinement = Confinement(root, directories, self.place / f"rt-{secrets.token_hex(4)}", egress)
        argv = ("/bin/sh", "-c", script)
        spec = SpawnSpec("rt-test", argv, {"PATH": os.defpath}, root / "work", LIMITS, confinement)
        return await self.host.spawn(spec)

    async def listening(self, script: str, *egress: str, before: str = "") -> RuntimeProcess:
        """Spawn a program that listens, and wait until it says so; `before`: what it is to have done by then."""
        runtime = await self.spawn(before + LISTENING + script, *egress)
        async with asyncio.timeout(60):
            await runtime.address()
        return runtime

    async def last_words(self, script: str, realm: str = "one") -> str:
        runtime = await self.spawn(script, realm=realm)
        with pytest.raises(errors.SpawnFailed) as raised:
            await runtime.address()
        return raised.value.message


@pytest.fixture(params=[Network.EGRESS])
async def house(request, tmp_path, mark) -> AsyncIterator[House]:
    """A house; closing it must leave no file descriptor behind, no process and no control group."""
    before = len(os.listdir("/proc/self/fd"))
    opened = House(tmp_path, request.param)
    yield opened
    await opened.host.aclose()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert find_groups(os.getpid()) == []


# -- what it is ---------------------------------------------------------------------------------------------------------------


@needs_bubblewrap
async def test_a_sandbox_is_a_user_without_powers_in_namespaces_of_its_own(house):
    script = (
        "id -u; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; ls /proc/self/fd | wc -l; hostname; pwd"
    )
    words = (await house.last_words(script)).split(": ", 1)[1].split(" | ")
    assert words[0] == str(FIRST_UID if os.geteuid() == 0 else os.geteuid())
    facts = dict(word.split(":\t") for word in words[1:5])
    assert (facts["CapEff"], facts["NoNewPrivs"], facts["Seccomp"]) == ("0" * 16, "1", "2")
    assert int(words[5]) <= 4
    assert words[6:] == ["sandbox", str(house.place / "realms" / "one" / "work")]


@needs_bubblewrap
async def test_each_realm_has_a_user_of_its_own_that_it_keeps(house):
    if os.geteuid() != 0:
        assert str(os.geteuid()) in await house.last_words("id -u")
        return
    link = house.realm("one") / "work" / "link"
    outside = house.place / "outside"
    outside.write_text("")
    link.symlink_to(outside)
    os.link(outside, house.realm("one") / "work" / "second-name")
    seen = [(await house.last_words("id -u", realm=name)).rpartition(" ")[2] for name in ("one", "two", "one")]
    assert seen == [str(FIRST_UID), str(FIRST_UID + 1), str(FIRST_UID)]
    assert outside.stat().st_uid == 0, "neither a link nor a second name gives away what is outside"
    again = UidRange(FIRST_UID, 10)
    assert again.give(house.realm("two"), [house.realm("two") / "copilot"]) == FIRST_UID + 1
    again.give(house.realm("three"), [house.realm("three") / "copilot"])
    with pytest.raises(errors.SpawnFailed, match=r"raise sandbox\.uids"):
        UidRange(FIRST_UID, 3).give(house.realm("four"), [house.realm("four") / "copilot"])


# -- how it ends --------------------------------------------------------------------------------------------------------------


@needs_bubblewrap
async def test_a_term_reaches_the_program_in_the_sandbox_which_may_take_its_leave(house, mark):
    runtime = await house.listening(f"sleep {mark} & wait", before="trap 'echo bye > said; exit 3' TERM; ")
    await runtime.stop(60)
    assert runtime.exited.result() == 3
    assert (house.realm("one") / "work" / "said").read_text() == "bye\n"


@needs_bubblewrap
async def test_one_that_dies_by_a_signal_is_said_to(house, mark):
    runtime = await house.spawn("kill -9 $$")
    assert await asyncio.wait_for(runtime.exited, 30) == -signal.SIGKILL


ESCAPES = """
trap '' TERM
sleep MARK &
setsid sleep MARK &
(env -i setsid sh -c 'sleep MARK & sleep MARK & exit' &)
env -i setsid nohup sh -c 'trap "" TERM HUP INT; while :; do sleep MARK; done' >/dev/null 2>&1 &
echo listening on port 1
sleep MARK
"""


@needs_bubblewrap
@pytest.mark.parametrize("end", ["stop", "guardian", "sandbox program", "first process"])
async def test_whatever_is_killed_nothing_in_the_sandbox_lives_on(house, mark, end):
    runtime = await house.spawn(ESCAPES.replace("MARK", mark))
    async with asyncio.timeout(60):
        await runtime.address()
    await eventually(lambda: len(find(mark)) >= 6)
    first = usage.behind(runtime.pid, generations=1)
    match end:
        case "stop":
            await runtime.stop(0)
        case "guardian":
            os.kill(house.processes.guardian_pid, signal.SIGKILL)
        case "sandbox program":
            os.kill(runtime.pid, signal.SIGKILL)
        case "first process":
            os.kill(first, signal.SIGKILL)
    await asyncio.wait_for(asyncio.shield(runtime.exited), 30)
    await eventually(lambda: find(mark) == [])
    await eventually(lambda: not is_alive(first))


@needs_bubblewrap
async def test_limits_hold_in_a_sandbox(house, mark):
    runtime = await house.spawn(f"(tail /dev/zero) 2>/dev/null; echo listening on port $?; sleep {mark}")
    async with asyncio.timeout(60):
        _, code = await runtime.address()
    assert code != 0, "tail keeps all that comes and is killed, or refused the memory"
    used = runtime.usage()
    assert used is not None
    assert used.memory_bytes < LIMITS.memory_bytes
    assert used.threads == 1, "of the program itself, not of what made the sandbox"


@needs_bubblewrap
async def test_a_frozen_sandbox_stands_still_with_all_in_it_and_goes_on(house, mark):
    ticks = house.realm("one") / "work" / "ticks"
    runtime = await house.listening("setsid sh -c 'while :; do echo t >> ticks; sleep 0.01; done'")

    async def grows(seconds: float = 20.0) -> bool:
        size = ticks.stat().st_size if ticks.exists() else 0
        with suppress(TimeoutError):
            await eventually(lambda: ticks.exists() and ticks.stat().st_size > size, seconds)
            return True
        return False

    assert await grows()
    runtime.freeze()
    async with asyncio.timeout(30):
        while await grows(0.3):
            pass
    runtime.thaw()
    assert await grows()


# -- its network --------------------------------------------------------------------------------------------------------------


async def ask(runtime: RuntimeProcess, request: bytes) -> bytes:
    """Ask the proxy as the sandbox would."""
    assert runtime.network is not None
    with await runtime.network.connect(PROXY_PORT) as inside:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            await loop.sock_sendall(inside, request)
            answer = b""
            while chunk := await loop.sock_recv(inside, 65536):
                answer += chunk
    return answer


@needs_bubblewrap
async def test_the_proxy_lets_through_what_policy_names_and_sends_no_second_request_elsewhere(house, mark):
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        runtime = await house.listening(f"sleep {mark}", f"localhost:{port}")
        request = f"GET http://localhost:{port}/a?b HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nProxy-X: y\r\n\r\n"
        assert (await ask(runtime, request.encode())).endswith(b"hi")
        tunnel = f"CONNECT localhost:{port} HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        assert b"established\r\n\r\nHTTP/1.1 200 OK" in await ask(runtime, tunnel.encode())
        for refused in (
            f"CONNECT 127.0.0.1:{port} HTTP/1.1",
            f"GET http://127.1:{port}/ HTTP/1.1",
            f"CONNECT [::1]:{port} HTTP/1.1",
        ):
            assert (await ask(runtime, f"{refused}\r\n\r\n".encode())).startswith(b"HTTP/1.1 403")
        for odd in ("GET / HTTP/1.1", "CONNECT nowhere HTTP/1.1", f"GET http://user@localhost:{port}/ HTTP/1.1"):
            assert (await ask(runtime, f"{odd}\r\n\r\n".encode())).startswith(b"HTTP/1.1 400")
        direct = await runtime.network.connect(port)
        direct.close()
        with pytest.raises(ConnectionRefusedError):
            await runtime.network.connect(port + 1 if port < 65535 else port - 1)
    assert heard[0] == b"GET /a?b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say back what is said, until that ends."""
    while said := await reader.read(1024):
        writer.write(said)
    writer.close()


async def say(way: socket.socket, word: bytes) -> bytes:
    """Say a word to whoever is behind a connection; return the answer, empty once it is cut."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        try:
            await loop.sock_sendall(way, word)
            return await loop.sock_recv(way, 1024)
        except ConnectionError:
            return b""


async def tunnel(runtime: RuntimeProcess, target: str) -> socket.socket:
    """Have the proxy open a way to a target."""
    way = await runtime.network.connect(PROXY_PORT)
    assert (await say(way, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())).startswith(b"HTTP/1.1 200"), target
    return way


@needs_bubblewrap
async def test_what_policy_lets_out_no_more_is_cut_and_what_it_lets_out_now_is_open_while_the_runtime_goes_on(
    house, mark
):
    async with (
        await asyncio.start_server(echo, "127.0.0.1", 0) as near,
        await asyncio.start_server(echo, "127.0.0.2", 0) as far,
        await asyncio.start_server(echo, "127.0.0.3", 0) as other,
    ):
        ports = [server.sockets[0].getsockname()[1] for server in (near, far, other)]
        names = [f"127.0.0.{number}:{port}" for number, port in enumerate(ports, 1)]
        runtime = await house.listening(f"sleep {mark}", names[0], names[1])
        direct, kept, cut = (
            await runtime.network.connect(ports[0]),
            await tunnel(runtime, names[1]),
            await tunnel(runtime, names[0]),
        )
        assert [await say(way, b"a") for way in (direct, kept, cut)] == [b"a"] * 3

        runtime.let_reach((names[1], names[2]))

        assert [await say(way, b"b") for way in (direct, kept, cut)] == [b"", b"b", b""]
        assert (await ask(runtime, f"CONNECT {names[0]} HTTP/1.1\r\n\r\n".encode())).startswith(b"HTTP/1.1 403")
        with pytest.raises(ConnectionRefusedError):
            await runtime.network.connect(ports[0])
        opened = await tunnel(runtime, names[2])
        runtime.let_reach((names[0],))
        runtime.let_reach((names[0], names[1]))
        again = await eventually_connected(runtime, ports[0])
        assert await say(again, b"c") == b"c"
        assert await say(opened, b"c") == b""
        assert not runtime.exited.done()
        for way in (direct, kept, cut, opened, again):
            way.close()


async def eventually_connected(runtime: RuntimeProcess, port: int) -> socket.socket:
    """Connect to a port inside that opens a moment later."""
    async with asyncio.timeout(30):
        while True:
            with suppress(ConnectionRefusedError):
                return await runtime.network.connect(port)


@needs_bubblewrap
async def test_a_name_without_a_port_is_let_out_to_and_does_not_lead_to_this_machine(house, mark):
    async with await asyncio.start_server(echo, "127.0.0.2", 0) as far:
        port = far.sockets[0].getsockname()[1]
        name = socket.gethostname()
        runtime = await house.listening(f"sleep {mark}", name, "localhost", "*.localhost", "10.255.255.1")
        for target in (f"localhost:{port}", f"a.localhost:{port}", f"127.0.0.2:{port}", f"{name}.elsewhere:{port}"):
            answer = await ask(runtime, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            assert answer[9:12] in (b"403", b"502"), (target, answer)


@needs_bubblewrap
async def test_where_everything_public_is_allowed_this_machine_is_still_not_reached(house, mark):
    with socket.create_server(("127.0.0.1", 0)) as here:
        runtime = await house.listening(f"sleep {mark}", "*")
        port = here.getsockname()[1]
        for name in (
            f"localhost:{port}",
            f"127.0.0.1:{port}",
            "169.254.169.254:80",
            "[::ffff:127.0.0.1]:80",
            "10.0.0.1:80",
            "0:80",
        ):
            assert (await ask(runtime, f"CONNECT {name} HTTP/1.1\r\n\r\n".encode()))[9:12] in (b"403", b"400"), name


@needs_bubblewrap
@pytest.mark.parametrize("house", [Network.NONE, Network.HOST], indirect=True, ids=["none", "host"])
async def test_the_other_networks_are_what_they_are_called(house, mark):
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]
        runtime = await house.listening(f"sleep {mark}", f"127.0.0.1:{port}")
        if runtime.network is None:
            mine, theirs = (os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", runtime.pid))
            assert mine == theirs
        else:
            with pytest.raises(ConnectionRefusedError):
                await runtime.network.connect(port)


async def test_a_host_of_processes_starts_nothing_that_is_to_be_in_a_sandbox(tmp_path):
    host = ProcessHost()
    confinement = Confinement(tmp_path, (tmp_path,), tmp_path / "place")
    with pytest.raises(errors.SpawnFailed, match="sandbox"):
        await host.spawn(SpawnSpec("rt", ("/bin/true",), {}, tmp_path, LIMITS, confinement))
    await host.aclose()


@needs_bubblewrap
async def test_every_listed_system_call_is_refused_in_a_sandbox_and_the_listed_numbers_differ(house):
    for index in (0, 1):
        numbers = [numbers[index] for numbers in syscalls.DENIED.values() if numbers[index] is not None]
        assert len(set(numbers)) == len(numbers)
    assert "cannot unshare" in (await house.last_words("unshare --user true 2>&1; unshare --mount true 2>&1")).replace(
        "unshare failed", "cannot unshare"
    )
