"""What model calls took: tokens, the cost as the runtime reckons it, and the same by user, day and model. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aerodrome.core.identity import Owner

#: A model's name as it is counted; a longer one, or none, is cut or named so.
_NAME_CHARACTERS = 120
UNKNOWN_MODEL = "unknown"


@dataclass(slots=True)
class Usage:
    """What some model calls took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0
    model_calls: int = 0

    def add(self, data: dict[str, Any]) -> None:
        """Add what an `assistant.usage` event says."""
        self.model_calls += 1
        self.input_tokens += _count(data.get("inputTokens"))
        self.output_tokens += _count(data.get("outputTokens"))
        self.cache_read_tokens += _count(data.get("cacheReadTokens"))
        self.cache_write_tokens += _count(data.get("cacheWriteTokens"))
        self.cost += _figure(data.get("cost"))

    def merge(self, other: Usage) -> None:
        """Add another's figures."""
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cache_read_tokens += other.cache_read_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.cost += other.cost
        self.model_calls += other.model_calls


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What one user's calls of one model took on one day (UTC, `YYYY-MM-DD`)."""

    owner: Owner
    day: str
    model: str
    usage: Usage


def day_of(now: float) -> str:
    """Return the day of a Unix time, in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


def model_of(data: dict[str, Any]) -> str:
    """Return the model that an `assistant.usage` event names."""
    model = data.get("model")
    return model[:_NAME_CHARACTERS] if isinstance(model, str) and model else UNKNOWN_MODEL


def _figure(value: Any) -> float:
    """Return a value that can be counted, else 0: no store takes more, and no call does."""
    is_figure = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**40
    return float(value) if is_figure else 0.0


def _count(value: Any) -> int:
    return int(_figure(value))
