"""Events kept for a client that is not there to hear them, within a bound: what is said piece by piece goes first.

A complete message follows its pieces, so a client that hears only that has missed nothing but the typing.
"""

from __future__ import annotations

from collections import deque

_PIECES = (
    "assistant.message_delta",
    "assistant.reasoning_delta",
    "assistant.streaming_delta",
    "assistant.tool_call_delta",
    "model.messages_snapshot",
    "tool.execution_partial_result",
    "tool.shell_output",
)


class Missed:
    """Message bodies in order, with the type of their event."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bodies: deque[tuple[str, bytes]] = deque()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def add(self, kind: str, body: bytes) -> None:
        """Keep one more; over the bound pieces are dropped, then the oldest."""
        self._bodies.append((kind, body))
        self._size_bytes += len(body)
        if self._size_bytes > self._limit_bytes:
            self._drop_pieces()
        while self._size_bytes > self._limit_bytes and self._bodies:
            self._size_bytes -= len(self._bodies.popleft()[1])

    def extend(self, later: Missed) -> None:
        """Keep what another one has and this one has not: two links of a session are sent the same events, byte for byte."""
        known = {body for _, body in self._bodies}
        for kind, body in later._bodies:
            if body not in known:
                self.add(kind, body)

    def bodies(self) -> list[bytes]:
        """Return all that is kept, in order."""
        return [body for _, body in self._bodies]

    def _drop_pieces(self) -> None:
        self._bodies = deque(entry for entry in self._bodies if entry[0] not in _PIECES)
        self._size_bytes = sum(len(body) for _, body in self._bodies)
