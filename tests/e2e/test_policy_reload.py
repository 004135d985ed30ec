"""`aerodrome serve` reads its configuration again: by a signal, by the admin socket, and not at all where the file is wrong."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from aerodrome import app, demo, errors, settings
from aerodrome.admin import client as admin
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.testing.demo_process import Principal

from .attacks.client import Program

pytestmark = pytest.mark.runtime

SECONDS = 45.0
CLI = [sys.executable, "-c", "from aerodrome.cli.main import main; main()"]


class Serving:
    """A gateway process with its configuration file."""

    def __init__(self, directory: Path, model: dict[str, Any]) -> None:
        self.directory = directory
        self.config = directory / "aerodrome.toml"
        self.state = directory / "state"
        self.log = directory / "log"
        self.model = model
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def write(self, policy: str, **more: Any) -> None:
        """Write the configuration, with this said of the tenant's policy."""
        environment = {"COPILOT_OFFLINE": "true", **demo._node_offline(self.model)}
        said = "\n".join(f'{name} = "{value}"' for name, value in environment.items())
        top = "\n".join(f"{name} = {value}" for name, value in more.items())
        self.config.write_text(
            f'listen = "127.0.0.1:0"\nstate_directory = "{self.state}"\n{top}\n'
            f"[runtime]\nwarm_runtimes = 0\n[runtime.environment]\n{said}\n"
            f'[tenants.acme]\nisolation = "shared"\nproviders = ["{self.model["base_url"]}"]\n{policy}\n'
        )

    async def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("w") as log:
            words = [*CLI, "serve", "--config", str(self.config)]
            self.process = _spawn(words, log)
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        self.address = line.removeprefix("listening on ").strip()

    async def program(self) -> Program:
        """Connect a program of the tenant."""
        key, token = identity.create_key(Owner("acme", "ann"), time.time())
        async with app.open_stores(settings.load(self.config)) as stores:
            await stores.keys.add(key)
        place = SimpleNamespace(sdk=self.address, model=self.model)
        return await Program.connect(place, Principal("acme", "ann", token, "shared"))  # type: ignore[arg-type]

    async def reload(self) -> Any:
        """Reload by the admin socket."""
        async with admin.open_client(self.state) as client:
            return await client.call("reload")

    async def hang_up(self, count: int, word: str) -> None:
        """Send SIGHUP and wait until the log has a word so often."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(SECONDS):
            while self.log.read_text().count(word) < count:  # noqa: ASYNC110  a file has no events
                await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Stop it."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGINT)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(SECONDS)
        self.process.stdout.close()


def _spawn(words: list[str], log: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    async with demo.open_model() as model:
        running = Serving(tmp_path, model)
        running.write('models = ["demo", "old"]')
        await running.start()
        try:
            yield running
        finally:
            running.stop()


async def test_a_good_file_is_in_force_for_open_links_at_once_and_a_broken_one_changes_nothing(serving):
    program = await serving.program()
    session = await program.open_session(model="old")
    assert await program.turn(session, "hello") == "You said: hello"

    for broken in ('models = ["demo"', 'models = ["demo"]\ncolour = 1', 'models = ["demo"]\ntrust = "some"'):
        serving.write(broken)
        with pytest.raises(errors.ConfigError, match=r"TOML|colour|trust"):
            await serving.reload()
    await serving.hang_up(4, "policy.reload_failed")
    assert await program.turn(session, "still here") == "You said: still here"
    assert "result" in await program.ask("session.create", program.opening(model="old"))

    serving.write('models = ["demo"]', drain_seconds=1)
    done = await serving.reload()
    assert (done["tenants"], done["links"], done["needs_restart"]) == (1, 1, ["drain_seconds"])
    assert "'old'" in str(await program.ask("session.send", {"sessionId": session, "prompt": "hello"}))
    assert "'old'" in str(await program.ask("session.create", program.opening(model="old")))

    serving.write('models = ["demo", "old"]')
    await serving.hang_up(2, "policy.reloaded")
    assert await program.turn(session, "hello again") == "You said: hello again"
    await program.aclose()
