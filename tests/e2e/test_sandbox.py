"""An agent with a shell on the real runtime, in a sandbox: what it tries against the host and its neighbours is refused.

The same program, run without a sandbox, gets what it is after: so the refusals are the sandbox's doing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from copilot import PermissionHandler

from aerodrome.adapters.sandbox import syscalls
from aerodrome.transport import control

from .place import Place, open_place
from .python_sdk import Program

pytestmark = pytest.mark.runtime
needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="NOT TESTED: the sandbox, for bubblewrap is missing; install it (make setup tries to)",
)

ATTACK = Path(__file__).with_name("attack_from_inside.py")
PYTHON = os.path.realpath(sys.executable)
ENTRIES = ("native", "node")
WAIVED = "agents run commands as the gateway's user"
INDEX = syscalls.ARCHITECTURES[os.uname().machine].index
CALLS = {name: numbers[INDEX] for name, numbers in syscalls.DENIED.items() if numbers[INDEX] is not None}
NEW_USER_NAMESPACE = 0x10000000


@contextmanager
def listeners(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What listens on this machine for others: a TCP port on loopback, a socket of a file, one of an abstract name."""
    abstract = f"@aerodrome-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as named:
        named.bind(str(tmp_path / "s"))
        named.listen(8)
        with socket.socket(socket.AF_UNIX) as hidden:
            hidden.bind(abstract.replace("@", "\0"))
            hidden.listen(8)
            yield {"port": tcp.getsockname()[1], "unix": [str(tmp_path / "s"), abstract]}


@asynccontextmanager
async def sandboxed(tmp_path: Path, entry: str = "native", **settings: Any) -> AsyncIterator[Place]:
    section = {"mode": "bubblewrap", "read_only": [sys.base_prefix, str(ATTACK)], **settings}
    async with open_place(tmp_path / "state", sandbox=section, runtime={"entry": entry}) as place:
        yield place


async def shell(program: Program, session: Any, command: str) -> str:
    """Have the agent run a command, as a model asks for it."""
    wanted = json.dumps({"command": command, "description": "as asked"})
    answer = await session.send_and_wait(f"[tool bash {wanted}]", timeout=60)
    return str(answer.data.content)


async def agent(place: Place, user: str = "ann") -> tuple[Program, Any]:
    program = await place.connect("user", user)
    return program, await program.create(on_permission_request=PermissionHandler.approve_all)


def realm(place: Place, user: str) -> Path:
    return next(place.state.glob(f"realms/user-user-{user}-*"))


def targets(place: Place, listening: dict[str, Any], victim: Path) -> dict[str, Any]:
    """Everything there is to be attacked on this machine."""
    state = place.state
    model_port = int(place.model["base_url"].split(":")[2].split("/")[0])
    return {
        "read": [
            str(state / "aerodrome.db"),
            str(victim / "home" / "secret"),
            "/etc/shadow",
            str(ATTACK.parent / "place.py"),
        ],
        "list": [
            (str(state), "aerodrome.db"),
            (str(victim), "home"),
            (str(state / "realms"), victim.name),
            (str(state / "runtimes"), next(path.name for path in state.glob("runtimes/*"))),
            (str(ATTACK.parent), "place.py"),
        ],
        "write": [
            "/usr/x-aerodrome-test",
            "/etc/x-aerodrome-test",
            str(state / "x"),
            str(victim / "work" / "x"),
        ],
        "unix": [str(state / "admin.sock"), *listening["unix"]],
        "tcp": [listening["port"], int(place.sdk.split(":")[1]), model_port],
        "proxy": [
            f"127.0.0.1:{listening['port']}",
            f"localhost:{listening['port']}",
            "169.254.169.254:80",
            "example.com:443",
        ],
        "pids": [os.getpid()],
        "calls": {},
        "with": {},
    }


def read_found(path: Path, said: str) -> dict[str, str]:
    assert path.exists(), said
    return dict(json.loads(path.read_text()))


@needs_bubblewrap
@pytest.mark.parametrize("entry", ENTRIES)
async def test_an_agent_in_a_sandbox_reaches_nothing_but_what_is_its_realms(tmp_path, monkeypatch, entry):
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "hunter2-of-the-gateway")
    async with sandboxed(tmp_path, entry) as place:
        with listeners(tmp_path) as listening:
            await agent(place, "ben")
            victim = realm(place, "ben")
            (victim / "home" / "secret").write_text("of ben")
            program, session = await agent(place)
            own = realm(place, "ann")
            wanted = targets(place, listening, victim)
            wanted["calls"] = CALLS
            wanted["with"] = {
                "unshare": (syscalls.UNSHARE[INDEX], NEW_USER_NAMESPACE, 0, 0, 0, 0, 0),
                "clone": (syscalls.CLONE[INDEX], NEW_USER_NAMESPACE | 17, 0, 0, 0, 0, 0),
                "vsock": (syscalls.SOCKET[INDEX], 40, 1, 0, 0, 0, 0),
            }
            (own / "work" / "wanted.json").write_text(json.dumps(wanted))
            (own / "work" / "wanted.json").chmod(0o644)
            said = await shell(
                program, session, f"{PYTHON} {ATTACK} wanted.json found.json; env; ps ax; cat /proc/1/environ"
            )
            assert ("COPILOT_CLI_RESOLVED_DIST_DIR" in said) == (entry == "node")
            found = read_found(own / "work" / "found.json", said)
            assert [path for path in map(Path, wanted["write"]) if path.exists()] == []
    # A directory on the way to the realm's is the sandbox's own and empty; a plain user may write there, to no effect outside.
    found.pop(f"write {place.state / 'x'}")
    model = f"tcp {wanted['tcp'][-1]}"
    assert found.pop(model) == "done", "policy names the model's endpoint"
    assert len(found) > 80
    assert {name: outcome for name, outcome in found.items() if outcome == "done"} == {}
    assert {outcome for name, outcome in found.items() if name.startswith("call ")} == {"EPERM"}
    assert {outcome for name, outcome in found.items() if name.startswith("proxy ")} == {"refused"}
    assert "hunter2" not in said


@needs_bubblewrap
async def test_the_same_attack_without_a_sandbox_gets_what_it_is_after(tmp_path):
    """So the refusals above are the sandbox's doing, not mistakes of the attack."""
    async with sandboxed(tmp_path, mode="off", unsandboxed=WAIVED) as place:
        with listeners(tmp_path) as listening:
            await agent(place, "ben")
            victim = realm(place, "ben")
            (victim / "home" / "secret").write_text("of ben")
            program, session = await agent(place)
            wanted = targets(place, listening, victim)
            wanted |= {
                "write": wanted["write"][2:],
                "proxy": [],
                "with": {"ptrace": (CALLS["ptrace"], 0, 0, 0, 0, 0, 0)},
            }
            (tmp_path / "wanted.json").write_text(json.dumps(wanted))
            await shell(program, session, f"{sys.executable} {ATTACK} {tmp_path}/wanted.json {tmp_path}/found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    found.pop("be root")
    refused = {name for name, outcome in found.items() if outcome != "done"}
    own = {
        "read /etc/shadow",
        f"read /proc/{os.getpid()}/mem",
    }  # a plain user is refused these anyway; memory needs an offset
    assert refused - own == set()


@needs_bubblewrap
@pytest.mark.parametrize("entry", ENTRIES)
async def test_a_session_in_a_sandbox_keeps_its_files_and_comes_back_after_its_runtime_was_killed(tmp_path, entry):
    async with sandboxed(tmp_path, entry) as place:
        program, session = await agent(place)
        assert "kept" in await shell(program, session, "echo kept > mine; echo too > ~/mine; cat mine")
        [handle] = place.application.fleet.handles()
        first = handle.runtime_id
        [view] = [view for view in place.application.fleet.describe() if view.runtime_id == first]
        os.kill(view.pid, 9)
        await asyncio.wait_for(asyncio.shield(handle.lost), 30)
        assert "kept" in await shell(program, session, "cat mine ~/mine")
        owners = {(realm(place, "ann") / name).stat().st_uid for name in ("work/mine", "home/mine", "copilot", "tmp")}
        assert len(owners) == 1
        await agent(place, "ben")
        others = (realm(place, "ben") / "work").stat().st_uid
        assert (others in owners) == (os.geteuid() != 0), "a user of its own for each realm, where the gateway is root"


async def ping_for_ever(link: control.ControlLink) -> None:
    async with asyncio.timeout(30):
        while True:  # without control groups it is stopped some ms later
            await link.call("ping", timeout_seconds=0.3)


@needs_bubblewrap
async def test_a_frozen_sandbox_answers_nothing_until_it_is_thawed(tmp_path):
    async with sandboxed(tmp_path) as place:
        program, session = await agent(place)
        [handle] = place.application.fleet.handles()
        link, _ = await control.open_control(handle.host, handle.port, handle.token, dial=handle.dial)
        try:
            handle.freeze()
            with pytest.raises(Exception, match="no answer"):
                await ping_for_ever(link)
            handle.thaw()
            await link.call("ping", timeout_seconds=30)
        finally:
            await link.aclose()
        assert "thawed" in await shell(program, session, "echo thawed")


@needs_bubblewrap
async def test_a_model_that_is_elsewhere_is_reached_through_the_proxy(tmp_path):
    """Another address than loopback's first stands for elsewhere: it is no exception from proxies."""
    asked: list[bytes] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        there, back = await asyncio.open_connection(*address)
        back.write(asked[-1])
        await asyncio.gather(copy(reader, back), copy(there, writer))
        back.close()
        writer.close()

    async with await asyncio.start_server(forward, "127.0.0.2", 0) as elsewhere:
        url = f"http://127.0.0.2:{elsewhere.sockets[0].getsockname()[1]}/v1"
        async with open_place(tmp_path / "state", {"providers": [url]}, sandbox={"mode": "bubblewrap"}) as place:
            model = place.model["base_url"].split("/")[2].split(":")
            address = (model[0], int(model[1]))
            program = await place.connect("user")
            provider = {"type": "openai", "base_url": url, "api_key": place.model["api_key"]}
            session = await program.create(provider=provider)
            assert (await session.send_and_wait("[say from afar]", timeout=20)).data.content == "from afar"
    assert asked
    assert all(line.startswith(b"POST /v1/") for line in asked)


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65536):
        target.write(chunk)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()


async def test_without_bubblewrap_fully_trusted_tenants_are_refused_and_others_served(tmp_path):
    section = {"mode": "auto", "bubblewrap": "/nonexistent/bwrap"}
    async with open_place(tmp_path / "state", sandbox=section) as place:
        program = await place.connect("user")
        with pytest.raises(Exception, match="host tools need a sandbox") as refused:
            await program.create()
        assert "-32010" in str(refused.value)
        shared = await place.connect("shared")
        session = await shared.create()
        assert (await session.send_and_wait("[say served]", timeout=20)).data.content == "served"
        assert {handle.realm.key for handle in place.application.fleet.handles()} == {"shared"}


async def test_without_bubblewrap_a_fully_trusted_tenant_is_served_if_the_operator_says_so_in_words(tmp_path):
    section = {"mode": "auto", "bubblewrap": "/nonexistent/bwrap", "unsandboxed": WAIVED}
    async with open_place(tmp_path / "state", sandbox=section) as place:
        program, session = await agent(place)
        assert "here" in await shell(program, session, "echo here")


async def test_a_gateway_that_must_have_a_sandbox_does_not_start_without(tmp_path):
    with pytest.raises(Exception, match=r"sandbox.mode: .*bwrap"):
        async with open_place(tmp_path / "state", sandbox={"mode": "bubblewrap", "bubblewrap": "/nonexistent/bwrap"}):
            pass
