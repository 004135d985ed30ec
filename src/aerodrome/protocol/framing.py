"""Content-Length framing (the LSP base protocol): bytes to message bodies and back.

Sans-IO: no sockets, no clocks, no JSON. What a body means is `messages`; which request it answers is `correlation`.
Emits exactly `Content-Length: N\\r\\n\\r\\n`, the only header the Python SDK takes (`copilot/_jsonrpc.py`, case-sensitive);
accepts any letter case, further headers, and bare newlines, as the runtime does.
"""

from __future__ import annotations

from aerodrome import errors

#: A header block longer than this is not one of ours: stop reading before it costs memory.
MAX_HEADER_BYTES = 4096

_PREFIX = b"Content-Length: "
_END = b"\r\n\r\n"
#: More digits than any 64-bit length has are not a length.
_MAX_DIGITS = 20


def encode(body: bytes) -> bytes:
    """Return the frame of one message body."""
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def header(length_bytes: int) -> bytes:
    """Return the header of a body of that many bytes, for writers that send the parts without joining them."""
    return b"Content-Length: %d\r\n\r\n" % length_bytes


class FrameDecoder:
    """Cut a byte stream into message bodies.

    Holds at most one incomplete frame: `max_frame_bytes` plus one header. After a fault the stream cannot be read on,
    because where the next frame begins is not known. However a stream is cut, the same bodies come out of it, and then the same
    fault.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        #: What broke the framing behind the bodies returned last; None while the stream can be read on.
        self.fault: errors.InvalidRequest | None = None
        self._buffer = bytearray()
        self._frame_end = 0  # where the frame in the buffer ends; 0 while its header is not complete

    @property
    def buffered_bytes(self) -> int:
        """Return how many bytes of an incomplete frame are held."""
        return len(self._buffer)

    def take_rest(self) -> bytes:
        """Return the bytes of an incomplete frame and forget them."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._frame_end = 0
        return rest

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes; return the bodies completed by them, in order.

        A fault behind completed bodies is left in `fault`, so that they are not lost; a fault with none before it is raised.

        Raises:
            errors.ParseFailed: the header is not one.
            errors.FrameTooLarge: the header announces more than the limit; nothing of that body is buffered.
        """
        if self.fault is not None:
            raise self.fault
        bodies: list[bytes] = []
        if self._buffer:
            self._buffer += data
            if self._frame_end > len(self._buffer):
                return bodies
            data = bytes(self._buffer)
            self._buffer.clear()
        try:
            taken = self._cut(data, bodies)
        except errors.InvalidRequest as fault:
            self.fault = fault
            if not bodies:
                raise
            return bodies
        if taken < len(data):
            self._buffer += data[taken:]
        return bodies

    def _cut(self, data: bytes, bodies: list[bytes]) -> int:
        """Append whole bodies found in `data`, return where the incomplete rest begins."""
        at, size = 0, len(data)
        self._frame_end = 0
        while at < size:
            found = read_header(data, at, self.max_frame_bytes)
            if found is None:
                return at
            length, body_at = found
            if body_at + length > size:
                self._frame_end = body_at - at + length
                return at
            bodies.append(data[body_at : body_at + length])
            at = body_at + length
        return at


def read_header(data: bytes, at: int, max_frame_bytes: int) -> tuple[int, int] | None:
    """Read the frame header at `at`; return its body's length and where that begins, None while it is incomplete.

    Raises:
        errors.ParseFailed: it is no header. errors.FrameTooLarge: it announces more than the limit.
    """
    end = data.find(_END, at, at + MAX_HEADER_BYTES)
    if 0 <= end <= at + 16 + _MAX_DIGITS and data.startswith(_PREFIX, at) and data[at + 16 : end].isdigit():
        return _check_size(int(data[at + 16 : end]), max_frame_bytes), end + 4
    return _slow_header(data, at, max_frame_bytes)


def _slow_header(data: bytes, at: int, max_frame_bytes: int) -> tuple[int, int] | None:
    """Read a header block line by line; None while it is incomplete."""
    length: int | None = None
    line_at, limit = at, at + MAX_HEADER_BYTES
    while True:
        newline = data.find(b"\n", line_at, limit)
        if newline < 0:
            if len(data) >= limit:
                raise errors.ParseFailed(f"expected a frame header, found {MAX_HEADER_BYTES} bytes without its end")
            return None
        line = data[line_at:newline].removesuffix(b"\r")
        line_at = newline + 1
        if line:
            length = _read_line(line, length, max_frame_bytes)
        elif length is None:
            raise errors.ParseFailed("expected a Content-Length header, found none")
        else:
            return length, line_at


def _read_line(line: bytes, length: int | None, max_frame_bytes: int) -> int | None:
    name, colon, value = line.partition(b":")
    if not colon or line[:1] in (b" ", b"\t"):
        # A line that begins with a blank goes on with the one before to some readers, and is one of its own to others.
        raise errors.ParseFailed("expected 'Content-Length: N', found a header line without ':' or that is folded")
    if name.strip().lower() != b"content-length":
        return length
    digits = value.strip()
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise errors.ParseFailed("expected digits after Content-Length, found something else")
    found = _check_size(int(digits), max_frame_bytes)
    if length is not None and length != found:
        raise errors.ParseFailed("expected one Content-Length, found two that differ")
    return found


def _check_size(length: int, max_frame_bytes: int) -> int:
    if length > max_frame_bytes:
        raise errors.FrameTooLarge(
            f"a frame of {length} bytes is over the limit of {max_frame_bytes}; send less at once",
            limit_bytes=max_frame_bytes,
        )
    return length
