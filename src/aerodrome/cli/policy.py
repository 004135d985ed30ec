"""`aerodrome policy show | explain`: what holds for a tenant or a user, and why. No logic: protocol.explanation does the work.

Says what the configuration and the database say now; a running gateway reads the first at a reload.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from aerodrome import errors, registry_root
from aerodrome.adapters.sandbox import choice
from aerodrome.cli import common, groups, registry, tables
from aerodrome.core import duration, identity
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import Policy
from aerodrome.core.policy_document import WORD_OF
from aerodrome.gateway import known_tenants
from aerodrome.protocol import explanation
from aerodrome.protocol.explanation import Explainer
from aerodrome.settings import Settings

app = groups.group()

Whose = Annotated[str, typer.Argument(metavar="TENANT[/USER]", help="Whose policy.")]
_LENGTHS = ("session_idle_seconds", "session_age_seconds")
_CAPS = ("max_sessions_per_user", "max_sessions_per_tenant", "max_turns_per_user", "max_turns_per_tenant")


@app.command()
def show(
    whose: Whose,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Show every field of a policy, and where its value comes from."""
    explainer = _explainer(whose, config, state_directory)
    rows = [
        [WORD_OF[field.name], _words(field.name, getattr(explainer.policy, field.name)), explainer.origin(field.name)]
        for field in dataclasses.fields(Policy)
    ]
    if as_json:
        common.print_json([dict(zip(("field", "value", "from"), row, strict=True)) for row in rows])
    else:
        tables.print_table(("field", "value", "from"), rows)


@app.command()
def explain(
    whose: Whose,
    subject: Annotated[
        str,
        typer.Argument(metavar="METHOD|tool:NAME|model:NAME|url:URL", help="For example tool:mcp:github/get_issue."),
    ],
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
    as_json: common.AsJson = False,
) -> None:
    """Say whether something is allowed, by which rule, and where that is written; exit code 1 if it is refused.

    For a policy with host tools one sandbox is made, as by a gateway that you start here now.
    """
    found = _explainer(whose, config, state_directory).explain(subject)
    if as_json:
        common.print_json({"allowed": found.is_allowed, "reasons": found.reasons})
    else:
        typer.echo("\n".join((f"{whose}: {subject} is {'allowed' if found.is_allowed else 'refused'}", *found.reasons)))
    if not found.is_allowed:
        raise typer.Exit(1)


def _explainer(whose: str, config: Any, state_directory: Any) -> Explainer:
    from aerodrome import tailoring  # noqa: PLC0415  knows all parts of a gateway, and loads them

    name, slash, user = whose.partition("/")
    if slash:
        identity.check_name("user", user)

    async def work(stores: registry_root.Stores, settings: Settings) -> tuple[Tenant, Settings]:
        tenants = await known_tenants.list_tenants(settings.configured_tenants(), stores.tenants)
        for tenant in tenants:
            if tenant.name == name:
                return tenant, settings
        raise errors.TenantMissing(f"no tenant {name}; aerodrome tenant list shows which there are")

    tenant, settings = registry.with_stores(config, state_directory, work)
    return Explainer(tenant, user or None, lambda: choice.foresee(tailoring.sandbox_wishes(settings)))


def _words(field: str, value: Any) -> str:
    if field in _LENGTHS:
        return duration.words(value)
    if field in _CAPS and not value:
        return "no cap"
    if field == "work_root" and value is None:
        return "the realm's"
    return explanation.words(value)
