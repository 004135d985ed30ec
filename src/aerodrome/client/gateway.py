"""A gateway as a program uses it: its sessions are made, found and listed here."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack, cast

import httpx

from aerodrome.client.answering import Answers, Handlers
from aerodrome.client.caller import Caller, Retry, Token
from aerodrome.client.sessions import Session
from aerodrome.client.shapes import Me, Model, ModelList, SessionInfo, SessionPage, Turn


class SessionOptions(TypedDict, total=False):
    """What a session is made with; what is left out is the gateway's default."""

    title: str
    model: str
    provider: str
    instructions: str
    permissions: Literal["ask", "approve", "reject"]
    ask_user: bool
    metadata: dict[str, str]


class NewSession(SessionOptions, Handlers, total=False):
    """A session to be made: its options, and the handlers, which stay in this program."""

    session_id: str


class Question(SessionOptions, total=False):
    """A question of its own: the options of the session that answers it, and how long that may take."""

    timeout_seconds: float


#: How long the gateway gives a question where the caller does not say, and how much longer its answer is waited for.
_ASK_SECONDS = 300.0
_GRACE_SECONDS = 30.0
_HANDLERS = frozenset(Handlers.__annotations__)


class Aerodrome:
    """The HTTP API of a gateway, as one user. Use it `async with`, or call `aclose` at the end.

    `token`: a key, connection token or JWT, or a function that returns one and is asked before each call.
    `verify`: what httpx takes: an ssl.SSLContext for a certificate of your own.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        retry: Retry | None = None,
        verify: Any = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._caller = Caller(url, token, retry or Retry(), transport, verify)

    async def create_session(self, **wanted: Unpack[NewSession]) -> Session:
        """Make a session; functions given as `tools` and `on_...` are called by `ask` and `stream`.

        Raises:
            errors.ApiError: the gateway refused. errors.ConnectionLost: it could not be reached.
        """
        answers, body = _split(wanted)
        made = await self._caller.call("POST", "/v1/sessions", SessionInfo, body)
        return Session(self._caller, made.session_id, answers)

    def session(self, session_id: str, **handlers: Unpack[Handlers]) -> Session:
        """Return a session that is there; whether it is, its first call says. Makes no call."""
        return Session(self._caller, session_id, Answers.of(handlers))

    async def list_sessions(self, limit: int = 50, after: str | None = None) -> SessionPage:
        """Return a page of the caller's sessions, the most recently used first."""
        return await self._caller.call("GET", "/v1/sessions", SessionPage, query={"limit": limit, "after": after})

    async def sessions(self) -> AsyncGenerator[SessionInfo, None]:
        """Yield all of the caller's sessions, page by page."""
        after: str | None = None
        while True:
            page = await self.list_sessions(200, after)
            for one in page.sessions:
                yield one
            if page.next is None:
                return
            after = page.next

    async def ask(self, prompt: str, **wanted: Unpack[Question]) -> Turn:
        """Ask once, in a session that is gone afterwards. Nobody answers the agent's requests there: its permissions are
        rejected unless `permissions="approve"`.

        Raises:
            errors.ApiError: the gateway refused. errors.ConnectionLost: it could not be reached.
        """
        seconds = wanted.get("timeout_seconds", _ASK_SECONDS) + _GRACE_SECONDS
        return await self._caller.call("POST", "/v1/ask", Turn, {"prompt": prompt, **wanted}, seconds=seconds)

    async def me(self) -> Me:
        """Return who this program is to the gateway, and what holds for it."""
        return await self._caller.call("GET", "/v1/me", Me)

    async def models(self) -> list[Model]:
        """Return the models that sessions may use."""
        return (await self._caller.call("GET", "/v1/models", ModelList, query={"limit": 1000})).models

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._caller.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _split(wanted: NewSession) -> tuple[Answers, dict[str, Any]]:
    """Return what stays here, and what the gateway is told."""
    given: dict[str, Any] = dict(wanted)
    answers = Answers.of(cast("Handlers", {name: given.pop(name) for name in _HANDLERS & given.keys()}))
    if answers.tools:
        given["tools"] = [tool.describe() for tool in answers.tools]
    return answers, given
