"""Calls to the gateway: tried again where that is safe and can help, and told as errors with a code where not.

A call that changes something carries an Idempotency-Key of its own, the same in each try: the gateway does it once.
"""

from __future__ import annotations

import asyncio
import email.utils
import inspect
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import msgspec

from aerodrome.client import errors

Shape = TypeVar("Shape")
#: A token, or what gives one: asked before each call, so that one that ends soon can be renewed.
Token = str | Callable[[], str | Awaitable[str]]
_TRY_AGAIN = frozenset({429, 502, 503, 504})
#: The first try of this call still runs there: its answer is waited for by asking again.
_BUSY_KEY = "idempotency_key_busy"
_CALL_SECONDS = 60.0
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long a call is tried; the wait doubles from `first_seconds` to `most_seconds`, a part of it by chance.

    `Retry-After` is waited for as the gateway says it, unless that is longer than what is left of `total_seconds`.
    """

    attempts: int = 6
    first_seconds: float = 0.2
    most_seconds: float = 8.0
    total_seconds: float = 60.0

    def wait_seconds(self, tried: int) -> float:
        """Return how long to wait after so many tries."""
        span: float = min(self.most_seconds, self.first_seconds * 2 ** (tried - 1))
        return span * (0.5 + 0.5 * random.random())  # noqa: S311 - no secret


@dataclass(slots=True)
class Attempts:
    """The tries of one call: whether there is another, and the wait before it."""

    retry: Retry
    started: float = field(default_factory=time.monotonic)
    tried: int = 0

    async def wait(self, error: errors.ClientError, asked_seconds: float | None = None) -> None:
        """Wait before the next try. Raises the error where there is none."""
        self.tried += 1
        seconds = self.retry.wait_seconds(self.tried) if asked_seconds is None else asked_seconds
        left = self.retry.total_seconds - (time.monotonic() - self.started)
        if self.tried >= self.retry.attempts or seconds > left:
            raise error
        await asyncio.sleep(seconds)

    def reset(self) -> None:
        """Begin anew: it worked meanwhile."""
        self.started, self.tried = time.monotonic(), 0


class Caller:
    """One gateway, called as one principal."""

    def __init__(
        self,
        url: str,
        token: Token,
        retry: Retry,
        transport: httpx.AsyncBaseTransport | None = None,
        verify: Any = True,
    ) -> None:
        self.retry = retry
        self._token = token
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=_timeout(_CALL_SECONDS),
            limits=limits,
            transport=transport,
            verify=verify,
        )

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        shape: type[Shape],
        body: Any = None,
        query: dict[str, Any] | None = None,
        seconds: float = _CALL_SECONDS,
    ) -> Shape:
        """Make a call; return what it answers. `seconds`: how long one try waits for it.

        Raises:
            errors.ApiError: the gateway refused. errors.ConnectionLost: it could not be reached.
        """
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if content is None else {"Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        query = {name: value for name, value in (query or {}).items() if value is not None}
        attempts = Attempts(self.retry)
        while True:
            asked: float | None = None
            sent = {**headers, **await self._authorization()}
            try:
                answer = await self._http.request(
                    method, path, content=content, headers=sent, params=query, timeout=_timeout(seconds)
                )
            except httpx.TransportError as error:
                failure: errors.ClientError = connection_lost(error)
            else:
                if answer.is_success:
                    return _decode(answer, shape)
                failure, asked = problem_of(answer), retry_after(answer)
                is_passing = answer.status_code in _TRY_AGAIN or failure.code == _BUSY_KEY
                if not (is_passing and failure.retryable):
                    raise failure
            await attempts.wait(failure, asked)

    @asynccontextmanager
    async def stream(
        self, path: str, query: dict[str, Any], headers: dict[str, str], silence_seconds: float
    ) -> AsyncIterator[httpx.Response]:
        """Open an event stream, once; it has ended when nothing came for so long.

        Raises:
            errors.ApiError: the gateway refused. httpx.TransportError: it could not be reached, or the stream broke.
        """
        sent = {"Accept": "text/event-stream", **headers, **await self._authorization()}
        async with self._http.stream(
            "GET", path, params=query, headers=sent, timeout=_timeout(silence_seconds)
        ) as answer:
            if not answer.is_success:
                await answer.aread()
                raise problem_of(answer)
            yield answer

    async def _authorization(self) -> dict[str, str]:
        token = self._token if isinstance(self._token, str) else self._token()
        if inspect.isawaitable(token):
            token = await token
        return {"Authorization": f"Bearer {token}"}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=_CONNECT_SECONDS)


def connection_lost(error: httpx.TransportError) -> errors.ConnectionLost:
    """Return a failed connection as an error of this client's; it names no address, which may hold a secret."""
    said = str(error) or type(error).__name__
    return errors.ConnectionLost(
        f"expected an answer of the gateway, found: {said}; check its address and that it runs"
    )


def problem_of(answer: httpx.Response) -> errors.ApiError:
    """Return a refusal as an error; one that is no problem document is told by its status (a proxy's, say)."""
    try:
        said = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    said = said if isinstance(said, dict) else {}
    known = {"type", "title", "status", "detail", "code", "retryable"}
    code = str(said.get("code", f"http_{answer.status_code}"))
    detail = str(said.get("detail") or f"the gateway answered {answer.status_code} {answer.reason_phrase}".rstrip())
    retryable = bool(said.get("retryable", answer.status_code in _TRY_AGAIN))
    details = {name: value for name, value in said.items() if name not in known}
    return errors.ApiError(answer.status_code, code, detail, retryable, details)


def retry_after(answer: httpx.Response) -> float | None:
    """Return how many seconds the gateway asks to wait: given so, or as a date (RFC 9110, section 10.2.3)."""
    said = answer.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _decode(answer: httpx.Response, shape: type[Shape]) -> Shape:
    if shape is type(None):
        return None  # type: ignore[return-value, unused-ignore]
    try:
        return msgspec.json.decode(answer.content, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.ApiError(
            answer.status_code, "answer_unknown", f"expected an answer of the API, found another: {error}", False, {}
        ) from None
