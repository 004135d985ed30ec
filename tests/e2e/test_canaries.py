"""Secrets stay where they belong: canaries are planted in a run on the real runtime, then all it made is searched for them.

Where one may be found is a table here, with the reason; anything else is a leak. The log is written at its most talkative.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aerodrome import app, demo, settings
from aerodrome.adapters.audit.trail import AuditTrail
from aerodrome.admin import client as admin
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.testing import peer as peers
from aerodrome.testing.peer import Peer, RpcError

from .place import UNSANDBOXED, read_all

pytestmark = pytest.mark.runtime
#: Twice the command line, so that it is that of the program whose environment it is.
_OF_A_PROCESS = ("cmdline", "environ", "cmdline")
CLI = [sys.executable, "-c", "from aerodrome.cli.main import main; main()"]

#: What is planted, by name. `model key` is the demo model's own: a turn that is answered has carried it all the way.
CANARIES = {
    "audit key": "canary-audit-key-0123456789abcdef0123456789",
    "gateway's environment": "canary-environment-0123456789",
    "bearer token": "canary-bearer-0123456789",
    "header value": "canary-header-0123456789",
    "wrong provider key": "canary-wrong-key-0123456789",
    "refused key": "canary-refused-0123456789",
    "wrong token": "aero_0123456789ab_canaryCANARYcanaryCANARYcanaryCANARYcanaryC",
    "wrong token of no form": "canary-no-form-0123456789",
    "GitHub token": "ghp_canaryCANARYcanaryCANARY0123456789",
    "message": "canary-prompt-0123456789",
}
#: Where a canary is, and why it must be. A runtime's environment can be read by its own user and root alone.
EXPECTED = {
    ("audit key", "environ of gateway"): "the operator gave it there; use audit.key_file to have it in no environment",
    ("gateway's environment", "environ of gateway"): "the operator gave it there",
    (
        "runtime token",
        "environ of runtime",
    ): "the only way to give a runtime its token that is neither argument nor file",
    ("message", "state/session"): "what users say is the session's state",
    (
        "refused key",
        "said: error of session.create for user",
    ): "a runtime of the caller's alone quotes a provider that is no "
    "object to the caller, who sent it; nobody else hears it",
}


@dataclass
class Run:
    """A gateway process and all that it said."""

    directory: Path
    model: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    address: tuple[str, int] = ("", 0)
    tokens: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)


@pytest.fixture
async def run(tmp_path) -> Iterator[Run]:
    """A gateway as `aerodrome serve` with everything planted in its settings."""
    async with demo.open_model() as model:
        (tmp_path / "aerodrome.toml").write_text(configuration(tmp_path, model))
        run = Run(tmp_path, model, secrets={**CANARIES, "model key": model["api_key"]})
        usual = {name: value for name, value in os.environ.items() if not name.startswith("AERODROME_")}
        planted = {
            "AERODROME_AUDIT_KEY": CANARIES["audit key"],
            "SOMEBODYS_SECRET": CANARIES["gateway's environment"],
        }
        run.environment = {**usual, **planted}
        async with app.open_stores(settings.load(tmp_path / "aerodrome.toml")) as stores:
            for tenant in ("user", "shared"):
                key, token = identity.create_key(Owner(tenant, "ann"), 0.0)
                await stores.keys.add(key)
                run.tokens[tenant] = run.secrets[f"token of {tenant}"] = token
        with ExitStack() as stack:
            log = stack.enter_context((tmp_path / "gateway.log").open("wb"))
            run.process = subprocess.Popen(  # noqa: ASYNC220  it is read from a thread
                [*CLI, "serve", "--config", str(tmp_path / "aerodrome.toml")],
                stdout=subprocess.PIPE,
                stderr=log,
                env=run.environment,
            )
            assert run.process.stdout is not None
            stack.callback(run.process.stdout.close)
            stack.callback(end, run.process)
            line = await asyncio.wait_for(asyncio.to_thread(run.process.stdout.readline), 60)
            run.said["standard output"] = line.decode()
            run.address = address_in(tmp_path / "gateway.log")
            yield run


def configuration(directory: Path, model: dict[str, Any]) -> str:
    offline = {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}
    lines = [
        'listen = "127.0.0.1:0"',
        f'state_directory = "{directory / "state"}"',
        'log_level = "debug"',
        "log_json = true",
        "drain_seconds = 0",
        "[runtime]",
        "warm_runtimes = 1",
        "[runtime.environment]",
        *(f'{name} = "{value}"' for name, value in offline.items()),
        "[sandbox]",
        *(f'{name} = "{value}"' for name, value in UNSANDBOXED.items()),
        "[tenants.user]",
        'isolation = "user"\ntrust = "full"',
        f'providers = ["{model["base_url"]}"]',
        "[tenants.shared]",
        'isolation = "shared"',
        f'providers = ["{model["base_url"]}"]',
    ]
    return "\n".join(lines)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def address_in(log: Path) -> tuple[str, int]:
    for line in log.read_text().splitlines():
        said = json.loads(line)
        if said["event"] == "gateway.started":
            return said["host"], said["port"]
    raise AssertionError("the gateway did not say where it listens")


async def live(run: Run, tenant: str) -> Peer:
    """Do what a program of a user does that carries secrets: what works, and what fails in all the ways that quote something."""
    client = await peers.open_client(*run.address, run.tokens[tenant])

    async def fail(method: str, params: dict[str, Any]) -> None:
        try:
            await client.call(method, params)
        except RpcError as error:
            place = f"error of {method} for {tenant}"
            run.said[place] = f"{run.said.get(place, '')}{error} {error.details}\n"

    works = session(run, "works", {"apiKey": run.model["api_key"]}, tenant)
    await client.call("session.create", works)
    await turn(client, f"works-{tenant}")
    assert "assistant.message" in client.events(f"works-{tenant}")
    await client.call("session.resume", works)
    wrong = {
        "apiKey": CANARIES["wrong provider key"],
        "bearerToken": CANARIES["bearer token"],
        "headers": {"X-Canary": CANARIES["header value"]},
    }
    failing = f"fails-{tenant}"
    await client.call("session.create", session(run, "fails", wrong, tenant))
    await client.call("session.send", {"sessionId": failing, "prompt": CANARIES["message"]})
    # It is tried again for long; the first refusal is what may be quoted.
    await client.wait_for_event(failing, "model.call_failure")
    await client.call("session.abort", {"sessionId": failing})
    refused = session(run, "refused", {"apiKey": CANARIES["refused key"]}, tenant)
    refused["provider"]["baseUrl"] = "http://169.254.169.254/v1"
    refused["hookDirectories"] = [CANARIES["refused key"]]
    for params in (refused, {**refused, "provider": CANARIES["refused key"]}, {**refused, "model": 5}):
        await fail("session.create", params)
    github = session(run, "github", {"apiKey": run.model["api_key"]}, tenant)
    await fail("session.create", {**github, "gitHubToken": CANARIES["GitHub token"]})
    for method in ("models.list", "account.getQuota", "no.such.method"):
        await fail(method, {"gitHubToken": CANARIES["GitHub token"]})
    return client


def session(run: Run, name: str, provider: dict[str, Any], tenant: str) -> dict[str, Any]:
    base = {"type": "openai", "baseUrl": run.model["base_url"], "wireApi": "completions"}
    params: dict[str, Any] = {"sessionId": f"{name}-{tenant}", "model": run.model["name"], "availableTools": []}
    return {**params, "provider": {**base, **provider}, "requestPermission": True}


async def turn(client: Peer, session_id: str) -> None:
    before = client.events(session_id).count("session.idle")
    await client.call("session.send", {"sessionId": session_id, "prompt": CANARIES["message"]})
    await client.wait_for_event(session_id, "session.idle", before + 1)


async def refuse_strangers(run: Run) -> None:
    """Come with wrong tokens; what is answered must not repeat them."""
    for name in ("wrong token", "wrong token of no form"):
        stranger = await peers.open_peer(*run.address)
        with pytest.raises(RpcError) as caught:
            await stranger.call("connect", {"token": CANARIES[name]})
        run.said[f"answer to the {name}"] = f"{caught.value} {caught.value.details}"
        await stranger.aclose()


def processes(run: Run) -> Iterator[tuple[str, int]]:
    """Yield the pid of the gateway, by its name, and of all that descends from it, without one."""
    assert run.process is not None
    parents = {}
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    yield "gateway", run.process.pid
    known = {run.process.pid}
    while fresh := {pid for pid, parent in parents.items() if parent in known} - known:
        known |= fresh
        for pid in fresh:
            yield "", pid


def read_processes(run: Run) -> dict[str, str]:
    """Return what other users, and the same user, can read of every process."""
    found: dict[str, str] = {}
    for role, pid in processes(run):
        with suppress(OSError):
            command, environment = read_process(pid)
            kind = role or ("runtime" if b"copilot" in command.split(b"\0")[0] else "guardian")
            for what, content in (("cmdline", command), ("environ", environment)):
                text = content.replace(b"\0", b"\n").decode(errors="replace")
                found[f"{what} of {kind}"] = found.get(f"{what} of {kind}", "") + text
    return found


def read_process(pid: int) -> tuple[bytes, bytes]:
    """Return the command line and the environment of one program: a spare runtime may be started just now, by a guardian's child.

    Raises OSError if it is gone.
    """
    while True:
        command, environment, again = (Path(f"/proc/{pid}/{name}").read_bytes() for name in _OF_A_PROCESS)
        if command == again:
            return command, environment


def runtime_token(texts: dict[str, str]) -> str:
    lines = texts["environ of runtime"].splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("COPILOT_CONNECTION_TOKEN="))


def read_state(run: Run) -> dict[str, str]:
    """Return every file below the state directory; sessions' own state is told apart."""
    found: dict[str, str] = {}
    for path, content in sorted(read_all(run.directory / "state").items()):
        is_session = "session-state" in path.parts or (
            "realms" in path.parts and "work" in path.relative_to(run.directory).parts
        )
        place = "state/session" if is_session else f"state/{path.relative_to(run.directory / 'state')}"
        found[place] = found.get(place, "") + path.name + "\n" + content.decode(errors="replace")
    return found


async def test_no_planted_secret_is_found_in_anything_that_a_run_leaves_or_shows(run):
    await refuse_strangers(run)
    clients = [await live(run, tenant) for tenant in ("user", "shared")]
    for view in ("runtimes", "sessions", "links", "pool"):
        async with admin.open_client(run.directory / "state") as client:
            run.said[f"show {view}"] = json.dumps(await client.call(f"show.{view}"))
    texts = read_processes(run)
    run.secrets["runtime token"] = runtime_token(texts)
    texts |= {f"state, running: {place}": text for place, text in read_state(run).items()}
    for client in clients:
        await client.aclose()
    await asyncio.to_thread(end, run.process)
    records = list(AuditTrail(run.directory / "state" / "audit", [CANARIES["audit key"].encode()]).records())
    texts["audit export"] = json.dumps(records)
    texts |= read_state(run)
    texts["log"] = (run.directory / "gateway.log").read_text()
    texts |= {f"said: {name}": text for name, text in run.said.items()}

    # The run did what it was to do, and each place says something.
    done = {(record["action"], record["outcome"], record.get("tenant")) for record in records}
    assert {("session.create", "done", tenant) for tenant in ("user", "shared")} <= done
    assert {("call", "refused", "shared"), ("link.authenticate", "refused", None)} <= done
    assert "gateway.started" in texts["log"]
    assert "works-user" in texts["said: show sessions"]
    assert sum("error of" in place for place in texts) >= 5
    found = {
        (name, place.removeprefix("state, running: "))
        for name, secret in run.secrets.items()
        for place, text in texts.items()
        if secret in text
    }
    assert found - EXPECTED.keys() == set()
    # What is expected and is not there any more is to be struck off the table, and off docs/security.md.
    assert EXPECTED.keys() - found == set()
