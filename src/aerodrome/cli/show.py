"""`aerodrome show runtimes | sessions | links | pool`: what the running gateway holds now.

No logic: aerodrome.admin does the work. Tables are for people; `--json` prints what the gateway said, in seconds and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from aerodrome.admin.client import AdminClient
from aerodrome.cli import common, groups, tables

_NESTED = ("pool", "settings")
_PAGE_RECORDS = 200

app = groups.group()

OneTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]


@app.command()
def runtimes(
    config: common.Config = None, state_directory: common.StateDirectory = None, as_json: common.AsJson = False
) -> None:
    """Show every runtime: whom it serves, in which state, and what it uses."""
    found = common.with_gateway(config, state_directory, lambda client: client.call("show.runtimes"))
    rows = [{**row["runtime"], "live_sessions": row["live_sessions"]} for row in found]
    columns = ("runtime", "realm", "state", "pid", "age", "links", "live", "memory", "ping", "frozen", "cordoned")
    _print(rows, columns, _runtime_cells, as_json)


@app.command()
def sessions(
    tenant: OneTenant = None,
    limit: Limit = 1000,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Show the sessions that client links hold; those that none holds are in `aerodrome session list`."""
    rows = common.with_gateway(config, state_directory, lambda client: _pages(client, "sessions", tenant, limit))
    columns = ("session", "tenant", "user", "realm", "runtime", "state", "links", "at work", "unused for")
    _print(rows, columns, _session_cells, as_json)


@app.command()
def links(
    tenant: OneTenant = None,
    limit: Limit = 1000,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Show the client links, the oldest first."""
    rows = common.with_gateway(config, state_directory, lambda client: _pages(client, "links", tenant, limit))
    columns = ("link", "peer", "tenant", "user", "sessions", "upstreams", "requests", "age")
    _print(rows, columns, _link_cells, as_json)


@app.command()
def pool(
    config: common.Config = None, state_directory: common.StateDirectory = None, as_json: common.AsJson = False
) -> None:
    """Show the gateway as a whole: its counts, and the settings that they run against."""
    found = common.with_gateway(config, state_directory, lambda client: client.call("show.pool"))
    if as_json:
        common.print_json(found)
        return
    flat = {**found["settings"], **found["pool"], **{name: found[name] for name in found if name not in _NESTED}}
    tables.print_table(("what", ""), [[name.replace("_", " "), _cell(name, value)] for name, value in flat.items()])


async def _pages(client: AdminClient, what: str, tenant: str | None, limit: int) -> list[dict[str, Any]]:
    """Read up to `limit` records, page by page; say on standard error if there are more."""
    rows: list[dict[str, Any]] = []
    after = None
    while len(rows) < limit:
        size = min(_PAGE_RECORDS, limit - len(rows))
        page = await client.call(f"show.{what}", tenant=tenant, after=after, limit=size)
        rows += page[what]
        after = page["next"]
        if after is None:
            return rows
    typer.echo(f"there are more than {limit} {what}; --limit shows more of them", err=True)
    return rows


def _print(rows: Sequence[dict[str, Any]], columns: Sequence[str], cells: Any, as_json: bool) -> None:
    if as_json:
        common.print_json(rows)
    else:
        tables.print_table(columns, [[_text(cell) for cell in cells(row)] for row in rows])


def _runtime_cells(row: dict[str, Any]) -> list[Any]:
    return [
        *(row[name] for name in ("runtime_id", "realm", "state", "pid")),
        common.age(row["age_seconds"]),
        row["links"],
        row["live_sessions"],
        common.size(row["memory_bytes"]),
        common.age(row["ping_seconds"]),
        row["is_frozen"],
        row["cordoned"],
    ]


def _session_cells(row: dict[str, Any]) -> list[Any]:
    names = ("session_id", "tenant", "user", "realm", "runtime_id", "state", "links", "is_at_work")
    return [*(row[name] for name in names), common.age(row["idle_seconds"])]


def _link_cells(row: dict[str, Any]) -> list[Any]:
    names = ("number", "peer", "tenant", "user", "sessions", "upstreams", "requests")
    return [*(row[name] for name in names), common.age(row["age_seconds"])]


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        common.age(value)
        if name.endswith("_seconds") and value
        else f"{value:g}"
        if isinstance(value, float)
        else _text(value)
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    return "-" if value is None else str(value)
