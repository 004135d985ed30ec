"""`aerodrome tenant add | set | list | remove`: the tenants of the database. No logic: the stores do the work."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from aerodrome import app as application
from aerodrome import errors
from aerodrome.cli import common
from aerodrome.core import identity
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import Isolation, Policy, Trust, check_url
from aerodrome.settings import Settings

app = typer.Typer(name="tenant", help="Tenants and their policies.", no_args_is_help=True)

IsolationOption = Annotated[Isolation, typer.Option(help="Who shares a runtime: user, tenant or shared.")]
TrustOption = Annotated[Trust, typer.Option(help="'full' opens the host to the tenant (user isolation only).")]
Provider = Annotated[list[str] | None, typer.Option(help="An allowed model endpoint (URL prefix); repeat for more.")]
McpServer = Annotated[
    list[str] | None, typer.Option(help="An allowed remote MCP server (URL prefix); repeat for more.")
]


@app.command()
def add(
    name: str,
    isolation: IsolationOption = Isolation.USER,
    trust: TrustOption = Trust.LIMITED,
    provider: Provider = None,
    mcp_server: McpServer = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Add a tenant."""
    tenant = _tenant(name, isolation, trust, provider, mcp_server)

    async def work(stores: application.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        await stores.tenants.add(tenant)

    common.with_stores(config, state_directory, work)
    typer.echo(f"tenant {name} added; next: aerodrome key create {name} USER")


@app.command("set")
def replace(
    name: str,
    isolation: IsolationOption,
    trust: TrustOption = Trust.LIMITED,
    provider: Provider = None,
    mcp_server: McpServer = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Replace a tenant's policy; links opened from now on have it."""
    tenant = _tenant(name, isolation, trust, provider, mcp_server)

    async def work(stores: application.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        await stores.tenants.update(tenant)

    common.with_stores(config, state_directory, work)
    typer.echo(f"tenant {name} changed")


@app.command("list")
def list_tenants(
    config: common.Config = None, state_directory: common.StateDirectory = None, as_json: common.AsJson = False
) -> None:
    """List the tenants of the configuration and of the database."""

    async def work(stores: application.Stores, settings: Settings) -> list[Tenant]:
        configured = settings.configured_tenants()
        stored = [tenant for tenant in await stores.tenants.list_all() if tenant.name not in configured]
        return [*configured.values(), *stored]

    tenants = common.with_stores(config, state_directory, work)
    if as_json:
        typer.echo(msgspec.json.encode([_as_dict(tenant) for tenant in tenants]).decode())
        return
    rows = [[str(cell) for cell in _as_dict(tenant).values()] for tenant in tenants]
    common.print_table(("tenant", "isolation", "trust", "providers", "mcp servers", "source"), rows)


@app.command()
def remove(name: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Remove a tenant and revoke its keys; its sessions stay on disk."""

    async def work(stores: application.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        await stores.tenants.remove(name)

    common.with_stores(config, state_directory, work)
    typer.echo(f"tenant {name} removed, its keys revoked")


def _tenant(
    name: str, isolation: Isolation, trust: Trust, provider: list[str] | None, mcp_server: list[str] | None
) -> Tenant:
    providers = tuple(check_url("--provider", url) for url in provider or ())
    mcp_servers = tuple(check_url("--mcp-server", url) for url in mcp_server or ())
    policy = Policy(isolation, trust, providers, mcp_servers)
    return Tenant(identity.check_name("tenant", name), policy)


def _check_not_configured(name: str, settings: Settings) -> None:
    if name in settings.configured_tenants():
        raise errors.ConfigError(f"tenant {name} is defined in the configuration file; change it there")


def _as_dict(tenant: Tenant) -> dict[str, Any]:
    policy = tenant.policy
    return {
        "tenant": tenant.name,
        "isolation": policy.isolation.value,
        "trust": policy.trust.value,
        "providers": ", ".join(policy.provider_urls),
        "mcp_servers": ", ".join(policy.mcp_urls),
        "source": tenant.source,
    }
