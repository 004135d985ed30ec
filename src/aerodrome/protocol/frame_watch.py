"""Follow the frames of a stream that is passed on as it comes: their sizes are held, and marked ones can be replaced.

Sans-IO, for the transparent relay: where `framing.FrameDecoder` cuts bodies out, this leaves the bytes alone, so a chunk of
whole frames costs no copy and a long frame is never held. Deliberately refuses no header but for the size it announces: how a
broken one is answered is the receiver's affair. What follows it has no boundaries, so it passes unseen, as much as one frame may
have.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from aerodrome import errors
from aerodrome.protocol import framing

#: Frames up to this size pass whole, so that a marked one can be seen and replaced; longer ones pass in parts, unseen.
MAX_MARKED_BYTES = 16 * 1024

#: The header as everyone writes it; `framing` reads all others.
_USUAL_HEADER = re.compile(rb"Content-Length: ([0-9]{1,12})\r\n\r\n")

#: Takes the body of a marked frame; returns the body to pass instead, empty for none, None to leave the frame as it is.
Replace = Callable[[bytes], bytes | None]


class FrameWatch:
    """One direction of a stream. Once there is a `fault`, nothing more passes."""

    def __init__(self, max_frame_bytes: int, mark: bytes, replace: Replace) -> None:
        self.fault: errors.FrameTooLarge | None = None
        self._max_frame_bytes = max_frame_bytes
        self._mark = mark
        self._replace = replace
        self._held = b""
        self._passing_bytes = 0  # what is still to come of a long frame that began to pass
        self._is_lost = False

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
        try:
            if self._is_lost and at < len(data):
                raise self._too_large(self._max_frame_bytes + 1)
            return self._pass_frames(data, at)
        except errors.FrameTooLarge as fault:
            self.fault = fault
            return b""

    def _pass_frames(self, data: bytes, at: int) -> bytes:
        size, settled = len(data), 0
        parts: list[bytes] = []
        has_mark = self._mark in data
        while at < size:
            usual = _USUAL_HEADER.match(data, at)
            length, body_at = (int(usual[1]), usual.end()) if usual is not None else self._read_header(data, at)
            end = body_at + length
            if end > size and length <= MAX_MARKED_BYTES:
                self._held = data[at:]
                break
            if length > self._max_frame_bytes:
                raise self._too_large(length)
            if has_mark and length <= MAX_MARKED_BYTES:
                replaced = self._look_at(data[body_at:end])
                if replaced is not None:
                    parts += (data[settled:at], replaced)
                    settled = end
            at = end
        if at > size:
            self._passing_bytes, at = at - size, size
        passing = data[settled:at]
        return b"".join((*parts, passing)) if parts else passing

    def _look_at(self, body: bytes) -> bytes | None:
        """Return the frame to pass instead of this body's, None to leave it."""
        replaced = self._replace(body) if self._mark in body else None
        return replaced and framing.encode(replaced)

    def _read_header(self, data: bytes, at: int) -> tuple[int, int]:
        """Return length and beginning of a body with an unusual header; an incomplete one counts as a frame that is."""
        try:
            header = framing.read_header(data, at, self._max_frame_bytes)
        except errors.ParseFailed:
            self._is_lost = True
            return max(self._max_frame_bytes, len(data) - at), at
        return header or (0, len(data) + 1)

    def _too_large(self, length: int) -> errors.FrameTooLarge:
        return errors.FrameTooLarge(
            f"a frame of {length} bytes is over the limit of {self._max_frame_bytes}; send less at once",
            limit_bytes=self._max_frame_bytes,
        )
