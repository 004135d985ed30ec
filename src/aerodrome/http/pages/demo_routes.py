"""`/demo`: whoever has the demo's code signs in as one of its users. There only while `aerodrome demo` runs.

The code is a secret of this one demo: without it, any other user of the machine could become one whose agents run commands. It
comes behind the # of the printed address, so that no log has it, and is good until the demo ends.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData

from aerodrome import errors
from aerodrome.http import callers, origins
from aerodrome.http.pages import page, sign_in_routes
from aerodrome.http.pages.page import PageRoute


@dataclass(frozen=True, slots=True)
class DemoUser:
    """Someone to be; `words` say where their agents run."""

    tenant: str
    user: str
    words: str
    token: str = field(repr=False)
    #: The page that is theirs first.
    page: str = "/playground"


def routes(code: str, users: Sequence[DemoUser]) -> APIRouter:
    """Return the pages of a demo."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    known = {f"{user.tenant}/{user.user}": user for user in users}

    def is_right(form: FormData) -> bool:
        return hmac.compare_digest(page.word(form, "code").encode(), code.encode())

    def refuse(request: Request) -> Response:
        problem = "This is not the code of this demo. Open the address that aerodrome demo printed last."
        return page.render(request, "demo.html", status=403, problem=problem, users=[], code="")

    @router.get("/demo")
    async def show(request: Request) -> Response:
        return page.render(request, "demo.html", problem=None, users=[], code="")

    @router.post("/demo")
    async def choose(request: Request) -> Response:
        form = await _posted(request)
        if not is_right(form):
            return refuse(request)
        return page.render(request, "demo.html", problem=None, users=users, code=code)

    @router.post("/demo/sign-in")
    async def sign_in(request: Request) -> Response:
        form = await _posted(request)
        if not is_right(form):
            return refuse(request)
        user = known.get(page.word(form, "who"))
        if user is None:
            raise errors.InvalidParams("expected one of the demo's users, found another; go back and choose again")
        principal = await callers.recognize(request, user.token)
        return await sign_in_routes.open_browser(request, principal, user.page)

    return router


async def _posted(request: Request) -> FormData:
    origins.check_same_origin(request, callers.site_of(request).settings.public_url)
    return await request.form(max_files=0, max_fields=10)
