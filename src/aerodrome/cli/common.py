"""What the administration commands share: options, the store, and how rows are printed."""

from __future__ import annotations

import asyncio
import datetime
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import rich.console
import rich.table
import typer

from aerodrome import app, settings
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


def date(at: float) -> str:
    """Return a Unix time as people and scripts read it: ISO 8601, UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns."""
    table = rich.table.Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Piped output has no width of its own; a cut-off value would be worse than a long line.
    rich.console.Console(width=None if sys.stdout.isatty() else 200).print(table)
