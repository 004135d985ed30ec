"""core.expiry: which sessions have expired, by which limit, and that a registry asked by the horizon misses none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core import expiry
from aerodrome.core.expiry import QUIET_SECONDS, Expiry, Limit
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy
from aerodrome.core.session import SessionRecord

NOW = 1_700_000_000.0
DAY = 86400.0
times = st.floats(0.0, 4e9)
limits = st.none() | st.floats(1e-3, 1e9)


def record(created_ago: float, used_ago: float) -> SessionRecord:
    return SessionRecord("s", Owner("acme", "ann"), "shared", NOW - created_ago, NOW - used_ago)


def policy(idle: float | None, age: float | None) -> Policy:
    return Policy(session_idle_seconds=idle, session_age_seconds=age)


@pytest.mark.parametrize(
    ("idle", "age", "created_ago", "used_ago", "expected"),
    [
        (None, None, 1e9, 1e9, None),
        (DAY, None, 9 * DAY, DAY - 1, None),
        (DAY, None, 9 * DAY, DAY, (Limit.IDLE, 0.0)),
        (DAY, None, 9 * DAY, 3 * DAY, (Limit.IDLE, 2 * DAY)),
        (None, DAY, DAY - 1, DAY - 1, None),
        (None, DAY, DAY, 100.0, (Limit.AGE, 0.0)),
        (None, DAY, 3 * DAY, 100.0, (Limit.AGE, 2 * DAY)),
        # Over age, and in use a moment ago: not before it is quiet.
        (None, DAY, 3 * DAY, QUIET_SECONDS - 1, None),
        (None, DAY, 3 * DAY, QUIET_SECONDS, (Limit.AGE, 2 * DAY)),
        # Both: the one that was passed first.
        (DAY, 5 * DAY, 6 * DAY, 3 * DAY, (Limit.IDLE, 2 * DAY)),
        (2 * DAY, 3 * DAY, 6 * DAY, 3 * DAY, (Limit.AGE, 3 * DAY)),
        # A clock that was set back: a session from the future has not expired.
        (DAY, DAY, -DAY, -DAY, None),
    ],
)
def test_a_session_expires_by_the_limit_it_passed_first(idle, age, created_ago, used_ago, expected):
    found = expiry.expiry_of(record(created_ago, used_ago), policy(idle, age), NOW)

    assert found == (None if expected is None else Expiry(expected[0], NOW - expected[1]))


@pytest.mark.parametrize(("idle", "age", "limited"), [(None, None, False), (1.0, None, True), (None, 1.0, True)])
def test_a_policy_without_limits_ends_no_session(idle, age, limited):
    assert expiry.is_limited(policy(idle, age)) is limited


@given(times, times, limits, limits, times)
def test_whatever_has_expired_lies_before_the_horizon(created_at, used_at, idle, age, now):
    session = SessionRecord("s", Owner("acme", "ann"), "shared", created_at, used_at)
    horizon = expiry.horizon_of(policy(idle, age), now)

    if expiry.expiry_of(session, policy(idle, age), now) is not None:
        assert used_at <= horizon.used_before or created_at <= horizon.created_before


@given(times, times, limits, limits, times, st.floats(0.0, 1e9))
def test_an_expired_session_that_is_not_used_stays_expired(created_at, used_at, idle, age, now, later):
    session = SessionRecord("s", Owner("acme", "ann"), "shared", created_at, used_at)

    if expiry.expiry_of(session, policy(idle, age), now) is not None:
        assert expiry.expiry_of(session, policy(idle, age), now + later) is not None
