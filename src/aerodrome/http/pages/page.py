"""What all pages share: who visits, how a page is drawn and sent, what becomes of errors, and that forms are our own.

Pages are for browsers that have signed in (http.browsers); programs use /v1. Everything a page needs comes from here and nothing
from elsewhere: the policy that goes with each page (CSP) allows no other origin and no script or style inside it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias
from urllib.parse import quote, urlsplit

import jinja2
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from markupsafe import Markup
from starlette.datastructures import FormData

from aerodrome import errors
from aerodrome.core import identity
from aerodrome.core.identity import Role
from aerodrome.http import callers, origins, problems, sealed_cookies
from aerodrome.http.browsers import BrowserSession
from aerodrome.http.callers import Caller
from aerodrome.http.pages import formats, static_files
from aerodrome.http.pages.icons import icon
from aerodrome.http.sealed_cookies import Notice

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: A cookie's name, by where browsers reach us.
CookieName: TypeAlias = Callable[[Request, str | None], str]
_MAX_NEXT = 500
_ROLE_WORDS = {Role.USER: "User", Role.TENANT_ADMIN: "Tenant admin", Role.OPERATOR: "Operator"}


class Item(NamedTuple):
    """An entry of the navigation: where it leads, what it says, and whom it is for."""

    href: str
    label: str
    icon: str
    roles: frozenset[Role]
    needs_connect: bool = False


_ALL = frozenset(Role)
_ADMINS = frozenset({Role.TENANT_ADMIN, Role.OPERATOR})
_OPERATORS = frozenset({Role.OPERATOR})
#: An entry is shown where its page is served.
NAVIGATION = (
    Item("/", "Overview", "overview", _ALL),
    Item("/playground", "Playground", "playground", _ALL, needs_connect=True),
    Item("/fleet", "Fleet", "fleet", _OPERATORS),
    Item("/sessions", "Sessions", "sessions", _ALL),
    Item("/tenants", "Tenants", "tenants", _OPERATORS),
    Item("/users", "Users", "users", frozenset({Role.TENANT_ADMIN})),
    Item("/keys", "Keys", "keys", _ALL),
    Item("/audit", "Audit log", "audit", _ADMINS),
)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page."""

    caller: Caller
    browser: BrowserSession
    request: Request

    @property
    def notices(self) -> list[Notice]:
        """Return what the browser's next page is to say."""
        name = origins.notices_cookie_name(self.request, self.caller.site.settings.public_url)
        return sealed_cookies.open_notices(self.browser.token, self.request.cookies.get(name))

    @property
    def csrf(self) -> str:
        """Return what must come with every form."""
        return self.browser.csrf

    @property
    def role(self) -> Role:
        """Return the visitor's role."""
        return self.caller.principal.role

    @property
    def name(self) -> str:
        """Return who it is, in words."""
        owner = self.caller.owner
        return owner.user if owner.tenant == identity.NO_TENANT else f"{owner.user} · {owner.tenant}"

    @property
    def role_words(self) -> str:
        """Return the role, in words."""
        return _ROLE_WORDS[self.role]


class NotSignedIn(errors.AuthenticationRequired):
    """No browser that has signed in calls."""


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(static=static_files.address, module=static_files.module, icon=icon)
    environment.filters.update(formats.FILTERS)
    return environment


_TEMPLATES = _environment()


def render(
    request: Request, template: str, visitor: Visitor | None = None, status: int = 200, **values: Any
) -> Response:
    """Draw a page, or a part of one, and return it as an answer."""

    def csrf() -> Markup:
        return Markup('<input type="hidden" name="csrf" value="{}">').format(visitor.csrf if visitor else "")

    notices = visitor.notices if visitor is not None and "hx-request" not in request.headers else []
    text = _TEMPLATES.get_template(template).render(
        visitor=visitor,
        csrf=csrf,
        notices=notices,
        navigation=_navigation(request, visitor) if visitor is not None else [],
        **values,
    )
    answer = HTMLResponse(text, status, _HEADERS)
    if notices:
        # They are said once.
        drop_cookie(request, answer, origins.notices_cookie_name)
    return answer


def _navigation(request: Request, visitor: Visitor) -> list[dict[str, Any]]:
    served = set(_paths(request.app.routes))
    here = request.url.path
    shown = []
    for item in NAVIGATION:
        may_use = visitor.caller.principal.may_connect or not item.needs_connect
        if item.href in served and visitor.role in item.roles and may_use:
            is_current = here == item.href or (item.href != "/" and here.startswith(f"{item.href}/"))
            shown.append({"href": item.href, "label": item.label, "icon": item.icon, "is_current": is_current})
    return shown


def _paths(routes: Iterable[object]) -> Iterator[str]:
    for route in routes:
        yield str(getattr(route, "path", ""))
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from _paths(included.routes)


def redirect(address: str) -> Response:
    """Return an answer that leads a browser on, with a new GET."""
    return RedirectResponse(address, 303, _HEADERS)


def set_cookie(request: Request, answer: Response, name_of: CookieName, value: str, max_age: int | None = None) -> None:
    """Give a browser a cookie that no script reads; without an age it ends with the browser."""
    public_url = callers.site_of(request).settings.public_url
    answer.set_cookie(name_of(request, public_url), value, max_age, **_cookie_terms(request, public_url))


def drop_cookie(request: Request, answer: Response, name_of: CookieName) -> None:
    """Have a browser forget a cookie."""
    public_url = callers.site_of(request).settings.public_url
    answer.delete_cookie(name_of(request, public_url), **_cookie_terms(request, public_url))


def _cookie_terms(request: Request, public_url: str | None) -> dict[str, Any]:
    return {"path": "/", "secure": origins.is_secure(request, public_url), "httponly": True, "samesite": "lax"}


def local_path(text: str | None) -> str:
    """Return a path of our own to go on to, the first page for whatever is none."""
    path = text or "/"
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and not (parts.scheme or parts.netloc)
    return path if is_ours and path.isprintable() and "\\" not in path and len(path) <= _MAX_NEXT else "/"


class PageRoute(APIRoute):
    """A route whose errors a person reads: the sign-in page for strangers, else a page that says what is wrong."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers requests."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except NotSignedIn:
                return _lead_to_sign_in(request)
            except RequestValidationError:
                return failure(request, errors.InvalidParams("the address or the form has a part of the wrong form"))
            except errors.AerodromeError as error:
                return failure(request, error)

        return handle


def failure(request: Request, error: errors.AerodromeError) -> Response:
    """Return the page that says what is wrong."""
    status, title, detail = errors.wire(error).http, problems.title_of(error), problems.detail_of(error)
    return render(request, "error.html", status=status, title=title, detail=detail)


def _lead_to_sign_in(request: Request) -> Response:
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if "hx-request" in request.headers:
        # A part of a page that is drawn anew: the whole page goes on to the sign-in.
        return Response(status_code=401, headers={**_HEADERS, "HX-Redirect": "/sign-in"})
    suffix = f"?next={quote(local_path(here), safe='')}" if request.method == "GET" and here != "/" else ""
    return redirect(f"/sign-in{suffix}")


async def _visit(request: Request) -> Visitor:
    browser = await callers.browser_of(request)
    if browser is None:
        raise NotSignedIn
    try:
        return Visitor(await callers.caller_of_browser(request, browser), browser, request)
    except errors.AuthenticationFailed:
        raise NotSignedIn from None


Visiting = Annotated[Visitor, Depends(_visit)]


async def _posted(request: Request, visitor: Visiting) -> FormData:
    """Return a form that one of our own pages has sent.

    Raises:
        errors.PolicyRejected: it is someone else's.
    """
    origins.check_same_origin(request, visitor.caller.site.settings.public_url)
    form = await request.form(max_files=0, max_fields=100)
    given = form.get("csrf")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), visitor.csrf.encode()):
        raise errors.PolicyRejected(
            "this form is of an earlier sign-in; go back, load the page again and try once more"
        )
    return form


Posted = Annotated[FormData, Depends(_posted)]


def word(form: FormData, name: str) -> str:
    """Return a field of a form, without blanks around it; empty where there is none."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


async def do(visitor: Visitor, work: Coroutine[Any, Any, Notice], back: str) -> Response:
    """Do what a form asks for, and go back to its page, which says what came of it."""
    try:
        notice = await work
    except errors.AuthenticationRequired:
        raise
    except errors.AerodromeError as error:
        notice = Notice(problems.detail_of(error), is_error=True)
    answer = redirect(back)
    sealed = sealed_cookies.seal_notices(visitor.browser.token, [*visitor.notices, notice])
    set_cookie(visitor.request, answer, origins.notices_cookie_name, sealed, sealed_cookies.NOTICE_SECONDS)
    return answer
