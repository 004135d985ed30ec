"""What the administration commands share: options, the store, and how rows are printed."""

from __future__ import annotations

import asyncio
import datetime
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import rich.console
import rich.markup
import rich.table
import typer

from aerodrome import app, errors, settings
from aerodrome.admin import client as admin
from aerodrome.admin.client import AdminClient, Progress
from aerodrome.admin.erasure import Report
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Owner
from aerodrome.settings import Settings

T = TypeVar("T")

Config = Annotated[Path | None, typer.Option(help="A TOML file; see docs/configuration.md.")]
StateDirectory = Annotated[Path | None, typer.Option(help="Where sessions, tenants and keys are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_stores(
    config: Path | None, state_directory: Path | None, work: Callable[[app.Stores, Settings], Awaitable[T]]
) -> T:
    """Run `work` on the registry of these settings; it may be in use by a running gateway."""
    loaded = settings.load(config, state_directory=state_directory)

    async def run() -> T:
        async with app.open_stores(loaded) as stores:
            return await work(stores, loaded)

    return asyncio.run(run())


async def record(settings: Settings, action: Action, owner: Owner | None = None, **what: str | None) -> None:
    """Record in the audit log what this command has done, or is about to do."""
    entry = Entry(action, by=caller(), owner=owner, **what)  # type: ignore[arg-type]
    await asyncio.to_thread(app.record, settings, entry)


def caller() -> str:
    """Return who runs this command."""
    return f"uid {os.getuid()}, pid {os.getpid()}"


def with_gateway(
    config: Path | None,
    state_directory: Path | None,
    work: Callable[[AdminClient], Awaitable[T]],
    progress: Progress = lambda _, __: None,
) -> T:
    """Run `work` with the gateway that runs over these settings' state directory."""
    loaded = settings.load(config, state_directory=state_directory)

    async def run() -> T:
        async with admin.open_client(loaded.state_directory, progress) as client:
            return await work(client)

    return asyncio.run(run())


def erase(config: Path | None, state_directory: Path | None, tenant: str, user: str | None) -> list[Report]:
    """Erase by the gateway that runs over these settings' state directory, or in this process where none runs."""
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


def date(at: float) -> str:
    """Return a Unix time as people and scripts read it: ISO 8601, UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns."""
    table = rich.table.Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(rich.markup.escape, row))
    # Piped output has no width of its own; a cut-off value would be worse than a long line.
    rich.console.Console(width=None if sys.stdout.isatty() else 200).print(table)


def age(seconds: float | None) -> str:
    """Return a length of time as people read it, in its two largest units; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    first = next((at for at, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count or first == 3)


def size(count_bytes: int | None) -> str:
    """Return a number of bytes as people read it; `-` for None."""
    if count_bytes is None:
        return "-"
    count, units = float(count_bytes), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while count >= 1024 and (larger := next(units, None)) is not None:
        count, unit = count / 1024, larger
    return f"{count:.4g} {unit}"
