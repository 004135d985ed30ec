"""The HTTP application: routes, errors, sizes, and the document that describes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from aerodrome.http import (
    account_routes,
    admin_routes,
    ask_routes,
    document,
    event_routes,
    guide_routes,
    metrics,
    problems,
    request_routes,
    session_routes,
    sharing_routes,
    turn_routes,
)
from aerodrome.http.bodies import BodyLimit, JsonBodies, Rates
from aerodrome.http.idempotency import KeepAnswers
from aerodrome.http.pages import (
    fleet_pages,
    overview_routes,
    people_pages,
    playground_routes,
    session_pages,
    sign_in_routes,
    static_files,
)
from aerodrome.http.site import Site


def build(site: Site) -> FastAPI:
    """Return the application that serves a site."""
    application = _routed()
    application.state.site = site
    problems.install(application)

    @application.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # The last one is the outermost.
    application.add_middleware(KeepAnswers, replays=site.replays)
    application.add_middleware(JsonBodies)
    application.add_middleware(BodyLimit, limit_bytes=site.settings.max_body_bytes)
    application.add_middleware(Rates)
    if site.settings.cors_origins:
        application.add_middleware(
            CORSMiddleware,
            allow_origins=list(site.settings.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy"],
            max_age=600,
        )
    return application


def describe() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return document.make(_routed())


def _routed() -> FastAPI:
    application = FastAPI(
        title="Aerodrome",
        version="1",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in (
        session_routes,
        turn_routes,
        event_routes,
        request_routes,
        sharing_routes,
        ask_routes,
        account_routes,
        guide_routes,
        admin_routes,
        metrics,
    ):
        application.include_router(routes.router)
    pages = (static_files, sign_in_routes, overview_routes, fleet_pages, session_pages, people_pages, playground_routes)
    for page in pages:
        application.include_router(page.router)
    application.openapi = lambda: _document(application)  # type: ignore[method-assign]
    return application


def _document(application: FastAPI) -> dict[str, Any]:
    if application.openapi_schema is None:
        application.openapi_schema = document.make(application)
    return application.openapi_schema
