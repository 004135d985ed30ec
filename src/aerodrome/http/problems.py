"""Domain errors as HTTP answers: problem details (RFC 9457) with the error tree's code; the one place where they become so."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from aerodrome import errors
from aerodrome.http import idempotency
from aerodrome.http.idempotency import Replayed

_log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = 1
_TITLES = {
    "already_exists": "Already exists",
    "authentication_failed": "Authentication failed",
    "authentication_required": "Authentication required",
    "draining": "This gateway is stopping",
    "frame_too_large": "Too large",
    "idempotency_key_busy": "The first request of this key still runs",
    "idempotency_key_reused": "The key stands for another request",
    "idempotency_outcome_unknown": "What the first request of this key did is not known",
    "media_type_unknown": "Unsupported media type",
    "method_unknown": "No such resource or method",
    "over_capacity": "Too many requests",
    "params_invalid": "Invalid parameters",
    "rate_limited": "Too many requests",
    "policy_rejected": "Refused by policy",
    "runtime_refused": "The runtime refused",
    "session_missing": "No such session",
}


class Problem(BaseModel):
    """Why a request was not answered as asked."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:aerodrome:error:session_missing"])
    title: str
    status: int
    detail: str = Field(description="what was expected, what was found, what to do")
    code: str = Field(description="stable, for programs", examples=["session_missing"])
    retryable: bool = Field(description="whether trying again can help")


def answer(error: errors.AerodromeError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the HTTP form of a domain error."""
    status = errors.wire(error).http
    sent = dict(headers or {})
    if error.retryable and status in (409, 429, 503):
        sent.setdefault("Retry-After", str(error.details.get("retry_after_seconds", _RETRY_SECONDS)))
    if status == 401:
        sent.setdefault("WWW-Authenticate", "Bearer")
    return _respond(status, error.code, detail_of(error), error.retryable, error.details, sent)


def detail_of(error: errors.AerodromeError) -> str:
    """Return what an error says to a person."""
    return _DETAILS.get(error.code, error.message)


def sentence(error: errors.AerodromeError) -> str:
    """Return what an error says, as a sentence of a page."""
    text = detail_of(error)
    return f"{text[:1].upper()}{text[1:]}."


def title_of(error: errors.AerodromeError) -> str:
    """Return an error's kind, in words."""
    return _TITLES.get(error.code, error.code.replace("_", " ").capitalize())


#: Where the wire's own words (those of the runtime's protocol) say too little to a person.
_DETAILS = {
    "authentication_failed": "the token is wrong, expired or revoked; expected Authorization: Bearer TOKEN",
    "authentication_required": "expected Authorization: Bearer TOKEN",
}


def _respond(
    status: int, code: str, detail: str, retryable: bool, details: dict[str, Any], headers: dict[str, str] | None = None
) -> JSONResponse:
    known = {"type", "title", "status", "detail", "code", "retryable"}
    body = {
        "type": f"urn:aerodrome:error:{code}",
        "title": _TITLES.get(code, code.replace("_", " ").capitalize()),
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        **{name: value for name, value in details.items() if name not in known},
    }
    return JSONResponse(body, status, headers, MEDIA_TYPE)


def install(application: FastAPI) -> None:
    """Have every failure of an application answered as a problem."""

    async def of_ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, errors.AerodromeError)
        return answer(error)

    async def of_form(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = [{"where": _where(one["loc"]), "what": one["msg"]} for one in error.errors()]
        first = found[0] if found else {"where": "body", "what": "invalid"}
        return _respond(400, "params_invalid", f"{first['where']}: {first['what']}", False, {"errors": found})

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "request_invalid")
        headers = dict(error.headers) if error.headers else {}
        detail = str(error.detail)
        if error.status_code == 405:
            headers["Allow"] = detail_of = ", ".join(_allowed(request))
            detail = f"expected one of {detail_of}, found {request.method}"
        elif error.status_code == 404:
            detail = "there is nothing at this path; /v1/openapi.json describes what is there"
        return _respond(error.status_code, code, detail, False, {}, headers)

    async def of_any(request: Request, error: Exception) -> Response:
        _log.error("http.request_failed", method=request.method, route=route_of(request), exc_info=error)
        return answer(errors.AerodromeError("the gateway failed at this request; its log says why"))

    async def of_left(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # in the middle of their request: nobody reads this

    async def of_replay(_: Request, error: Exception) -> Response:
        assert isinstance(error, Replayed)
        return idempotency.replay(error)

    application.add_exception_handler(ClientDisconnect, of_left)
    application.add_exception_handler(Replayed, of_replay)
    application.add_exception_handler(errors.AerodromeError, of_ours)
    application.add_exception_handler(RequestValidationError, of_form)
    application.add_exception_handler(HTTPException, of_http)
    application.add_exception_handler(Exception, of_any)


_CODES = {404: "method_unknown", 405: "method_unknown", 413: "frame_too_large", 415: "media_type_unknown"}

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


def _allowed(request: Request) -> list[str]:
    """Return the methods that a path has, over all its routes."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    routes = request.app.router.routes
    return [
        method for method, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]


def route_of(request: Request) -> str:
    """Return the template of a request's path, never the path itself: ids are none of the log's business."""
    route = request.scope.get("route")
    return str(getattr(route, "path", "?"))


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part != "body") or "body"


def documented(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of problem answers for OpenAPI: these statuses besides those that every call may have."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": _MEANINGS[status], "content": {MEDIA_TYPE: schema}}
        for status in sorted({400, 401, 403, 413, 429, 503, *codes})
    }


_MEANINGS = {
    400: "The request has the wrong form",
    401: "The token is missing, wrong, expired or revoked",
    403: "Refused by the tenant's policy, or by the role of the caller",
    404: "There is no such thing, or it is not the caller's",
    409: "It is there already, was answered or ended meanwhile, or its idempotency key is in use",
    413: "The request is larger than this gateway takes",
    415: "The body is not of the expected type",
    422: "The runtime refused, and says why; or the idempotency key stands for another request",
    429: "Too many requests, turns or sessions; Retry-After says when to try again",
    503: "No runtime could serve it now, or this gateway is stopping; try again",
}
