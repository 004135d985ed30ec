"""What one session did of late: its turns with tools and tokens, and where it was. Pure values; bounded; never what was said.

A turn is one prompt, from when the link that sends it sends it until the session is idle again. Times are Unix times.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

KEPT_TURNS = 50
KEPT_PLACES = 50
KEPT_TOOLS = 100
_MAX_NAME = 100


class TurnEnd(Enum):
    """How a turn ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    LOST = "lost"
    #: Its link let go of the session while it ran.
    LEFT = "left"


@dataclass(slots=True)
class ToolUse:
    """One call of a tool."""

    name: str
    began_at: float
    ended_at: float | None = None
    is_failed: bool = False


@dataclass(slots=True)
class Tokens:
    """What model calls took."""

    calls: int = 0
    taken: int = 0
    given: int = 0
    cached: int = 0

    def add(self, other: Tokens) -> None:
        """Add what others took."""
        self.calls += other.calls
        self.taken += other.taken
        self.given += other.given
        self.cached += other.cached


@dataclass(slots=True, eq=False)
class TurnFlight:
    """A turn. `error` is the kind of what went wrong, never its text."""

    began_at: float
    runtime_id: str | None = None
    ended_at: float | None = None
    end: TurnEnd | None = None
    error: str | None = None
    model: str | None = None
    spoke_at: float | None = None
    tokens: Tokens = field(default_factory=Tokens)
    tools: dict[str, ToolUse] = field(default_factory=dict)
    left_out: int = 0

    @property
    def seconds(self) -> float | None:
        """Return how long it took."""
        return None if self.ended_at is None else self.ended_at - self.began_at

    def begin_tool(self, call_id: str, name: str, now: float) -> None:
        """Note that a tool is called."""
        if len(self.tools) < KEPT_TOOLS:
            self.tools[call_id] = ToolUse(name[:_MAX_NAME], now)
        else:
            self.left_out += 1

    def end_tool(self, call_id: str, is_failed: bool, now: float) -> None:
        """Note that a tool's call is over."""
        tool = self.tools.get(call_id)
        if tool is not None:
            tool.ended_at, tool.is_failed = now, is_failed

    def use(self, data: dict[str, Any]) -> None:
        """Note what a model call took (`assistant.usage`)."""
        model = data.get("model")
        self.model = model[:_MAX_NAME] if isinstance(model, str) else self.model
        taken, given, cached = (_count(data.get(name)) for name in ("inputTokens", "outputTokens", "cacheReadTokens"))
        self.tokens.add(Tokens(1, taken, given, cached))


@dataclass(frozen=True, slots=True)
class Place:
    """A session came to a runtime, or (None) left the one it was in, and why."""

    at: float
    runtime_id: str | None
    why: str


@dataclass(slots=True)
class SessionFlight:
    """What is kept of one session."""

    turns: deque[TurnFlight] = field(default_factory=lambda: deque(maxlen=KEPT_TURNS))
    places: deque[Place] = field(default_factory=lambda: deque(maxlen=KEPT_PLACES))


@dataclass(slots=True)
class Totals:
    """What a user's sessions took since the gateway started."""

    turns: int = 0
    failed: int = 0
    seconds: float = 0.0
    tokens: Tokens = field(default_factory=Tokens)

    def add(self, turn: TurnFlight) -> None:
        """Add a turn that is over."""
        self.turns += 1
        self.failed += turn.end in (TurnEnd.FAILED, TurnEnd.LOST)
        self.seconds += turn.seconds or 0.0
        self.tokens.add(turn.tokens)


def _count(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else 0
