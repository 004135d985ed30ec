"""`aerodrome github-token set | list | remove | rewrap`: users' stored GitHub tokens. No logic: envelope and store do that."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated, Any

import typer

from aerodrome import app as application
from aerodrome import errors
from aerodrome.cli import common, groups, registry, tables
from aerodrome.core import duration, envelope, github, identity
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import GitHubToken, StoredToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret
from aerodrome.settings import Settings

app = groups.group()


@app.command("set")
def set_token(
    tenant: str,
    user: str,
    expires: Annotated[str | None, typer.Option(help="Lifetime of the token, such as 8h; never without it.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Store a user's token: read from standard input, the refresh token, if there is one, on the second line."""
    owner = Owner(identity.check_name("tenant", tenant), identity.check_name("user", user))
    lines = sys.stdin.read().split()
    if len(lines) not in (1, 2):
        raise errors.ConfigError(
            "expected a token on standard input, and a refresh token on a second line if there is one"
        )
    now = time.time()
    expires_at = now + duration.parse("--expires", expires) if expires else None
    token = GitHubToken(Secret(lines[0]), Secret(lines[1]) if len(lines) == 2 else None, expires_at)

    async def work(stores: application.Stores, settings: Settings) -> None:
        if tenant not in settings.configured_tenants() and await stores.tenants.find(tenant) is None:
            raise errors.TenantMissing(f"no tenant {tenant}; add it first: aerodrome tenant add {tenant}")
        await stores.tokens.put(github.seal(_envelopes(settings), owner, token, now))

    registry.with_stores(config, state_directory, work)
    typer.echo(f"token of {user} in {tenant} stored")


@app.command("list")
def list_tokens(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """List whose tokens are stored; tokens themselves are never shown."""

    async def work(stores: application.Stores, settings: Settings) -> list[StoredToken]:
        return list(await stores.tokens.list_all(tenant))

    tokens = [_as_dict(token) for token in registry.with_stores(config, state_directory, work)]
    if as_json:
        common.print_json(tokens)
        return
    columns = ("tenant", "user", "stored", "expires", "renewed", "master key")
    tables.print_table(columns, [[str(cell) for cell in token.values()] for token in tokens])


@app.command()
def remove(tenant: str, user: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Remove a user's token: sessions opened from now on are refused it."""

    async def work(stores: application.Stores, settings: Settings) -> bool:
        return await stores.tokens.remove(Owner(tenant, user))

    if not registry.with_stores(config, state_directory, work):
        raise errors.KeyMissing(f"no GitHub token of {user} in {tenant} is stored")
    typer.echo(f"token of {user} in {tenant} removed")


@app.command()
def rewrap(config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Wrap all tokens with the present master key; the old ones are named by AERODROME_OLD_MASTER_KEYS."""

    async def work(stores: application.Stores, settings: Settings) -> int:
        envelopes, count = _envelopes(settings), 0
        for token in await stores.tokens.list_all():
            if envelope.key_id_of(token.sealed) != envelopes.key_id:
                sealed = envelopes.rewrap(token.sealed, github.context(token.owner))
                # One that was renewed or set meanwhile is under the present key already.
                count += await stores.tokens.replace(dataclasses.replace(token, sealed=sealed), token)
        return count

    typer.echo(f"{registry.with_stores(config, state_directory, work)} tokens wrapped with the present master key")


def _envelopes(settings: Settings) -> Envelopes:
    envelopes = settings.envelopes()
    if envelopes is None:
        raise errors.ConfigError(
            "no master key is given; set AERODROME_MASTER_KEY or AERODROME_MASTER_KEY_FILE as for the gateway"
        )
    return envelopes


def _as_dict(token: StoredToken) -> dict[str, Any]:
    return {
        "tenant": token.owner.tenant,
        "user": token.owner.user,
        "stored": common.date(token.updated_at),
        "expires": "never" if token.expires_at is None else common.date(token.expires_at),
        "renewed": "by the gateway" if token.can_refresh else "no",
        "master_key": envelope.key_id_of(token.sealed),
    }
