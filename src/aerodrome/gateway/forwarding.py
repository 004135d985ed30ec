"""The small rules of the forwarder: what of a runtime's request may go on, what of an endpoint's answer may come back.

No connection is opened here; the order of things is in `forwarder`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

#: One way to read it for every server: no escapes, no empty or climbing segments, no backslash.
_PATH = re.compile(r"(?:[A-Za-z0-9._~:@-]+/)*[A-Za-z0-9._~:@-]+\Z", re.ASCII)
_QUERY = re.compile(r"[A-Za-z0-9._~=&-]*\Z", re.ASCII)
_METHODS = ("GET", "POST")
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_KEYS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
#: Also what would have the endpoint compress: an answer is read here for the key.
_KEPT_BACK = frozenset(
    {*_HOP_BY_HOP, *_KEYS, "accept-encoding", "content-length", "cookie", "forwarded", "host", "via"}
)
_NOT_RETURNED = frozenset(
    {*_HOP_BY_HOP, "content-encoding", "content-length", "date", "location", "server", "set-cookie", "www-authenticate"}
)


class Refusal(Exception):
    """Why the forwarder answers by itself."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answer with an error, in the words of OpenAI's API."""
    error = {"message": f"aerodrome: {refusal.message}", "type": "invalid_request_error", "code": refusal.code}
    body = msgspec.json.encode({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """Return a request's whole body.

    Raises:
        Refusal: it is too large, or its sender has gone.
    """
    parts: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the request ended early", "invalid_request")
        parts.append(message.get("body", b""))
        size_bytes += len(parts[-1])
        if size_bytes > limit_bytes:
            raise Refusal(413, f"expected at most {limit_bytes} bytes", "request_too_large")
        if not message.get("more_body"):
            return b"".join(parts)


async def wait_gone(receive: Receive) -> None:
    """Wait until the runtime has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def key_of(headers: Sequence[tuple[str, str]]) -> str:
    """Return the key that a request brings, wherever its API has it; empty for none."""
    for name, value in headers:
        if name in _KEYS:
            return value[7:] if value[:7].lower() == "bearer " else value
    return ""


def plain_target(scope: Scope, prefix: str) -> str:
    """Return path and query below `prefix` as they go on.

    Raises:
        Refusal: the method is none that a model call has, or the target could be read in two ways.
    """
    if scope["method"] not in _METHODS:
        raise Refusal(405, f"expected one of {', '.join(_METHODS)}", "method_not_allowed")
    # The path as it was sent: a decoded one hides what was escaped.
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    rest = path[len(prefix) :] if path.startswith(prefix) else ""
    if not _PATH.match(rest) or ".." in rest or "/./" in f"/{rest}/" or not _QUERY.match(query):
        raise Refusal(403, "that path is none of this provider's", "path_not_allowed")
    return f"/{rest}?{query}" if query else f"/{rest}"


def onward(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers that go on to the endpoint."""
    named = {word.strip() for name, value in headers if name == "connection" for word in value.lower().split(",")}
    kept = [
        (name, value)
        for name, value in headers
        if name not in _KEPT_BACK and name not in named and not name.startswith(("x-forwarded-", "proxy-"))
    ]
    return [*kept, ("accept-encoding", "identity")]


def back(headers: Sequence[tuple[bytes, bytes]], redactor: Redactor) -> list[tuple[bytes, bytes]]:
    """Return the headers that come back to the runtime."""
    plain = [(name.lower(), value) for name, value in headers]
    return [(name, redactor.clean(value)) for name, value in plain if name.decode("latin-1") not in _NOT_RETURNED]


class Redactor:
    """Takes secrets out of a stream, also where one is cut by the end of a part; holds back nothing else."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = [secret for secret in secrets if secret]
        self._held = b""

    def clean(self, data: bytes) -> bytes:
        """Return data with asterisks for every secret."""
        for secret in self._secrets:
            if secret in data:
                data = data.replace(secret, b"*" * len(secret))
        return data

    def feed(self, part: bytes) -> bytes:
        """Return what may go on of this part and those before it."""
        data = self.clean(self._held + part)
        kept = max((_overlap(data, secret) for secret in self._secrets), default=0)
        self._held = data[len(data) - kept :]
        return data[: len(data) - kept]

    def finish(self) -> bytes:
        """Return what was held back: the beginning of a secret that never came."""
        held, self._held = self._held, b""
        return held


def _overlap(data: bytes, secret: bytes) -> int:
    """Return how many bytes at the end of the data could begin the secret."""
    longest = min(len(data), len(secret) - 1)
    return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)
