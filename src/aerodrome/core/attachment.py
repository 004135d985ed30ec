"""The states of an attachment: one client link's hold on one session, as a table.

LOST means that the runtime died under it, EVICTED that the gateway unloaded the session by policy (a cap, hibernation, a cordon);
either way the next call that names the session brings it back (gateway.reattach).
"""

from __future__ import annotations

from enum import Enum

from aerodrome import errors


class AttachmentState(Enum):
    """Where an attachment is in its life."""

    OPENING = "opening"
    IDLE = "idle"
    TURN = "turn"
    UNLOADING = "unloading"
    EVICTED = "evicted"
    LOST = "lost"
    CLOSED = "closed"


_S = AttachmentState

#: From each state, the states that may follow (staying is always possible).
TRANSITIONS: dict[AttachmentState, frozenset[AttachmentState]] = {
    _S.OPENING: frozenset({_S.IDLE, _S.TURN, _S.LOST, _S.CLOSED}),
    _S.IDLE: frozenset({_S.OPENING, _S.TURN, _S.UNLOADING, _S.LOST, _S.CLOSED}),
    _S.TURN: frozenset({_S.OPENING, _S.IDLE, _S.LOST, _S.CLOSED}),
    _S.UNLOADING: frozenset({_S.IDLE, _S.EVICTED, _S.LOST, _S.CLOSED}),
    _S.EVICTED: frozenset({_S.OPENING, _S.CLOSED}),
    _S.LOST: frozenset({_S.OPENING, _S.CLOSED}),
    _S.CLOSED: frozenset({_S.OPENING}),
}


def move(present: AttachmentState, following: AttachmentState) -> AttachmentState:
    """Return the following state.

    Raises:
        errors.AerodromeError: the table has no such transition; a bug, never the caller's input.
    """
    if following is not present and following not in TRANSITIONS[present]:
        raise errors.AerodromeError(f"an attachment cannot go from {present.value} to {following.value}")
    return following
