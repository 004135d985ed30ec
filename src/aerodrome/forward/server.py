"""The local side of `aerodrome connect`: a loopback port or a unix socket, and who of this machine may use it.

Whoever gets in acts as the user whose token the forwarder holds, so nobody does by default: the kernel must say that the peer is
of our own user (or root), or, where a local token is set, the program must show that one. Only loopback can be listened on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from aerodrome import errors
from aerodrome.forward import neighbours
from aerodrome.forward.carrier import Carrier, Limits, Upstream
from aerodrome.gateway import listener
from aerodrome.transport.link import Link

_log = structlog.get_logger()
_MAX_LINKS = 256
_HANDSHAKE_FRAME_BYTES = 64 * 1024


class Forwarder:
    """Accepts local programs and carries each to the gateway."""

    def __init__(
        self,
        upstream: Upstream,
        limits: Limits | None = None,
        local_token: str | None = None,
        is_sole: bool = False,
    ) -> None:
        self._upstream = upstream
        self._limits = limits or Limits()
        self._local_token = local_token
        self._is_sole = is_sole
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._path: Path | None = None

    async def start(self, address: str) -> str:
        """Listen on `HOST:PORT` (loopback; 0 takes a free port) or `unix:PATH`; return the address.

        Raises:
            errors.ConfigError: it cannot be listened on, or others could reach it.
        """
        kind, _, path = address.partition(":")
        try:
            if kind == "unix":
                return await self._listen_on_path(Path(path))
            return await self._listen_on_port(*_split(address))
        except OSError as error:
            raise errors.ConfigError(
                f"cannot listen on {address}: {error.strerror or error}; choose another with --listen"
            ) from None

    async def aclose(self) -> None:
        """Stop listening and end every local link."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()

    async def _listen_on_port(self, host: str, port: int) -> str:
        self._server = await asyncio.get_running_loop().create_server(self._open_link, host, port)
        name = self._server.sockets[0].getsockname()
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    async def _listen_on_path(self, path: Path) -> str:
        await asyncio.to_thread(_clear, path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(self._open_link, str(path))
        finally:
            os.umask(before)
        self._path = path
        return f"unix:{path}"

    def _open_link(self) -> Link:
        return Link(_HANDSHAKE_FRAME_BYTES, self._accept)

    def _accept(self, link: Link) -> None:
        reason = self._reason_against(link)
        if reason is not None:
            _log.warning("link.rejected", reason=reason, limit=_MAX_LINKS)
            link.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(link), name="local program")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reason_against(self, link: Link) -> str | None:
        if len(self._tasks) >= _MAX_LINKS:
            return "too many local programs"
        if self._local_token is None and not neighbours.is_own(link.transport):
            return "a program of another user, or of one the kernel does not name; set AERODROME_LOCAL_TOKEN_FILE"
        return None

    async def _serve(self, link: Link) -> None:
        await serve(Carrier(link, self._upstream, self._limits, self._local_token, self._is_sole), link)


async def serve(carrier: Carrier, link: Link) -> None:
    """Run a carrier to its end and close its link; a program that breaks the framing is told so."""
    await listener.see_out(carrier.run(), link)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    with suppress(ValueError):
        if not port.isdigit() or int(port) > 65535:
            raise errors.ConfigError(f"expected HOST:PORT or unix:PATH to listen on, found {address!r}")
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return host, int(port)
    raise errors.ConfigError(
        f"{host} can be reached from other machines, and whoever reaches it would be you; listen on 127.0.0.1 or unix:PATH"
    )


def _clear(path: Path) -> None:
    """Remove the socket of a forwarder that is gone. Raises errors.ConfigError: one is there, or something else is."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise errors.ConfigError(f"{path} exists and is no socket; choose another with --listen")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise errors.ConfigError(f"another forwarder listens on {path}; use it, or choose another with --listen")
