"""`/fleet`: the runtimes as they are, and what an operator does to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from aerodrome.http import figures
from aerodrome.http.desk import Desk
from aerodrome.http.pages import formats, overview_routes, page
from aerodrome.http.pages.page import PageRoute, Posted, Visiting
from aerodrome.http.sealed_cookies import Notice

router = APIRouter(route_class=PageRoute, include_in_schema=False)
RuntimeId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
_LINKS = 50


@router.get("/fleet")
async def show(request: Request, visitor: Visiting) -> Response:
    """Show the fleet, or the part of the page that changes."""
    desk = Desk(visitor.caller)
    rows, view = await desk.operate("show.runtimes"), await desk.operate("show.pool")
    links = await desk.list_links(None, None, _LINKS)
    hour = figures.points(visitor.caller.site.services.recorder)
    return page.render(
        request,
        "fleet_live.html" if "hx-request" in request.headers else "fleet.html",
        visitor,
        rows=rows,
        view=view,
        links=links.links,
        more_links=links.next is not None,
        memory=sum(row.runtime.memory_bytes or 0 for row in rows),
        rejected=sum(point.rejections.total() for point in hour),
        rejected_words=overview_routes.rejection_words(hour),
    )


@router.post("/fleet/runtimes/{runtime_id}/cordon")
async def cordon(runtime_id: RuntimeId, visitor: Visiting, form: Posted) -> Response:
    """Cordon a runtime."""

    async def work() -> Notice:
        reason = page.word(form, "reason") or "cordoned by an operator"
        done = await Desk(visitor.caller).operate("cordon", runtime_id=runtime_id, reason=reason)
        was = "was cordoned already" if done["was_cordoned"] else "is cordoned"
        return Notice(f"Runtime {runtime_id} {was}: {done['reason']}.")

    return await page.do(visitor, work(), "/fleet")


@router.post("/fleet/runtimes/{runtime_id}/recycle")
async def recycle(runtime_id: RuntimeId, visitor: Visiting, _: Posted) -> Response:
    """Replace a runtime."""

    async def work() -> Notice:
        await Desk(visitor.caller).operate("recycle", runtime_id=runtime_id)
        return Notice(f"Runtime {runtime_id} is being replaced: it goes when its sessions are idle.")

    return await page.do(visitor, work(), "/fleet")


@router.post("/fleet/recycle")
async def recycle_all(visitor: Visiting, _: Posted) -> Response:
    """Replace every runtime."""

    async def work() -> Notice:
        done = await Desk(visitor.caller).operate("recycle")
        count = len(done["runtimes"])
        if not count:
            return Notice("No runtime serves now; warm ones are left as they are.")
        return Notice(f"{count} runtime{'s are' if count > 1 else ' is'} being replaced as sessions fall idle.")

    return await page.do(visitor, work(), "/fleet")


@router.post("/fleet/reload")
async def reload(visitor: Visiting, _: Posted) -> Response:
    """Read the configuration again."""

    async def work() -> Notice:
        done = await Desk(visitor.caller).operate("reload")
        needs = f" In force only after a restart: {', '.join(done.needs_restart)}." if done.needs_restart else ""
        return Notice(
            f"{done.tenants} tenants of the configuration are in force, {done.links} open links changed.{needs}"
        )

    return await page.do(visitor, work(), "/fleet")


@router.post("/fleet/drain")
async def drain(visitor: Visiting, _: Posted) -> Response:
    """End the gateway."""

    async def work() -> Notice:
        done = await Desk(visitor.caller).operate("drain")
        return Notice(f"The gateway drains for at most {formats.span(done['drain_seconds'])}, then it stops.")

    return await page.do(visitor, work(), "/fleet")
