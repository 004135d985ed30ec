"""`/`: what there is to see first."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from aerodrome.http.pages import page
from aerodrome.http.pages.page import PageRoute, Visiting

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
async def show(request: Request, visitor: Visiting) -> Response:
    """Show the first page."""
    return page.render(request, "overview.html", visitor)
