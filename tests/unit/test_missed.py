"""Events kept for someone who is away: in order, bounded, complete messages longer than their pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aerodrome.gateway.missed import Missed

KINDS = ("assistant.message_delta", "assistant.message", "session.idle")
entries = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 400)), max_size=60)


def test_within_the_bound_all_is_kept_in_order():
    missed = Missed(100)
    for number in range(10):
        missed.add("assistant.message_delta", b"%10d" % number)
    assert missed.bodies() == [b"%10d" % number for number in range(10)]


def test_over_the_bound_pieces_go_first():
    missed = Missed(100)
    missed.add("user.message", b"u" * 40)
    for _ in range(6):
        missed.add("assistant.message_delta", b"d" * 10)
    missed.add("assistant.message", b"m" * 40)
    assert missed.bodies() == [b"u" * 40, b"m" * 40]


def test_then_the_oldest_go():
    missed = Missed(100)
    for letter in b"abcd":
        missed.add("assistant.message", bytes([letter]) * 40)
    assert missed.bodies() == [b"c" * 40, b"d" * 40]


@given(entries, st.integers(0, 1000))
def test_never_over_the_bound_and_never_out_of_order(added, limit):
    missed = Missed(limit)
    bodies = [b"%04d" % number + b"x" * size for number, (_, size) in enumerate(added)]
    for (kind, _), body in zip(added, bodies, strict=True):
        missed.add(kind, body)
    kept = missed.bodies()
    assert sum(map(len, kept)) <= limit
    assert kept == sorted(kept)
    assert set(kept) <= set(bodies)
