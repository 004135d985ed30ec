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
from aerodrome.ports.host import Dial
from aerodrome.protocol import framing

_QUEUE_BYTES = 256 * 1024
#: What a queued frame costs beyond its body: frames of nothing would be free otherwise, and have no bound.
_FRAME_COST_BYTES = 64
_WRITE_HIGH_BYTES = 512 * 1024
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Link(asyncio.Protocol):
    """A connection that sends and receives message bodies. One task reads; any may send."""

    def __init__(self, max_frame_bytes: int, on_open: Callable[[Link], None] | None = None) -> None:
        self._decoder = framing.FrameDecoder(max_frame_bytes)
        self._on_open = on_open
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._outgoing: list[bytes] = []
        self._wakeup: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._ended = False
        self._stays_half_open = False
        self._is_encrypted = False
        self._has_eof = False
        self._take_bytes: Callable[[bytes], None] | None = None
        self._take_end: Callable[[], None] = _nothing
        self._fault: errors.InvalidRequest | None = None
        self._transport: asyncio.Transport | None = None
        self._quickack: Callable[[], None] = _nothing
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tune the socket and tell the owner."""
        self._transport = cast("asyncio.Transport", transport)
        self._is_encrypted = self._transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._quickack = _tune(self._transport.get_extra_info("socket"))
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Acknowledge, then cut frames and wake the reader, or hand the bytes over."""
        self._quickack()
        if self._take_bytes is not None:
            self._take_bytes(data)
            return
        if self._fault is not None:
            return  # whatever follows a broken header has no frame boundaries
        try:
            for body in self._decoder.feed(data):
                self._take(body)
            self._fault = self._decoder.fault
        except errors.InvalidRequest as fault:
            self._fault = fault
        if self._fault is not None:
            self.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Treat a half-closed peer as gone, unless the owner asked for more."""
        if not self._stays_half_open or self._is_encrypted:
            return False  # asyncio knows no half-closed TLS: it closes both ways
        self._has_eof = True
        self._wake()
        self._take_end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everyone who waits on this link."""
        self._ended = True
        self._quickack = _nothing  # its descriptor may be another connection's in a moment
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
    def transport(self) -> asyncio.BaseTransport:
        """Return what carries it, to ask the kernel about; it is open once the owner was told."""
        assert self._transport is not None
        return self._transport

    @property
    def certificate(self) -> object:
        """Return the peer's verified certificate as `ssl` says it; None without one."""
        return self._transport.get_extra_info("peercert") if self._transport else None

    @property
    def is_closing(self) -> bool:
        """Say whether this link sends no more."""
        return self._ended or self._transport is None or self._transport.is_closing()

    @property
    def is_stalled(self) -> bool:
        """Say whether the peer reads too slowly: `drain` would wait."""
        return self._writable is not None

    @property
    def unsent_bytes(self) -> int:
        """Return how much was written and is not with the kernel yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def set_option(self, level: int, option: int, value: int) -> None:
        """Set an option of the socket, where there is one."""
        sock = self._transport.get_extra_info("socket") if self._transport else None
        if sock is not None:
            sock.setsockopt(level, option, value)

    def limit_reading(self, high_bytes: int) -> None:
        """Bound what an encrypted link's transport keeps of a peer while the link is not read."""
        set_limits = getattr(self._transport, "set_read_buffer_limits", None)
        if set_limits is not None:
            set_limits(high=high_bytes)

    def limit_frames(self, max_frame_bytes: int) -> None:
        """Change the limit for frames whose header has not come yet."""
        self._decoder.max_frame_bytes = max_frame_bytes

    def stay_half_open(self) -> None:
        """Go on sending to a peer that sends no more: its owner closes."""
        self._stays_half_open = True

    def hand_over(self, take_bytes: Callable[[bytes], None], take_end: Callable[[], None]) -> None:
        """Give received bytes to `take_bytes` from now on, as they come and framed; `take_end` hears that there are no more.

        Both are called from within the event loop's read, with no task in between. What came before and was not returned by
        `receive` is given first, before this returns. `take_end` may be called twice, and not at all once `closed` is done.

        Raises:
            errors.InvalidRequest: the peer broke the framing before.
        """
        if self._fault is not None:
            raise self._fault
        self._take_bytes, self._take_end = take_bytes, take_end
        early = b"".join(map(framing.encode, self._frames)) + self._decoder.take_rest()
        self._frames.clear()
        self._queued_bytes = 0
        self.resume_reading()
        if early:
            take_bytes(early)
        if self._has_eof:
            take_end()

    async def receive(self) -> list[bytes]:
        """Return all frames that have come, waiting for the first; an empty list means the link has ended.

        Raises:
            errors.InvalidRequest: the peer broke the framing; every frame before that was returned.
        """
        while not self._frames:
            if self._fault is not None:
                raise self._fault
            if self._ended or self._has_eof:
                return []
            self._wakeup = asyncio.get_running_loop().create_future()
            try:
                await self._wakeup
            finally:
                self._wakeup = None
        batch = list(self._frames)
        self._frames.clear()
        self._queued_bytes = 0
        self.resume_reading()
        return batch

    def send(self, body: bytes) -> None:
        """Collect one message body for the next `flush`."""
        self._outgoing.append(framing.header(len(body)))
        self._outgoing.append(body)

    def write(self, data: bytes) -> None:
        """Write bytes that are framed already, at once, after what was collected; a closing link drops them."""
        if self._outgoing:
            self.flush()
        if not self.is_closing and self._transport is not None:
            self._transport.write(data)

    def send_end(self) -> None:
        """Tell the peer that nothing more comes, after what was sent; go on receiving."""
        self.flush()
        if not self.is_closing and self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call back once a stalled peer has read enough, or has gone."""
        if self._writable is None:
            asyncio.get_running_loop().call_soon(call)
        else:
            self._writable.add_done_callback(lambda _: call())

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

    def pause_reading(self) -> None:
        """Leave what comes to the kernel for now: the peer notices when its window is full."""
        if not self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless the framing was broken."""
        if self._reading_paused and self._fault is None and not self.is_closing and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    def _take(self, body: bytes) -> None:
        self._frames.append(body)
        self._queued_bytes += _FRAME_COST_BYTES + len(body)
        if self._queued_bytes > _QUEUE_BYTES:
            self.pause_reading()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


def _nothing() -> None:
    """Acknowledge nothing: not a TCP socket, or a platform without TCP_QUICKACK."""


class _BorrowedSocket(socket.socket):
    """A socket object on a descriptor that is a transport's: it never closes it."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


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
    # uvloop's stand-in for a socket makes a new one at every call; this one is made once.
    borrowed = _BorrowedSocket(sock.family, sock.type, sock.proto, fileno=sock.fileno())

    def acknowledge() -> None:
        # The socket may have been reset between the read and now; the read side tells that by itself.
        try:
            borrowed.setsockopt(socket.IPPROTO_TCP, option, 1)
        except OSError:
            return

    acknowledge()
    return acknowledge


async def connect(host: str, port: int, max_frame_bytes: int, timeout_seconds: float, dial: Dial | None = None) -> Link:
    """Open a link to an upstream; by `dial` where its address is in a network that we are not in.

    Raises:
        errors.RuntimeUnavailable: nothing answers there within the time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_seconds):
            if dial is None:
                _, link = await loop.create_connection(lambda: Link(max_frame_bytes), host, port)
            else:
                _, link = await loop.create_connection(lambda: Link(max_frame_bytes), sock=await dial())
    except (OSError, TimeoutError) as error:
        raise errors.RuntimeUnavailable(
            f"cannot connect to the runtime at {host}:{port} ({error or 'timeout'}); is it running?"
        ) from None
    return link
