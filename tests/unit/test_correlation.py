"""Requests in flight: each answer finds its origin exactly once, whatever ids the peers use and however they interleave."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from aerodrome import errors
from aerodrome.protocol.correlation import Correlation


def test_ids_of_ours_are_never_used_twice():
    open_requests: Correlation[str] = Correlation()
    ids = set()
    for number in range(1000):
        request_id = open_requests.open(f"origin {number}")
        ids.add(request_id)
        if number % 3:
            open_requests.close(request_id)
    assert len(ids) == 1000


def test_an_answer_is_given_once_and_a_doubled_one_goes_nowhere():
    open_requests: Correlation[str] = Correlation()
    request_id = open_requests.open("origin")
    assert open_requests.close(request_id) == "origin"
    assert open_requests.close(request_id) is None


@pytest.mark.parametrize("invented", [0, 2, -1, 10**30, "1", "", None, True, 1.0, [1], {"id": 1}])
def test_an_invented_id_answers_nothing(invented):
    open_requests: Correlation[str] = Correlation()
    assert open_requests.open("origin") == 1
    assert open_requests.close(invented) is None
    assert open_requests.peek(invented) is None
    assert len(open_requests) == 1


def test_peeking_leaves_a_request_open():
    open_requests: Correlation[str] = Correlation()
    request_id = open_requests.open("origin")
    assert open_requests.peek(request_id) == "origin"
    assert open_requests.items() == [(request_id, "origin")]
    assert open_requests.close(request_id) == "origin"


def test_the_limit_refuses_with_a_retryable_error_and_an_answer_makes_room():
    open_requests: Correlation[int] = Correlation(limit=3)
    ids = [open_requests.open(number) for number in range(3)]
    with pytest.raises(errors.OverCapacity) as raised:
        open_requests.open(3)
    assert raised.value.retryable
    open_requests.close(ids[1])
    assert open_requests.open(3) not in ids


def test_draining_hands_back_everything_oldest_first_and_only_once():
    open_requests: Correlation[int] = Correlation()
    ids = [open_requests.open(number) for number in range(5)]
    open_requests.close(ids[2])
    assert open_requests.drain() == [0, 1, 3, 4]
    assert open_requests.drain() == []
    assert all(open_requests.close(request_id) is None for request_id in ids)


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=300), st.randoms(use_true_random=False))
def test_hundreds_of_interleaved_requests_get_one_answer_each_under_the_id_of_their_origin(count, random):
    """Two clients number their requests alike; the runtime answers in any order, doubles some, invents others."""
    towards_runtime: Correlation[tuple[str, int]] = Correlation()
    sent = [(client, number) for number in range(count) for client in ("alice", "bob")]
    asked = {towards_runtime.open(origin): origin for origin in sent}
    answers = list(asked) * 2 + [count * 10 + extra for extra in range(5)]
    random.shuffle(answers)
    delivered = [origin for request_id in answers if (origin := towards_runtime.close(request_id)) is not None]
    assert sorted(delivered) == sorted(sent)
    assert len(towards_runtime) == 0


class Interleaving(RuleBasedStateMachine):
    """Any order of opening, closing, closing again and draining, against a plain list of what is owed."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.correlation: Correlation[int] = Correlation(limit=8)
        self.owed: dict[int, int] = {}
        self.opened = 0

    @rule(target=ids)
    def open(self):
        self.opened += 1
        try:
            request_id = self.correlation.open(self.opened)
        except errors.OverCapacity:
            assert len(self.owed) == 8
            return multiple()
        assert request_id not in self.owed
        self.owed[request_id] = self.opened
        return request_id

    @rule(request_id=ids)
    def close(self, request_id):
        assert self.correlation.close(request_id) == self.owed.pop(request_id, None)

    @rule()
    def drain(self):
        assert self.correlation.drain() == list(self.owed.values())
        self.owed.clear()

    @invariant()
    def counts_agree(self):
        assert self.correlation.items() == list(self.owed.items())


Interleaving.TestCase.settings = settings(deadline=None, max_examples=50)
TestInterleaving = Interleaving.TestCase
