"""`aerodrome key ...`: the keys that prove who connects: created, rotated, listed, revoked. The stores do the work."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from aerodrome import errors, registry_root
from aerodrome.cli import common, groups, registry, tables
from aerodrome.core import connection_token, duration, identity
from aerodrome.core.audit import Action
from aerodrome.core.identity import Key, Owner, Scope
from aerodrome.settings import Settings

app = groups.group()

Expires = Annotated[str | None, typer.Option(help="Lifetime such as 30m, 12h or 90d; never without it.")]
_CONNECT = ["connect"]


@app.command()
def create(
    tenant: str,
    user: str,
    expires: Expires = None,
    scope: Annotated[
        list[str], typer.Option(help="What it may do: connect, mint, admin. May be said more than once.")
    ] = _CONNECT,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Create a key and print its connection token; it is shown this once and stored only as a hash."""
    owner = Owner(identity.check_name("tenant", tenant), identity.check_name("user", user))
    now = time.time()
    key, token = identity.create_key(owner, now, _end("--expires", expires, now), identity.check_scopes(scope))

    async def work(stores: registry_root.Stores, settings: Settings) -> None:
        await _check_tenant(tenant, stores, settings)
        await registry.record(settings, Action.KEY_CREATE, owner, key_id=key.key_id)
        await stores.keys.add(key)

    registry.with_stores(config, state_directory, work)
    typer.echo(token)


@app.command("create-operator")
def create_operator(
    name: Annotated[str, typer.Argument(help="Who operates; what the key is called where keys are listed.")],
    expires: Expires = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Create an operator's key, for the dashboard and /v1/admin: it belongs to no tenant and opens no session."""
    owner = Owner(identity.NO_TENANT, identity.check_name("operator", name))
    now = time.time()
    key, token = identity.create_key(owner, now, _end("--expires", expires, now), identity.OPERATOR_SCOPES)

    async def work(stores: registry_root.Stores, settings: Settings) -> None:
        await registry.record(settings, Action.KEY_CREATE, owner, key_id=key.key_id, reason="operator's key")
        await stores.keys.add(key)

    registry.with_stores(config, state_directory, work)
    typer.echo(token)


@app.command("mint-key")
def mint_key(
    tenant: str,
    name: Annotated[str, typer.Option(help="What the key is called where keys are listed.")] = "backend",
    expires: Expires = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Create a signing key, with which a tenant's backend mints connection tokens for its users, and print its id and secret.

    The secret is shown this once; it is derived from the master key (AERODROME_MASTER_KEY) and stored nowhere.
    """
    owner = Owner(identity.check_name("tenant", tenant), identity.check_name("key", name))
    if name == connection_token.GATEWAY:
        raise errors.ConfigError(f"--name: {name} is what the gateway calls its own keys; choose another")

    async def work(stores: registry_root.Stores, settings: Settings) -> tuple[Key, str]:
        await _check_tenant(tenant, stores, settings)
        now = time.time()
        made = connection_token.create_signing_key(_master(settings), owner, now, _end("--expires", expires, now))
        await registry.record(settings, Action.KEY_CREATE, owner, key_id=made[0].key_id, reason="signing key")
        await stores.keys.add(made[0])
        return made

    key, secret = registry.with_stores(config, state_directory, work)
    typer.echo(f"key {key.key_id}\nsecret {secret}")


@app.command()
def rotate(
    key_id: str,
    overlap: Annotated[str, typer.Option(help="How long the old key still works.")] = "24h",
    expires: Expires = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Create a key for the same user with the same scopes, print its token, and have the old one expire after the overlap."""

    async def work(stores: registry_root.Stores, settings: Settings) -> str:
        now = time.time()
        old = await stores.keys.find(key_id)
        if old is None or not old.is_live(now):
            raise errors.KeyMissing(f"no key has id {key_id}, or it is of no use any more: create a new one")
        ends_at = _end("--expires", expires, now)
        if Scope.SIGN in old.scopes:
            key, secret = connection_token.create_signing_key(_master(settings), old.owner, now, ends_at)
            shown = f"key {key.key_id}\nsecret {secret}"
        else:
            key, shown = identity.create_key(old.owner, now, ends_at, old.scopes)
        await registry.record(settings, Action.KEY_ROTATE, old.owner, key_id=key_id, target=key.key_id)
        await stores.keys.rotate(key_id, key, now + duration.parse("--overlap", overlap))
        return shown

    typer.echo(registry.with_stores(config, state_directory, work))


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """List keys; secrets are not stored and cannot be listed."""

    async def work(stores: registry_root.Stores, settings: Settings) -> list[Key]:
        return list(await stores.keys.list_all(tenant))

    keys = [_as_dict(key, time.time()) for key in registry.with_stores(config, state_directory, work)]
    if as_json:
        common.print_json(keys)
        return
    tables.print_table(
        ("key", "tenant", "user", "scopes", "created", "expires", "state"),
        [[str(cell) for cell in key.values()] for key in keys],
    )


@app.command()
def revoke(key_id: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Revoke a key by its id (`aerodrome key list`): it opens nothing any more, and links that it opened are closed."""

    async def work(stores: registry_root.Stores, settings: Settings) -> None:
        await stores.keys.revoke(key_id, time.time())
        known = await stores.keys.find(key_id)
        await registry.record(settings, Action.KEY_REVOKE, known.owner if known is not None else None, key_id=key_id)

    registry.with_stores(config, state_directory, work)
    typer.echo(f"key {key_id} revoked")


def _end(name: str, lifetime: str | None, now: float) -> float | None:
    return now + duration.parse(name, lifetime) if lifetime else None


async def _check_tenant(tenant: str, stores: registry_root.Stores, settings: Settings) -> None:
    if tenant not in settings.configured_tenants() and await stores.tenants.find(tenant) is None:
        raise errors.TenantMissing(f"no tenant {tenant}; add it first: aerodrome tenant add {tenant}")


def _master(settings: Settings) -> bytes:
    master = settings.read_master_key()
    if master is None:
        raise errors.ConfigError("signing keys need a master key: set AERODROME_MASTER_KEY as for the gateway")
    return master


def _as_dict(key: Key, now: float) -> dict[str, Any]:
    expired = key.expires_at is not None and now >= key.expires_at
    return {
        "key": key.key_id,
        "tenant": key.owner.tenant,
        "user": key.owner.user,
        "scopes": " ".join(sorted(scope.value for scope in key.scopes)),
        "created": common.date(key.created_at),
        "expires": "never" if key.expires_at is None else common.date(key.expires_at),
        "state": "revoked" if key.revoked_at is not None else "expired" if expired else "active",
    }
