"""One end of a JSON-RPC connection for tests, in either role: a raw client, or one connection of the scripted runtime.

Does exactly what it is told and remembers all it heard. Deliberately not the product's Link: what is under test must not be
what tests it, beyond the sans-IO core that has tests of its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.protocol import messages
from aerodrome.protocol.connection import Connection
from aerodrome.protocol.messages import Envelope, RequestId

_MAX_FRAME_BYTES = 256 * 1024 * 1024
#: For what comes in milliseconds, on a machine that has other things to do.
WAIT_SECONDS = 30.0


class RpcError(errors.AerodromeError):
    """An error answer, received or to be given."""

    def __init__(self, number: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.number = number
        self.data = data


@dataclass(frozen=True, slots=True)
class Heard:
    """A request (with id) or notification of the other side."""

    method: str
    params: Any
    request_id: RequestId | None = None


Answer = Callable[[Any], Awaitable[Any]]


@dataclass(eq=False)
class Peer:
    """A connection. `answers` says how requests of the other side are answered: by method, else -32601."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answers: dict[str, Answer] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    refused: list[errors.InvalidRequest] = field(default_factory=list)
    #: Answers that no request of ours waits for: late, doubled, or to nobody.
    stray: list[Envelope] = field(default_factory=list)
    take_request: Callable[[Heard], Awaitable[Any]] | None = None

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._connection = Connection(_MAX_FRAME_BYTES)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._changed = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._tasks = {loop.create_task(self._read(), name="peer reader")}

    # -- towards the other side -------------------------------------------------------------------------------------------

    def ask(self, method: str, params: Any = None) -> asyncio.Future[Any]:
        """Send a request; return the future of its result (or RpcError)."""
        return self.ask_with_id(method, params)[1]

    def ask_with_id(self, method: str, params: Any = None) -> tuple[int, asyncio.Future[Any]]:
        """Send a request; return its id as well."""
        request_id = self._connection.send_request(method, params)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        self._send()
        return request_id, answer

    async def call(self, method: str, params: Any = None, seconds: float = WAIT_SECONDS) -> Any:
        """Send a request and return its result. Raises RpcError, TimeoutError, ConnectionError."""
        async with asyncio.timeout(seconds):
            return await self.ask(method, params)

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification."""
        self._connection.send_notification(method, params)
        self._send()

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    def stop_reading(self) -> None:
        """Leave all that comes unread from now on."""
        self._may_read.clear()

    def read_on(self) -> None:
        """Read again."""
        self._may_read.set()

    async def aclose(self) -> None:
        """Close at once and end every task."""
        self.writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        with suppress(OSError):
            await self.writer.wait_closed()

    # -- from the other side ----------------------------------------------------------------------------------------------

    async def wait_until(self, condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
        """Wait until what was heard fulfils a condition; return its value. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):
                self._changed.clear()
                await self._changed.wait()
        return found

    async def wait_closed(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the other side has closed. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self.closed)

    def notifications(self, method: str) -> list[Any]:
        """Return the params of all notifications of a method."""
        return [found.params for found in self.heard if found.method == method and found.request_id is None]

    def events(self, session_id: str) -> list[str]:
        """Return the types of the events of a session, in order."""
        found = [params for params in self.notifications("session.event") if params["sessionId"] == session_id]
        return [params["event"]["type"] for params in found]

    async def wait_for_event(self, session_id: str, kind: str, count: int = 1) -> None:
        """Wait until a session's event has come so often. Raises TimeoutError."""
        await self.wait_until(lambda: self.events(session_id).count(kind) >= count)

    async def _read(self) -> None:
        try:
            while True:
                await self._may_read.wait()
                data = await self.reader.read(256 * 1024)
                if not data:
                    break
                for found in self._connection.receive_data(data):
                    self._take(found)
                self._changed.set()
        except (OSError, errors.InvalidRequest):
            pass
        finally:
            self.writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the other side closed the connection"))
                    answer.exception()  # nobody need wait for it
            if not self.closed.done():
                self.closed.set_result(None)
            self._changed.set()

    def _take(self, found: Envelope | errors.InvalidRequest) -> None:
        if isinstance(found, errors.InvalidRequest):
            self.refused.append(found)
        elif found.method is UNSET:
            self._take_answer(found)
        else:
            params = msgspec.json.decode(found.params) if found.params is not UNSET else {}
            if found.id is UNSET or found.id is None:
                self.heard.append(Heard(found.method, params))
            else:
                request = Heard(found.method, params, found.id)
                self.heard.append(request)
                task = asyncio.create_task(self._answer(request), name=f"answer to {found.method}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take_answer(self, found: Envelope) -> None:
        waiting = self._waiting.pop(found.id, None) if isinstance(found.id, int) else None
        if waiting is None or not self._connection.accept_answer(found):
            self.stray.append(found)
        elif found.error is not UNSET and not waiting.done():
            error = msgspec.json.decode(found.error)
            waiting.set_exception(RpcError(error["code"], error["message"], error.get("data")))
            waiting.exception()  # nobody need wait for it
        elif not waiting.done():
            waiting.set_result(msgspec.json.decode(found.result) if found.result is not UNSET else None)

    async def _answer(self, request: Heard) -> None:
        assert request.request_id is not None
        answer = self.answers.get(request.method)
        try:
            if answer is not None:
                result = await answer(request.params)
            elif self.take_request is not None:
                result = await self.take_request(request)
            else:
                raise RpcError(-32601, f"Unhandled method {request.method}")
        except RpcError as error:
            self.send_body(messages.failure(request.request_id, error.number, error.message))
        else:
            self.send_body(messages.result(request.request_id, result))

    def send_body(self, body: bytes) -> None:
        """Send one message body as a frame."""
        self.writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def _send(self) -> None:
        self.writer.write(self._connection.data_to_send())


async def open_peer(host: str, port: int, seconds: float = WAIT_SECONDS) -> Peer:
    """Connect as a client; nothing is sent yet."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(host, port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Peer(reader, writer)


async def open_client(host: str, port: int, token: str | None, **introduction: Any) -> Peer:
    """Connect as a client and prove a token. Raises RpcError."""
    peer = await open_peer(host, port)
    try:
        await peer.call("connect", {**introduction, **({} if token is None else {"token": token})})
    except BaseException:
        await peer.aclose()
        raise
    return peer
