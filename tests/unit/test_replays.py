"""What is said again when a session comes back: the last of a setter, each of what adds up, in order, within a bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.protocol import methods, replays
from aerodrome.protocol.methods import Direction


def noted(*calls: tuple[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for method, params in calls:
        replays.note(found, method, params)
    return list(found.values())


def test_of_a_setter_only_the_last_call_counts_and_in_its_place():
    first, second = ("session.model.switchTo", {"modelId": "a"}), ("session.model.switchTo", {"modelId": "b"})
    between = ("session.permissions.setApproveAll", {"enabled": True})
    assert noted(first, between, second) == [between, second]


def test_what_adds_up_is_kept_once_for_each_of_its_kind():
    one, two = ("session.skills.disable", {"name": "one"}), ("session.skills.disable", {"name": "two"})
    assert noted(one, two, one) == [two, one]


def test_undoing_comes_after_what_it_undoes():
    off, on = ("session.skills.disable", {"name": "one"}), ("session.skills.enable", {"name": "one"})
    assert noted(off, on) == [off, on]
    assert noted(off, on, off) == [on, off]


def test_choosing_and_unchoosing_an_agent_are_one_setting():
    chosen, none = ("session.agent.select", {"name": "a"}), ("session.agent.deselect", {})
    assert noted(chosen, none) == [none]
    assert noted(none, chosen) == [chosen]


@given(st.lists(st.integers(0, 10_000), max_size=600))
def test_a_program_in_a_loop_cannot_have_it_grow_without_bound(names):
    calls = [("session.skills.disable", {"name": str(name)}) for name in names]
    found = noted(*calls)
    assert len(found) <= 256
    assert not calls or found[-1] == calls[-1]


@pytest.mark.parametrize("method", sorted(replays.METHODS))
def test_every_one_is_a_call_about_one_session(method):
    row = methods.lookup(method)
    assert row is not None
    assert row.direction is Direction.C2S
    assert [path.steps for path in row.session_ids] == [("sessionId",)]
