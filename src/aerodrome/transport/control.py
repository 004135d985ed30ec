"""A caller's side of a runtime connection: requests with deadlines, notifications to a callback.

For links the gateway itself talks on: a runtime's control link (health, lifecycle broadcasts), tools and tests. Links that are
lent to clients are gateway.upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.ports.host import Dial
from aerodrome.protocol import messages
from aerodrome.protocol.correlation import Correlation
from aerodrome.protocol.messages import Envelope
from aerodrome.transport import link as link_module
from aerodrome.transport.link import Link

_MAX_FRAME_BYTES = 64 * 1024 * 1024


class RemoteError(errors.AerodromeError):
    """The peer answered with an error; `code_number` and `message` are its own."""

    code = "internal"

    def __init__(self, code_number: int, message: str) -> None:
        super().__init__(message)
        self.code_number = code_number


class _ErrorObject(msgspec.Struct):
    code: int = -32603
    message: str = ""


class ControlLink:
    """One authenticated connection to a runtime, for calls of our own."""

    def __init__(self, link: Link, on_notification: Callable[[str, bytes], None] | None = None) -> None:
        self._link = link
        self._on_notification = on_notification
        self._owed: Correlation[asyncio.Future[Envelope]] = Correlation()
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="control link reader")

    @property
    def closed(self) -> asyncio.Future[None]:
        """Return a future that is done when the link has ended."""
        return self._link.closed

    async def call(self, method: str, params: Any = None, timeout_seconds: float = 30.0) -> Any:
        """Send a request and return its decoded result.

        Raises:
            RemoteError: the peer answered with an error.
            errors.RuntimeLost: the link ended, or the answer did not come in time.
        """
        if self._reading.done() or self._link.is_closing:
            raise errors.RuntimeLost("the connection to the runtime ended")
        answer: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        request_id = self._owed.open(answer)
        self._link.send(messages.request(request_id, method, messages.encode(params if params is not None else {})))
        self._link.flush()
        try:
            async with asyncio.timeout(timeout_seconds):
                envelope = await answer
        except TimeoutError:
            raise errors.RuntimeLost(f"no answer to {method} within {timeout_seconds:g} s") from None
        finally:
            self._owed.close(request_id)
        if envelope.error is not msgspec.UNSET:
            raise _remote_error(envelope.error)
        return msgspec.json.decode(envelope.result) if envelope.result is not msgspec.UNSET else None

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification."""
        self._link.send(messages.notification(method, messages.encode(params if params is not None else {})))
        self._link.flush()

    async def aclose(self) -> None:
        """Close the link and end its reader."""
        self._link.abort()
        self._reading.cancel()
        await asyncio.wait((self._reading,))

    async def _read(self) -> None:
        try:
            while batch := await self._link.receive():
                for body in batch:
                    self._take(body)
        except errors.InvalidRequest:
            pass  # without frame boundaries nothing more can be heard: the link ends below
        finally:
            self._link.abort()
            for answer in self._owed.drain():
                if not answer.done():
                    answer.set_exception(errors.RuntimeLost("the connection to the runtime ended"))

    def _take(self, body: bytes) -> None:
        try:
            envelope = messages.decode(body)
        except errors.InvalidRequest:
            return  # one odd message is no reason to lose a runtime with all its sessions
        if envelope.method is msgspec.UNSET:
            answer = self._owed.close(envelope.id if envelope.id is not msgspec.UNSET else None)
            if answer is not None and not answer.done():
                answer.set_result(envelope)
        elif envelope.id is not msgspec.UNSET:
            self._link.send(messages.failure(envelope.id, -32601, f"Unhandled method {envelope.method}"))
            self._link.flush()
        elif self._on_notification is not None:
            self._on_notification(envelope.method, body)


def _remote_error(raw: msgspec.Raw) -> RemoteError:
    try:
        error = msgspec.json.decode(raw, type=_ErrorObject)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        error = _ErrorObject()
    return RemoteError(error.code, error.message)


async def open_control(
    host: str,
    port: int,
    token: str | None,
    on_notification: Callable[[str, bytes], None] | None = None,
    timeout_seconds: float = 10.0,
    dial: Dial | None = None,
) -> tuple[ControlLink, dict[str, Any]]:
    """Connect (by `dial`, if given) and authenticate; return the link and the runtime's answer to `connect`.

    Raises:
        errors.RuntimeUnavailable: nobody answers there, or it refuses the token.
    """
    link = await link_module.connect(host, port, _MAX_FRAME_BYTES, timeout_seconds, dial)
    control = ControlLink(link, on_notification)
    params = {} if token is None else {"token": token}
    try:
        answer = await control.call("connect", params, timeout_seconds)
    except RemoteError as error:
        await control.aclose()
        raise errors.RuntimeUnavailable(f"the runtime at {host}:{port} refuses our token: {error.message}") from None
    except BaseException:
        await control.aclose()
        raise
    return control, answer
