"""When a runtime has drifted: each limit by itself, and pings that grow slow before turns do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core import vitals
from aerodrome.core.vitals import BASELINE_PINGS, RECENT_PINGS, DriftLimits, PingWindow, Vitals

LIMITS = DriftLimits(open_files=1000)
WELL = Vitals(spawned_at=0.0, opened=1, memory_bytes=80_000_000, threads=6, open_files=14, processes=1)
seconds = st.floats(min_value=0.0001, max_value=0.005)


def window(first: float, last: float) -> PingWindow:
    pings = PingWindow()
    for latency in (first,) * BASELINE_PINGS + (last,) * RECENT_PINGS:
        pings = pings.add(latency)
    return pings


def test_a_runtime_within_all_limits_has_not_drifted():
    assert vitals.find_drift(WELL, LIMITS, now=100.0) is None


@pytest.mark.parametrize(
    ("limit", "field", "words"),
    [
        ("memory_bytes", "memory_bytes", "bytes of memory"),
        ("threads", "threads", "threads"),
        ("open_files", "open_files", "open files"),
        ("processes", "processes", "processes"),
        ("sessions", "opened", "sessions opened"),
    ],
)
def test_each_limit_is_one_step_wide_names_itself_and_is_off_at_nought(limit, field, words):
    bound = getattr(LIMITS, limit)
    assert vitals.find_drift(replace(WELL, **{field: bound}), LIMITS, now=0.0) is None
    over = replace(WELL, **{field: bound + 1})
    assert vitals.find_drift(over, LIMITS, now=0.0) == f"{bound + 1} {words}, more than {bound}"
    assert vitals.find_drift(over, replace(LIMITS, **{limit: 0}), now=0.0) is None


def test_age_is_counted_from_the_spawn():
    old = replace(WELL, spawned_at=500.0)
    assert vitals.find_drift(old, LIMITS, now=500.0 + LIMITS.age_seconds) is None
    assert "age" in str(vitals.find_drift(old, LIMITS, now=501.0 + LIMITS.age_seconds))
    assert vitals.find_drift(old, replace(LIMITS, age_seconds=0), now=1e9) is None


def test_what_could_not_be_measured_is_no_drift():
    assert vitals.find_drift(Vitals(spawned_at=0.0), LIMITS, now=0.0) is None


@given(st.lists(seconds, max_size=40))
def test_a_window_keeps_the_first_pings_and_the_last(latencies):
    pings = PingWindow()
    for latency in latencies:
        pings = pings.add(latency)
    assert list(pings.first) == latencies[:BASELINE_PINGS]
    assert list(pings.last) == latencies[BASELINE_PINGS:][-RECENT_PINGS:]
    assert pings.latest == (latencies[-1] if latencies else None)


@given(st.lists(seconds, max_size=40))
def test_jitter_below_the_floor_is_never_slowness(latencies):
    pings = PingWindow()
    for latency in latencies:
        pings = pings.add(latency)
        assert vitals.find_slowness(pings, LIMITS) is None


def test_slow_pings_count_against_what_they_were_and_against_the_floor():
    assert vitals.find_slowness(window(0.0003, 0.0049), LIMITS) is None
    assert vitals.find_slowness(window(0.0003, 0.006), LIMITS) == "pings take 6 ms, when it was fresh 0.3 ms"
    assert vitals.find_slowness(window(0.02, 0.09), LIMITS) is None
    assert vitals.find_slowness(window(0.02, 0.11), LIMITS) is not None
    assert vitals.find_slowness(window(0.0003, 9.0), replace(LIMITS, ping_factor=0)) is None


def test_two_outliers_in_five_are_let_pass_and_three_are_not():
    pings = window(0.0003, 0.0003).add(1.0).add(1.0)
    assert vitals.find_slowness(pings, LIMITS) is None
    assert vitals.find_slowness(pings.add(1.0), LIMITS) is not None


def test_a_runtime_that_is_as_slow_as_the_others_is_not_to_blame():
    pings = window(0.0003, 0.1)
    assert vitals.find_slowness(pings, LIMITS, others_seconds=0.0005) is not None
    assert vitals.find_slowness(pings, LIMITS, others_seconds=0.1) is None


@given(st.floats(min_value=0.017, max_value=0.06), st.floats(min_value=0.0001, max_value=0.003))
def test_a_runtime_whose_answers_come_ever_later_is_found_before_its_turns_take_twice_their_time(turn, ping):
    """`turn` is the 95th percentile of turns on a quiet machine (17 ms is the least measured); the delay is added to both."""
    pings = window(ping, ping)
    delay = 0.0
    while vitals.find_slowness(pings, LIMITS) is None:
        delay += 0.0001
        pings = pings.add(ping + delay)
        assert turn + delay < 2 * turn, "turns doubled, and nothing was noticed"
