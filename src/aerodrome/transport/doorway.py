"""The way in through TLS: accepted sockets, and the handshake of one, bounded in time and cost.

asyncio's own TLS listener counts nobody before the handshake and starts one for whoever connects. Here the owner is told of every
socket first, so that those in their handshake count as links; and a peer that does not begin as TLS does is closed before any
cryptography. What is said on the link afterwards is its owner's affair.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import structlog

from aerodrome.transport.link import Link
from aerodrome.transport.tls import ServerCertificate

_log = structlog.get_logger()
#: The first byte of a TLS record that begins a handshake.
_HANDSHAKE = b"\x16"
_BACKLOG = 1024
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RECOVERY_SECONDS = 1.0
_SHUTDOWN_SECONDS = 5.0
#: What a peer may have in decrypted and in cipher text with us while its link is not read, beside the link's own queue.
_READ_HIGH_BYTES = 64 * 1024


class Doorway:
    """Listening sockets whose connections begin with TLS."""

    def __init__(self, certificate: ServerCertificate, max_frame_bytes: int, handshake_seconds: float) -> None:
        self._certificate = certificate
        self._max_frame_bytes = max_frame_bytes
        self._handshake_seconds = handshake_seconds
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int, take: Callable[[socket.socket], None]) -> tuple[str, int]:
        """Listen, give every accepted socket to `take`; return the host and port.

        Raises:
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
                listening = socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
                listening.setblocking(False)
                self._sockets.append(listening)
        except OSError:
            await self.aclose()
            raise
        self._accepting = [
            loop.create_task(_accept(listening, take), name="tls doorway") for listening in self._sockets
        ]
        name = self._sockets[0].getsockname()
        return name[0], name[1]

    def stop_accepting(self) -> None:
        """Take no new connections. Idempotent."""
        for task in self._accepting:
            task.cancel()

    async def aclose(self) -> None:
        """Stop accepting and close the listening sockets. Idempotent."""
        self.stop_accepting()
        if self._accepting:
            await asyncio.wait(self._accepting)
        for listening in self._sockets:
            listening.close()

    async def enter(self, sock: socket.socket) -> Link | None:
        """Return the encrypted link of an accepted socket; None, the socket closed, if there is no handshake in time."""
        loop = asyncio.get_running_loop()
        link = Link(self._max_frame_bytes)
        try:
            async with asyncio.timeout(self._handshake_seconds):
                if await _first_byte(sock) != _HANDSHAKE:
                    _log.debug("link.handshake_failed", reason="the peer does not speak TLS")
                    sock.close()
                    return None
                await loop.connect_accepted_socket(
                    lambda: link,  # not what it returns: of uvloop that is the TLS layer
                    sock,
                    ssl=self._certificate.context(),
                    ssl_handshake_timeout=self._handshake_seconds,
                    ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
                )
        except (OSError, TimeoutError) as error:
            sock.close()
            _log.debug("link.handshake_failed", reason=str(error) or type(error).__name__)
            return None
        except BaseException:
            sock.close()
            raise
        link.limit_reading(_READ_HIGH_BYTES)
        return link


async def _accept(listening: socket.socket, take: Callable[[socket.socket], None]) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                # A peer that gave up already is no fault; without descriptors, accepting again at once would spin.
                if error.errno in _EXHAUSTED:
                    _log.warning("link.rejected", reason=error.strerror, limit=0)
                    await asyncio.sleep(_RECOVERY_SECONDS)
                continue
            take(sock)
    finally:
        listening.close()


async def _first_byte(sock: socket.socket) -> bytes:
    """Return the first byte that comes, and leave it where it is; nothing if the peer leaves."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())
    return sock.recv(1, socket.MSG_PEEK)
