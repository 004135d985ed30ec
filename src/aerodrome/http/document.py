"""The OpenAPI document: made from the routes, with what every call has in common written once, here.

`docs/openapi.json` is a copy (tools/write_openapi.py); a test says whether it is current.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from aerodrome.http import problems
from aerodrome.http.idempotency import HEADER, REPLAYED
from aerodrome.http.problems import Problem

DESCRIPTION = """Sessions of GitHub Copilot runtimes over HTTP.

**Authentication.** Every call needs `Authorization: Bearer TOKEN`: a key, a connection token, or a JWT of a trusted issuer. A
token is one user's of one tenant and sees that user's sessions only; a session of another user answers as a missing one does.

**Errors** are problem details (RFC 9457, `application/problem+json`) with a stable `code`, and say whether trying again can
help. A method that a path has not is answered 405 with `Allow`, a path that is not there 404.

**Idempotency.** Every POST (but below `/v1/admin`) takes an `Idempotency-Key`: a request that is sent again under its key is
not done again, but waits
for the first one and is answered the same, with `Idempotency-Replayed: true`. Keys are their user's, and hold for a day by
default.

**Rates.** Where the operator limits requests, each answer has `RateLimit-Policy` and `RateLimit`; what is refused has
`Retry-After`.

**Lists** have `limit`, `after` and `next`: give `next` of one page as `after` for the next one; null means that it was the last.

**Streams** are server-sent events: `id` is a cursor to go on from with `Last-Event-ID`, `event` the type, `data` the event as
JSON."""

_TAGS = {
    "sessions": "Conversations with an agent, kept until they are deleted or expire",
    "turns": "Prompts in, answers out",
    "events": "What is said in a session, as it is said or page by page",
    "requests": "What an agent waits for: permissions, questions, tool calls, forms, plans",
    "sharing": "Sessions of several people: members, links that make members, whose turn it is",
    "ask": "One question, one answer, nothing left behind",
    "account": "Who calls, what they may have, what they have used",
    "admin": "The fleet, sessions, tenants, keys and the audit log: for operators, and for admins of their own tenant",
    "guide": "The endpoints of the Copilot SDK's scaling guide, same paths and shapes",
}
_KEY_PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "the same for each attempt at one request, another for each request: it is done once, whatever happens",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "example": "5f0c6a52-0e7f-4a54-9f7d-0c2b7a6f8a11",
}
_HEADERS = {
    "RateLimit-Policy": {
        "description": "how many requests in how many seconds; only where there is a limit",
        "schema": {"type": "string"},
        "example": '"requests";q=600;w=60',
    },
    "RateLimit": {
        "description": "how many are left, and in how many seconds all are again; only where there is a limit",
        "schema": {"type": "string"},
        "example": '"requests";r=599;t=1',
    },
    "Retry-After": {"description": "seconds to wait before trying again", "schema": {"type": "string"}, "example": "1"},
    "Idempotency-Replayed": {
        "description": "there if the request had been answered before, and this is that answer",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Location": {"description": "where what was made is", "schema": {"type": "string"}},
}


def make(application: FastAPI) -> dict[str, Any]:
    """Return the document of an application."""
    document = get_openapi(
        title=application.title,
        version=application.version,
        description=DESCRIPTION,
        routes=application.routes,
        openapi_version="3.1.0",
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["headers"] = _HEADERS
    for path in document["paths"].values():
        for method, operation in path.items():
            _complete(method, operation)
    return document


def _complete(method: str, operation: dict[str, Any]) -> None:
    """Add to an operation what all of its kind have, and take out what the framework says but does not do."""
    answers = operation["responses"]
    if "application/json" in answers.get("422", {}).get("content", {}):
        del answers["422"]  # wrong forms are answered 400 here
    if method in ("post", "patch"):
        _add(answers, 415)
    if method == "post":
        if "admin" not in operation["tags"]:
            operation.setdefault("parameters", []).append(_KEY_PARAMETER)
        _add(answers, 409)
        _add(answers, 422)
    for status, answer in answers.items():
        headers = answer.setdefault("headers", {})
        for name in ("RateLimit-Policy", "RateLimit"):
            headers[name] = {"$ref": f"#/components/headers/{name}"}
        if status in ("429", "503"):
            headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
        if method == "post" and status.startswith("2"):
            headers[REPLAYED] = {"$ref": f"#/components/headers/{REPLAYED}"}
        if status == "201":
            headers["Location"] = {"$ref": "#/components/headers/Location"}
    operation["responses"] = dict(sorted(answers.items()))


def _add(answers: dict[str, Any], status: int) -> None:
    if str(status) not in answers:
        answers[str(status)] = problems.documented(status)[status]
