"""One framed connection, either direction: the asyncio shell round the protocol core.

Frames come out in batches (all that one read completed), because one wake-up and one write per batch is what keeps the relay
cheap. Writes collect until `flush`. A reader that falls behind stops its peer: at `_QUEUE_BYTES` of unread frames the
socket is no longer read, and TCP tells the sender. What frames mean is decided in `relay`.

Neither the SDKs nor the runtime set TCP_NODELAY, and both write small frames in pairs: their kernels hold the second until the
first is acknowledged, and an ordinary receiver delays that by 40 ms (measured, protocol facts 1.1). So every read re-arms
TCP_QUICKACK, which acknowledges at once; it is not sticky, hence after every read.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from aerodrome import errors
from aerodrome.protocol import framing

_QUEUE_BYTES = 256 * 1024
_WRITE_HIGH_BYTES = 512 * 1024
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Link(asyncio.Protocol):
    """A connection that sends and receives message bodies. One task reads; any may send."""

    def __init__(self, max_frame_bytes: int, on_open: Callable[[Link], None] | None = None) -> None:
        self._decoder: framing.FrameDecoder | None = framing.FrameDecoder(max_frame_bytes)
        self._on_open = on_open
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._outgoing: list[bytes] = []
        self._wakeup: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._ended = False
        self._fault: errors.InvalidRequest | None = None
        self._transport: asyncio.Transport | None = None
        self._quickack: Callable[[], None] = _nothing
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tune the socket and tell the owner."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._quickack = _tune(self._transport.get_extra_info("socket"))
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Cut frames, acknowledge, wake the reader."""
        self._quickack()
        if self._fault is not None:
            return  # whatever follows a broken header has no frame boundaries
        if self._decoder is None:
            self._take(data)
        else:
            try:
                for body in self._decoder.feed(data):
                    self._take(body)
            except errors.InvalidRequest as fault:
                self._fault = fault
                self._pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Treat a half-closed peer as gone, as the runtime does."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everyone who waits on this link."""
        self._ended = True
        self._wake()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Make `drain` wait: the peer does not read."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # -- for its owner ------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """Return the peer's address for logs."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"

    @property
    def is_closing(self) -> bool:
        """Say whether this link sends no more."""
        return self._ended or self._transport is None or self._transport.is_closing()

    @property
    def is_stalled(self) -> bool:
        """Say whether the peer reads too slowly: `drain` would wait."""
        return self._writable is not None

    def limit_frames(self, max_frame_bytes: int) -> None:
        """Change the limit for frames whose header has not come yet."""
        if self._decoder is not None:
            self._decoder.max_frame_bytes = max_frame_bytes

    def stop_framing(self) -> None:
        """Hand on bytes as they come from now on; only where nothing is half received."""
        self._decoder = None

    async def receive(self) -> list[bytes]:
        """Return all frames that have come, waiting for the first; an empty list means the link has ended.

        Raises:
            errors.InvalidRequest: the peer broke the framing; every frame before that was returned.
        """
        while not self._frames:
            if self._fault is not None:
                raise self._fault
            if self._ended:
                return []
            self._wakeup = asyncio.get_running_loop().create_future()
            try:
                await self._wakeup
            finally:
                self._wakeup = None
        batch = list(self._frames)
        self._frames.clear()
        self._queued_bytes = 0
        self._resume_reading()
        return batch

    def send(self, body: bytes) -> None:
        """Collect one message body for the next `flush`."""
        self._outgoing.append(framing.header(len(body)))
        self._outgoing.append(body)

    def send_raw(self, data: bytes) -> None:
        """Collect bytes that are framed already."""
        self._outgoing.append(data)

    def flush(self) -> None:
        """Write what was collected, in one call; a closing link drops it."""
        if self._outgoing:
            if not self.is_closing and self._transport is not None:
                self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    async def drain(self, stall_seconds: float) -> None:
        """Wait until the peer has read enough; a peer that does not for `stall_seconds` loses the link."""
        if self._writable is None or self.is_closing:
            return
        try:
            async with asyncio.timeout(stall_seconds):
                await asyncio.shield(self._writable)
        except TimeoutError:
            self.abort()

    def close(self) -> None:
        """Flush and close; what the peer has not read within its own time is the kernel's affair."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once and drop what is not sent."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, body: bytes) -> None:
        self._frames.append(body)
        self._queued_bytes += len(body)
        if self._queued_bytes > _QUEUE_BYTES:
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._fault is None and not self.is_closing and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


def _nothing() -> None:
    """Acknowledge nothing: not a TCP socket, or a platform without TCP_QUICKACK."""


def _tune(sock: socket.socket | None) -> Callable[[], None]:
    """Set TCP options; return the function that acknowledges at once."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return _nothing
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Half-open peers (a laptop closed, a NAT entry gone) would otherwise hold their runtime's connections for ever.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if _QUICKACK is None:
        return _nothing
    option = _QUICKACK

    def acknowledge() -> None:
        # The socket may have been reset between the read and now; the read side tells that by itself.
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)
        except OSError:
            return

    acknowledge()
    return acknowledge


async def connect(host: str, port: int, max_frame_bytes: int, timeout_seconds: float) -> Link:
    """Open a link to an upstream.

    Raises:
        errors.RuntimeUnavailable: nothing answers there within the time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_seconds):
            _, link = await loop.create_connection(lambda: Link(max_frame_bytes), host, port)
    except (OSError, TimeoutError) as error:
        raise errors.RuntimeUnavailable(
            f"cannot connect to the runtime at {host}:{port} ({error or 'timeout'}); is it running?"
        ) from None
    return link
