"""What bodies of requests may be, before any route reads them: their size and type; and what rate is told in answers (ASGI)."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerodrome import errors
from aerodrome.http import problems
from aerodrome.http.rates import Allowance

#: Where bodies are JSON; pages of a browser (sign-in, dashboard) have forms.
_JSON_PATHS = ("/v1/", "/api/", "/team-chat")


class BodyLimit:
    """Refuses requests whose body is larger than the edge takes, before it is read, or as soon as it is."""

    def __init__(self, application: ASGIApp, limit_bytes: int) -> None:
        self._application = application
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request whose body is not too large."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        reason = f"expected a body of at most {self._limit_bytes} bytes, found a larger one"
        if declared.isdigit() and int(declared) > self._limit_bytes:
            await problems.answer(errors.FrameTooLarge(reason))(scope, receive, send)
            return
        taken = 0

        async def receive_some() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit_bytes:
                # The framework passes this one on; it would take any other for a body that cannot be parsed.
                raise HTTPException(413, reason)
            return message

        await self._application(scope, receive_some, send)


class JsonBodies:
    """Refuses bodies that are not declared as JSON, where JSON is expected."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request without a body, or with one of JSON."""
        if scope["type"] == "http" and scope["path"].startswith(_JSON_PATHS):
            headers = dict(scope["headers"])
            has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            is_json = kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
            if has_body and not is_json:
                found = kind.decode("latin-1")[:100] or "none"
                error = errors.MediaTypeUnknown(f"expected Content-Type: application/json, found {found!r}")
                await problems.answer(error)(scope, receive, send)
                return
        await self._application(scope, receive, send)


class Rates:
    """Tells callers what is left of their rate, with whatever they are answered; ends a request's being under way."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_told(message: Message) -> None:
            allowance = state.get("allowance")
            if message["type"] == "http.response.start" and isinstance(allowance, Allowance):
                message = {**message, "headers": [*message["headers"], *allowance.headers]}
            await send(message)

        try:
            await self._application(scope, receive, send_told)
        finally:
            leave = state.get("leave")
            if leave is not None:
                leave()
