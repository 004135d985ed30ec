"""A gateway as a process of its own over the real runtime, with tenants of the test's own, and what it is made of now."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aerodrome import app
from aerodrome import demo as demo_module
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Policy
from aerodrome.testing import peer as peers
from aerodrome.testing import process_table
from aerodrome.testing.peer import Peer

MARK = b"AERODROME_RUNTIME_ID="
READY_SECONDS = 30.0


@dataclass
class Served:
    """A gateway process; `model` is what its sessions talk to."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    state: Path
    model: dict[str, Any]
    tokens: dict[Owner, str]
    #: With what it must exit in the end: a test that kills it says so.
    exit_code: int = 0

    @property
    def create(self) -> dict[str, Any]:
        """Return what every session must say to have turns."""
        provider = {"type": "openai", "baseUrl": self.model["base_url"], "apiKey": self.model["api_key"]}
        return {"model": self.model["name"], "provider": {**provider, "wireApi": "completions"}, "availableTools": []}

    async def connect(self, tenant: str, user: str) -> Peer:
        """Connect a user."""
        return await peers.open_client(self.host, self.port, self.tokens[Owner(tenant, user)])

    def runtimes(self) -> dict[str, int]:
        """Return the pids of the runtimes that belong to somebody, by id."""
        return {name: pid for name, (pid, home) in runtimes_below(self.state).items() if "/realms/" in home}

    def tasks(self) -> list[str]:
        """Return the names of the gateway's tasks."""
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        return list(json.loads(self.process.stdout.readline()))

    def descriptors(self) -> list[str]:
        """Return what files the gateway has open; without the database's, whose pool grows with demand up to its limit."""
        found = []
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                found.append(re.sub(r"\d+", "N", os.readlink(descriptor)))
        return sorted(name for name in found if "aerodrome.db" not in name)


def runtimes_below(state: Path) -> dict[str, tuple[int, str]]:
    """Return pid and home of every runtime of a state directory; what an agent started carries other marks.

    A child that a runtime has forked, and that has not become another program yet, looks like the runtime itself.
    """
    found: dict[int, tuple[str, str]] = {}
    for pid, variables in carriers(state):
        command = b""
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        marks = [variable[len(MARK) :].decode() for variable in variables if variable.startswith(MARK)]
        if marks and b"copilot" in command.rpartition(b"/")[2]:
            home = next((v[13:].decode() for v in variables if v.startswith(b"COPILOT_HOME=")), "")
            found[pid] = (marks[0], os.path.realpath(home))
    forked = {pid for pid, (mark, _) in found.items() if found.get(parent_of(pid), ("", ""))[0] == mark}
    return {mark: (pid, home) for pid, (mark, home) in found.items() if pid not in forked}


def carriers(state: Path) -> list[tuple[int, list[bytes]]]:
    """Return every living process whose environment or command line names a directory, with its environment."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(state).encode() in environment + command and state_of(pid) not in ("Z", "X", ""):
                found.append((pid, environment.split(b"\0")))
    return found


def state_of(pid: int) -> str:
    """Return the state letter of a process, nothing if it is gone."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    return ""


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent, 0 if it is gone."""
    with suppress(OSError):
        return process_table.parent_of(pid)
    return 0


@asynccontextmanager
async def serving(
    state: Path, tenants: Mapping[str, tuple[Policy, tuple[str, ...]]], **variables: str
) -> AsyncIterator[Served]:
    """Serve tenants (policy and users of each) for the length of a block; it must exit with 0 when it is asked to.

    `variables` are settings, such as RUNTIME__IDLE_SECONDS.
    """
    async with demo_module.open_model() as model:
        tokens = await _prepare(state, tenants, model["base_url"])
        environment = {f"AERODROME_{name}": value for name, value in variables.items()}
        environment["AERODROME_RUNTIME__ENVIRONMENT"] = '{"COPILOT_OFFLINE": "true"}'
        process = subprocess.Popen(  # noqa: ASYNC220  its lines are read in a thread
            [sys.executable, str(Path(__file__).with_name("gateway_program.py")), str(state)],
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), READY_SECONDS)).decode()
            assert line.startswith("listening on "), line
            host, _, port = line.rsplit(None, 1)[-1].rpartition(":")
            served = Served(process, host, int(port), state, model, tokens)
            yield served
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == served.exit_code
        finally:
            if process.poll() is None:
                process.kill()
                await asyncio.to_thread(process.wait, 10)
            if process.stdout is not None:
                process.stdout.close()


async def _prepare(
    state: Path, tenants: Mapping[str, tuple[Policy, tuple[str, ...]]], model_url: str
) -> dict[Owner, str]:
    """Put tenants and a key for each user into the database of a gateway that does not run yet; all may use the model."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    tokens: dict[Owner, str] = {}
    async with app.open_stores(settings_module.load(None, state_directory=state)) as stores:
        for name, (policy, users) in tenants.items():
            # By its address: no `*` lets a sandbox reach this machine.
            reaching = replace(policy, provider_urls=(*policy.provider_urls, model_url))
            await stores.tenants.add(Tenant(name, reaching))
            for user in users:
                key, tokens[Owner(name, user)] = identity.create_key(Owner(name, user), time.time())
                await stores.keys.add(key)
    return tokens
