"""How many runtimes wait warm: what is configured, more in demand, never more than the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core import warmth
from aerodrome.core.warmth import DEMAND_SECONDS, Demand

counts = st.integers(min_value=0, max_value=10_000)
spawns = st.floats(min_value=0, max_value=60)


@pytest.mark.parametrize(
    ("configured", "limit", "recent", "spawn_seconds", "target"),
    [
        (2, 8, 0, 0.05, 2),
        (2, 8, 40, 0.05, 2),
        (2, 8, 41, 0.05, 3),
        (2, 8, 100, 0.05, 5),
        (2, 8, 10_000, 0.05, 8),
        (2, 8, 3, 1.5, 5),
        (9, 8, 0, 0.05, 8),
        (0, 8, 10_000, 1.0, 0),
        (2, 0, 5, 1.0, 0),
    ],
)
def test_the_target_follows_demand_between_what_is_configured_and_the_limit(
    configured, limit, recent, spawn_seconds, target
):
    assert warmth.warm_target(configured, limit, recent, spawn_seconds) == target


@given(counts, counts, counts, spawns)
def test_the_target_never_passes_its_limit_and_more_demand_never_lowers_it(configured, limit, recent, spawn_seconds):
    target = warmth.warm_target(configured, limit, recent, spawn_seconds)
    assert 0 <= target <= limit
    assert warmth.warm_target(configured, limit, recent + 1, spawn_seconds) >= target


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=50).map(sorted), st.floats(min_value=0, max_value=200))
def test_demand_is_what_was_wanted_in_the_last_ten_seconds(times, later):
    demand = Demand()
    for time in times:
        demand.note(time)
    now = max([later, *times])
    assert demand.recent(now) == len([time for time in times if time > now - DEMAND_SECONDS])
