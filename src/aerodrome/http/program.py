"""One HTTP user's program: to the gateway one more client link, so that ownership, policy, limits and reattach are the same.

A link of this process (a socket pair), opened when it is wanted and closed when nothing needs it any more: HTTP requests come
and go, and what they began (a turn, a question that waits for its answer) must not end with them. A program speaks JSON-RPC as
any SDK does; what its sessions have said and are waiting for is http.conversation.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.identity import Owner, Principal
from aerodrome.gateway.service import TenantGateway
from aerodrome.protocol import messages
from aerodrome.protocol.messages import Envelope, RequestId
from aerodrome.transport.link import Link

_log = structlog.get_logger()
CALL_SECONDS = 120.0
_END_SECONDS = 10.0
#: Takes a notification or a request (then with its id) about a session: method, params, id.
Take = Callable[[str, Any, RequestId | None], None]


class Program:
    """A client link of this process. `take` hears what is said about sessions, `ended` that the link is over."""

    def __init__(self, owner: Owner, link: Link, take: Take) -> None:
        self.owner = owner
        self.is_over = asyncio.get_running_loop().create_future()
        self._link = link
        self._take = take
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Envelope]] = {}
        #: What hears a result at once, before anything that was said behind it.
        self._heard: dict[int, Callable[[dict[str, Any]], None]] = {}

    @property
    def is_busy(self) -> bool:
        """Say whether an answer is waited for."""
        return bool(self._waiting)

    async def call(
        self,
        method: str,
        params: dict[str, Any],
        seconds: float = CALL_SECONDS,
        heard: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Make a call; return its result, which `heard` is given before anything that is said behind it is taken.

        Raises:
            errors.AerodromeError: what the gateway says; errors.RuntimeRefused: what the runtime says.
            errors.RuntimeLost: nobody answered in time, or the link has ended.
        """
        if self.is_over.done():
            raise errors.RuntimeLost("the link to the gateway has ended; try again")
        number = next(self._numbers)
        waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
        if heard is not None:
            self._heard[number] = heard
        self._link.send(messages.request(number, method, messages.encode(params)))
        self._link.flush()
        try:
            async with asyncio.timeout(seconds):
                envelope = await waiter
        except TimeoutError:
            raise errors.RuntimeLost(f"{method} was not answered within {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)
            self._heard.pop(number, None)
        if envelope.error is not UNSET:
            raise error_of(msgspec.json.decode(envelope.error))
        return _result_of(envelope)

    def answer(self, request_id: RequestId, result: Any) -> None:
        """Answer a request of the runtime's."""
        self._link.send(messages.result(request_id, result))
        self._link.flush()

    def refuse(self, request_id: RequestId, method: str) -> None:
        """Tell the runtime that nobody here answers such requests."""
        self._link.send(messages.failure(request_id, -32601, f"Unhandled method {method}"))
        self._link.flush()

    async def run(self) -> None:
        """Hear what the gateway says until the link ends; open calls fail then."""
        try:
            while batch := await self._link.receive():
                for body in batch:
                    self._hear(body)
        finally:
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(errors.RuntimeLost("the link to the gateway has ended; try again"))
            if not self.is_over.done():
                self.is_over.set_result(None)

    def close(self) -> None:
        """End the link: the gateway lets go of its sessions."""
        self._link.abort()

    def _hear(self, body: bytes) -> None:
        envelope = messages.decode(body)
        if envelope.method is UNSET:
            waiter = self._waiting.get(envelope.id) if isinstance(envelope.id, int) else None
            if waiter is not None and not waiter.done():
                waiter.set_result(envelope)
                self._tell(envelope)
            return
        request_id = envelope.id if isinstance(envelope.id, (int, str)) else None
        params = envelope.params
        try:
            self._take(envelope.method, params, request_id)
        except Exception:
            _log.exception("http.message_failed", method=envelope.method)

    def _tell(self, envelope: Envelope) -> None:
        """Give a result to whoever has to have it at once."""
        heard = self._heard.pop(envelope.id, None) if isinstance(envelope.id, int) else None
        if heard is None or envelope.error is not UNSET:
            return
        try:
            heard(_result_of(envelope))
        except Exception:
            _log.exception("http.message_failed", method="answer")


def _result_of(envelope: Envelope) -> dict[str, Any]:
    result = msgspec.json.decode(envelope.result) if envelope.result is not UNSET else {}
    return result if isinstance(result, dict) else {"result": result}


def error_of(said: Any) -> errors.AerodromeError:
    """Return the error that an answer carries: the gateway's own by its code, else the runtime's, by its text."""
    error = said if isinstance(said, dict) else {}
    data = error.get("data")
    message = str(error.get("message", "no reason given"))
    if isinstance(data, dict) and (kind := _BY_CODE.get(str(data.get("code")))) is not None:
        details = {name: value for name, value in data.items() if name not in ("code", "retryable")}
        return kind(message, **details)
    if "Session not found" in message or "Session file not found" in message:
        return errors.SessionMissing("no such session")
    return errors.RuntimeRefused(message.rpartition("failed with message: ")[2] or message)


def _error_classes() -> dict[str, type[errors.AerodromeError]]:
    """Return the errors that can be made from a message alone, by code."""
    found: dict[str, type[errors.AerodromeError]] = {}
    open_classes = [errors.AerodromeError]
    while open_classes:
        kind = open_classes.pop()
        open_classes.extend(kind.__subclasses__())
        if kind.__init__ is errors.AerodromeError.__init__:
            found.setdefault(kind.code, kind)
    return found


_BY_CODE = _error_classes()


async def open_program(gateway: TenantGateway, principal: Principal, take: Take) -> tuple[Program, Awaitable[None]]:
    """Open a link for a principal; return its program, and what runs until it is over (to be awaited in a task).

    Raises:
        errors.OverCapacity: this process has no descriptors left.
    """
    frame_bytes = gateway.services.settings.max_frame_bytes
    loop = asyncio.get_running_loop()
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise errors.OverCapacity(f"no link could be opened: {error.strerror}; try again later") from None
    ours.setblocking(False)
    theirs.setblocking(False)
    _, near = await loop.create_connection(lambda: Link(frame_bytes), sock=ours)
    _, far = await loop.create_connection(lambda: Link(frame_bytes), sock=theirs)
    program = Program(principal.owner, near, take)

    async def run() -> None:
        serving = asyncio.create_task(gateway.serve_principal(far, principal), name="link of an http user")
        hearing = asyncio.create_task(program.run(), name="program of an http user")
        try:
            await asyncio.wait((serving, hearing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            near.abort()
            far.abort()
            # The gateway lets go of what it holds for this link, in its own time: it is not cut short.
            await asyncio.wait((serving, hearing), timeout=_END_SECONDS)
            serving.cancel()
            await asyncio.wait((serving, hearing))
            for task in (serving, hearing):
                with suppress(asyncio.CancelledError):
                    if (failure := task.exception()) is not None:
                        _log.error("http.program_failed", reason=repr(failure))

    return program, run()
