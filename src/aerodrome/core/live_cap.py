"""How many sessions may be live in one runtime: a number that always may, and as many more as its memory has room for.

Pure. With the native entry point a live session costs memory and hardly any time (measured: bench/live_sessions), while bringing
one back costs more than a turn; so memory is what the cap follows. The Node entry point grows slow with live sessions
(protocol facts 2.2) and is held to the number.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What a live session is taken to cost until it is measured: 2.5 to 3.1 MB for a short one (protocol facts 2.1), rounded up.
SESSION_BYTES = 4 * 1024 * 1024
#: What a runtime is taken to use before it was first measured (protocol facts 2.1: 80 MB idle, 126 with a session).
FRESH_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What a runtime used when it was last measured, and how many sessions were live in it then."""

    memory_bytes: int = FRESH_BYTES
    live: int = 0


def live_cap(always: int, budget_bytes: int, measured: Measured) -> int:
    """Return how many sessions may be live now.

    `always` of them may in any case, 0 means any number; more while the runtime stays below `budget_bytes`, 0 means none.
    """
    if not always or not budget_bytes:
        return always
    room = (budget_bytes - measured.memory_bytes) // SESSION_BYTES
    return max(always, measured.live + room)
