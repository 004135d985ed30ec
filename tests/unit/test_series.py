"""Figures of the last hour: in their bucket, true, and forgotten in time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core import series
from aerodrome.core.series import BUCKET_SECONDS, BUCKETS, WINDOW_SECONDS, Durations, Series

NOW = 1_800_000_000.0


@given(st.lists(st.floats(0.001, 3600.0), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 1.0]))
def test_a_percentile_is_right_to_within_a_class(values, share):
    durations = Durations()
    for value in values:
        durations.add(value)
    ordered = sorted(values)
    exact = ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]

    assert durations.percentile(share) == pytest.approx(exact, rel=0.011)
    assert durations.count == len(values)


def test_there_is_no_percentile_of_nothing():
    assert Durations().percentile(0.5) is None


def test_however_long_or_short_it_is_counted():
    durations = Durations()
    for seconds in (0.0, -1.0, 1e9):
        durations.add(seconds)
    assert durations.count == 3


def test_together_they_are_as_if_counted_in_one():
    parts, whole = [Durations(), Durations()], Durations()
    for number in range(1, 101):
        parts[number % 2].add(number)
        whole.add(number)
    assert series.merge(parts).percentile(0.5) == whole.percentile(0.5) == pytest.approx(50, rel=0.011)


def test_the_window_is_an_hour_without_gaps_the_present_last():
    found = Series().window(NOW)
    assert len(found) == BUCKETS
    assert found[-1].begins <= NOW < found[-1].begins + BUCKET_SECONDS
    assert {later.begins - earlier.begins for earlier, later in itertools.pairwise(found)} == {BUCKET_SECONDS}


def test_what_is_noted_is_in_the_bucket_of_its_time():
    kept = Series()
    kept.count(NOW - 600, "turns")
    kept.count(NOW, "turns", 2)
    kept.measure(NOW, "sessions", 4)
    kept.measure(NOW, "sessions", 3)
    kept.time(NOW, "turn_seconds", 1.5)
    window = kept.window(NOW)

    assert [bucket.counts["turns"] for bucket in window if bucket.counts["turns"]] == [1, 2]
    assert window[-1].levels == {"sessions": 4}
    assert window[-1].durations["turn_seconds"].count == 1


def test_what_is_older_than_the_window_is_gone_also_where_nothing_came_after_it():
    kept = Series()
    kept.count(NOW, "turns")
    assert all(not bucket.counts for bucket in kept.window(NOW + WINDOW_SECONDS))
    kept.count(NOW + WINDOW_SECONDS, "turns")
    assert kept.window(NOW + WINDOW_SECONDS)[-1].counts["turns"] == 1
    assert all(not bucket.counts for bucket in kept.window(NOW))
