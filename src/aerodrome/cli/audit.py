"""`aerodrome audit export | tail | verify | head`: the record of who did what.

No logic: adapters.audit reads it, core.audit checks it. Works while a gateway runs, and without one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from aerodrome import errors, registry_root, settings
from aerodrome.cli import common, groups, registry, tables
from aerodrome.core import audit, duration
from aerodrome.core.identity import Owner
from aerodrome.settings import Settings

app = groups.group()

Since = Annotated[str | None, typer.Option(help="Only the last 30m, 12h, 90d ...")]
TenantName = Annotated[str | None, typer.Option(help="Only this tenant's.")]
SessionId = Annotated[str | None, typer.Option(help="Only what was done to this session, deleted or not.")]

_COLUMNS = ("record", "when", "what", "outcome", "by", "tenant", "user", "session", "why")


@app.command()
def export(
    since: Since = None,
    tenant: TenantName = None,
    session: SessionId = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Print records, oldest first; --json: one object on each line."""
    begin = None if since is None else time.time() - duration.parse("--since", since)
    _print(_read(config, state_directory, (begin, tenant, session)), as_json)


@app.command()
def tail(
    count: Annotated[int, typer.Option("--lines", "-n", min=1, max=100_000, help="How many.")] = 20,
    tenant: TenantName = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Print the last records."""
    _print(deque(_read(config, state_directory, (None, tenant, None)), count), as_json)


@app.command()
def verify(
    anchor: Annotated[str | None, typer.Option(help="NUMBER:HASH, as `audit head` printed it before.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Walk the chain and say where it breaks first; exits with 1 if it does."""
    trail = registry_root.audit_trail(settings.load(config, state_directory=state_directory))
    verdict = trail.verify(None if anchor is None else audit.parse_anchor(anchor))
    if verdict.fault is not None:
        raise errors.AuditBroken(f"the audit log does not hold: {verdict.fault}; up to {verdict.head} it does")
    typer.echo(f"{verdict.head.number} records hold; the last is {verdict.head}")
    if verdict.unsealed:
        typer.echo(
            f"the first {verdict.unsealed} are not sealed with a key: who can write the files can write them anew"
        )
    if verdict.is_torn:
        typer.echo("the last line has no end: it is being written, or a crash left it, and the next start cuts it off")
    if anchor is None:
        typer.echo("records missing at the end would show only against an --anchor that is kept elsewhere")


@app.command()
def head(config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Print the last record's number and hash, to be kept elsewhere as an anchor."""
    typer.echo(str(registry_root.audit_trail(settings.load(config, state_directory=state_directory)).head()))


def _read(
    config: Path | None, state_directory: Path | None, wanted: tuple[float | None, str | None, str | None]
) -> Iterable[dict[str, Any]]:
    trail = registry_root.audit_trail(settings.load(config, state_directory=state_directory))

    async def list_sessions(stores: registry_root.Stores, _: Settings) -> list[tuple[str, Owner]]:
        owners = trail.owners()
        return [(record.session_id, owner) for owner in owners for record in await stores.sessions.list_owned(owner)]

    since, tenant, session_id = wanted
    return trail.records(since, tenant, session_id, registry.with_stores(config, state_directory, list_sessions))


def _print(records: Iterable[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for record in records:
            common.print_json(record)
        return
    tables.print_table(_COLUMNS, [_as_row(record) for record in records])


def _as_row(record: dict[str, Any]) -> list[str]:
    what = record["action"] if "method" not in record else f"{record['action']} {record['method']}"
    why = [record[name] for name in ("reason", "target", "whose", "key_id", "peer") if name in record]
    count = [f"{record['count']} times"] if record.get("count", 1) > 1 else []
    cells = (record["number"], common.date(record["at"]), what, record["outcome"], record["by"])
    return [str(cell) for cell in cells] + [
        record.get("tenant", "-"),
        record.get("user", "-"),
        record.get("session", "-"),
        ", ".join([*why, *count]),
    ]
