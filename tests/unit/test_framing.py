"""Content-Length framing: what is accepted, what is refused, and that it never depends on how the bytes were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.protocol import framing

LIMIT = 1000

bodies = st.lists(st.binary(max_size=LIMIT), max_size=8)
#: What real and broken clients put into a header, to be strung together at random.
pieces = st.sampled_from(
    [
        b"Content-Length: ",
        b"content-length:",
        b"Content-Length: 5\r\n\r\nhello",
        *(b"5", b"0", b"12", b"99999", b"-", b"+5", b"1_0"),
        *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b":", b" ", b"X: y\r\n"),
        *(b"hello", b"{}", b"\x00", b"\xff"),
    ]
)


def decode(chunks: list[bytes], limit: int = LIMIT) -> tuple[list[bytes], str]:
    """Feed chunks; return the bodies and the code of the fault after them, "" for none."""
    decoder = framing.FrameDecoder(limit)
    found: list[bytes] = []
    for chunk in chunks:
        try:
            found += decoder.feed(chunk)
        except errors.InvalidRequest as fault:
            return found, fault.code
        if decoder.fault is not None:
            return found, decoder.fault.code
        assert decoder.buffered_bytes <= limit + framing.MAX_HEADER_BYTES
    return found, ""


def by_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, points: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


ACCEPTED = {
    "the form both SDKs and the runtime write": b"Content-Length: 5\r\n\r\nhello",
    "lower case": b"content-length: 5\r\n\r\nhello",
    "upper case": b"CONTENT-LENGTH: 5\r\n\r\nhello",
    "no space": b"Content-Length:5\r\n\r\nhello",
    "spaces and tabs round the number": b"Content-Length: \t 5 \t\r\n\r\nhello",
    "a space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "bare newlines": b"Content-Length: 5\n\nhello",
    "a bare newline ending the block": b"Content-Length: 5\r\n\nhello",
    "another header before it": b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: 5\r\n\r\nhello",
    "another header after it": b"Content-Length: 5\r\nContent-Type: x\r\n\r\nhello",
    "the same length twice": b"Content-Length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "leading zeros": b"Content-Length: 0005\r\n\r\nhello",
    "twenty digits": b"Content-Length: 00000000000000000005\r\n\r\nhello",
    "a header line without a value": b"X:\r\nContent-Length: 5\r\n\r\nhello",
    "bytes outside ASCII in another header": b"X: \xff\xfe\r\nContent-Length: 5\r\n\r\nhello",
    "a block of exactly the longest size": b"Content-Length: 5\r\nX: " + b"y" * (4096 - 26) + b"\r\n\r\nhello",
}

PARSE, LARGE = errors.ParseFailed.code, errors.FrameTooLarge.code
REFUSED = {
    "a plus sign": (b"Content-Length: +5\r\n\r\nhello", PARSE),
    "a minus sign": (b"Content-Length: -5\r\n\r\nhello", PARSE),
    "an underscore": (b"Content-Length: 1_000\r\n\r\n", PARSE),
    "a fraction": (b"Content-Length: 5.0\r\n\r\nhello", PARSE),
    "hexadecimal digits": (b"Content-Length: 0x5\r\n\r\nhello", PARSE),
    "digits of another script": ("Content-Length: ٥\r\n\r\nhello".encode(), PARSE),
    "two numbers": (b"Content-Length: 5 5\r\n\r\nhello", PARSE),
    "a list": (b"Content-Length: 5, 5\r\n\r\nhello", PARSE),
    "nothing": (b"Content-Length:\r\n\r\nhello", PARSE),
    "no such header": (b"Content-Type: x\r\n\r\nhello", PARSE),
    "an empty block": (b"\r\n\r\nhello", PARSE),
    "two that differ": (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", PARSE),
    "more digits than a length has": (b"Content-Length: " + b"0" * 20 + b"5\r\n\r\nhello", PARSE),
    "four thousand digits": (b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n", PARSE),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", PARSE),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 3, PARSE),
    "no colon": (b"Content-Length 5\r\n\r\nhello", PARSE),
    "a block without end": (b"X: " + b"y" * 5000, PARSE),
    "lines without end": (b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 150, PARSE),
    "a block one byte over the longest": (b"Content-Length: 5\r\nX: " + b"y" * (4096 - 25) + b"\r\n\r\nhello", PARSE),
    "one byte over the limit": (b"Content-Length: 1001\r\n\r\n", LARGE),
    "a gigabyte": (b"Content-Length: 1073741824\r\n\r\n", LARGE),
    "twenty nines": (b"Content-Length: " + b"9" * 20 + b"\r\n\r\n", LARGE),
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_a_header_is_accepted_in_one_piece_and_byte_by_byte(form):
    data = ACCEPTED[form]
    assert decode([data]) == ([b"hello"], "")
    assert decode(by_bytes(data)) == ([b"hello"], "")


@pytest.mark.parametrize("form", REFUSED)
def test_a_header_is_refused_in_one_piece_and_byte_by_byte(form):
    data, code = REFUSED[form]
    assert decode([data]) == ([], code)
    assert decode(by_bytes(data)) == ([], code)


@pytest.mark.parametrize("form", REFUSED)
def test_what_came_before_a_broken_header_is_not_lost(form):
    data, code = REFUSED[form]
    good = framing.encode(b"one") + framing.encode(b"two")
    assert decode([good + data]) == ([b"one", b"two"], code)
    assert decode(by_bytes(good + data)) == ([b"one", b"two"], code)


def test_nothing_is_read_after_a_fault_however_good_it_looks():
    decoder = framing.FrameDecoder(LIMIT)
    assert decoder.feed(framing.encode(b"one") + b"garbage\n") == [b"one"]
    with pytest.raises(errors.ParseFailed) as raised:
        decoder.feed(framing.encode(b"two"))
    assert raised.value is decoder.fault


def test_what_is_written_is_exactly_the_one_header_the_python_sdk_takes():
    assert framing.encode(b'{"a":1}') == b'Content-Length: 7\r\n\r\n{"a":1}'
    assert framing.header(7) + b'{"a":1}' == framing.encode(b'{"a":1}')


def test_a_frame_of_no_bytes_is_an_empty_body():
    assert decode([b"Content-Length: 0\r\n\r\n" * 3]) == ([b"", b"", b""], "")


def test_a_body_of_exactly_the_limit_is_accepted():
    assert decode([framing.encode(b"x" * LIMIT)]) == ([b"x" * LIMIT], "")


def test_a_body_that_looks_like_a_header_is_a_body():
    body = b"Content-Length: 3\r\n\r\nabc"
    assert decode(by_bytes(framing.encode(body) * 2)) == ([body, body], "")


def test_a_refused_length_is_refused_before_any_of_its_body_is_held():
    decoder = framing.FrameDecoder(LIMIT)
    with pytest.raises(errors.FrameTooLarge) as raised:
        decoder.feed(b"Content-Length: 1073741824\r\n\r\n" + b"x" * 100_000)
    assert decoder.buffered_bytes == 0
    assert raised.value.details == {"limit_bytes": LIMIT}


def test_a_changed_limit_holds_for_the_next_header_and_not_for_the_frame_under_way():
    decoder = framing.FrameDecoder(10)
    assert decoder.feed(b"Content-Length: 10\r\n\r\n12345") == []
    decoder.max_frame_bytes = 20
    assert decoder.feed(b"67890" + framing.encode(b"y" * 20)) == [b"1234567890", b"y" * 20]
    decoder.max_frame_bytes = 5
    with pytest.raises(errors.FrameTooLarge):
        decoder.feed(framing.encode(b"123456"))


def test_taking_the_rest_leaves_a_decoder_that_starts_anew():
    decoder = framing.FrameDecoder(LIMIT)
    frame = framing.encode(b"hello")
    assert decoder.feed(frame + frame[:-2]) == [b"hello"]
    assert decoder.take_rest() == frame[:-2]
    assert decoder.buffered_bytes == 0
    assert decoder.feed(frame) == [b"hello"]


@pytest.mark.timeout(15)
def test_a_long_frame_in_small_pieces_costs_no_more_than_its_length_in_copying():
    """Quadratic work shows as time: 8 MB in 80,000 pieces would copy 320 GB, which takes a minute and not an instant."""
    size = 8 * 1024 * 1024
    decoder = framing.FrameDecoder(size)
    data = framing.encode(b"x" * size)
    found = [body for at in range(0, len(data), 100) for body in decoder.feed(data[at : at + 100])]
    assert [len(body) for body in found] == [size]


@settings(deadline=None)
@given(bodies, st.lists(st.integers(min_value=0), max_size=20))
def test_bodies_survive_any_cutting_of_their_frames(sent, points):
    data = b"".join(map(framing.encode, sent))
    assert decode([data]) == (sent, "")
    assert decode(cut(data, points)) == (sent, "")
    assert decode(by_bytes(data)) == (sent, "")


@settings(deadline=None)
@given(st.lists(st.one_of(pieces, st.binary(max_size=6)), max_size=30), st.lists(st.integers(min_value=0), max_size=10))
def test_any_bytes_are_accepted_or_refused_alike_at_every_cut(parts, points):
    data = b"".join(parts)
    whole = decode([data])
    assert whole[1] in ("", PARSE, LARGE)
    assert decode(by_bytes(data)) == whole
    assert decode(cut(data, points)) == whole


@settings(deadline=None)
@given(st.lists(pieces, max_size=12), st.binary(max_size=30), bodies)
def test_read_header_says_of_a_prefix_only_what_it_says_of_the_whole(parts, tail, sent):
    """Whoever reads frames in place (the transparent relay) must judge a header as the decoder does."""
    data = b"".join(parts) + tail + b"".join(map(framing.encode, sent))
    for end in range(len(data) + 1):
        try:
            early = framing.read_header(data[:end], 0, LIMIT)
        except errors.InvalidRequest as fault:
            with pytest.raises(type(fault)):
                framing.read_header(data, 0, LIMIT)
            return
        if early is not None:
            assert framing.read_header(data, 0, LIMIT) == early
            return
