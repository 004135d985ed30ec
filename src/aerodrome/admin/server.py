"""The admin socket: STATE/admin.sock, for operators on this machine who are the gateway's user or root.

Speaks the project's own framed JSON-RPC; there is no token, because the kernel says who connects (SO_PEERCRED), beside the modes
of the socket and its directory. A caller is trusted with the verbs (admin.operations), not with the gateway's health: few links,
small frames, one request at a time on each, and whoever neither asks nor reads is cut off. A gateway that cannot have its socket
says so and serves without it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.admin import address
from aerodrome.admin.operations import Operations
from aerodrome.gateway import handshake, listener
from aerodrome.protocol import messages
from aerodrome.protocol.messages import Envelope
from aerodrome.transport.link import Link

_log = structlog.get_logger()
_MAX_LINKS = 16
_MAX_FRAME_BYTES = 64 * 1024
_CREDENTIALS = struct.Struct("3i")
_OPTION = getattr(socket, "SO_PEERCRED", None)


class AdminLink(Link):
    """A link whose peer is a process of this machine; `uid` is None where the kernel does not say whose."""

    uid: int | None = None
    pid = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the kernel who connects, then tell the owner."""
        if _OPTION is not None:
            raw = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, _OPTION, _CREDENTIALS.size)
            self.pid, self.uid, _ = _CREDENTIALS.unpack(raw)
        super().connection_made(transport)


class AdminServer:
    """Listens on the socket of a state directory, which must be held alone. Times are in seconds."""

    def __init__(self, directory: Path, idle_seconds: float = 30.0, stall_seconds: float = 10.0) -> None:
        self._directory = directory
        self._idle_seconds = idle_seconds
        self._stall_seconds = stall_seconds
        self._operations: Operations | None = None
        self._server: asyncio.Server | None = None
        self._is_closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def links(self) -> int:
        """Return how many links are open."""
        return len(self._tasks)

    async def start(self, operations: Operations) -> bool:
        """Listen in the place of whatever an earlier life left; say whether that was possible, the log says why not."""
        self._operations = operations
        try:
            with address.short_path(self._directory) as path:
                self._server = await self._listen(path)
        except OSError as error:
            _log.warning("admin.unavailable", path=str(address.socket_path(self._directory)), reason=str(error))
            return False
        return True

    async def aclose(self) -> None:
        """Tell every caller that the gateway has stopped, close, and remove the socket. Idempotent."""
        self._is_closing = True
        server, self._server = self._server, None
        if server is not None:
            server.close()
            with suppress(OSError):
                address.socket_path(self._directory).unlink()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._operations is not None:
            await self._operations.aclose()

    async def _listen(self, path: str) -> asyncio.Server:
        if address.is_socket(path):
            os.unlink(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            bound.bind(path)
            # Until it listens, which is next, nobody can connect.
            os.chmod(path, 0o600)
            return await asyncio.get_running_loop().create_unix_server(self._make_link, sock=bound, backlog=_MAX_LINKS)
        except BaseException:
            bound.close()
            raise

    def _make_link(self) -> AdminLink:
        return AdminLink(_MAX_FRAME_BYTES, self._accept)

    def _accept(self, link: Link) -> None:
        assert isinstance(link, AdminLink)
        reason = None
        if link.uid not in (0, os.geteuid()):
            reason = "another user"
        elif len(self._tasks) >= _MAX_LINKS:
            reason = "too many links"
        if reason is not None or self._is_closing:
            _log.warning("admin.rejected", reason=reason or "stopping", uid=link.uid, pid=link.pid)
            link.abort()
            return
        task = asyncio.get_running_loop().create_task(self._run(link), name=f"admin link of process {link.pid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, link: AdminLink) -> None:
        try:
            await self._serve(link)
        except TimeoutError:
            pass  # it has nothing to ask
        except errors.InvalidRequest as error:
            link.send(handshake.answer_error(None, error))
        except asyncio.CancelledError:
            link.send(messages.notification(address.STOPPED))
            raise
        finally:
            await listener.close_politely(link, 0.5)

    async def _serve(self, link: AdminLink) -> None:
        while True:
            async with asyncio.timeout(self._idle_seconds):
                batch = await link.receive()
            if not batch:
                return
            for body in batch:
                answer = await self._answer(link, body)
                if link.is_closing:
                    return
                if answer is not None:
                    link.send(answer)
                    link.flush()
                    await link.drain(self._stall_seconds)

    async def _answer(self, link: AdminLink, body: bytes) -> bytes | None:
        """Return the answer to one message, None where none is owed."""
        try:
            envelope = messages.decode(body)
        except errors.InvalidRequest as error:
            return handshake.answer_error(None, error)
        if envelope.method is UNSET or envelope.id is UNSET or envelope.id is None:
            return None
        try:
            return messages.result(envelope.id, await self._call_while_open(link, envelope))
        except errors.AerodromeError as error:
            return handshake.answer_error(envelope.id, error)
        except Exception:
            _log.exception("admin.failed", verb=envelope.method)
            failed = errors.AerodromeError("the gateway failed to do this; its log says why")
            return handshake.answer_error(envelope.id, failed)

    async def _call_while_open(self, link: AdminLink, envelope: Envelope) -> Any:
        """Do what is asked; a caller who leaves is not worked for any longer."""

        def notify(method: str, params: Any) -> None:
            if link.is_stalled:
                return  # progress is a hint; what is not read is not kept
            link.send(messages.notification(method, messages.encode(params)))
            link.flush()

        assert self._operations is not None
        assert isinstance(envelope.method, str)
        params = messages.params_object(envelope.params)
        caller = f"uid {link.uid}, pid {link.pid}"
        call = asyncio.ensure_future(self._operations.call(envelope.method, params, notify, caller))
        try:
            await asyncio.wait((call, link.closed), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise errors.InvalidRequest("the caller has left")
            return call.result()
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait((call,))
