"""What the commands that work on the registry share: the stores, the record of what was done, and erasure.

They work with a gateway that runs over the same registry, and without one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from aerodrome import errors, registry_root, settings
from aerodrome.admin import client as admin
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Owner
from aerodrome.settings import Settings

if TYPE_CHECKING:
    from aerodrome.admin.erasure import Report

T = TypeVar("T")


def with_stores(
    config: Path | None, state_directory: Path | None, work: Callable[[registry_root.Stores, Settings], Awaitable[T]]
) -> T:
    """Run `work` on the registry of these settings; it may be in use by a running gateway."""
    loaded = settings.load(config, state_directory=state_directory)

    async def run() -> T:
        async with registry_root.open_stores(loaded) as stores:
            return await work(stores, loaded)

    return asyncio.run(run())


async def record(settings: Settings, action: Action, owner: Owner | None = None, **what: str | None) -> None:
    """Record in the audit log what this command has done, or is about to do."""
    entry = Entry(action, by=caller(), owner=owner, **what)  # type: ignore[arg-type]
    await asyncio.to_thread(registry_root.record, settings, entry)


def caller() -> str:
    """Return who runs this command."""
    return f"uid {os.getuid()}, pid {os.getpid()}"


def erase(config: Path | None, state_directory: Path | None, tenant: str, user: str | None) -> list[Report]:
    """Erase by the gateway that runs over these settings' state directory, or in this process where none runs."""
    # Here, because they are all that a gateway is made of.
    from aerodrome import app  # noqa: PLC0415
    from aerodrome.admin.erasure import Report  # noqa: PLC0415

    loaded = settings.load(config, state_directory=state_directory)

    async def run() -> list[Report]:
        try:
            async with admin.open_client(loaded.state_directory) as client:
                answer = await client.call("erase", patient=True, tenant=tenant, user=user)
        except admin.NoGateway:
            async with app.open_eraser(loaded) as eraser:
                return await eraser.erase(tenant, user, caller())
        if answer is None:
            raise errors.Draining("the gateway has stopped meanwhile; erase again, what is gone already is no error")
        return msgspec.convert(answer, list[Report])

    return asyncio.run(run())
