"""`/sessions` and `/sessions/{id}`: which sessions there are, and the timeline of one."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request, Response

from aerodrome.core.flights import ToolUse, Totals, TurnEnd, TurnFlight
from aerodrome.core.identity import Role
from aerodrome.core.series import Durations
from aerodrome.http import shapes
from aerodrome.http.desk import Desk, Flight
from aerodrome.http.pages import overview_routes, page, session_rows
from aerodrome.http.pages.page import PageRoute, Posted, Visiting, Visitor
from aerodrome.http.pages.session_rows import Wanted
from aerodrome.http.sealed_cookies import Notice

router = APIRouter(route_class=PageRoute, include_in_schema=False)
SessionId = Annotated[str, Path(pattern=shapes.SESSION_ID, max_length=250)]
Word = Annotated[str, Query(max_length=300)]
_PAGE = 50
_KINDS = {TurnEnd.COMPLETED: "good", TurnEnd.FAILED: "bad", TurnEnd.LOST: "bad", TurnEnd.ABORTED: "warn"}
_LEADS = {
    Role.OPERATOR: "Sessions that a link holds now, of all tenants. Those at rest are on disk and wake at their next call.",
    Role.TENANT_ADMIN: "Sessions of your tenant that a link holds now. Those at rest wake at their next call.",
    Role.USER: "Your sessions, the most recently used first.",
}
_OUTCOMES = {
    "evicted": "is evicted: its next call brings it back.",
    "absent": "is in no runtime: its next call brings it back.",
}


@router.get("/sessions")
async def show_all(
    request: Request, visitor: Visiting, tenant: Word = "", state: Word = "", search: Word = "", after: Word = ""
) -> Response:
    """List sessions."""
    wanted = Wanted(tenant if visitor.role is Role.OPERATOR else "", state, search.strip(), after)
    found = await session_rows.of_visitor(visitor, wanted, _PAGE)
    if "hx-request" in request.headers:
        return page.render(request, "sessions_table.html", visitor, sessions=found.rows, role=visitor.role)
    chosen = {"tenant": wanted.tenant, "state": state, "search": wanted.search}
    return page.render(
        request,
        "sessions.html",
        visitor,
        sessions=found.rows,
        role=visitor.role,
        lead=_LEADS[visitor.role],
        wanted=wanted,
        states=session_rows.STATES,
        tenants=[one.name for one in await Desk(visitor.caller).list_tenants()]
        if visitor.role is Role.OPERATOR
        else [],
        here=_address(chosen | {"after": after}),
        first_href=_address(chosen),
        next_href=_address(chosen | {"after": found.next}) if found.next else "",
        count_words=f"{len(found.rows)} shown of {found.total}",
    )


@router.get("/sessions/{session_id}")
async def show(request: Request, session_id: SessionId, visitor: Visiting, tenant: Word = "") -> Response:
    """Show the timeline of a session."""
    found = await Desk(visitor.caller).find_flight(session_id, tenant or None)
    values = _values(visitor, found)
    template = "session_live.html" if "hx-request" in request.headers else "session.html"
    suffix = f"?{urlencode({'tenant': tenant})}" if tenant else ""
    return page.render(request, template, visitor, role=visitor.role, here=f"/sessions/{session_id}{suffix}", **values)


@router.post("/sessions/{session_id}/evict")
async def evict(session_id: SessionId, visitor: Visiting, form: Posted) -> Response:
    """Unload a session."""

    async def work() -> Notice:
        outcome = await Desk(visitor.caller).evict(session_id, page.word(form, "tenant") or None)
        return _notice(session_id, outcome)

    return await page.do(visitor, work(), page.local_path(page.word(form, "back")))


@router.post("/sessions/{session_id}/migrate")
async def migrate(session_id: SessionId, visitor: Visiting, form: Posted) -> Response:
    """Move a session."""

    async def work() -> Notice:
        done = await Desk(visitor.caller).migrate(session_id, page.word(form, "tenant") or None, None)
        if done["outcome"] == "migrated":
            return Notice(f"Session {session_id} is in runtime {done['runtime_id']} now.")
        return _notice(session_id, done["outcome"])

    return await page.do(visitor, work(), page.local_path(page.word(form, "back")))


def _notice(session_id: str, outcome: str) -> Notice:
    if outcome == "at_work":
        return Notice(f"Session {session_id} is at work and stays; try again when its turn is over.", is_error=True)
    return Notice(f"Session {session_id} {_OUTCOMES[outcome]}")


def _address(chosen: dict[str, str]) -> str:
    said = {name: value for name, value in chosen.items() if value}
    return f"/sessions?{urlencode(said)}" if said else "/sessions"


def _values(visitor: Visitor, found: Flight) -> dict[str, Any]:
    services, now = visitor.caller.site.services, visitor.caller.site.clock.now()
    took, totals = Durations(), Totals()
    for turn in found.flight.turns:
        if turn.ended_at is not None:
            totals.add(turn)
        if turn.end is TurnEnd.COMPLETED and turn.seconds is not None:
            took.add(turn.seconds)
    resident, record = found.resident, found.record
    realm = resident.realm if resident is not None else record.realm if record is not None else ""
    state = session_rows.state_of(resident)
    one = {
        "session_id": found.session_id,
        "tenant": found.owner.tenant,
        "user": found.owner.user,
        "realm": realm,
        "runtime_id": services.router.find(realm, found.session_id),
        "state_words": "In a turn" if state == "turn" else state.capitalize(),
        "created_at": record.created_at if record is not None else None,
        "used_at": record.used_at if record is not None else None,
        "links": len(resident.holders) if resident is not None else 0,
    }
    return {
        "one": one,
        "totals": overview_routes.add_up([totals]),
        "median": took.percentile(0.5),
        "since": services.recorder.since,
        "turns": [_turn(turn, now) for turn in reversed(found.flight.turns)],
        "places": list(reversed(found.flight.places)),
    }


def _turn(turn: TurnFlight, now: float) -> dict[str, Any]:
    is_over = turn.ended_at is not None and turn.end is not None
    whole = max((turn.ended_at or now) - turn.began_at, 0.001)
    return {
        "began_at": turn.began_at,
        "status": turn.end.value if is_over and turn.end is not None else "running",
        "kind": _KINDS.get(turn.end, "warn") if is_over and turn.end is not None else "busy",
        "seconds": turn.seconds,
        "so_far": now - turn.began_at,
        "first": None if turn.spoke_at is None else turn.spoke_at - turn.began_at,
        "model": turn.model,
        "tokens": turn.tokens,
        "runtime_id": turn.runtime_id,
        "error": turn.error,
        "tools": [_tool(tool, turn.began_at, whole) for tool in turn.tools.values()],
    }


def _tool(tool: ToolUse, began_at: float, whole: float) -> dict[str, Any]:
    """Return a tool's call with its place on the turn's length, in hundredths."""
    left = min(max((tool.began_at - began_at) / whole * 100, 0.0), 98.0)
    ends = 100.0 if tool.ended_at is None else (tool.ended_at - began_at) / whole * 100
    return {
        "name": tool.name,
        "is_failed": tool.is_failed,
        "seconds": None if tool.ended_at is None else tool.ended_at - tool.began_at,
        "left": left,
        "width": min(max(ends - left, 2.0), 100.0 - left),
    }
