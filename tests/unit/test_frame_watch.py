"""Frames that pass unread: the same bytes come out, however they came; only sizes are held and marked frames replaced."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.protocol import framing
from aerodrome.protocol.frame_watch import MAX_MARKED_BYTES, FrameWatch

LIMIT = 64 * 1024
MARK = b"(mark)"


def exchange(body: bytes) -> bytes | None:
    """Replace some marked frames, drop some, leave the rest."""
    if body.startswith(b"drop"):
        return b""
    return body.replace(MARK, b"(other)") if body.startswith(b"change") else None


def pass_through(chunks: list[bytes]) -> tuple[bytes, FrameWatch]:
    watch = FrameWatch(LIMIT, MARK, exchange)
    return b"".join(map(watch.feed, chunks)), watch


def expected(bodies: list[bytes]) -> bytes:
    replaced = [exchange(body) if MARK in body else None for body in bodies]
    kept = [body if other is None else other for body, other in zip(bodies, replaced, strict=True)]
    return b"".join(framing.encode(body) for body, other in zip(kept, replaced, strict=True) if body or other is None)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(marks)]


BODIES = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from([b"change " + MARK, b"drop " + MARK, b"leave " + MARK, MARK]),
        st.integers(MAX_MARKED_BYTES + 1, LIMIT).map(lambda size: b"x" * size),
    ),
    max_size=6,
)


@given(bodies=BODIES, places=st.lists(st.integers(0, 200_000), max_size=8))
def test_whole_frames_pass_however_the_stream_is_cut(bodies: list[bytes], places: list[int]) -> None:
    passed, watch = pass_through(cut(b"".join(map(framing.encode, bodies)), places))
    assert passed == expected(bodies)
    assert watch.fault is None


@given(data=st.binary(max_size=2000), places=st.lists(st.integers(0, 2000), max_size=8))
def test_bytes_that_are_no_frames_pass_as_they_are(data: bytes, places: list[int]) -> None:
    stream = b"no header\r\n\r\n" + data
    passed, watch = pass_through(cut(stream, places))
    assert passed == stream
    assert watch.fault is None


def test_byte_by_byte_nothing_is_lost() -> None:
    bodies = [b"", b"change " + MARK, b"y" * (MAX_MARKED_BYTES + 1), b"drop " + MARK, b"end"]
    data = b"".join(map(framing.encode, bodies))
    assert pass_through([data[at : at + 1] for at in range(len(data))])[0] == expected(bodies)


def test_a_chunk_of_whole_frames_is_not_copied() -> None:
    data = framing.encode(b"one") + framing.encode(b"two")
    assert FrameWatch(LIMIT, MARK, exchange).feed(data) is data


def test_a_long_frame_begins_to_pass_before_its_end_has_come() -> None:
    watch = FrameWatch(LIMIT, MARK, exchange)
    start = framing.header(LIMIT) + b"x" * 100
    assert watch.feed(start) == start
    assert watch.feed(b"y" * 50) == b"y" * 50


def test_a_short_frame_waits_for_its_end() -> None:
    watch = FrameWatch(LIMIT, MARK, exchange)
    frame = framing.encode(b"change " + MARK)
    assert watch.feed(frame[:-1]) == b""
    assert watch.feed(frame[-1:]) == framing.encode(b"change (other)")


@pytest.mark.parametrize(
    "header", [b"Content-Length: %d\r\n\r\n", b"content-length:%d\r\n\r\n", b"X: y\r\nContent-Length: %d\n\n"]
)
def test_a_frame_over_the_limit_ends_it(header: bytes) -> None:
    watch = FrameWatch(LIMIT, MARK, exchange)
    assert watch.feed(framing.encode(b"fine")) == framing.encode(b"fine")
    assert watch.feed(header % (LIMIT + 1)) == b""
    assert isinstance(watch.fault, errors.FrameTooLarge)
    assert watch.fault.details == {"limit_bytes": LIMIT}
    assert watch.feed(framing.encode(b"more")) == b""


def test_after_a_broken_header_no_more_passes_than_one_frame_may_have() -> None:
    watch = FrameWatch(LIMIT, MARK, exchange)
    assert watch.feed(b"Content-Length: x\r\n\r\n") == b"Content-Length: x\r\n\r\n"
    assert watch.feed(framing.encode(b"drop " + MARK)) == framing.encode(b"drop " + MARK)
    while watch.fault is None:
        passed = watch.feed(b"z" * 1000)
        assert passed in {b"z" * 1000, b""}
    assert isinstance(watch.fault, errors.FrameTooLarge)
