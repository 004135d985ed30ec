"""One direction of two links joined: what one receives the other sends, within the same turn of the event loop.

No task and no queue stands between, so a chunk costs one read and one write. Deliberately knows nothing of messages, nor of
how a link ends: that is the owner's affair (gateway.transparent).
"""

from __future__ import annotations

import asyncio

from aerodrome.transport.link import Link


class Flow:
    """From a source to a target, no faster than the target reads."""

    def __init__(self, source: Link, target: Link, stall_seconds: float) -> None:
        self._source = source
        self._target = target
        self._stall_seconds = stall_seconds
        self._stall_timer: asyncio.TimerHandle | None = None

    def take(self, data: bytes) -> None:
        """Send framed bytes on; a target that does not keep up for `stall_seconds` loses its link."""
        self._target.write(data)
        if self._target.is_stalled and self._stall_timer is None:
            self._source.pause_reading()
            self._stall_timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._target.abort)
            self._target.when_writable(self._go_on)

    def _go_on(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._source.resume_reading()
