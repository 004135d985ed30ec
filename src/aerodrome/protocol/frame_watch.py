"""Follow the frames of a stream that is passed on as it comes: their sizes are held, and marked ones can be replaced.

Sans-IO, for the transparent relay: where `framing.FrameDecoder` cuts bodies out, this leaves the bytes alone, so a chunk of
whole frames costs no copy and a long frame is never held. Deliberately refuses no header: how a broken one is answered is
the receiver's affair, so it goes by, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable

from aerodrome import errors
from aerodrome.protocol import framing

#: Frames up to this size pass whole, so that a marked one can be seen and replaced; longer ones pass in parts, unseen.
MAX_MARKED_BYTES = 16 * 1024

#: Takes the body of a marked frame; returns the body to pass instead, empty for none, None to leave the frame as it is.
Replace = Callable[[bytes], bytes | None]


class FrameWatch:
    """One direction of a stream. Once there is a `fault`, nothing more passes."""

    def __init__(self, max_frame_bytes: int, mark: bytes, replace: Replace) -> None:
        self.fault: errors.InvalidRequest | None = None
        self._max_frame_bytes = max_frame_bytes
        self._mark = mark
        self._replace = replace
        self._held = b""
        self._passing_bytes = 0  # what is still to come of a long frame that began to pass

    def feed(self, data: bytes) -> bytes:
        """Take received bytes and return those to pass on now; look at `fault` afterwards."""
        if self.fault is not None:
            return b""
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        if self._passing_bytes:
            at = min(self._passing_bytes, len(data))
            self._passing_bytes -= at
        return self._pass_frames(data, at)

    def _pass_frames(self, data: bytes, at: int) -> bytes:
        size, settled = len(data), 0
        parts: list[bytes] = []
        while at < size:
            body_at, end = self._bounds(data, at)
            if end > size:
                self._passing_bytes, at = end - size, size
            elif end <= at:
                break
            elif data.find(self._mark, body_at, end) >= 0 and end - body_at <= MAX_MARKED_BYTES:
                replaced = self._replace(data[body_at:end])
                if replaced is not None:
                    parts += (data[settled:at], framing.encode(replaced) if replaced else b"")
                    settled = end
                at = end
            else:
                at = end
        if at < size and self.fault is None:
            self._held = data[at:]
        passing = data[settled:at]
        return b"".join((*parts, passing)) if parts else passing

    def _bounds(self, data: bytes, at: int) -> tuple[int, int]:
        """Return where the frame at `at` has its body and its end; an end of `at` itself: it does not pass now."""
        size = len(data)
        try:
            header = framing.read_header(data, at, self._max_frame_bytes)
        except errors.FrameTooLarge as fault:
            self.fault = fault
            return at, at
        except errors.ParseFailed as fault:
            self.fault = fault
            return size, size
        if header is None:
            return at, at
        length, body_at = header
        end = body_at + length
        return body_at, at if end > size and length <= MAX_MARKED_BYTES else end
