"""`/tenants`, `/users`, `/keys` and `/audit`: who is known here, what proves them, and what was done."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from aerodrome import errors
from aerodrome.core import identity
from aerodrome.core.identity import Role, Scope
from aerodrome.http import admin_shapes
from aerodrome.http.desk import Desk, NewKey
from aerodrome.http.pages import overview_routes, page
from aerodrome.http.pages.page import PageRoute, Posted, Visiting, Visitor
from aerodrome.http.sealed_cookies import Notice

router = APIRouter(route_class=PageRoute, include_in_schema=False)
KeyId = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]
TenantName = Annotated[str, Path(pattern=r"^[a-z0-9_.@-]{1,64}$")]
#: Rows of a page; programs get all of them page by page.
_ROWS = 500
_KEYS = 200
_RECORDS = 100
_LEADS = {
    Role.OPERATOR: "What proves users and operators to this gateway. Tokens are shown once and stored as hashes.",
    Role.TENANT_ADMIN: "What proves users of your tenant to this gateway. Tokens are shown once and stored as hashes.",
    Role.USER: "Your own keys. Tokens are shown once and stored as hashes.",
}


@router.get("/tenants")
async def show_tenants(request: Request, visitor: Visiting) -> Response:
    """List tenants."""
    desk, services = Desk(visitor.caller), visitor.caller.site.services
    desk.check_operator()
    rows = []
    tenants = await desk.list_tenants()
    for one in tenants[:_ROWS]:
        totals = overview_routes.add_up(list(services.recorder.totals(one.name).values()))
        rows.append(
            {
                "name": one.name,
                "isolation": one.policy.isolation.value,
                "trust": one.policy.trust.value,
                "source": "configuration" if one.source == "config" else "database",
                "held": sum(1 for _ in services.residents.of_tenant(one.name)),
                "turns": totals.turns,
                "tokens": totals.tokens.taken + totals.tokens.given,
            }
        )
    more = len(tenants) > _ROWS
    return page.render(request, "tenants.html", visitor, tenants=rows, more=more, since=services.recorder.since)


@router.get("/tenants/{name}")
async def show_tenant(request: Request, name: TenantName, visitor: Visiting) -> Response:
    """Show a tenant, its users and its policy."""
    return await _show_tenant(request, visitor, name, name)


@router.get("/users")
async def show_users(request: Request, visitor: Visiting) -> Response:
    """Show an admin's own tenant."""
    if visitor.role is not Role.TENANT_ADMIN:
        raise errors.PolicyRejected("expected a tenant's admin; operators find users under their tenant")
    return await _show_tenant(request, visitor, visitor.caller.owner.tenant, "Users")


async def _show_tenant(request: Request, visitor: Visitor, name: str, title: str) -> Response:
    desk = Desk(visitor.caller)
    users = await desk.list_users(name)
    return page.render(
        request,
        "tenant.html",
        visitor,
        title=title,
        role=visitor.role,
        one=admin_shapes.tenant_info(await desk.find_tenant(name)),
        users=users[:_ROWS],
        more=len(users) > _ROWS,
        since=visitor.caller.site.services.recorder.since,
    )


@router.get("/keys")
async def show_keys(request: Request, visitor: Visiting, tenant: Annotated[str, Query(max_length=64)] = "") -> Response:
    """List keys."""
    desk, now = Desk(visitor.caller), visitor.caller.site.clock.now()
    wanted = tenant if visitor.role is Role.OPERATOR and tenant else None
    keys = await desk.list_keys(wanted)
    tenants = [one.name for one in await desk.list_tenants()] if visitor.role is Role.OPERATOR else []
    return page.render(
        request,
        "keys.html",
        visitor,
        keys=[admin_shapes.key_info(key, now) for key in keys[:_KEYS]],
        more=len(keys) > _KEYS,
        own_key=visitor.caller.principal.key_id,
        role=visitor.role,
        lead=_LEADS[visitor.role],
        tenants=tenants,
        tenant=wanted or "",
    )


@router.post("/keys")
async def create_key(visitor: Visiting, form: Posted) -> Response:
    """Make a key, whose token the next page shows once."""

    async def work() -> Notice:
        desk, tenant = Desk(visitor.caller), page.word(form, "tenant")
        is_operators = visitor.role is Role.OPERATOR and tenant == identity.NO_TENANT
        words = [value for value in form.getlist("scopes") if isinstance(value, str)]
        known = {scope.value: scope for scope in Scope}
        if not set(words) <= known.keys():
            raise errors.InvalidParams("scopes: expected some of connect, mint, admin")
        scopes = identity.OPERATOR_SCOPES if is_operators else frozenset(known[value] for value in words)
        expires = page.word(form, "expires")
        if expires and not (expires.isdecimal() and len(expires) < 10):
            raise errors.InvalidParams("expires: expected seconds")
        seconds = float(expires) if expires and int(expires) else None
        key, token = await desk.create_key(NewKey(tenant, page.word(form, "user"), scopes, seconds))
        return Notice(
            f"Key {key.key_id} of {key.owner.user} is made. Copy its token now: it is not shown again.", secret=token
        )

    return await page.do(visitor, work(), "/keys")


@router.post("/keys/{key_id}/rotate")
async def rotate_key(key_id: KeyId, visitor: Visiting, form: Posted) -> Response:
    """Make a key's successor."""

    async def work() -> Notice:
        overlap = page.word(form, "overlap")
        if not (overlap.isdecimal() and len(overlap) < 10):
            raise errors.InvalidParams("overlap: expected seconds")
        key, token = await Desk(visitor.caller).rotate_key(key_id, float(overlap))
        return Notice(
            f"Key {key.key_id} takes the place of {key_id}. Copy its token now: it is not shown again.", secret=token
        )

    return await page.do(visitor, work(), "/keys")


@router.post("/keys/{key_id}/revoke")
async def revoke_key(key_id: KeyId, visitor: Visiting, _: Posted) -> Response:
    """Revoke a key."""

    async def work() -> Notice:
        key = await Desk(visitor.caller).revoke_key(key_id)
        return Notice(f"Key {key.key_id} of {key.owner.user} is revoked.")

    return await page.do(visitor, work(), "/keys")


@router.get("/audit")
async def show_audit(request: Request, visitor: Visiting) -> Response:
    """Show the last records of the audit log."""
    desk = Desk(visitor.caller)
    desk.tenant_of(None)
    records: list[dict[str, Any]] = []
    problem = ""
    try:
        records = await desk.read_audit(_RECORDS, None)
    except errors.PolicyRejected as error:
        problem = f"{error.message[:1].upper()}{error.message[1:]}."
    return page.render(request, "audit.html", visitor, records=[_record(one) for one in records], problem=problem)


def _record(one: dict[str, Any]) -> dict[str, Any]:
    whose = f"of {one['whose']}" if one.get("whose") else None
    about = [one.get("target"), whose, one.get("session"), f"key {one['key_id']}" if one.get("key_id") else None]
    shown = {
        name: one.get(name)
        for name in ("number", "at", "action", "outcome", "by", "tenant", "user", "method", "reason")
    }
    return shown | {"about": " · ".join(str(part) for part in about if part)}
