"""The cap on live sessions: never below the number that may always be live, and no further than memory goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core.live_cap import SESSION_BYTES, Measured, live_cap

MIB = 1024 * 1024
GIB = 1024 * MIB
counts = st.integers(1, 1000)
sizes = st.integers(0, 8 * GIB)


def test_before_a_runtime_is_measured_short_sessions_are_taken_to_fit():
    assert live_cap(50, GIB, Measured()) == (1024 - 128) // 4


def test_a_runtime_with_room_may_have_as_many_more_as_fit():
    assert live_cap(50, GIB, Measured(624 * MIB, 200)) == 300


def test_a_runtime_whose_sessions_are_large_may_have_few():
    assert live_cap(50, GIB, Measured(1024 * MIB, 60)) == 60
    assert live_cap(50, GIB, Measured(2048 * MIB, 60)) == 50


def test_without_a_budget_the_number_is_the_cap_and_without_a_number_there_is_none():
    assert live_cap(50, 0, Measured()) == 50
    assert live_cap(0, GIB, Measured()) == 0


@given(counts, st.integers(1, 8 * GIB), sizes, st.integers(0, 2000))
def test_it_is_never_less_than_what_may_always_be(always, budget, memory, live):
    assert live_cap(always, budget, Measured(memory, live)) >= always


@given(counts, st.integers(1, 8 * GIB), sizes, sizes, st.integers(0, 2000))
def test_more_memory_used_never_means_more_sessions(always, budget, one, other, live):
    low, high = sorted((one, other))
    assert live_cap(always, budget, Measured(high, live)) <= live_cap(always, budget, Measured(low, live))


@given(counts, st.integers(1, 8 * GIB), sizes, st.integers(0, 2000))
def test_what_it_adds_fits_into_the_budget(always, budget, memory, live):
    added = live_cap(always, budget, Measured(memory, live)) - live
    if live + added > always:
        assert memory + added * SESSION_BYTES <= max(budget, memory)
