"""The states of runtimes and attachments, and the backoff between spawns: tables, held to what they must guarantee."""

from __future__ import annotations

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import attachment, runtime
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.backoff import Backoff
from aerodrome.core.runtime import RuntimeState

TABLES = {RuntimeState: (runtime.TRANSITIONS, runtime.move), AttachmentState: (attachment.TRANSITIONS, attachment.move)}
unit = st.floats(min_value=0, max_value=1, exclude_max=True)


def reachable(table: dict[Enum, frozenset[Enum]], start: Enum) -> set[Enum]:
    found: set[Enum] = set()
    frontier = {start}
    while frontier:
        found |= frontier
        frontier = {following for state in frontier for following in table[state]} - found
    return found


@pytest.mark.parametrize("states", TABLES)
def test_every_state_has_a_row_and_can_be_reached_from_the_first(states):
    table, _ = TABLES[states]
    assert set(table) == set(states)
    assert reachable(table, next(iter(states))) == set(states)


@pytest.mark.parametrize("states", TABLES)
def test_moves_follow_the_table_and_all_others_are_bugs(states):
    table, move = TABLES[states]
    for present in states:
        for following in states:
            if following in table[present]:
                assert move(present, following) is following
            elif not (states is AttachmentState and following is present):
                with pytest.raises(errors.AerodromeError) as raised:
                    move(present, following)
                assert raised.value.code == "internal"
                assert present.value in raised.value.message


def test_a_runtime_can_be_stopped_from_every_state_and_never_leaves_the_last():
    for state in RuntimeState:
        assert RuntimeState.STOPPED in reachable(runtime.TRANSITIONS, state)
    assert runtime.TRANSITIONS[RuntimeState.STOPPED] == frozenset()


def test_only_a_runtime_that_started_or_waited_warm_becomes_ready_and_a_fatal_one_never_does():
    before_ready = [state for state in RuntimeState if RuntimeState.READY in runtime.TRANSITIONS[state]]
    assert before_ready == [RuntimeState.STARTING, RuntimeState.WARM]
    for state in (RuntimeState.READY, RuntimeState.CORDONED):
        assert RuntimeState.WARM not in reachable(runtime.TRANSITIONS, state), "one realm's is never another's"
    assert RuntimeState.READY not in reachable(runtime.TRANSITIONS, RuntimeState.FATAL)
    assert RuntimeState.READY not in reachable(runtime.TRANSITIONS, RuntimeState.CORDONED)


def test_an_attachment_can_be_lost_or_closed_wherever_it_is_held_and_comes_back_only_by_opening():
    for state in AttachmentState:
        assert AttachmentState.CLOSED in reachable(attachment.TRANSITIONS, state)
    assert attachment.TRANSITIONS[AttachmentState.LOST] == {AttachmentState.OPENING, AttachmentState.CLOSED}
    assert attachment.TRANSITIONS[AttachmentState.CLOSED] == {AttachmentState.OPENING}


@pytest.mark.parametrize("state", AttachmentState)
def test_an_attachment_may_stay_where_it_is(state):
    assert attachment.move(state, state) is state


def test_delays_double_up_to_their_limit_and_end_with_the_budget():
    backoff = Backoff(first_seconds=1.0, factor=2.0, limit_seconds=5.0, attempts=6)
    full = [backoff.delay_seconds(failures, random=1.0) for failures in range(1, 8)]
    assert full == [1.0, 2.0, 4.0, 5.0, 5.0, None, None]


def test_one_attempt_means_no_second():
    assert Backoff(attempts=1).delay_seconds(1, 0.5) is None


@given(st.integers(min_value=1, max_value=50), unit)
def test_a_delay_lies_between_half_and_the_whole_of_its_step(failures, random):
    backoff = Backoff(attempts=100)
    delay = backoff.delay_seconds(failures, random)
    step = min(backoff.limit_seconds, backoff.first_seconds * backoff.factor ** (failures - 1))
    assert delay is not None
    assert step / 2 <= delay <= step


def test_jitter_keeps_two_gateways_from_spawning_in_step():
    backoff = Backoff()
    assert backoff.delay_seconds(1, 0.0) != backoff.delay_seconds(1, 0.9)
