"""Host tools under a policy that trusts nobody in full: what agents get on the real runtime, what holds them, who gets none."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copilot import PermissionHandler

from aerodrome.testing.process_table import eventually, find

from .place import Place, open_place
from .python_sdk import Program
from .test_sandbox import ATTACK, CALLS, PYTHON, WAIVED, listeners, read_found, shell, targets

pytestmark = [pytest.mark.runtime, pytest.mark.asyncio(loop_scope="module")]
needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="NOT TESTED: the sandbox, for bubblewrap is missing; install it (make setup tries to)",
)
#: Never in shared isolation, which policy refuses.
TENANTS: dict[str, dict[str, Any]] = {
    "guarded": {"isolation": "user", "host_tools": True},
    "team": {"isolation": "tenant", "host_tools": True},
    "plain": {"isolation": "user"},
}


class Elsewhere:
    """Servers that say `reached` to whoever connects: what policy names, and what it does not."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []

    async def open(self, host: str) -> int:
        """Listen; return the port."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached")
            await writer.drain()
            writer.close()

        self._servers.append(await asyncio.start_server(answer, host, 0))
        return int(self._servers[-1].sockets[0].getsockname()[1])

    def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()


@asynccontextmanager
async def opened(state: Path, sandbox: dict[str, Any], **changes: Any) -> AsyncIterator[Place]:
    tenants = {name: {**policy, **changes} if policy.get("host_tools") else policy for name, policy in TENANTS.items()}
    # As short a look at the policies as there is: these tests say themselves when they have changed.
    async with open_place(state, sandbox=sandbox, tenants=tenants) as place:
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def elsewhere() -> AsyncIterator[dict[str, int]]:
    servers = Elsewhere()
    yield {
        "named": await servers.open("127.0.0.1"),
        "far": await servers.open("127.0.0.2"),
        "unnamed": await servers.open("127.0.0.2"),
    }
    servers.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, elsewhere: dict[str, int]) -> AsyncIterator[Place]:
    egress = [f"127.0.0.1:{elsewhere['named']}", f"127.0.0.2:{elsewhere['far']}"]
    sandbox = {"mode": "bubblewrap", "read_only": [sys.base_prefix, str(ATTACK)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_GATEWAY", "hunter2-of-the-gateway")
        async with opened(tmp_path_factory.mktemp("host-tools"), sandbox, egress=egress) as place:
            yield place


async def agent(place: Place, tenant: str, user: str = "ann") -> tuple[Program, Any]:
    program = await place.connect(tenant, user)
    return program, await program.create(on_permission_request=PermissionHandler.approve_all)


def realm(place: Place, name: str) -> Path:
    return next(place.state.glob(f"realms/{name}-*"))


async def put(place: Place, name: str, **changes: Any) -> None:
    """Change a tenant's policy, as a reload does."""
    tenants = place.settings.configured_tenants()
    tenant = tenants[name]
    tenants[name] = dataclasses.replace(tenant, policy=dataclasses.replace(tenant.policy, **changes))
    await place.application.policies.replace_configured(tenants)


def get(url: str) -> str:
    return f"curl -s -m 10 -o /dev/stdout -w ' %{{http_code}}' {url}"


@needs_bubblewrap
@pytest.mark.parametrize("tenant", ["guarded", "team"])
async def test_an_agent_has_a_shell_in_its_own_directory_and_reaches_what_policy_names_and_nothing_else(
    place, elsewhere, tenant
):
    program, session = await agent(place, tenant)
    work = realm(place, "user-guarded-ann" if tenant == "guarded" else "tenant-team") / "work" / session.session_id

    said = await shell(program, session, "pwd; echo mine > file; cat file; id -u")
    assert str(work) in said
    assert "mine" in said
    assert (work / "file").read_text() == "mine\n"
    assert (work / "file").stat().st_uid == work.stat().st_uid == work.parent.stat().st_uid
    assert (work.stat().st_uid == 0) is False

    urls = [f"http://127.0.0.1:{elsewhere['named']}/", f"http://127.0.0.2:{elsewhere['far']}/"]
    assert (await shell(program, session, "; ".join(map(get, urls)))).count("reached 200") == 2
    urls = [f"http://127.0.0.2:{elsewhere['unnamed']}/", f"http://{place.sdk}/", "http://example.com/"]
    refused = await shell(program, session, "; ".join(map(get, urls)))
    assert "reached" not in refused
    assert refused.count("403") == 2, "the gateway's own port is on loopback, where there is none but the sandbox's"


@needs_bubblewrap
async def test_an_agent_of_a_guarded_tenant_reaches_nothing_of_its_neighbours_or_the_gateway(place, tmp_path):
    with listeners(tmp_path) as listening:
        await agent(place, "guarded", "ben")
        await agent(place, "team")
        victim = realm(place, "user-guarded-ben")
        (victim / "home" / "secret").write_text("of ben")
        program, session = await agent(place, "guarded")
        work = realm(place, "user-guarded-ann") / "work" / session.session_id
        wanted = targets(place, listening, victim)
        wanted["list"].append((str(place.state / "realms"), realm(place, "tenant-team").name))
        wanted["calls"] = CALLS
        (work / "wanted.json").write_text(json.dumps(wanted))
        (work / "wanted.json").chmod(0o644)
        said = await shell(
            program, session, f"{PYTHON} {ATTACK} wanted.json found.json; env; ps ax; cat /proc/1/environ"
        )
        found = read_found(work / "found.json", said)
        assert [path for path in map(Path, wanted["write"]) if path.exists()] == []
    # A directory on the way to the realm's is the sandbox's own and empty; a plain user may write there, to no effect outside.
    found.pop(f"write {place.state / 'x'}")
    assert found.pop(f"tcp {wanted['tcp'][-1]}") == "done", "policy names the model's endpoint"
    assert len(found) > 80
    assert {name: outcome for name, outcome in found.items() if outcome == "done"} == {}
    assert "hunter2" not in said


@needs_bubblewrap
async def test_a_tenant_without_host_tools_cannot_get_the_shell_whatever_it_asks_for(place):
    program = await place.connect("plain")
    for wishes in ({}, {"available_tools": ["bash", "builtin:bash", "builtin:*"]}):
        session = await program.create(on_permission_request=PermissionHandler.approve_all, **wishes)
        offered = await session.send_and_wait("[say offered][tools]", timeout=20)
        assert "bash" not in offered.data.content
        said = await shell(program, session, "echo shell-was-had > proof")
        assert "shell-was-had" not in said
    assert list(place.state.glob("realms/user-plain-*/work/*/proof")) == []
    with pytest.raises(Exception, match=r"-32010|refused"):
        await program.ask("session.shell.exec", {"sessionId": session.session_id, "command": "echo no"})
    [view] = [view for view in place.application.fleet.describe() if view.realm == "user:plain/ann"]
    assert os.readlink(f"/proc/{view.pid}/ns/pid") == os.readlink("/proc/self/ns/pid"), "it needs no sandbox"
    assert not (realm(place, "user-plain-ann") / "sandboxed").exists()


@needs_bubblewrap
async def test_egress_changes_under_a_running_agent_which_notices_nothing_else(place, elsewhere):
    program, session = await agent(place, "guarded", "eve")
    [view] = [view for view in place.application.fleet.describe() if view.realm == "user:guarded/eve"]
    url, port = f"http://127.0.0.2:{elsewhere['unnamed']}/", elsewhere["unnamed"]
    assert "403" in await shell(program, session, get(url))
    try:
        await put(place, "guarded", egress=(f"127.0.0.2:{port}",))
        assert "reached 200" in await shell(program, session, get(url))
        gone = [f"http://127.0.0.1:{elsewhere['named']}/", f"http://127.0.0.2:{elsewhere['far']}/"]
        assert "reached" not in await shell(program, session, "; ".join(map(get, gone)))
    finally:
        await put(place, "guarded")
    assert "reached 200" in await shell(program, session, get(gone[1]))
    assert view.pid in {view.pid for view in place.application.fleet.describe()}, "it was the same runtime all along"


@needs_bubblewrap
async def test_host_tools_given_and_taken_back_take_effect_in_another_runtime_and_sessions_go_on(place):
    seconds = f"4321.{secrets.randbelow(10**9)}"
    sleeping = f"sleep\0{seconds}"
    program, session = await agent(place, "plain", "zoe")
    await session.send_and_wait("[say first]", timeout=20)
    try:
        await put(place, "plain", host_tools=True)
        program, session = await resumed(place, session.session_id)
        assert "had" in await shell(program, session, f"echo had; setsid sleep {seconds} & sleep 0.1")
        [view] = [view for view in place.application.fleet.describe() if view.realm == "user:plain/zoe"]
        await eventually(lambda: len(find(sleeping)) == 1, 20)  # it had yet to become that program
        assert os.readlink(f"/proc/{find(sleeping)[0]}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    finally:
        await put(place, "plain")
    await eventually(lambda: find(sleeping) == [] and not Path(f"/proc/{view.pid}").exists(), 20)
    program, session = await resumed(place, session.session_id)
    assert "bash" not in (await session.send_and_wait("[say offered][tools]", timeout=20)).data.content
    assert "first" in str(await session.get_events())


async def resumed(place: Place, session_id: str) -> tuple[Program, Any]:
    program = await place.connect("plain", "zoe")
    return program, await program.resume(session_id, on_permission_request=PermissionHandler.approve_all)


@needs_bubblewrap
async def test_a_working_root_of_policy_is_in_the_sandbox_and_belongs_to_its_agents(place, tmp_path):
    root = tmp_path / "work-root"
    try:
        await put(place, "team", work_root=str(root))
        program, session = await agent(place, "team", "ben")
        work = root / "team" / "ben" / session.session_id
        assert str(work) in await shell(program, session, "pwd; echo here > file")
        assert (work / "file").stat().st_uid == work.stat().st_uid
        (root / "team" / "mia").symlink_to(tmp_path)
        with pytest.raises(Exception, match="a link or a file stands in its place"):
            await agent(place, "team", "mia")
    finally:
        await put(place, "team")


async def test_without_bubblewrap_a_tenant_with_host_tools_is_refused_and_one_without_is_served(tmp_path):
    async with opened(tmp_path, {"mode": "auto", "bubblewrap": "/nonexistent/bwrap"}) as place:
        for tenant in ("guarded", "team"):
            program = await place.connect(tenant)
            with pytest.raises(Exception, match=r"host tools need a sandbox .* host_tools = false") as refused:
                await program.create()
            assert "-32010" in str(refused.value)
        plain = await place.connect("plain")
        session = await plain.create()
        assert (await session.send_and_wait("[say served]", timeout=20)).data.content == "served"


async def test_without_bubblewrap_host_tools_are_given_if_the_operator_says_so_in_words(tmp_path):
    async with opened(tmp_path, {"mode": "off", "unsandboxed": WAIVED}) as place:
        program, session = await agent(place, "team")
        assert "here" in await shell(program, session, "echo here")
