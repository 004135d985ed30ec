"""The HTTP edge over a gateway with memory adapters and scripted runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from aerodrome.gateway.settings import GatewaySettings
from aerodrome.http.site import HttpSettings, SignInDoor
from aerodrome.testing import http_rig
from aerodrome.testing import rig as rigs
from aerodrome.testing.http_rig import HttpRig
from aerodrome.testing.scripted_host import ScriptedHost

OpenHttp = Callable[..., Awaitable[HttpRig]]


@pytest.fixture
async def open_http(tmp_path) -> AsyncIterator[OpenHttp]:
    """Open HTTP edges with settings of the test's own; at the end no task of theirs may be left."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def opened(
            settings: HttpSettings | None = None, sign_in: SignInDoor | None = None, **limits: object
        ) -> HttpRig:
            gateway = GatewaySettings(**{"listen_port": 0, "handshake_seconds": 30.0, "stall_seconds": 30.0, **limits})
            rig = await stack.enter_async_context(rigs.open_rig(ScriptedHost(), rigs.fleet_settings(tmp_path), gateway))
            return await stack.enter_async_context(http_rig.open_http(rig, settings, sign_in))

        yield opened
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=30)
    assert left == set()


@pytest.fixture
async def http(open_http) -> HttpRig:
    """An HTTP edge with common settings."""
    return await open_http()
