"""How long to wait before a failed spawn is tried again, and when to give up. Pure: randomness is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays with full jitter above half, `attempts` tries in all."""

    first_seconds: float = 0.2
    factor: float = 2.0
    limit_seconds: float = 10.0
    attempts: int = 5

    def delay_seconds(self, failures: int, random: float) -> float | None:
        """Return the wait after that many failures (from 1), None when the budget is spent; `random` is in [0, 1)."""
        if failures >= self.attempts:
            return None
        full = min(self.limit_seconds, self.first_seconds * self.factor ** (failures - 1))
        return full * (0.5 + random / 2)
