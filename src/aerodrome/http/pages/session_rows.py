"""Sessions as rows of a table: those that links hold, for admins and operators; all of their own, for a user."""

from __future__ import annotations

from dataclasses import dataclass

from aerodrome.admin.views import SessionView
from aerodrome.core.identity import Role
from aerodrome.core.session import SessionRecord
from aerodrome.gateway import residents
from aerodrome.http.desk import Desk
from aerodrome.http.pages.page import Visitor

STATES = ("turn", "idle", "opening", "evicted", "lost", "unloaded")


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session."""

    session_id: str
    tenant: str
    user: str
    state: str
    runtime_id: str | None
    links: int
    turns: int
    idle_seconds: float | None
    is_at_work: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions are wanted; empty: any. `after` is where the page begins: realm and id, or a user's number."""

    tenant: str = ""
    state: str = ""
    search: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class SessionRows:
    """A page of sessions; `next` is where the next one begins. `total` counts what was looked through."""

    rows: list[SessionRow]
    total: int
    next: str = ""


async def of_visitor(visitor: Visitor, wanted: Wanted | None = None, limit: int = 50) -> SessionRows:
    """Return a page of the sessions that a visitor may see."""
    wanted = wanted or Wanted()
    if visitor.role is Role.USER:
        return await _of_user(visitor, wanted, limit)
    return await _held(visitor, wanted, limit)


async def _of_user(visitor: Visitor, wanted: Wanted, limit: int) -> SessionRows:
    site = visitor.caller.site
    with site.asks.hiding() as hidden:
        owned = await site.services.ownership.list_records(visitor.caller.owner)
        records = [record for record in owned if record.session_id not in hidden]
    rows = [_of_record(visitor, record) for record in records]
    found = [row for row in rows if _fits(row, wanted)]
    begin = int(wanted.after) if wanted.after.isdecimal() and len(wanted.after) < 9 else 0
    following = str(begin + limit) if begin + limit < len(found) else ""
    return SessionRows(found[begin : begin + limit], len(records), following)


async def _held(visitor: Visitor, wanted: Wanted, limit: int) -> SessionRows:
    """Look through what links hold, page by page, until a page of what is wanted is full."""
    desk, found = Desk(visitor.caller), list[SessionRow]()
    realm, _, session_id = wanted.after.rpartition("/")
    after = (realm, session_id) if realm and session_id else None
    while True:
        page = await desk.list_sessions(wanted.tenant or None, after, 200)
        for number, view in enumerate(page.sessions):
            row = _of_view(visitor, view)
            if not _fits(row, wanted):
                continue
            found.append(row)
            if len(found) == limit:
                is_last = page.next is None and number + 1 == len(page.sessions)
                return SessionRows(found, _count(visitor, wanted), "" if is_last else f"{view.realm}/{view.session_id}")
        if page.next is None:
            return SessionRows(found, _count(visitor, wanted))
        after = page.next


def _count(visitor: Visitor, wanted: Wanted) -> int:
    held = visitor.caller.site.services.residents
    tenant = Desk(visitor.caller).tenant_of(wanted.tenant or None)
    return len(held) if tenant is None else sum(1 for _ in held.of_tenant(tenant))


def _fits(row: SessionRow, wanted: Wanted) -> bool:
    text = wanted.search.lower()
    return wanted.state in ("", row.state) and (text in row.session_id.lower() or text in row.user.lower())


def _of_view(visitor: Visitor, view: SessionView) -> SessionRow:
    return SessionRow(
        session_id=view.session_id,
        tenant=view.tenant,
        user=view.user,
        state=view.state,
        runtime_id=view.runtime_id,
        links=view.links,
        turns=_turns(visitor, view.realm, view.session_id),
        idle_seconds=view.idle_seconds,
        is_at_work=view.is_at_work,
    )


def _of_record(visitor: Visitor, record: SessionRecord) -> SessionRow:
    services = visitor.caller.site.services
    resident = services.residents.find(record.realm, record.session_id)
    return SessionRow(
        session_id=record.session_id,
        tenant=record.owner.tenant,
        user=record.owner.user,
        state=state_of(resident),
        runtime_id=services.router.find(record.realm, record.session_id),
        links=len(resident.holders) if resident is not None else 0,
        turns=_turns(visitor, record.realm, record.session_id),
        idle_seconds=max(0.0, visitor.caller.site.clock.now() - record.used_at),
        is_at_work=resident is not None and resident.is_at_work,
    )


def state_of(resident: residents.Resident | None) -> str:
    """Return how a session is, in a word."""
    if resident is None:
        return "unloaded"
    states = {holder.held.state.value for holder in resident.holders.values()}
    return next((state for state in STATES if state in states), "unloaded")


def _turns(visitor: Visitor, realm: str, session_id: str) -> int:
    flight = visitor.caller.site.services.recorder.find(realm, session_id)
    return len(flight.turns) if flight is not None else 0
