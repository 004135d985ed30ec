"""The HTTP application: routes, errors, sizes, and the document that describes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from aerodrome.http import (
    account_routes,
    ask_routes,
    event_routes,
    guide_routes,
    problems,
    request_routes,
    session_routes,
    turn_routes,
)
from aerodrome.http.bodies import BodyLimit, JsonBodies, RateHeaders
from aerodrome.http.idempotency import KeepAnswers
from aerodrome.http.problems import Problem
from aerodrome.http.site import Site

_DESCRIPTION = """Sessions of GitHub Copilot runtimes over HTTP. Every call needs `Authorization: Bearer TOKEN`; a token is one
user's of one tenant, and sees that user's sessions only. Errors are problem details (RFC 9457) with a stable `code`."""


def build(site: Site) -> FastAPI:
    """Return the application that serves a site."""
    application = FastAPI(
        title="Aerodrome",
        version="1",
        description=_DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    application.state.site = site
    problems.install(application)
    for routes in (
        session_routes,
        turn_routes,
        event_routes,
        request_routes,
        ask_routes,
        account_routes,
        guide_routes,
    ):
        application.include_router(routes.router)

    @application.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # The last one is the outermost.
    application.add_middleware(KeepAnswers, replays=site.replays)
    application.add_middleware(JsonBodies)
    application.add_middleware(BodyLimit, limit_bytes=site.settings.max_body_bytes)
    application.add_middleware(RateHeaders)
    if site.settings.cors_origins:
        application.add_middleware(
            CORSMiddleware,
            allow_origins=list(site.settings.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy"],
            max_age=600,
        )
    application.openapi = lambda: _document(application)  # type: ignore[method-assign]
    return application


def _document(application: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with problems as answers where the framework would put its own."""
    if application.openapi_schema is None:
        document = get_openapi(
            title=application.title,
            version=application.version,
            description=application.description,
            routes=application.routes,
            openapi_version="3.1.0",
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in document["paths"].values():
            for operation in path.values():
                answer = operation["responses"].get("422", {})
                if "application/json" in answer.get("content", {}):
                    del operation["responses"]["422"]
        application.openapi_schema = document
    return application.openapi_schema
