"""`/`: the first page: the gateway for its operator, the tenant for its admin, what is theirs for a user."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from aerodrome.core.flights import Tokens, Totals
from aerodrome.core.identity import Role
from aerodrome.http import figures, origins
from aerodrome.http.desk import Desk
from aerodrome.http.figures import Point
from aerodrome.http.pages import charts, formats, page, session_rows
from aerodrome.http.pages.charts import Chart, Row
from aerodrome.http.pages.page import PageRoute, Visiting, Visitor

router = APIRouter(route_class=PageRoute, include_in_schema=False)
#: Buckets to a point of a chart: a minute.
_TOGETHER = 4
_LATEST = 8
_LEADS = {
    Role.OPERATOR: "The gateway as a whole, over all tenants and links.",
    Role.TENANT_ADMIN: "What your tenant does, over all its users.",
    Role.USER: "What is yours: your sessions, and what they took.",
}


class Stat(NamedTuple):
    """A figure with its name."""

    label: str
    value: str
    note: str = ""
    test: str = ""


@router.get("/")
async def show(request: Request, visitor: Visiting) -> Response:
    """Show the first page, or the part of it that changes."""
    site = visitor.caller.site
    values: dict[str, Any] = {"charts": [], "charts_from": "", "charts_to": "", "sessions": None, "role": visitor.role}
    if visitor.role is Role.OPERATOR:
        values |= await _of_gateway(visitor)
    else:
        values |= await _of_owner(visitor)
    if "hx-request" in request.headers:
        return page.render(request, "overview_live.html", visitor, **values)
    origin = origins.origin_of(request, site.settings.public_url)
    return page.render(request, "overview.html", visitor, lead=_LEADS[visitor.role], origin=origin, **values)


async def _of_gateway(visitor: Visitor) -> dict[str, Any]:
    gateway = visitor.caller.site.gateway
    recorder = gateway.services.recorder
    hour = figures.points(recorder, _TOGETHER)
    took = figures.latency(recorder)
    turns, failed = sum(point.turns for point in hour), sum(point.failed for point in hour)
    at_work = gateway.services.drainer.at_work
    live = len(gateway.services.router)
    rejected = sum(point.rejections.total() for point in hour)
    stats = [
        Stat("Active sessions", formats.number(live), f"{at_work} at work", "active-sessions"),
        Stat("Links", formats.number(len(gateway.clients)), "SDK and HTTP", "links"),
        Stat("Turns", formats.number(turns), "in the last hour", "turns"),
        Stat("Median latency", formats.span(took.percentile(0.5)), f"p95 {formats.span(took.percentile(0.95))}"),
        Stat("Failed turns", formats.number(failed), _share(failed, turns), "failed"),
        Stat("Rejections", formats.number(rejected), rejection_words(hour), "rejections"),
    ]
    begins, ends = formats.clock(hour[0].begins)[:5], formats.clock(recorder.now())[:5]
    return {"stats": stats, "charts": _charts(hour), "charts_from": begins, "charts_to": ends}


def _charts(hour: list[Point]) -> list[Chart]:
    latency = [Row("p50", [point.p50 for point in hour], 1), Row("p95", [point.p95 for point in hour], 2)]
    sessions = Row("Sessions in a runtime", [point.levels.get(figures.SESSIONS) for point in hour], 1)
    failures = [
        Row("Failed turns", [point.failed for point in hour], 3),
        Row("Rejections", [point.rejections.total() for point in hour], 2),
    ]
    turns = [Row("Turns", [point.turns for point in hour], 1)]
    return [
        charts.lines("latency", "Turn latency", latency, "No turn was completed in this hour."),
        charts.area("sessions", "Active sessions", sessions, "sessions"),
        charts.bars("turns", "Turns", turns, "No turns in this hour."),
        charts.bars("errors", "Errors and rejections", failures, "Nothing failed or was rejected in this hour."),
    ]


async def _of_owner(visitor: Visitor) -> dict[str, Any]:
    """Return what is a tenant admin's or a user's to see."""
    owner, services = visitor.caller.owner, visitor.caller.site.services
    user = owner.user if visitor.role is Role.USER else None
    totals = add_up(list(services.recorder.totals(owner.tenant, user).values()))
    rows = await session_rows.of_visitor(visitor, limit=_LATEST)
    stats = [
        Stat("Sessions", formats.number(rows.total), "held by links" if user is None else "yours", "sessions"),
        Stat(
            "Turns",
            formats.number(totals.turns),
            f"{totals.failed} failed" if totals.failed else "none failed",
            "turns",
        ),
        Stat("Tokens in", formats.number(totals.tokens.taken), f"{formats.number(totals.tokens.cached)} from cache"),
        Stat("Tokens out", formats.number(totals.tokens.given), f"{formats.number(totals.tokens.calls)} model calls"),
    ]
    if user is None:
        stats.insert(
            1, Stat("Users", formats.number(len(await Desk(visitor.caller).list_users(owner.tenant))), "known")
        )
    return {"stats": stats, "sessions": rows.rows}


def add_up(parts: list[Totals]) -> Totals:
    """Return what several took together."""
    whole = Totals(tokens=Tokens())
    for part in parts:
        whole.turns += part.turns
        whole.failed += part.failed
        whole.seconds += part.seconds
        whole.tokens.add(part.tokens)
    return whole


def rejection_words(hour: list[Point]) -> str:
    """Return why most calls were rejected."""
    counts: dict[str, int] = {}
    for point in hour:
        for reason, count in point.rejections.items():
            counts[reason] = counts.get(reason, 0) + count
    first = sorted(counts.items(), key=lambda one: -one[1])[:2]
    return ", ".join(f"{count} {reason}" for reason, count in first) or "in the last hour"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} of all" if whole else "in the last hour"
