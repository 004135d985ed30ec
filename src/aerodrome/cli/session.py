"""`aerodrome session list | reap`: the sessions of the registry. No logic: the stores and gateway.reaper do the work.

Says what the registry says: which of the sessions a runtime holds now is known to the running gateway alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from aerodrome import errors, registry_root
from aerodrome.cli import common, groups, registry, tables
from aerodrome.core.expiry import Expiry, Horizon
from aerodrome.core.identity import Tenant
from aerodrome.core.session import SessionRecord
from aerodrome.gateway import known_tenants, reaper
from aerodrome.settings import Settings

app = groups.group()

_EVERYTHING = Horizon(math.inf, math.inf)


@app.command("list")
def list_sessions(
    tenant: Annotated[str, typer.Option(help="Whose sessions.")],
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """List a tenant's sessions, those of a user together."""

    async def work(stores: registry_root.Stores, settings: Settings) -> list[dict[str, Any]]:
        await _find_tenant(tenant, stores, settings)
        return [_as_dict(record) async for record in _list_all(tenant, stores)]

    columns = ("session", "tenant", "user", "created", "used")
    _print(registry.with_stores(config, state_directory, work), columns, as_json)


@app.command()
def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Say which sessions have expired, by which limit, since when; the running gateway deletes them unless at work."""
    if not dry_run:
        raise errors.ConfigError(
            "expired sessions are deleted by the running gateway ([sessions] reap_interval_seconds); "
            "add --dry-run to see which it would delete"
        )

    async def work(stores: registry_root.Stores, settings: Settings) -> list[dict[str, Any]]:
        if tenant is not None:
            tenants = [await _find_tenant(tenant, stores, settings)]
        else:
            tenants = await known_tenants.list_tenants(settings.configured_tenants(), stores.tenants)
        return [_as_due(record, due) for each in tenants async for record, due in _list_expired(each, stores)]

    columns = ("session", "tenant", "user", "created", "used", "limit", "expired")
    _print(registry.with_stores(config, state_directory, work), columns, as_json)


async def _find_tenant(name: str, stores: registry_root.Stores, settings: Settings) -> Tenant:
    tenant = settings.configured_tenants().get(name) or await stores.tenants.find(name)
    if tenant is None:
        raise errors.TenantMissing(f"no tenant is named {name}: aerodrome tenant list shows which there are")
    return tenant


async def _list_all(tenant: str, stores: registry_root.Stores) -> AsyncIterator[SessionRecord]:
    last: SessionRecord | None = None
    while records := await stores.sessions.list_stale(tenant, _EVERYTHING, reaper.PAGE_RECORDS, last):
        last = records[-1]
        for record in records:
            yield record


async def _list_expired(tenant: Tenant, stores: registry_root.Stores) -> AsyncIterator[tuple[SessionRecord, Expiry]]:
    async for page in reaper.list_expired(stores.sessions, tenant, time.time()):
        for found in page:
            yield found


def _print(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        common.print_json(rows)
    else:
        tables.print_table(columns, [[str(cell) for cell in row.values()] for row in rows])


def _as_dict(record: SessionRecord) -> dict[str, Any]:
    return {
        "session": record.session_id,
        "tenant": record.owner.tenant,
        "user": record.owner.user,
        "created": common.date(record.created_at),
        "used": common.date(record.used_at),
    }


def _as_due(record: SessionRecord, due: Expiry) -> dict[str, Any]:
    return {**_as_dict(record), "limit": due.limit.value, "expired": common.date(due.since)}
