"""What one who means harm asks for in sessions of their own, where strangers share the runtime: a command, a file, an address.

Each attack is refused, or loses its sting: no command ran (its mark is not there), nothing of the host was read, nobody was
called who should not be. Those that work where the host is the caller's own are tried there too, so that the marks are
known to be made when nothing stands in the way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess

from .client import Program, Programs, is_refusal, leaks
from .site import Site

pytestmark = pytest.mark.runtime

_HOST_TOOLS = {"bash", "view", "create", "edit", "grep", "glob", "sql", "read_bash", "web_fetch", "skill"}
_HOST_SECRET = "cinnamon-on-the-host"
_MARK_SECONDS = 30.0


@dataclass
class Host:
    """The host as an attacker sees it: a place for marks, a file with a secret, and an address that nobody may call."""

    mark: Path
    secret: Path
    address: str
    called: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def command(self) -> str:
        """Return the command whose running is the proof."""
        return f"touch {self.mark}"

    @property
    def is_untouched(self) -> bool:
        return not self.mark.exists() and not self.called.is_set()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A host of this test's own, with a listener that notes a call."""
    called = asyncio.Event()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    secret = tmp_path / "secret.txt"
    secret.write_text(_HOST_SECRET)
    port = server.sockets[0].getsockname()[1]
    yield Host(tmp_path / "mark", secret, f"http://127.0.0.1:{port}/v1", called)
    server.close()
    await server.wait_closed()


@pytest.fixture
async def attacker(site: Site, programs: Programs) -> Program:
    """Someone who shares a runtime with strangers."""
    return await programs.connect(await site.stranger())


@pytest.fixture
async def trusted(demo: DemoProcess, programs: Programs) -> Program:
    """Someone whose runtime, and host, is theirs alone."""
    return await programs.connect(demo.tenants("user")[0][0])


def provider(demo: DemoProcess, **more: Any) -> dict[str, Any]:
    """Return the provider that policy allows, and what an attack adds."""
    return {"type": "openai", "baseUrl": demo.model["base_url"], "apiKey": demo.model["api_key"], **more}


def local_server(host: Host, **more: Any) -> dict[str, Any]:
    """Return an MCP server that is a command."""
    return {"type": "local", "command": "sh", "args": ["-c", host.command], "tools": ["*"], **more}


def agent(**more: Any) -> dict[str, Any]:
    """Return a custom agent."""
    return {"name": "a", "displayName": "a", "description": "helps", "prompt": "help", **more}


def refused_openings(demo: DemoProcess, host: Host) -> dict[str, dict[str, Any]]:
    """Return parameters of create and resume that must be refused, by what they try."""
    place = [str(host.secret.parent)]
    elsewhere = {"type": "http", "url": host.address, "tools": ["*"]}
    origin = demo.model["base_url"].removesuffix("/v1")
    hook = [{"type": "command", "bash": host.command}]
    addresses = {
        "a foreign address": host.address,
        "a foreign address behind a name": host.address.replace("http://", f"http://{origin.removeprefix('http://')}@"),
        "a way out of the allowed path": f"{demo.model['base_url']}/../admin",
        "no path": origin,
        "no address": None,
        "a file": "file:///etc/passwd",
    }
    headers: dict[str, dict[str, str]] = {
        "another host": {"Host": "internal"},
        "another host, in disguise": {"X_Forwarded-HOST": "internal"},
        "a false length": {"content-LENGTH": "3"},
        "another framing": {"Transfer-Encoding": "chunked"},
        "a second header": {"X-A": "b\r\nHost: internal"},
        "a header in a name": {"X-A: b\r\nHost": "internal"},
    }
    return {
        "an MCP server that is a command": {"mcpServers": {"m": local_server(host)}},
        "an MCP server by its older name": {"mcpServers": {"m": local_server(host, type="stdio")}},
        "an MCP server without a type": {"mcpServers": {"m": {"command": "sh", "args": ["-c", host.command]}}},
        "a command dressed as a remote server": {"mcpServers": {"m": local_server(host, **elsewhere)}},
        "a remote server that policy does not name": {"mcpServers": {"m": elsewhere}},
        "an agent's MCP server": {"customAgents": [agent(mcpServers={"m": local_server(host)})]},
        "an agent's hooks": {"customAgents": [agent(hooks={"sessionStart": hook})]},
        "hooks in place of a switch": {"hooks": {"sessionStart": hook}},
        "a key by command": {"provider": provider(demo, apiKeyCommand=host.command)},
        "a named provider's key by command": {"providers": [provider(demo, name="p", apiKeyCommand=host.command)]},
        "a provider whose path holds the model's name": {
            "provider": provider(demo, type="azure"),
            "model": "../../admin",
        },
        **{name: {"provider": provider(demo, baseUrl=address)} for name, address in addresses.items()},
        **{f"named, {name}": {"providers": [provider(demo, name="p", baseUrl=at)]} for name, at in addresses.items()},
        **{name: {"provider": provider(demo, headers=given)} for name, given in headers.items()},
        **{f"{name} directories": {f"{name}Directories": place} for name in ("hook", "plugin", "skill", "agent")},
        "instruction directories": {"instructionDirectories": place},
        "additional directories": {"additionalDirectories": ["/"]},
        "a working directory": {"workingDirectory": "/etc"},
        "a config directory": {"configDir": str(host.secret.parent)},
        "a trusted directory": {"trustWorkingDirectory": "user"},
        "an extension": {"extensionSdkPath": str(host.secret)},
        "extensions": {"requestExtensions": True},
        "a place for large output": {"largeOutput": {"enabled": True, "outputDir": str(host.secret.parent)}},
        "a sandbox of one's own": {"sandboxConfig": {"enabled": False}},
        "a session elsewhere": {"remoteSession": "on"},
        "a session in the cloud": {"cloud": {"repository": {"owner": "o", "name": "n"}}},
        "features of the runtime": {"featureFlags": {"X": True}},
        "the runtime's policy": {"managedSettings": {"permissions": {"allow": ["*"]}}},
        "another service": {"capi": {"autoTier": "x"}},
        "the runtime's environment": {"requestedEnvironmentVariables": ["PATH"]},
    }


def harmless_openings(demo: DemoProcess, host: Host) -> dict[str, dict[str, Any]]:
    """Return parameters of create and resume that pass without their sting, by what they try."""
    model = {"id": "m", "provider": "p", "wireModel": demo.model["name"]}
    return {
        "nothing": {},
        "every tool": {"availableTools": ["*"]},
        "every built-in tool": {"availableTools": ["builtin:*", "custom:*"]},
        "host tools by name": {"availableTools": ["bash", "builtin:view", "fact"]},
        "a tool by another source": {"availableTools": ["custom:*", "mcp:builtin:bash", "custom:*:bash", "BUILTIN:*"]},
        "no filter": {"availableTools": None, "excludedTools": []},
        "the other precedence": {"toolFilterPrecedence": "available", "excludedTools": ["nothing"]},
        "an agent with every tool": {"customAgents": [agent(tools=["*"])], "agent": "a", "availableTools": ["fact"]},
        "an agent with host tools": {"customAgents": [agent(tools=["bash", "fact"])], "agent": "a"},
        "a model with a system message": {
            "provider": None,
            "providers": [provider(demo, name="p")],
            "models": [{**model, "systemMessage": {"mode": "customize", "sections": {}}}],
            "model": "p/m",
        },
        "a system message that asks for the host": {
            "systemMessage": {
                "mode": "customize",
                "sections": {"environment_context": {"action": "append", "content": "x"}},
            }
        },
        "what the host has": {
            "enableConfigDiscovery": True,
            "enableFileHooks": True,
            "enableHostGitOperations": True,
            "enableOnDemandInstructionDiscovery": True,
            "enableSessionStore": True,
            "enableSkills": True,
            "isExperimentalMode": True,
            "memory": {"enabled": True},
            "customAgentsLocalOnly": False,
            "skipEmbeddingRetrieval": False,
        },
        "what others do": {"enableGitHubTelemetryForwarding": True, "enableSessionTelemetry": True},
        "what is not known": {"commandToRunAtStart": host.command, "x": {"y": [1]}},
        "a decision taken in advance": {"requestPermission": False},
    }


async def check_tools(program: Program, session_id: str, host: Host) -> None:
    """Hold that a session has no host tool: not offered, not to be called, not for the model and not for a program."""
    offered = await program.turn(session_id, "[tools]")
    assert "fact" in offered.split(",")
    assert _HOST_TOOLS.isdisjoint(offered.split(",")), offered
    arguments = json.dumps({"command": host.command, "description": "d"})
    said = await program.turn(session_id, f"[tool bash {arguments}][then][say tried]")
    assert said == "tried"
    called = {"sessionId": session_id, "name": "bash", "arguments": json.loads(arguments)}
    assert "does not exist" in json.dumps(await program.ask("session.tools.execute", called))
    assert "Current working directory" not in await program.turn(session_id, "[system]")
    assert host.is_untouched


async def let_go(program: Program, session_id: str) -> None:
    """Let go of a session, and wait until its runtime has unloaded it."""
    await program.get("session.detach", {"sessionId": session_id})
    async with asyncio.timeout(_MARK_SECONDS):
        # Every question costs the runtime a round trip: this does not spin.
        while not is_refusal(await program.ask("session.getMessages", {"sessionId": session_id})):
            pass


async def test_an_opening_that_reaches_the_host_is_refused_by_name(
    site: Site, demo: DemoProcess, attacker: Program, host: Host
) -> None:
    own = await attacker.open_session()
    await attacker.turn(own, "[say mine]")
    passed, tried = [], set()
    for name, params in refused_openings(demo, host).items():
        for method, more in (("session.create", {}), ("session.resume", {"sessionId": own})):
            answer = await attacker.ask(method, {**attacker.opening(**params), **more})
            word = next(iter(params))
            if not is_refusal(answer) or word not in answer["error"]["message"]:
                passed.append((method, name, answer))
            code = "params_invalid" if answer["error"]["code"] == -32602 else f"policy_rejected: {word}"
            tried.add((method, code))
    assert passed == []
    await check_tools(attacker, own, host)
    recorded = await site.refused(attacker.principal, *tried)
    assert _HOST_SECRET not in str(recorded)
    assert host.command not in str(recorded)


async def test_an_opening_that_passes_has_no_reach(demo: DemoProcess, attacker: Program, host: Host) -> None:
    for params in harmless_openings(demo, host).values():
        session_id = await attacker.open_session(**params)
        await check_tools(attacker, session_id, host)
        await let_go(attacker, session_id)
        await attacker.get("session.resume", attacker.opening(sessionId=session_id, **params))
        await check_tools(attacker, session_id, host)
        await attacker.get("session.resume", attacker.opening(sessionId=session_id, **params))  # and once more, live
        await check_tools(attacker, session_id, host)
        await attacker.get("session.delete", {"sessionId": session_id})


async def test_every_session_works_in_a_directory_of_its_own(demo: DemoProcess, attacker: Program) -> None:
    places = set()
    for _ in range(2):
        session_id = await attacker.open_session()
        snapshot = await attacker.get("session.metadata.snapshot", {"sessionId": session_id})
        places.add(snapshot["workingDirectory"])
        assert Path(snapshot["workingDirectory"]).name == session_id
        assert Path(snapshot["workingDirectory"]).is_relative_to(demo.directory)
    assert len(places) == 2


async def test_a_bare_resume_of_a_cold_session_comes_back_without_host_tools(attacker: Program, host: Host) -> None:
    session_id = await attacker.open_session()
    await attacker.turn(session_id, "[say mine]")
    await let_go(attacker, session_id)
    await attacker.get("session.resume", {"sessionId": session_id})
    arguments = {"command": host.command, "description": "d"}
    called = {"sessionId": session_id, "name": "bash", "arguments": arguments}
    assert "does not exist" in json.dumps(await attacker.ask("session.tools.execute", called))
    await let_go(attacker, session_id)
    await attacker.get("session.resume", attacker.opening(sessionId=session_id))
    await check_tools(attacker, session_id, host)


def refused_calls(demo: DemoProcess, host: Host, session_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Return calls on one's own session, or on none, that must be refused."""
    reaching: list[tuple[str, dict[str, Any]]] = [
        ("session.shell.exec", {"command": host.command}),
        ("session.shell.executeUserRequested", {"command": host.command}),
        ("session.mcp.startServer", {"serverName": "m", "config": local_server(host)}),
        ("session.mcp.reloadWithConfig", {"config": {"mcpServers": {"m": local_server(host)}}}),
        ("session.debug.collectLogs", {"outputPath": str(host.mark)}),
        ("session.metadata.setWorkingDirectory", {"workingDirectory": "/etc"}),
        ("session.permissions.paths.add", {"path": "/"}),
        ("session.permissions.folderTrust.addTrusted", {"path": "/"}),
        ("session.extensions.reload", {}),
        ("session.plugins.reload", {}),
        *((f"session.commands.{verb}", {"name": "add-dir", "commandName": "add-dir", "input": "/", "args": "/",
           "command": "/add-dir /"}) for verb in ("invoke", "execute", "enqueue")),
        *(("session.options.update", {member: value}) for member, value in {
            "workingDirectory": "/etc",
            "hookDirectories": [str(host.secret.parent)],
            "trajectoryFile": str(host.mark),
            "eventsLogDirectory": str(host.mark),
            "copilotUrl": host.address,
            "shell": {"initScripts": [{"path": str(host.secret), "shell": "bash"}]},
            "installedPlugins": [{"name": "p", "marketplace": "m", "installed_at": "", "enabled": True}],
            "includedBuiltinSkills": ["x"],
            "provider": provider(demo, baseUrl=host.address),
            "sandboxConfig": {"enabled": False},
        }.items()),
        ("session.provider.add", {"providers": [provider(demo, name="p", baseUrl=host.address)]}),
        ("session.provider.sync", {"providers": [provider(demo, name="p", apiKeyCommand=host.command)]}),
        ("session.provider.sync", {"providers": [provider(demo, name="p", headers={"Content-Length": "0"})]}),
        ("session.permissions.modifyRules", {"scope": "location", "add": [{"kind": "shell", "argument": None}]}),
        ("session.mode.set", {"mode": "shell"}),
    ]  # fmt: skip
    headers = ({"Authorization": "Bearer x"}, {"HOST": "internal"}, {"Content-Length": "3"}, {"X-A": "b\r\nc: d"})
    attachments = (
        {"type": "file", "path": str(host.secret), "displayName": "s"},
        {"type": "directory", "path": "/etc", "displayName": "s"},
        {"type": "github_url", "url": host.address},
        {"type": "FILE", "path": str(host.secret)},
        {"path": str(host.secret)},
    )
    sends: list[dict[str, Any]] = [
        *({"requestHeaders": given} for given in headers),
        *({"attachments": [given]} for given in attachments),
        {"agentMode": "shell"},
    ]
    for more in sends:
        message = {"prompt": host.command, **more}
        reaching.append(("session.send", message))
        reaching.append(("session.sendAndWait", message))
        reaching.append(("session.queue.insertAt", {"position": 0, "message": message}))
        reaching.append(("session.sendMessages", {"messages": [message]}))
    return [
        *((method, {"sessionId": session_id, **params}) for method, params in reaching),
        ("persistence.writeRawJsonLocked", {"path": str(host.mark), "content": "{}"}),
        ("mcp.config.add", {"name": "m", "config": local_server(host)}),
        ("user.settings.set", {"settings": {"x": 1}}),
        ("runtime.shutdown", {}),
        ("sessions.open", {"kind": "create", "options": {"workingDirectory": "/etc"}}),
        ("sessionFs.setProvider", {"initialCwd": "/", "sessionStatePath": "/s", "conventions": "posix"}),
        ("llmInference.setProvider", {}),
    ]


async def test_a_call_that_reaches_the_host_is_refused(
    site: Site, demo: DemoProcess, attacker: Program, host: Host
) -> None:
    session_id = await attacker.open_session()
    passed, tried = [], set()
    for method, params in refused_calls(demo, host, session_id):
        tried.add((method, ""))
        answer = await attacker.ask(method, params)
        if not is_refusal(answer) or answer["error"]["code"] not in (-32010, -32602):
            passed.append((method, params, answer))
    assert passed == []
    await check_tools(attacker, session_id, host)
    assert leaks(attacker.received, _HOST_SECRET) == []
    await site.refused(attacker.principal, *tried)


async def test_settings_that_would_be_kept_for_everyone_are_not(
    demo: DemoProcess, attacker: Program, host: Host
) -> None:
    session_id = await attacker.open_session()
    home = {"homeDirectory": str(host.secret.parent), "configDir": str(host.secret.parent), "environment": {}}
    await attacker.ask(
        "session.model.switchTo",
        {
            "sessionId": session_id,
            "modelId": demo.model["name"],
            "pickerPersistence": {"settingsContext": home},
            "repoScope": str(host.secret.parent),
        },
    )
    await attacker.ask(
        "session.mode.set",
        {"sessionId": session_id, "mode": "plan", "persistPlanSelection": True, "pickerSettingsContext": home},
    )
    assert [path.name for path in host.secret.parent.iterdir()] == [host.secret.name]


async def test_files_are_read_and_written_only_within_the_sessions_own_workspace(attacker: Program, host: Host) -> None:
    session_id = await attacker.open_session()
    out = "../" * 20 + str(host.secret).lstrip("/")
    for path in (str(host.secret), out, f"files/{out}", f"/{out}"):
        for method in ("readFile", "statFile", "removePath", "createFile", "createDirectory"):
            params = {"sessionId": session_id, "path": path, "content": "x", "recursive": True, "force": True}
            await attacker.ask(f"session.workspaces.{method}", params)
        moved = {"sessionId": session_id, "source": path, "destination": "stolen"}
        await attacker.ask("session.workspaces.renamePath", moved)
    assert leaks(attacker.received, _HOST_SECRET) == []
    assert host.secret.read_text() == _HOST_SECRET


async def test_an_agent_below_an_agent_gets_no_host_tool(attacker: Program, host: Host) -> None:
    tools = ["custom:*", "builtin:*"]
    session_id = await attacker.open_session(availableTools=tools, customAgents=[agent(tools=["*"])])
    for kind in ("general-purpose", "a"):
        task = {"agent_type": kind, "prompt": "[tools]", "description": "d", "name": f"n{kind}", "mode": "sync"}
        offered = await attacker.turn(session_id, f"[tool task {json.dumps(task)}]")
        assert "tool said:" in offered
        assert _HOST_TOOLS.isdisjoint(offered.replace("tool said: ", "").replace("\n", ",").split(",")), offered
        bash = f"[tool bash {json.dumps({'command': host.command, 'description': 'd'})}][then][say tried]"
        await attacker.turn(session_id, f"[tool task {json.dumps({**task, 'name': f'm{kind}', 'prompt': bash})}]")
        started = {"sessionId": session_id, "agentType": kind, "prompt": bash, "name": f"o{kind}"}
        await attacker.ask("session.tasks.startAgent", started)
        await attacker.finish_turn(session_id)
    assert host.is_untouched


async def test_the_same_attacks_work_where_the_host_is_the_callers_own(
    demo: DemoProcess, trusted: Program, host: Host
) -> None:
    """So the marks above are missing because the attack was stopped, not because it was written wrong."""
    session_id = await trusted.open_session(requestPermission=False)
    offered = await trusted.turn(session_id, "[tools]")
    assert not _HOST_TOOLS.isdisjoint(offered.split(","))
    await trusted.get("session.shell.exec", {"sessionId": session_id, "command": host.command})
    assert await asyncio.to_thread(demo_process.wait_for, host.mark.exists, _MARK_SECONDS)
    host.mark.unlink()
    started = await trusted.open_session(mcpServers={"m": local_server(host)})
    await trusted.turn(started, "[say go]")
    assert await asyncio.to_thread(demo_process.wait_for, host.mark.exists, _MARK_SECONDS)
    abroad = await trusted.open_session(provider=provider(demo, baseUrl=host.address))
    await trusted.get("session.send", {"sessionId": abroad, "prompt": "hello"})
    await asyncio.wait_for(host.called.wait(), _MARK_SECONDS)
    await let_go(trusted, session_id)
    await trusted.get("session.resume", trusted.opening(sessionId=session_id))
    assert "bash" in (await trusted.turn(session_id, "[tools]")).split(",")
