"""An ASGI application on a TCP port of this process, for the length of its owner's life.

Not the place of an application: it carries any. Signals stay with the gateway, which uvicorn would take for itself.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_STOP_SECONDS = 5.0
#: A peer that takes nothing of what was sent for so long is gone; one that is silent is asked after this, so often.
_UNREAD_SECONDS = 60
_SILENT_SECONDS = 60
_ASK_SECONDS = 15
#: All of a request has come within so long, or its connection ends; its head is no larger than this, about.
_REQUEST_SECONDS = 60.0
_MAX_HEAD_BYTES = 64 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_EXTENSION = "aerodrome"
#: It complains of answers that were cut off; whoever cut them off has said so already.
_QUIET = {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn.error": {"level": "CRITICAL"}}}


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class _Protocol(HttpToolsProtocol):
    """Lets an application see the client's certificate, and cut a connection whose reader has stalled.

    Bounds what uvicorn does not: how long a request may take to come, and how large its head may be. A peer that nobody knows
    yet would else hold a connection, or fill memory, for as long as it likes.
    """

    _deadline: asyncio.TimerHandle | None = None
    #: What has come of a head since the read in which it began; None: no head is open.
    _head_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, so long at most."""
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; end the connection where its head grows beyond the bound."""
        was_open = self._head_bytes is not None
        super().data_received(data)
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_request()  # for what is no beginning of one yet, too
        if self._head_bytes is not None and was_open:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """Add to the scope of a request what `certificate_of` and `abort` take from it."""
        super().on_message_begin()
        extensions = {_EXTENSION: {"transport": self.transport}}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]
        self._head_bytes = 0
        self._wait_for_request()

    def on_headers_complete(self) -> None:
        """Note that the head has come."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that all of a request has come."""
        self._stop_waiting()
        super().on_message_complete()

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(_REQUEST_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            self._wait_for_request()  # it is we who do not read
        elif not self.transport.is_closing():
            self.transport.abort()


def certificate_of(scope: Scope) -> object:
    """Return the verified certificate of a request's client, as ssl gives it; None without one."""
    transport = scope.get("extensions", {}).get(_EXTENSION, {}).get("transport")
    return transport.get_extra_info("peercert") if transport is not None else None


def abort(scope: Scope) -> None:
    """Cut the connection of a request at once: closing it would wait for the reader who does not read."""
    transport = scope.get("extensions", {}).get(_EXTENSION, {}).get("transport")
    if transport is not None:
        transport.abort()


class AsgiServer:
    """Serves an application until it is closed."""

    def __init__(
        self,
        application: ASGIApp,
        max_connections: int,
        context: ssl.SSLContext | None = None,
        stop_seconds: int = 1,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        # What `X-Forwarded-For` and `-Proto` say is believed of those alone: uvicorn itself believes all of this machine.
        # A request over the limit is answered 503 by uvicorn itself.
        config = uvicorn.Config(
            application,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=_QUIET,
            access_log=False,
            server_header=False,
            limit_concurrency=max_connections,
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=list(trusted_proxies),
            timeout_graceful_shutdown=stop_seconds,
        )
        config.load()
        config.ssl = context
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; return the port.

        Raises:
            OSError: the address cannot be had.
        """
        listening = socket.create_server((host, port), backlog=1024)
        # Accepted sockets inherit it; asyncio itself sets it on some only, and then an answer's parts wait 40 ms for each other.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _end_with_peers(listening)
        self._serving = asyncio.create_task(self._server.serve([listening]), name="http server")
        return int(listening.getsockname()[1])

    async def aclose(self) -> None:
        """Stop listening and end what is under way; idempotent."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._server.should_exit = True
        _, late = await asyncio.wait((serving,), timeout=_STOP_SECONDS)
        if late:
            serving.cancel()
            await asyncio.wait((serving,))


def _end_with_peers(listening: socket.socket) -> None:
    """Have connections end whose peer is gone without a word; accepted sockets inherit it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENT_SECONDS),
        ("TCP_KEEPINTVL", _ASK_SECONDS),
        ("TCP_USER_TIMEOUT", _UNREAD_SECONDS * 1000),
    ):
        if (option := getattr(socket, name, None)) is not None:
            listening.setsockopt(socket.IPPROTO_TCP, option, value)
