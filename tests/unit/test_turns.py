"""Whose turn it is: tenants in rotation, each in the order of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core.turns import FairQueue

items = st.lists(st.tuples(st.sampled_from("abcd"), st.integers()), max_size=60)


def drain(queue: FairQueue) -> list:
    return [queue.take() for _ in range(len(queue))]


def filled(pairs) -> FairQueue:
    queue: FairQueue = FairQueue()
    for number, (tenant, _) in enumerate(pairs):
        queue.put(tenant, (tenant, number))
    return queue


def test_a_tenant_with_a_thousand_does_not_keep_another_with_one_waiting():
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.put("many", f"many {number}")
    queue.put("one", "one")
    assert [queue.take() for _ in range(3)] == ["many 0", "one", "many 1"]


@given(items)
def test_all_come_out_once_and_each_tenant_in_its_order(pairs):
    out = drain(filled(pairs))
    assert sorted(number for _, number in out) == list(range(len(pairs)))
    for tenant in "abcd":
        own = [number for name, number in out if name == tenant]
        assert own == sorted(own)


@given(items)
def test_nobody_is_served_twice_while_another_waits(pairs):
    out = drain(filled(pairs))
    for start in range(len(out)):
        waiting = {name for name, _ in out[start:]}
        assert {name for name, _ in out[start : start + len(waiting)]} == waiting


@given(items, st.integers(min_value=0, max_value=70))
def test_one_that_gives_up_is_out_and_the_rest_keeps_its_order_of_tenants(pairs, position):
    queue = filled(pairs)
    if position < len(pairs):
        gone = (pairs[position][0], position)
        queue.remove(*[gone[0], gone])
        queue.remove(*[gone[0], gone])
        assert len(queue) == len(pairs) - 1
        assert gone not in drain(queue)
    else:
        queue.remove("a", ("a", position))
        assert len(queue) == len(pairs)


def test_an_empty_queue_has_nothing_to_take():
    with pytest.raises(KeyError):
        FairQueue().take()
