"""`aerodrome tenant add | set | list | remove`: the tenants of the database. No logic: the stores do the work."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from aerodrome import app as application
from aerodrome import errors
from aerodrome.admin.erasure import Report
from aerodrome.cli import common
from aerodrome.core import duration, identity
from aerodrome.core.audit import Action
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import ClientLoss, GitHubAccess, Isolation, Policy, Trust, check_url
from aerodrome.gateway import admission
from aerodrome.settings import Settings, check_github

app = typer.Typer(name="tenant", help="Tenants and their policies.", no_args_is_help=True)

IsolationOption = Annotated[
    Isolation | None, typer.Option(help="Who shares a runtime: user (where nothing is said), tenant or shared.")
]
TrustOption = Annotated[
    Trust, typer.Option(help="'full' gives the tenant host tools, in a sandbox (user isolation only).")
]
Provider = Annotated[list[str] | None, typer.Option(help="An allowed model endpoint (URL prefix); repeat for more.")]
McpServer = Annotated[
    list[str] | None, typer.Option(help="An allowed remote MCP server (URL prefix); repeat for more.")
]
IdleTtl = Annotated[
    str | None, typer.Option(help="Sessions unused so long are deleted, such as 30d or 12h; never without it.")
]
MaxAge = Annotated[str | None, typer.Option(help="Sessions created so long ago are deleted; never without it.")]
NamedProvider = Annotated[
    list[str] | None,
    typer.Option(
        "--named-provider",
        help="A [providers.NAME] that sessions may use; the first is used where they name none. Repeat for more.",
    ),
]
GitHubOption = Annotated[
    GitHubAccess, typer.Option(help="Whose GitHub token sessions have: the client's, or the user's stored one.")
]
LossOption = Annotated[ClientLoss, typer.Option("--client-loss", help="Whether a running turn ends with its client.")]


def _save(
    context: typer.Context,
    name: str,
    isolation: IsolationOption = None,
    trust: TrustOption = Trust.LIMITED,
    provider: Provider = None,
    mcp_server: McpServer = None,
    session_idle_ttl: IdleTtl = None,
    session_max_age: MaxAge = None,
    client_loss: LossOption = ClientLoss.CLOSE,
    named_provider: NamedProvider = None,
    github: GitHubOption = GitHubAccess.CLIENT,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    is_new = context.info_name == "add"
    if isolation is None and not is_new:
        raise typer.BadParameter("say it: a policy is replaced as a whole", param_hint="--isolation")
    policy = Policy(
        isolation or Isolation.USER,
        trust,
        tuple(check_url("--provider", url) for url in provider or ()),
        tuple(check_url("--mcp-server", url) for url in mcp_server or ()),
        duration.parse("--session-idle-ttl", session_idle_ttl) if session_idle_ttl else None,
        duration.parse("--session-max-age", session_max_age) if session_max_age else None,
        client_loss,
        named_provider[0] if named_provider else None,
        tuple(named_provider or ()),
        github,
    )
    check_github("--github", policy)
    tenant = Tenant(identity.check_name("tenant", name), policy)

    async def work(stores: application.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        settings.check_provider_names("--named-provider", policy)
        await (stores.tenants.add(tenant) if is_new else stores.tenants.update(tenant))
        action = Action.TENANT_ADD if is_new else Action.TENANT_SET
        await common.record(
            settings, action, tenant=name, reason=f"{policy.isolation.value}, trust {policy.trust.value}"
        )

    common.with_stores(config, state_directory, work)
    typer.echo(f"tenant {name} added; next: aerodrome key create {name} USER" if is_new else f"tenant {name} changed")


# One function under two names, because typer reads a command's options from its signature: two would have to repeat them all.
app.command("add", help="Add a tenant.")(_save)
app.command("set", help="Replace a tenant's policy as a whole; links opened from now on have it.")(_save)


@app.command("list")
def list_tenants(
    config: common.Config = None, state_directory: common.StateDirectory = None, as_json: common.AsJson = False
) -> None:
    """List the tenants of the configuration and of the database."""

    async def work(stores: application.Stores, settings: Settings) -> list[Tenant]:
        return await admission.list_tenants(settings.configured_tenants(), stores.tenants)

    tenants = common.with_stores(config, state_directory, work)
    if as_json:
        typer.echo(msgspec.json.encode([_as_dict(tenant) for tenant in tenants]).decode())
        return
    rows = [[str(cell) for cell in _as_dict(tenant).values()] for tenant in tenants]
    columns = (
        "tenant",
        "isolation",
        "trust",
        "providers",
        "mcp servers",
        "idle ttl",
        "max age",
        "client loss",
        "named providers",
        "github",
        "source",
    )
    common.print_table(columns, rows)


@app.command()
def remove(name: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Remove a tenant and revoke its keys; its sessions stay on disk."""

    async def work(stores: application.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        await stores.tenants.remove(name)
        await common.record(settings, Action.TENANT_REMOVE, tenant=name)

    common.with_stores(config, state_directory, work)
    typer.echo(f"tenant {name} removed, its keys revoked")


@app.command()
def erase(
    tenant: str,
    user: Annotated[str | None, typer.Argument(help="Whom; without a name, every user of the tenant.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Remove all that is kept of a user, look whether anything is left, and say so; exits with 1 if something is."""
    identity.check_name("tenant", tenant)
    whom = f"every user of {tenant}" if user is None else f"user {user} of {tenant}"
    if not yes:
        typer.confirm(f"erase {whom}: links, sessions, files, keys, for good?", abort=True)
    reports = common.erase(config, state_directory, tenant, user)
    if as_json:
        typer.echo(msgspec.json.encode(reports).decode())
    else:
        for report in reports:
            _print_report(report)
    if any(report.left for report in reports):
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    rows = ", ".join(f"{count} of {table}" for table, count in sorted(report.rows.items())) or "none"
    typer.echo(
        f"{report.tenant}/{report.user}: {report.links} links closed, {report.sessions} sessions deleted, "
        f"{report.directories} directories removed, rows removed: {rows}"
    )
    typer.echo(f"  searched {report.searched_files} files, {common.size(report.searched_bytes)}")
    if report.pseudonym is not None:
        typer.echo(f"  audit records of {report.pseudonym} stay, and lead to nobody")
    for what in report.left:
        typer.echo(f"  LEFT: {what}")


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
        "session_idle_ttl": duration.words(policy.session_idle_seconds),
        "session_max_age": duration.words(policy.session_age_seconds),
        "client_loss": policy.client_loss.value,
        "named_providers": ", ".join(dict.fromkeys([policy.provider or "", *policy.provider_names])).removeprefix(", "),
        "github": policy.github.value,
        "source": tenant.source,
    }
