"""`aerodrome key create | list | revoke`: the keys that prove who connects. No logic: the stores do the work."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
import typer

from aerodrome import app as application
from aerodrome import errors
from aerodrome.cli import common
from aerodrome.core import duration, identity
from aerodrome.core.audit import Action
from aerodrome.core.identity import Key, Owner
from aerodrome.settings import Settings

app = typer.Typer(name="key", help="Keys: connection tokens for users of tenants.", no_args_is_help=True)


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
    key, token = identity.create_key(owner, now, now + duration.parse("--expires", expires) if expires else None)

    async def work(stores: application.Stores, settings: Settings) -> None:
        if tenant not in settings.configured_tenants() and await stores.tenants.find(tenant) is None:
            raise errors.TenantMissing(f"no tenant {tenant}; add it first: aerodrome tenant add {tenant}")
        await common.record(settings, Action.KEY_CREATE, owner, key_id=key.key_id)
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
        known = await stores.keys.find(key_id)
        await common.record(settings, Action.KEY_REVOKE, known.owner if known is not None else None, key_id=key_id)

    common.with_stores(config, state_directory, work)
    typer.echo(f"key {key_id} revoked")


def _as_dict(key: Key, now: float) -> dict[str, Any]:
    expired = key.expires_at is not None and now >= key.expires_at
    return {
        "key": key.key_id,
        "tenant": key.owner.tenant,
        "user": key.owner.user,
        "created": common.date(key.created_at),
        "expires": "never" if key.expires_at is None else common.date(key.expires_at),
        "state": "revoked" if key.revoked_at is not None else "expired" if expired else "active",
    }
