"""Two links joined: what one receives the other sends, within the same turn of the event loop.

No task and no queue stands between: a chunk costs one read and one write. Deliberately knows nothing of messages; who may pass
what is the owner's `screen`. Half-closing passes too, so that a peer that has said its last still hears the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aerodrome.transport.link import Link

#: Looks at received bytes; returns those to send on.
Screen = Callable[[bytes], bytes]


class Flow:
    """One direction of a splice."""

    def __init__(self, source: Link, target: Link, stall_seconds: float) -> None:
        self._source = source
        self._target = target
        self._stall_seconds = stall_seconds
        self._stall_timer: asyncio.TimerHandle | None = None

    def take(self, data: bytes) -> None:
        """Send bytes on; stop reading while the target does not keep up, and cut it off if that lasts `stall_seconds`."""
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
