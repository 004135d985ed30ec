"""A gateway with memory adapters over scripted runtimes; a test asks `open_rig` for another where it needs its own settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aerodrome.gateway.settings import GatewaySettings
from aerodrome.gateway.supplying import Supplier
from aerodrome.testing import rig as rigs
from aerodrome.testing.rig import Rig
from aerodrome.testing.scripted_host import ScriptedHost
from aerodrome.testing.scripted_runtime import Faults

OpenRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def open_rig(tmp_path) -> AsyncIterator[OpenRig]:
    """Open gateways with settings of the test's own; at the end no task of theirs may be left."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def opened(
            faults: Callable[[int], Faults] = lambda _: Faults(),
            prepare: Callable[[Any], None] = lambda _: None,
            fleet: dict[str, Any] | None = None,
            supplier: Supplier | None = None,
            **limits: Any,
        ) -> Rig:
            settings = GatewaySettings(**{"listen_port": 0, "handshake_seconds": 30.0, "stall_seconds": 30.0, **limits})
            fleet_settings = rigs.fleet_settings(tmp_path, **(fleet or {}))
            return await stack.enter_async_context(
                rigs.open_rig(ScriptedHost(faults, prepare), fleet_settings, settings, supplier)
            )

        yield opened
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=30)
    assert left == set()


@pytest.fixture
async def rig(open_rig) -> Rig:
    """A gateway with common settings."""
    return await open_rig()
