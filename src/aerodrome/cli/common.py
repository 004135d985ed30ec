"""What the administration commands share: options, the running gateway, and how quantities are said.

Loads little, because commands that only ask the running gateway need no more. Those that work on the registry use `registry`.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from aerodrome import configuration
from aerodrome.admin import client as admin
from aerodrome.admin.client import AdminClient, Progress

T = TypeVar("T")

Config = Annotated[Path | None, typer.Option(help="A TOML file; see docs/configuration.md.")]
StateDirectory = Annotated[Path | None, typer.Option(help="Where sessions, tenants and keys are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_gateway(
    config: Path | None,
    state_directory: Path | None,
    work: Callable[[AdminClient], Awaitable[T]],
    progress: Progress = lambda _, __: None,
) -> T:
    """Run `work` with the gateway that runs over these settings' state directory."""
    directory = configuration.state_directory(config, state_directory)

    async def run() -> T:
        async with admin.open_client(directory, progress) as client:
            return await work(client)

    return asyncio.run(run())


def print_json(value: Any) -> None:
    """Print a value as JSON on one line."""
    typer.echo(msgspec.json.encode(value).decode())


def date(at: float) -> str:
    """Return a Unix time as people and scripts read it: ISO 8601, UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


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
