"""The way out of a sandbox: an HTTP proxy of the gateway's that listens on the loopback of the sandbox's own network.

It speaks CONNECT (TLS passes through, unseen) and absolute-form requests, and opens connections to what policy names. Names
are looked up here, and one that leads to this machine or its networks is refused unless policy names it literally. What policy
names on loopback is reached at the same port inside, without a proxy: programs make exceptions for loopback.

The sockets that listen are made inside (RuntimeNetwork); what they accept is served here: nothing runs in the sandbox for it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable

import structlog

from aerodrome.core import egress
from aerodrome.ports.host import RuntimeNetwork

_HEAD_BYTES = 64 * 1024
_HEAD_SECONDS = 30.0
_CONNECT_SECONDS = 20.0
_CHUNK_BYTES = 64 * 1024
_CONNECTIONS = 256
_CONNECT = re.compile(rb"CONNECT (?P<target>[^ ]+) HTTP/1\.[01]\r\n", re.ASCII)
_ABSOLUTE = re.compile(
    rb"(?P<method>[A-Z]{1,20}) http://(?P<target>[^/ ?@]+)(?P<path>[/?][^ ]*)? (?P<version>HTTP/1\.[01])\r\n",
    re.ASCII | re.IGNORECASE,
)
#: Of the connection to the proxy, not of the request; after one request the connection ends, for the next may be for elsewhere.
_HOP = re.compile(rb"(?:connection|proxy-[a-z-]+|keep-alive):", re.IGNORECASE)

_log = structlog.get_logger()

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
#: Host, port, and the address that the host's name led to.
_Way = tuple[str, int, str]


class Refused(Exception):
    """A request that is answered with an error: its status and reason."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Egress:
    """What one sandboxed runtime may reach."""

    def __init__(self, targets: tuple[str, ...], proxy_port: int) -> None:
        self._targets = targets
        self._proxy_port = proxy_port
        self._network: RuntimeNetwork | None = None
        #: By the port inside; of every connection that is open where it leads, once that is known.
        self._servers: dict[int, asyncio.Server] = {}
        self._serving: dict[asyncio.Task[None], _Way | None] = {}
        self._changing: asyncio.Task[None] | None = None
        self._said: set[str] = set()
        self._is_closed = False

    async def start(self, network: RuntimeNetwork) -> None:
        """Listen inside, for the proxy and for every target on loopback.

        Raises:
            OSError: a port cannot be had there.
        """
        self._network = network
        await self._serve(self._proxy_port, network, self._answer)
        for port in egress.loopback_ports(self._targets):
            await self._serve(port, network, self._to_loopback(port))
        if self._is_closed:
            self.close()

    def let_reach(self, targets: tuple[str, ...]) -> None:
        """Let through these and nothing else: what is open to others ends. Ports of loopback open inside a moment later."""
        if targets == self._targets:
            return
        self._targets = targets
        wanted = {self._proxy_port, *egress.loopback_ports(targets)}
        for port in [port for port in self._servers if port not in wanted]:
            self._servers.pop(port).close()
        for task, way in list(self._serving.items()):
            if way is not None and not egress.may_reach(*way, targets):
                task.cancel()
        is_changing = self._changing is not None and not self._changing.done()
        if self._network is not None and not is_changing and not self._is_closed:
            self._changing = asyncio.create_task(self._open_ports(self._network), name="ports of a sandbox")

    async def _open_ports(self, network: RuntimeNetwork) -> None:
        """Listen on every port that is to be there, those that are named meanwhile included."""
        done: set[int] = set(self._servers)
        while new := set(egress.loopback_ports(self._targets)) - done:
            port = new.pop()
            done.add(port)
            try:
                await self._serve(port, network, self._to_loopback(port))
            except (OSError, TimeoutError) as error:
                _log.warning("egress.unopened", port=port, reason=str(error) or "timeout")
            if self._is_closed or port not in egress.loopback_ports(self._targets):
                server = self._servers.pop(port, None)
                done.discard(port)
                if server is not None:
                    server.close()
            if self._is_closed:
                return

    def close(self) -> None:
        """Listen no more and end what is open. Idempotent."""
        self._is_closed = True
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for task in self._serving:
            task.cancel()

    async def _serve(self, port: int, network: RuntimeNetwork, work: Callable[[_Streams], Awaitable[None]]) -> None:
        listening = await network.listen(port)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            if len(self._serving) >= _CONNECTIONS or self._is_closed:
                writer.transport.abort()
                return
            self._serving[task] = None
            try:
                await work((reader, writer))
            except (OSError, TimeoutError, asyncio.CancelledError):
                pass  # either end is gone, or the sandbox is
            finally:
                del self._serving[task]
                writer.transport.abort()

        self._servers[port] = await asyncio.start_server(accept, sock=listening, limit=_HEAD_BYTES)

    async def _answer(self, inside: _Streams) -> None:
        """Serve one connection to the proxy: read what it asks for, check it, open it, copy both ways."""
        reader, writer = inside
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        try:
            target, forwarded = _parse(head)
            outside = await self._open(target)
        except Refused as refused:
            if refused.status not in self._said:  # once each: an agent decides how often it asks
                self._said.add(refused.status)
                _log.warning("egress.refused", reason=refused.status)
            writer.write(f"HTTP/1.1 {refused.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            writer.write_eof()
            return
        if forwarded is None:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            outside[1].write(forwarded)
        await _join(inside, outside)

    async def _open(self, target: str) -> _Streams:
        found = egress.split(target.lower())
        if found is None:
            raise Refused("400 Expected HOST:PORT")
        host, port = found
        if not egress.is_allowed(host, port, self._targets):
            raise Refused("403 Not allowed by policy")
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
                ways = [(host, port, str(entry[4][0])) for entry in addresses]
                allowed = [way for way in ways if egress.may_reach(*way, self._targets)]
                if not allowed:
                    raise Refused("403 Leads to an address that policy does not name")
                self._note_way(allowed[0])
                # The address that was checked, not the name again: it may lead elsewhere a moment later.
                return await asyncio.open_connection(allowed[0][2], port)
        except (OSError, TimeoutError, UnicodeError):  # the last: a name that could be no host's
            raise Refused("502 Cannot be reached") from None

    def _to_loopback(self, port: int) -> Callable[[_Streams], Awaitable[None]]:
        async def forward(inside: _Streams) -> None:
            named = [host for host in ("127.0.0.1", "localhost") if egress.is_named(host, port, self._targets)]
            if not named:
                return
            self._note_way((named[0], port, "127.0.0.1"))
            async with asyncio.timeout(_CONNECT_SECONDS):
                outside = await asyncio.open_connection("127.0.0.1", port)
            await _join(inside, outside)

        return forward

    def _note_way(self, way: _Way) -> None:
        """Note where the connection that this task serves leads."""
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = way


def _parse(head: bytes) -> tuple[str, bytes | None]:
    """Return the target of a request and what to send there in its place; None for CONNECT.

    Raises:
        Refused: it is neither form.
    """
    if match := _CONNECT.match(head):
        return match["target"].decode("latin-1"), None
    match = _ABSOLUTE.match(head)
    if match is None:
        raise Refused("400 Expected CONNECT or an absolute http:// URL")
    target = match["target"].decode("latin-1")
    path = match["path"] or b"/"
    path = path if path.startswith(b"/") else b"/" + path
    lines = [line for line in head[match.end() : -4].split(b"\r\n") if line and not _HOP.match(line)]
    first = b"%b %b %b" % (match["method"], path, match["version"])
    has_port = re.search(r":[0-9]+\Z", target) is not None
    return (target if has_port else f"{target}:80"), b"\r\n".join([first, *lines, b"Connection: close", b"", b""])


async def _join(inside: _Streams, outside: _Streams) -> None:
    """Copy both ways until both have ended, or either breaks."""
    try:
        async with asyncio.TaskGroup() as copying:
            copying.create_task(_copy(inside[0], outside[1]))
            copying.create_task(_copy(outside[0], inside[1]))
    except* OSError:
        pass
    finally:
        outside[1].transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK_BYTES):
        target.write(chunk)
        await target.drain()
    target.write_eof()
