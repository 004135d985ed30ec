"""Figures of the last hour, in buckets of a few seconds: counts, levels, and how long things took. Pure; bounded; `now` is given.

A bucket is forgotten when its time comes round again: the ring is as long as the window, whatever happens in it. Durations are
kept in classes that are 2 % wide, so that a percentile is right to within 1 % and a busy hour takes no more than a calm one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

BUCKET_SECONDS = 15.0
BUCKETS = 240
WINDOW_SECONDS = BUCKET_SECONDS * BUCKETS
_GROWTH = math.log(1.02)
_SHORTEST_SECONDS = 0.0001
_LONGEST_CLASS = 1000


@dataclass(slots=True)
class Durations:
    """How long things took, in classes."""

    classes: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        """Count one."""
        place = math.floor(math.log(max(seconds, _SHORTEST_SECONDS) / _SHORTEST_SECONDS) / _GROWTH)
        self.classes[min(place, _LONGEST_CLASS)] += 1

    @property
    def count(self) -> int:
        """Return how many there are."""
        return self.classes.total()

    def percentile(self, share: float) -> float | None:
        """Return the duration, in seconds, that this share of them does not exceed; None where there are none."""
        wanted = math.ceil(share * self.count)
        seen = 0
        for place in sorted(self.classes):
            seen += self.classes[place]
            if seen >= wanted:
                return _SHORTEST_SECONDS * math.exp((place + 0.5) * _GROWTH)
        return None


def merge(durations: Iterable[Durations]) -> Durations:
    """Return all of them together."""
    together: Counter[int] = Counter()
    for one in durations:
        together.update(one.classes)
    return Durations(together)


#: Upper bounds of a tally's classes, in seconds.
TALLY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, math.inf)


@dataclass(slots=True)
class Tally:
    """How long things took since the beginning, for what reads histograms: `counts` are those up to each bound."""

    counts: list[int] = field(default_factory=lambda: [0] * len(TALLY_SECONDS))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.seconds += seconds
        for at, bound in enumerate(TALLY_SECONDS):
            self.counts[at] += seconds <= bound


@dataclass(slots=True)
class Bucket:
    """What happened in a few seconds, which began at `begins` (Unix time). `levels` are the highest that were seen."""

    begins: float
    counts: Counter[str] = field(default_factory=Counter)
    levels: dict[str, float] = field(default_factory=dict)
    durations: dict[str, Durations] = field(default_factory=dict)


class Series:
    """The buckets of the last hour."""

    def __init__(self) -> None:
        self._ring: list[Bucket | None] = [None] * BUCKETS

    def count(self, now: float, name: str, number: int = 1) -> None:
        """Count something that happens now."""
        self._bucket(now).counts[name] += number

    def measure(self, now: float, name: str, level: float) -> None:
        """Note how many there are now."""
        levels = self._bucket(now).levels
        levels[name] = max(level, levels.get(name, level))

    def time(self, now: float, name: str, seconds: float) -> None:
        """Note how long something took that ends now."""
        self._bucket(now).durations.setdefault(name, Durations()).add(seconds)

    def window(self, now: float) -> list[Bucket]:
        """Return the buckets up to now, the oldest first; those in which nothing was noted are empty."""
        last = math.floor(now / BUCKET_SECONDS)
        found = []
        for number in range(last - BUCKETS + 1, last + 1):
            bucket, begins = self._ring[number % BUCKETS], number * BUCKET_SECONDS
            found.append(bucket if bucket is not None and bucket.begins == begins else Bucket(begins))
        return found

    def _bucket(self, now: float) -> Bucket:
        number = math.floor(now / BUCKET_SECONDS)
        begins = number * BUCKET_SECONDS
        bucket = self._ring[number % BUCKETS]
        if bucket is None or bucket.begins != begins:
            bucket = self._ring[number % BUCKETS] = Bucket(begins)
        return bucket
