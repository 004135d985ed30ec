"""`aerodrome github-token sign-in | set | list | remove | rewrap`: users' stored GitHub tokens.

No logic: envelope, store and gateway.token_sign_in have it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
import time
import webbrowser
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aerodrome import errors, observe, registry_root
from aerodrome.cli import common, groups, registry, tables
from aerodrome.clock import SystemClock
from aerodrome.core import duration, envelope, github, identity
from aerodrome.core.audit import Action
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import Account, GitHubToken, StoredToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret
from aerodrome.settings import Settings

if TYPE_CHECKING:
    from aerodrome.adapters.oauth.loopback import Loopback
    from aerodrome.gateway.token_sign_in import TokenSignIn

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

    async def work(stores: registry_root.Stores, settings: Settings) -> None:
        await _check_tenant(stores, settings, tenant)
        await registry.record(settings, Action.TOKEN_STORE, owner)
        await stores.tokens.put(github.seal(_envelopes(settings), owner, token, now))

    registry.with_stores(config, state_directory, work)
    typer.echo(f"token of {user} in {tenant} stored")


@app.command("sign-in")
def sign_in(
    tenant: str,
    user: str,
    web: Annotated[
        bool, typer.Option("--web", help="In a browser of this machine, in place of a code that is entered anywhere.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the browser, with --web.")] = True,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Have a user sign in at GitHub, and store the token that they grant."""
    owner = Owner(identity.check_name("tenant", tenant), identity.check_name("user", user))

    observe.configure_logs("warning", as_json=False)  # standard output is for the person who signs in

    async def work(stores: registry_root.Stores, settings: Settings) -> Account:
        from aerodrome import app as application  # noqa: PLC0415  slow to import, as authlib is
        from aerodrome import signing_in  # noqa: PLC0415

        await _check_tenant(stores, settings, tenant)
        clock = SystemClock()
        async with AsyncExitStack() as stack:
            secrets = application.open_secrets(settings, clock)
            stack.push_async_callback(secrets.aclose)
            granter = signing_in.open_granter(settings, secrets, clock)
            stack.push_async_callback(granter.aclose)
            note = functools.partial(registry.record, settings, Action.TOKEN_STORE)
            signer = signing_in.open_token_sign_in(settings, granter, stores.tokens, clock, note)
            if not web:
                return await _by_device(signer, owner)
            loopback = signing_in.open_loopback()
            stack.push_async_callback(loopback.aclose)
            return await _by_browser(signer, owner, loopback, browser)

    account = registry.with_stores(config, state_directory, work)
    typer.echo(f"token of {user} in {tenant} stored; it is of the GitHub account {account.login}")


async def _by_device(signer: TokenSignIn, owner: Owner) -> Account:
    grant = await signer.begin_device()
    typer.echo(f"open {grant.url} in any browser and enter the code {grant.user_code}")
    typer.echo(f"waiting for it, {grant.expires_in / 60:.0f} minutes at most ...")
    return await signer.finish_device(owner, grant)


async def _by_browser(signer: TokenSignIn, owner: Owner, loopback: Loopback, opens: bool) -> Account:
    begun = await signer.begin(owner, await loopback.start())
    typer.echo(f"open this in a browser of this machine:\n{begun.url}")
    if opens:
        # One that is a program of this terminal is waited for, and must not keep the answer from being taken.
        opening = asyncio.create_task(asyncio.to_thread(webbrowser.open, begun.url), name="browser")
        opening.add_done_callback(lambda task: task.exception())
    return await signer.finish(owner, await loopback.wait(begun.kept), begun.kept)


@app.command("list")
def list_tokens(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """List whose tokens are stored; tokens themselves are never shown."""

    async def work(stores: registry_root.Stores, settings: Settings) -> list[StoredToken]:
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

    async def work(stores: registry_root.Stores, settings: Settings) -> bool:
        owner = Owner(tenant, user)
        if await stores.tokens.find(owner) is None:
            return False
        await registry.record(settings, Action.TOKEN_REMOVE, owner)
        return await stores.tokens.remove(owner)

    if not registry.with_stores(config, state_directory, work):
        raise errors.KeyMissing(f"no GitHub token of {user} in {tenant} is stored")
    typer.echo(f"token of {user} in {tenant} removed")


@app.command()
def rewrap(config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Wrap all tokens with the present master key; the old ones are named by AERODROME_OLD_MASTER_KEYS."""

    async def work(stores: registry_root.Stores, settings: Settings) -> int:
        envelopes, count = _envelopes(settings), 0
        for token in await stores.tokens.list_all():
            if envelope.key_id_of(token.sealed) != envelopes.key_id:
                sealed = envelopes.rewrap(token.sealed, github.context(token.owner))
                # One that was renewed or set meanwhile is under the present key already.
                count += await stores.tokens.replace(dataclasses.replace(token, sealed=sealed), token)
        return count

    typer.echo(f"{registry.with_stores(config, state_directory, work)} tokens wrapped with the present master key")


async def _check_tenant(stores: registry_root.Stores, settings: Settings, tenant: str) -> None:
    if tenant not in settings.configured_tenants() and await stores.tenants.find(tenant) is None:
        raise errors.TenantMissing(f"no tenant {tenant}; add it first: aerodrome tenant add {tenant}")


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
