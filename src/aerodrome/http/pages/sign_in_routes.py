"""`/sign-in` and `/sign-out`: a browser shows a token once and has a cookie from then on.

Neighbours: http.browsers keeps who is signed in, http.callers asks at every request whether they still may.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from aerodrome import errors
from aerodrome.core import sign_in as sign_in_rules
from aerodrome.core.identity import Principal, Role
from aerodrome.core.policy import Policy
from aerodrome.http import callers, origins, problems
from aerodrome.http.pages import page
from aerodrome.http.pages.page import PageRoute, Posted, Visiting
from aerodrome.http.site import SignInDoor, Site

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_MAX_TOKEN = 8192


@router.get("/sign-in")
async def show(request: Request, following: Annotated[str | None, Query(alias="next")] = None) -> Response:
    """Ask who it is."""
    return _ask(request, page.local_path(following))


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Take a token, and give a cookie for it."""
    site = callers.site_of(request)
    origins.check_same_origin(request, site.settings.public_url)
    form = await request.form(max_files=0, max_fields=10)
    following = page.local_path(page.word(form, "next"))
    token = page.word(form, "token").removeprefix("Bearer ")
    try:
        site.services.audit.check()
        principal = await callers.recognize(request, token[:_MAX_TOKEN])
    except errors.AuthenticationFailed:
        problem = "This token is wrong, expired or revoked. Check that all of it was pasted."
        return _ask(request, following, problem, 401)
    if principal.role is Role.USER and not principal.may_connect:
        return _ask(
            request, following, "This key is for a program: it neither uses sessions nor manages anything.", 403
        )
    return await open_browser(request, principal, following)


@router.get("/sign-in/provider")
async def begin(request: Request, following: Annotated[str | None, Query(alias="next")] = None) -> Response:
    """Lead a browser to the identity provider."""
    site = callers.site_of(request)
    door = _door(site)
    public_url = site.settings.public_url
    try:
        begun = await door.provider.begin(f"{origins.origin_of(request, public_url)}/sign-in/callback")
    except (errors.SignInUnavailable, errors.SignInFailed) as error:
        return _ask(request, page.local_path(following), problems.sentence(error), errors.wire(error).http)
    answer = page.redirect(begun.url)
    sealed = site.begun.begin(begun.kept, page.local_path(following))
    page.set_cookie(request, answer, origins.begun_cookie_name, sealed, int(sign_in_rules.SECONDS))
    return answer


@router.get("/sign-in/callback")
async def finish(request: Request) -> Response:
    """Take a browser back from the identity provider."""
    site = callers.site_of(request)
    door = _door(site)
    try:
        kept = site.begun.find(request.cookies.get(origins.begun_cookie_name(request, site.settings.public_url), ""))
        site.services.audit.check()
        signed_in = door.rules.read(await door.provider.finish(dict(request.query_params), kept))
        standing = Principal(signed_in.owner, Policy(), "", role=signed_in.role)
        principal = await callers.renew(site, standing, site.clock.now())
    except (errors.SignInUnavailable, errors.SignInFailed) as error:
        return _ask(request, "/", problems.sentence(error), errors.wire(error).http)
    except errors.AuthenticationFailed:
        return _ask(request, "/", "You are signed in, but your tenant is not here any more.", 401)
    answer = await open_browser(request, principal, page.local_path(kept.following))
    page.drop_cookie(request, answer, origins.begun_cookie_name)
    return answer


def _door(site: Site) -> SignInDoor:
    if site.office.sign_in is None:
        raise errors.MethodUnknown("no identity provider is configured ([sign_in])")
    return site.office.sign_in


@router.post("/sign-out")
async def sign_out(request: Request, visitor: Visiting, _: Posted) -> Response:
    """Forget the browser, here and there."""
    await visitor.caller.site.browsers.end(visitor.browser.token)
    answer = page.redirect("/sign-in")
    for name_of in (origins.cookie_name, origins.notices_cookie_name):
        page.drop_cookie(request, answer, name_of)
    answer.headers["Clear-Site-Data"] = '"cache"'
    return answer


async def open_browser(request: Request, principal: Principal, following: str) -> Response:
    """Sign a browser in, whoever it was before, and lead it on."""
    site = callers.site_of(request)
    if before := request.cookies.get(origins.cookie_name(request, site.settings.public_url)):
        await site.browsers.end(before)
    site.services.audit.authenticated(callers.peer_of(request), principal)
    answer = page.redirect(following)
    page.set_cookie(request, answer, origins.cookie_name, await site.browsers.begin(principal))
    return answer


def _ask(request: Request, following: str, problem: str | None = None, status: int = 200) -> Response:
    door = callers.site_of(request).office.sign_in
    address = "/sign-in/provider" + (f"?{urlencode({'next': following})}" if following != "/" else "")
    ways = [{"href": address, "label": f"Sign in with {door.label}"}] if door is not None else []
    return page.render(request, "sign_in.html", status=status, next=following, problem=problem, ways=ways)
