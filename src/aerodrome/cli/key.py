"""`aerodrome key create | list | revoke`: the keys that prove who connects. No logic: the stores do the work."""

from __future__ import annotations

import datetime
import re
import time
from typing import Annotated, Any

import msgspec
import typer

from aerodrome import app as application
from aerodrome import errors
from aerodrome.cli import common
from aerodrome.core import identity
from aerodrome.core.identity import Key, Owner
from aerodrome.settings import Settings

app = typer.Typer(name="key", help="Keys: connection tokens for users of tenants.", no_args_is_help=True)

_UNITS = {"m": 60, "h": 3600, "d": 86400}


@app.command()
def create(
    tenant: str,
    user: str,
    expires: Annotated[str | None, typer.Option(help="Lifetime such as 30m, 12h or 90d; never without it.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Create a key and print its connection token; it is shown this once and stored only as a hash."""
    owner = Owner(identity.check_name("tenant", tenant), identity.check_name("user", user))
    now = time.time()
    key, token = identity.create_key(owner, now, now + _seconds(expires) if expires else None)

    async def work(stores: application.Stores, settings: Settings) -> None:
        if tenant not in settings.configured_tenants() and await stores.tenants.find(tenant) is None:
            raise errors.TenantMissing(f"no tenant {tenant}; add it first: aerodrome tenant add {tenant}")
        await stores.keys.add(key)

    common.with_stores(config, state_directory, work)
    typer.echo(token)


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """List keys; secrets are not stored and cannot be listed."""

    async def work(stores: application.Stores, settings: Settings) -> list[Key]:
        return list(await stores.keys.list_all(tenant))

    keys = [_as_dict(key, time.time()) for key in common.with_stores(config, state_directory, work)]
    if as_json:
        typer.echo(msgspec.json.encode(keys).decode())
        return
    common.print_table(
        ("key", "tenant", "user", "created", "expires", "state"),
        [[str(cell) for cell in key.values()] for key in keys],
    )


@app.command()
def revoke(key_id: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Revoke a key by its id (`aerodrome key list`): links opened from now on are refused."""

    async def work(stores: application.Stores, settings: Settings) -> None:
        await stores.keys.revoke(key_id, time.time())

    common.with_stores(config, state_directory, work)
    typer.echo(f"key {key_id} revoked")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if match is None:
        raise errors.ConfigError(f"--expires: expected a number and m, h or d, found {text!r}; for example 90d")
    return int(match[1]) * _UNITS[match[2]]


def _as_dict(key: Key, now: float) -> dict[str, Any]:
    expired = key.expires_at is not None and now >= key.expires_at
    return {
        "key": key.key_id,
        "tenant": key.owner.tenant,
        "user": key.owner.user,
        "created": _date(key.created_at),
        "expires": _date(key.expires_at),
        "state": "revoked" if key.revoked_at is not None else "expired" if expired else "active",
    }


def _date(at: float | None) -> str:
    return "never" if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")
