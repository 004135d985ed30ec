"""A gateway in the test's own process, on the real runtime, with tenants of the test's own: where a demo's eight will not do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.settings import Settings
from aerodrome.testing.demo_process import Principal

from .python_sdk import Program, Programs

WAIT_SECONDS = 60.0
#: Both ways a tenant may be isolated in these tests.
TENANTS: dict[str, dict[str, Any]] = {
    "user": {"isolation": "user", "trust": "full"},
    "shared": {"isolation": "shared"},
}
UNSANDBOXED = {"mode": "off", "unsandboxed": "agents run commands as the gateway's user"}


@dataclass(frozen=True)
class Place:
    """A gateway as an SDK program needs it described."""

    sdk: str
    model: dict[str, Any]
    state: Path
    application: app.Application
    settings: Settings
    closing: AsyncExitStack

    async def connect(self, tenant: str, user: str = "ann") -> Program:
        """Connect a program of a user; it is cut at the end at the latest."""
        key, token = identity.create_key(Owner(tenant, user), time.time())
        await self.application.stores.keys.add(key)
        programs = Programs(self)
        self.closing.push_async_callback(programs.aclose)
        return await programs.connect(Principal(tenant, user, token, tenant))

    def on_disk(self) -> set[str]:
        """Return the names of all session and working directories of all realms."""
        realms = self.state / "realms"
        return {path.name for path in [*realms.glob("*/copilot/session-state/*"), *realms.glob("*/work/*")]}

    async def settled(self, condition: Any) -> None:
        """Wait until a condition about the disk or the gateway holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():  # noqa: ASYNC110  neither has events
                await asyncio.sleep(0.01)


def read_all(directory: Path) -> dict[Path, bytes]:
    """Return all that is below a directory, files with what is in them; directories and links have nothing.

    While others write there, files are renamed and removed between the look at their names and the one into them, so it is looked
    again until nothing has vanished: what is there all along is not missed.
    """
    for _ in range(1000):
        found: dict[Path, bytes] = {}
        vanished: list[OSError] = []
        for place, directories, files in os.walk(directory, onerror=vanished.append):
            found |= {Path(place, name): b"" for name in directories}
            for path in [Path(place, name) for name in files]:
                try:
                    found[path] = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
                except FileNotFoundError as error:
                    vanished.append(error)
        if not vanished:
            return found
    raise AssertionError(f"there is no end of what vanishes: {vanished}")


@asynccontextmanager
async def open_place(
    state: Path,
    policy: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    sandbox: dict[str, Any] | None = None,
    tenants: dict[str, dict[str, Any]] | None = None,
    **sections: Any,
) -> AsyncIterator[Place]:
    """Run a gateway with the tenants `user` and `shared`, or others; `policy` is added to each, the rest is settings."""
    async with demo.open_model() as model:
        common = {"providers": [model["base_url"]], **(policy or {})}
        settings = settings_module.load(
            None,
            listen="127.0.0.1:0",
            state_directory=state,
            runtime={"environment": {"COPILOT_OFFLINE": "true", **demo._node_offline(model)}, **(runtime or {})},
            # These tests are of what sessions do; what a sandbox does is tests/e2e/test_sandbox.py.
            sandbox=sandbox or UNSANDBOXED,
            tenants={name: {**tenant, **common} for name, tenant in (tenants or TENANTS).items()},
            **sections,
        )
        async with app.open_application(settings) as application, AsyncExitStack() as closing:
            yield Place(f"{application.host}:{application.port}", model, state, application, settings, closing)
