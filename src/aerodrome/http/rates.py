"""How many requests an owner may make, a token bucket for each, told in header fields of the IETF's RateLimit draft; and at once.

Pure but for the clock. The draft: draft-ietf-httpapi-ratelimit-headers, `RateLimit-Policy` and `RateLimit` as structured fields.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner

_WINDOW_SECONDS = 60
#: Owners that are remembered; whoever was not heard of longest has a full bucket by then.
_OWNERS = 50_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a bucket after a request, and in how many seconds it is full again."""

    limit: int
    remaining: int
    reset_seconds: int

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return it as header fields."""
        policy = f'"requests";q={self.limit};w={_WINDOW_SECONDS}'
        return [
            (b"ratelimit-policy", policy.encode()),
            (b"ratelimit", f'"requests";r={self.remaining};t={self.reset_seconds}'.encode()),
        ]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """Buckets of `requests_per_minute` tokens; 0: no limit."""

    def __init__(self, requests_per_minute: int, clock: Clock) -> None:
        self.requests_per_minute = requests_per_minute
        self._clock = clock
        self._buckets: OrderedDict[Owner, _Bucket] = OrderedDict()

    def take(self, owner: Owner) -> Allowance | None:
        """Take a token; return what is left, None where there is no limit.

        A refusal carries `retry_after_seconds`, and the allowance as `allowance` of the error itself.

        Raises:
            errors.RateLimited: there is none.
        """
        limit = self.requests_per_minute
        if not limit:
            return None
        bucket = self._bucket(owner, limit)
        per_second = limit / _WINDOW_SECONDS
        is_refused = bucket.tokens < 1
        if not is_refused:
            bucket.tokens -= 1
        allowance = Allowance(limit, int(bucket.tokens), math.ceil((limit - bucket.tokens) / per_second))
        if is_refused:
            seconds = math.ceil((1 - bucket.tokens) / per_second)
            raise errors.RateLimited(
                f"expected at most {limit} requests a minute; try again in {seconds} s", retry_after_seconds=seconds
            )
        return allowance

    def spent(self) -> Allowance:
        """Return the allowance of whoever was refused."""
        return Allowance(self.requests_per_minute, 0, _WINDOW_SECONDS)

    def _bucket(self, owner: Owner, limit: int) -> _Bucket:
        now = self._clock.monotonic()
        bucket = self._buckets.get(owner)
        if bucket is None:
            bucket = self._buckets[owner] = _Bucket(float(limit), now)
            if len(self._buckets) > _OWNERS:
                self._buckets.popitem(last=False)
        bucket.tokens = min(float(limit), bucket.tokens + (now - bucket.filled_at) * limit / _WINDOW_SECONDS)
        bucket.filled_at = now
        self._buckets.move_to_end(owner)
        return bucket


class RequestCounts:
    """How many requests of each owner are under way; `limit` 0: any number. All share one listener, which takes so many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[Owner] = Counter()

    def enter(self, owner: Owner) -> Callable[[], None]:
        """Count a request; return what is to be called when it is over.

        Raises:
            errors.OverCapacity: as many as may be are under way.
        """
        if self._limit and self._counts[owner] >= self._limit:
            raise errors.OverCapacity(
                f"expected at most {self._limit} requests of one user at once, streams among them: end some"
            )
        self._counts[owner] += 1
        return functools.partial(self._leave, owner)

    def _leave(self, owner: Owner) -> None:
        self._counts[owner] -= 1
        if not self._counts[owner]:
            del self._counts[owner]
