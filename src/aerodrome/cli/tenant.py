"""`aerodrome tenant add | set | list | remove`: the tenants of the database. No logic: the stores do the work."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aerodrome import errors, registry_root
from aerodrome.cli import common, groups, registry, tables
from aerodrome.core import duration, identity, policy_document
from aerodrome.core import webhook as webhooks
from aerodrome.core.audit import Action
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import ClientLoss, GitHubAccess, Isolation, Trust
from aerodrome.core.policy_document import WORDS
from aerodrome.gateway import known_tenants
from aerodrome.settings import Settings

if TYPE_CHECKING:
    from aerodrome.admin.erasure import Report

app = groups.group()

IsolationOption = Annotated[
    Isolation | None, typer.Option(help="Who shares a runtime: user (where nothing is said), tenant or shared.")
]
TrustOption = Annotated[
    Trust | None, typer.Option(help="limited, or 'full': host tools, in a sandbox (user isolation only).")
]
Provider = Annotated[list[str] | None, typer.Option(help="An allowed model endpoint (URL prefix); repeat for more.")]
McpServer = Annotated[
    list[str] | None, typer.Option(help="An allowed remote MCP server (URL prefix); repeat for more.")
]
Webhook = Annotated[
    list[str] | None, typer.Option(help="Where webhooks of HTTP sessions may go (URL prefix); repeat for more.")
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
    GitHubAccess | None, typer.Option(help="Whose GitHub token sessions have: the client's, or the user's stored one.")
]
LossOption = Annotated[
    ClientLoss | None, typer.Option("--client-loss", help="Whether a running turn ends with its client: close, finish.")
]
User = Annotated[str | None, typer.Option(help="Say the rest for this user alone; nothing more: take it all back.")]
Model = Annotated[list[str] | None, typer.Option(help="An allowed model; * for any characters; repeat for more.")]
Tool = Annotated[
    list[str] | None,
    typer.Option(help="custom:NAME, mcp:SERVER/TOOL, builtin:NAME, with * and, to deny, ! in front; repeat for more."),
]
Cap = Annotated[int | None, typer.Option(min=0, help="A cap; 0: none.")]
WorkRoot = Annotated[str | None, typer.Option(help="The directory below which sessions work; else the gateway's own.")]
Egress = Annotated[list[str] | None, typer.Option(help="A host that sandboxes may reach; repeat for more.")]
HostTools = Annotated[
    bool | None, typer.Option(help="Built-in tools that reach the host, in a sandbox (not in shared isolation).")
]


def _save(
    context: typer.Context,
    name: str,
    user: User = None,
    isolation: IsolationOption = None,
    trust: TrustOption = None,
    provider: Provider = None,
    mcp_server: McpServer = None,
    webhook: Webhook = None,
    model: Model = None,
    tool: Tool = None,
    max_sessions_per_user: Cap = None,
    max_sessions_per_tenant: Cap = None,
    max_turns_per_user: Cap = None,
    max_turns_per_tenant: Cap = None,
    session_idle_ttl: IdleTtl = None,
    session_max_age: MaxAge = None,
    client_loss: LossOption = None,
    named_provider: NamedProvider = None,
    github: GitHubOption = None,
    work_root: WorkRoot = None,
    egress: Egress = None,
    host_tools: HostTools = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    said = _said(context)
    is_new = context.info_name == "add"
    if user is None and isolation is None and not is_new:
        raise typer.BadParameter("say it: a policy is replaced as a whole", param_hint="--isolation")
    if user is not None and is_new:
        raise typer.BadParameter("add the tenant, then set what differs for a user", param_hint="--user")
    change = functools.partial(_changed, name, user, said)

    async def work(stores: registry_root.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        changed = change(None if is_new else await stores.tenants.find(name))
        settings.check_tenant_providers("--named-provider", changed)
        await (stores.tenants.add(changed) if is_new else stores.tenants.update(changed))
        action, policy = Action.TENANT_ADD if is_new else Action.TENANT_SET, changed.policy
        whose = "" if user is None else f" (user {user})"
        reason = f"{policy.isolation.value}, trust {policy.trust.value}{whose}"
        await registry.record(settings, action, tenant=name, reason=reason)

    registry.with_stores(config, state_directory, work)
    whose = f"tenant {name}" if user is None else f"user {user} of tenant {name}"
    typer.echo(f"tenant {name} added; next: aerodrome key create {name} USER" if is_new else f"{whose} changed")


def _said(context: typer.Context) -> dict[str, Any]:
    """Return what the options say, in the words of a policy."""
    said = {word: value for word, value in context.params.items() if word in WORDS and value not in (None, [], ())}
    for word in ("session_idle_ttl", "session_max_age"):
        if said.get(word, "never") != "never":
            said[word] = duration.parse(f"--{word.replace('_', '-')}", said[word])
    said.pop("provider", None)  # the option's name for the allowed URLs, the policy's for a named one
    if context.params["named_provider"]:
        names = context.params["named_provider"]
        said |= {"provider": names[0], "provider_names": names}
    plural = {
        "provider": "providers",
        "mcp_server": "mcp_servers",
        "webhook": "webhooks",
        "model": "models",
        "tool": "tools",
    }
    said |= {word: context.params[option] for option, word in plural.items() if context.params[option]}
    return said


def _changed(name: str, user: str | None, said: dict[str, Any], before: Tenant | None) -> Tenant:
    """Return the tenant with the policy, or one user's part, that was said; the other part stays."""
    where = f"tenant {identity.check_name('tenant', name)}"
    if user is None:
        users = before.users if before is not None else {}
        return policy_document.check_tenant(where, Tenant(name, policy_document.policy_of(where, said), users=users))
    if before is None:
        raise errors.TenantMissing(f"no tenant is named {name}: list the tenants to see which there are")
    override = policy_document.override_of(f"{where}.users.{identity.check_name('user', user)}", said)
    users = {**before.users, user: override}
    if not override.said:
        del users[user]
    return policy_document.check_tenant(where, dataclasses.replace(before, users=users))


# One function under two names, because typer reads a command's options from its signature: two would have to repeat them all.
app.command("add", help="Add a tenant.")(_save)
app.command("set", help="Replace a tenant's policy, or with --user what differs for one user, as a whole.")(_save)


@app.command("list")
def list_tenants(
    config: common.Config = None, state_directory: common.StateDirectory = None, as_json: common.AsJson = False
) -> None:
    """List the tenants of the configuration and of the database."""

    async def work(stores: registry_root.Stores, settings: Settings) -> list[Tenant]:
        return await known_tenants.list_tenants(settings.configured_tenants(), stores.tenants)

    tenants = registry.with_stores(config, state_directory, work)
    if as_json:
        common.print_json([_as_dict(tenant) for tenant in tenants])
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
        "users",
        "source",
    )
    tables.print_table(columns, rows)


@app.command("webhook-secret")
def webhook_secret(name: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Print what a tenant's webhooks are signed with, for the service that verifies them (docs/webhooks.md)."""

    async def work(stores: registry_root.Stores, settings: Settings) -> str:
        if await known_tenants.find_tenant(settings.configured_tenants(), stores.tenants, name) is None:
            raise errors.TenantMissing(f"no tenant is named {name}: list the tenants to see which there are")
        master = settings.read_master_key()
        if master is None:
            raise errors.ConfigError("webhooks are signed with a key made from master_key; set it, or master_key_file")
        return webhooks.derive_secret(master, name)

    typer.echo(registry.with_stores(config, state_directory, work))


@app.command()
def remove(name: str, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Remove a tenant and revoke its keys; its sessions stay on disk."""

    async def work(stores: registry_root.Stores, settings: Settings) -> None:
        _check_not_configured(name, settings)
        await stores.tenants.remove(name)
        await registry.record(settings, Action.TENANT_REMOVE, tenant=name)

    registry.with_stores(config, state_directory, work)
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
    reports = registry.erase(config, state_directory, tenant, user)
    if as_json:
        common.print_json(reports)
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
        "users": ", ".join(sorted(tenant.users)),
        "source": tenant.source,
    }
