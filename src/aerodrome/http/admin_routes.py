"""`/v1/admin`: the fleet, sessions, tenants, keys and the audit log, for operators and, of their own tenant, for admins.

Thin over http.desk, which says who may do what; the dependencies say it too, so that a route that is added is closed to others.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel

from aerodrome import errors
from aerodrome.admin.views import GatewayView, LinkPage, RuntimeRow, SessionView
from aerodrome.http import admin_shapes, figures, problems, shapes
from aerodrome.http.admin_shapes import (
    AuditList,
    Cordoned,
    CordonWanted,
    Drained,
    Figures,
    KeyInfo,
    KeyList,
    KeyMade,
    KeyWanted,
    MigrationWanted,
    Outcome,
    Recycled,
    ReloadInfo,
    Rotation,
    TenantInfo,
    TenantList,
    Timeline,
    UserList,
)
from aerodrome.http.callers import Administrating, Caller, Operating
from aerodrome.http.desk import MOST_AUDIT_RECORDS, Desk
from aerodrome.http.session_routes import SessionId

router = APIRouter(prefix="/v1/admin", tags=["admin"])
RuntimeId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
KeyId = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]
TenantName = Annotated[str, Path(pattern=r"^[a-z0-9_.@-]{1,64}$")]
OfTenant = Annotated[
    str | None, Query(pattern=r"^[a-z0-9_.@-]{1,64}$", description="of this tenant; of all without it")
]
Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(max_length=100, description="`next` of the page before")]


class HeldSessions(BaseModel):
    """Some of the sessions that links hold; `next` is what to continue after."""

    sessions: list[SessionView]
    next: str | None


class RuntimeList(BaseModel):
    """The runtimes, those of a realm together, warm ones last; `next` is what to continue after."""

    runtimes: list[RuntimeRow]
    next: str | None


# -- seeing -----------------------------------------------------------------------------------------------------------


@router.get("/runtimes", responses=problems.documented(), operation_id="adminListRuntimes")
async def runtimes(caller: Operating, limit: Limit = 100, after: After = None) -> RuntimeList:
    """List the runtimes: whom they serve, how they are, and why one is cordoned."""
    rows = await Desk(caller).operate("show.runtimes")
    page, following = shapes.page(rows, lambda row: row.runtime.runtime_id, limit, after)
    return RuntimeList(runtimes=page, next=following)


@router.get("/pool", responses=problems.documented(), operation_id="adminGetPool")
async def pool(caller: Operating) -> GatewayView:
    """Return the gateway as a whole: counts, the pool and its queue, and the settings beside them."""
    view = await Desk(caller).operate("show.pool")
    assert isinstance(view, GatewayView)
    return view


@router.get("/figures", responses=problems.documented(), operation_id="adminGetFigures")
async def hour(caller: Operating) -> Figures:
    """Return turns, latency, rejections and active sessions of the last hour, over all links."""
    return figures.of_the_hour(caller.site.services.recorder)


@router.get("/sessions", responses=problems.documented(404), operation_id="adminListSessions")
async def sessions(
    caller: Administrating,
    tenant: OfTenant = None,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=500, description="`next` of the page before")] = None,
) -> HeldSessions:
    """List the sessions that links hold, by realm and id."""
    page = await Desk(caller).list_sessions(tenant, place_of(after), limit)
    return HeldSessions(sessions=page.sessions, next=None if page.next is None else "/".join(page.next))


@router.get("/sessions/{session_id}/timeline", responses=problems.documented(404), operation_id="adminGetTimeline")
async def timeline(session_id: SessionId, caller: Administrating, tenant: OfTenant = None) -> Timeline:
    """Return the last turns of a session and where it was; never what was said in it."""
    return admin_shapes.timeline(await Desk(caller).find_flight(session_id, tenant))


@router.get("/links", responses=problems.documented(404), operation_id="adminListLinks")
async def links(
    caller: Administrating,
    tenant: OfTenant = None,
    limit: Limit = 100,
    after: Annotated[int | None, Query(ge=0, description="`next` of the page before")] = None,
) -> LinkPage:
    """List the client links, the oldest first."""
    return await Desk(caller).list_links(tenant, after, limit)


@router.get("/tenants", responses=problems.documented(), operation_id="adminListTenants")
async def tenants(caller: Administrating, limit: Limit = 100, after: After = None) -> TenantList:
    """List tenants and their policies, by name."""
    rows = [one for one in await Desk(caller).list_tenants() if after is None or one.name > after]
    page, following = shapes.page(rows, lambda one: one.name, limit, None)
    return TenantList(tenants=[admin_shapes.tenant_info(one) for one in page], next=following)


@router.get("/tenants/{name}", responses=problems.documented(404), operation_id="adminGetTenant")
async def tenant_of(name: TenantName, caller: Administrating) -> TenantInfo:
    """Return a tenant and its policy."""
    return admin_shapes.tenant_info(await Desk(caller).find_tenant(name))


@router.get("/tenants/{name}/users", responses=problems.documented(404), operation_id="adminListUsers")
async def users(name: TenantName, caller: Administrating, limit: Limit = 100, after: After = None) -> UserList:
    """List the users of a tenant of whom anything is known, by name, with what they took since the gateway started."""
    rows = [row for row in await Desk(caller).list_users(name) if after is None or row.user > after]
    page, following = shapes.page(rows, lambda row: row.user, limit, None)
    return UserList(users=[admin_shapes.user_info(row) for row in page], next=following)


@router.get("/audit", responses=problems.documented(404), operation_id="adminReadAudit")
async def audit(
    caller: Administrating,
    tenant: OfTenant = None,
    limit: Annotated[int, Query(ge=1, le=MOST_AUDIT_RECORDS)] = 100,
) -> AuditList:
    """Return the last records of the audit log, the newest first."""
    return AuditList(records=await Desk(caller).read_audit(limit, tenant))


# -- keys -------------------------------------------------------------------------------------------------------------


@router.get("/keys", responses=problems.documented(404), operation_id="adminListKeys")
async def keys(caller: Administrating, tenant: OfTenant = None, limit: Limit = 100, after: After = None) -> KeyList:
    """List keys, the newest first."""
    now = caller.site.clock.now()
    page, following = shapes.page(await Desk(caller).list_keys(tenant), lambda key: key.key_id, limit, after)
    return KeyList(keys=[admin_shapes.key_info(key, now) for key in page], next=following)


@router.post("/keys", status_code=201, responses=problems.documented(404), operation_id="adminCreateKey")
async def create_key(wanted: KeyWanted, caller: Administrating, response: Response) -> KeyMade:
    """Make a key. Its token is in this answer and cannot be had again."""
    response.headers["Cache-Control"] = "no-store"
    key, token = await Desk(caller).create_key(wanted.wanted())
    return KeyMade(**admin_shapes.key_info(key, caller.site.clock.now()).model_dump(), token=token)


@router.delete("/keys/{key_id}", responses=problems.documented(404), operation_id="adminRevokeKey")
async def revoke_key(key_id: KeyId, caller: Administrating) -> KeyInfo:
    """Revoke a key: it opens nothing any more, and what it opened ends within a second or so."""
    await Desk(caller).revoke_key(key_id)
    return await _key_info(caller, key_id)


@router.post(
    "/keys/{key_id}/rotate", status_code=201, responses=problems.documented(404), operation_id="adminRotateKey"
)
async def rotate_key(key_id: KeyId, wanted: Rotation, caller: Administrating, response: Response) -> KeyMade:
    """Make a key's successor, with the same user and scopes; the old one expires after the overlap."""
    response.headers["Cache-Control"] = "no-store"
    key, token = await Desk(caller).rotate_key(key_id, wanted.overlap_seconds)
    return KeyMade(**admin_shapes.key_info(key, caller.site.clock.now()).model_dump(), token=token)


async def _key_info(caller: Caller, key_id: str) -> KeyInfo:
    key = await caller.site.office.keys.find(key_id)
    if key is None:
        raise errors.KeyMissing(f"no key has id {key_id}")
    return admin_shapes.key_info(key, caller.site.clock.now())


# -- changing ---------------------------------------------------------------------------------------------------------


@router.post("/drain", status_code=202, responses=problems.documented(), operation_id="adminDrain")
async def drain(caller: Operating) -> Drained:
    """End the gateway as SIGTERM does: it takes no new work, lets turns finish within its deadline, then stops."""
    return Drained(**await Desk(caller).operate("drain"))


@router.post("/reload", responses=problems.documented(), operation_id="adminReload")
async def reload(caller: Operating) -> ReloadInfo:
    """Read the configuration again and put its tenants in force; a wrong one changes nothing."""
    return ReloadInfo(**msgspec.to_builtins(await Desk(caller).operate("reload")))


@router.post("/recycle", status_code=202, responses=problems.documented(409), operation_id="adminRecycleAll")
async def recycle_all(caller: Operating) -> Recycled:
    """Replace every runtime by a fresh one, in each realm one after another, as sessions fall idle."""
    return Recycled(**await Desk(caller).operate("recycle"))


@router.post(
    "/runtimes/{runtime_id}/recycle", status_code=202, responses=problems.documented(), operation_id="adminRecycle"
)
async def recycle(runtime_id: RuntimeId, caller: Operating) -> Recycled:
    """Replace one runtime by a fresh one as its sessions fall idle."""
    return Recycled(**await Desk(caller).operate("recycle", runtime_id=runtime_id))


@router.post("/runtimes/{runtime_id}/cordon", responses=problems.documented(), operation_id="adminCordon")
async def cordon(runtime_id: RuntimeId, wanted: CordonWanted, caller: Operating) -> Cordoned:
    """Place nothing new on a runtime; it stops when its sessions are idle, and their next calls find them on another."""
    return Cordoned(**await Desk(caller).operate("cordon", runtime_id=runtime_id, reason=wanted.reason))


@router.post("/sessions/{session_id}/evict", responses=problems.documented(404), operation_id="adminEvict")
async def evict(session_id: SessionId, caller: Administrating, tenant: OfTenant = None) -> Outcome:
    """Unload an idle session; its next call brings it back. `at_work`: it stays. `absent`: it was in no runtime."""
    return Outcome(outcome=await Desk(caller).evict(session_id, tenant))


@router.post("/sessions/{session_id}/migrate", responses=problems.documented(404), operation_id="adminMigrate")
async def migrate(
    session_id: SessionId, wanted: MigrationWanted, caller: Administrating, tenant: OfTenant = None
) -> Outcome:
    """Move an idle session to another runtime, under the links that hold it. `at_work`: it stays. `absent`: it was in none."""
    done = await Desk(caller).migrate(session_id, tenant, wanted.to_runtime_id)
    return Outcome(outcome=done["outcome"], runtime_id=done["runtime_id"])


def place_of(after: str | None) -> tuple[str, str] | None:
    """Return where a page of held sessions begins: behind that realm and id."""
    if not after:
        return None
    realm, slash, session_id = after.rpartition("/")
    if not slash or not realm or not session_id:
        raise errors.InvalidParams("after: expected `next` of the page before")
    return realm, session_id
