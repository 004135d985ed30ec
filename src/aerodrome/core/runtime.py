"""The states of a runtime and how it may pass between them, as a table.

Drawn in docs/ from this table; fleet.supervisor is the only one that moves a runtime along it.
"""

from __future__ import annotations

from enum import Enum

from aerodrome import errors


class RuntimeState(Enum):
    """Where a supervised runtime is in its life (words: design section 5)."""

    STARTING = "starting"
    WARM = "warm"
    READY = "ready"
    CORDONED = "cordoned"
    BACKOFF = "backoff"
    FATAL = "fatal"
    STOPPING = "stopping"
    STOPPED = "stopped"


_S = RuntimeState

#: From each state, the states that may follow.
TRANSITIONS: dict[RuntimeState, frozenset[RuntimeState]] = {
    _S.STARTING: frozenset({_S.WARM, _S.READY, _S.BACKOFF, _S.FATAL, _S.STOPPING}),
    # Answers, and belongs to no realm yet; a runtime that did never waits for another.
    _S.WARM: frozenset({_S.READY, _S.STOPPING, _S.STOPPED}),
    _S.READY: frozenset({_S.CORDONED, _S.STOPPING, _S.STOPPED}),
    _S.CORDONED: frozenset({_S.STOPPING, _S.STOPPED}),
    _S.BACKOFF: frozenset({_S.STARTING, _S.STOPPED}),
    _S.FATAL: frozenset({_S.STOPPED}),
    _S.STOPPING: frozenset({_S.STOPPED}),
    _S.STOPPED: frozenset(),
}


def move(present: RuntimeState, following: RuntimeState) -> RuntimeState:
    """Return the following state.

    Raises:
        errors.AerodromeError: the table has no such transition; a bug, never the caller's input.
    """
    if following not in TRANSITIONS[present]:
        raise errors.AerodromeError(f"a runtime cannot go from {present.value} to {following.value}")
    return following
