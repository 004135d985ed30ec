"""The TCP listener: accept, admit, drain, close. What a link says is for the relay it is given to.

With a certificate, links come through `transport.doorway`: those in their TLS handshake count as links.
Reads top to bottom: `start`, one task per link, `aclose`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from aerodrome import errors
from aerodrome.gateway import handshake
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.transport.doorway import Doorway
from aerodrome.transport.link import Link
from aerodrome.transport.tls import ServerCertificate

_log = structlog.get_logger()

Serve = Callable[[Link], Awaitable[None]]
_CLOSE_SECONDS = 5.0


class Listener:
    """Accepts client links and runs `serve` for each, until closed."""

    def __init__(self, serve: Serve, settings: GatewaySettings, certificate: ServerCertificate | None = None) -> None:
        self._serve = serve
        self._settings = settings
        self._doorway = (
            Doorway(certificate, settings.handshake_frame_bytes, settings.handshake_seconds) if certificate else None
        )
        #: Hears of each link that is refused before any cost.
        self.note_rejected: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._closing = False

    @property
    def links(self) -> int:
        """Return how many links are open."""
        return len(self._tasks)

    async def start(self) -> tuple[str, int]:
        """Listen; return the host and port (a port of 0 takes a free one).

        Raises:
            errors.ConfigError: the address cannot be listened on.
        """
        host, port = self._settings.listen_host, self._settings.listen_port
        try:
            if self._doorway is not None:
                return await self._doorway.start(host, port, self._take)
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Link(self._settings.handshake_frame_bytes, self._accept), host, port, backlog=1024
            )
        except OSError as error:
            raise errors.ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address with --listen"
            ) from None
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    def stop_accepting(self) -> None:
        """Take no new links; those that are open stay. Idempotent."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        if self._doorway is not None:
            self._doorway.stop_accepting()

    async def aclose(self) -> None:
        """Stop accepting, end every link, wait until all tasks are done."""
        self.stop_accepting()
        if self._doorway is not None:
            await self._doorway.aclose()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, link: Link) -> None:
        if self._admits():
            self._spawn(self._run(link), f"link {link.peer}")
        else:
            link.abort()

    def _take(self, sock: socket.socket) -> None:
        if self._admits():
            self._spawn(self._enter(sock), "link in its handshake")
        else:
            sock.close()

    def _admits(self) -> bool:
        if self._closing:
            return False  # it was on its way when we closed
        if len(self._tasks) >= self._settings.max_links:
            self.note_rejected()
            _log.warning("link.rejected", reason="max_links", limit=self._settings.max_links)
            return False
        return True

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enter(self, sock: socket.socket) -> None:
        assert self._doorway is not None
        link = await self._doorway.enter(sock)
        if link is not None:
            await self._run(link)

    async def _run(self, link: Link) -> None:
        await see_out(self._serve(link), link)


async def see_out(serving: Awaitable[None], link: Link) -> None:
    """Wait for the end of what serves a link, then close it; a peer that breaks the framing is told so."""
    try:
        await serving
    except errors.InvalidRequest as error:
        # Where the next frame begins is not known any more: say what was wrong, then close.
        link.send(handshake.answer_error(None, error))
    except asyncio.CancelledError:
        # We stop: a peer that has not read until now is not waited for.
        link.flush()
        link.abort()
        raise
    except Exception:
        _log.exception("link.failed", peer=link.peer)
    finally:
        await close_politely(link)


async def close_politely(link: Link, seconds: float = _CLOSE_SECONDS) -> None:
    """Close after sending what is queued; a peer that does not read it in time is cut off."""
    link.close()
    try:
        async with asyncio.timeout(seconds):
            await asyncio.shield(link.closed)
    except TimeoutError:
        link.abort()
    except asyncio.CancelledError:
        link.abort()
        raise
