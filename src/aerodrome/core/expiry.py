"""When a session has expired: the tenant's limits on idleness and age, as one pure rule.

Whether an expired session may be deleted now is not said here: one at work is left alone (gateway.reaper).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from aerodrome.core.policy import Policy
from aerodrome.core.session import SessionRecord

#: A session past its age is left until it was quiet this long: age alone must not end what somebody is coming back to now.
QUIET_SECONDS = 60.0


class Limit(Enum):
    """Which limit a session has passed."""

    IDLE = "idle"
    AGE = "age"


@dataclass(frozen=True, slots=True)
class Expiry:
    """The limit that a session passed first, and when (Unix seconds)."""

    limit: Limit
    since: float


@dataclass(frozen=True, slots=True)
class Horizon:
    """Times (Unix seconds, inclusive) before which a session must have been used, or created, to be expired."""

    used_before: float
    created_before: float


def is_limited(policy: Policy) -> bool:
    """Say whether sessions under this policy ever expire."""
    return policy.session_idle_seconds is not None or policy.session_age_seconds is not None


def horizon_of(policy: Policy, now: float) -> Horizon:
    """Return what a registry must be asked for at `now`: every expired session lies before one of the two times."""
    return Horizon(_before(now, policy.session_idle_seconds), _before(now, policy.session_age_seconds))


def widest(horizons: Sequence[Horizon]) -> Horizon:
    """Return the horizon that holds what any of these holds."""
    return Horizon(max(one.used_before for one in horizons), max(one.created_before for one in horizons))


def expiry_of(record: SessionRecord, policy: Policy, now: float) -> Expiry | None:
    """Return which of its tenant's limits a session has passed at `now`, None if it has not expired."""
    # Compared as in `horizon_of`: the other way round, rounding would let the two disagree.
    horizon, passed = horizon_of(policy, now), []
    if policy.session_idle_seconds is not None and record.used_at <= horizon.used_before:
        passed.append(Expiry(Limit.IDLE, record.used_at + policy.session_idle_seconds))
    is_quiet = record.used_at <= now - QUIET_SECONDS
    if policy.session_age_seconds is not None and record.created_at <= horizon.created_before and is_quiet:
        passed.append(Expiry(Limit.AGE, record.created_at + policy.session_age_seconds))
    return min(passed, key=lambda expiry: expiry.since, default=None)


def _before(now: float, seconds: float | None) -> float:
    return -math.inf if seconds is None else now - seconds
