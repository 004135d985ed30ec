"""Time as a dependency: the real clock and nothing else; the fault clock lives in `testing`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of the code may know about time."""

    def now(self) -> float:
        """Return seconds since the Unix epoch (for records that outlive the process)."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back (for deadlines)."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()
