"""One side of a connection without I/O: two of them talk, in both roles, cut anywhere, and each request is answered once."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from aerodrome import errors
from aerodrome.protocol import framing
from aerodrome.protocol.connection import Connection
from aerodrome.protocol.messages import Envelope

LIMIT = 10_000


def deliver(data: bytes, receiver: Connection, piece: int) -> list[Envelope]:
    """Give bytes to a connection in pieces; return the messages."""
    received = [found for at in range(0, len(data), piece) for found in receiver.receive_data(data[at : at + piece])]
    assert all(isinstance(found, Envelope) for found in received)
    return received  # type: ignore[return-value]


@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_a_request_of_either_side_is_answered_to_the_side_that_asked(piece):
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    for asking, answering in ((ours, theirs), (theirs, ours)):
        request_id = asking.send_request("ping", {"message": "hi"})
        [request] = deliver(asking.data_to_send(), answering, piece)
        assert (request.id, request.method, bytes(request.params)) == (request_id, "ping", b'{"message":"hi"}')
        answering.send_result(request.id, {"message": "pong: hi"})
        [answer] = deliver(answering.data_to_send(), asking, piece)
        assert bytes(answer.result) == b'{"message":"pong: hi"}'
        assert asking.accept_answer(answer)
        assert not asking.accept_answer(answer)


def test_both_sides_may_use_the_same_ids_at_the_same_time():
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    assert ours.send_request("a") == theirs.send_request("b")
    [their_question] = deliver(theirs.data_to_send(), ours, 1)
    [our_question] = deliver(ours.data_to_send(), theirs, 1)
    ours.send_failure(their_question.id, -32601, "Unhandled method b")
    theirs.send_result(our_question.id, "ours")
    [to_us] = deliver(theirs.data_to_send(), ours, 1)
    [to_them] = deliver(ours.data_to_send(), theirs, 1)
    assert ours.accept_answer(to_us)
    assert theirs.accept_answer(to_them)
    assert to_them.result is UNSET
    assert bytes(to_us.result) == b'"ours"'


@pytest.mark.parametrize("piece", [1, 1000])
def test_hundreds_of_requests_answered_in_reverse_are_each_accepted_once(piece):
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    asked = [ours.send_request("work", {"n": number}) for number in range(300)]
    for request in reversed(deliver(ours.data_to_send(), theirs, piece)):
        theirs.send_result(request.id, bytes(request.params).decode())
        theirs.send_result(request.id, "again")
    answers = deliver(theirs.data_to_send(), ours, piece)
    accepted = [answer for answer in answers if ours.accept_answer(answer)]
    assert [answer.id for answer in accepted] == asked[::-1]
    assert all(b"again" not in bytes(answer.result) for answer in accepted)


@pytest.mark.parametrize("odd", [b'"1"', b"true", b"1.0", b"null"])
def test_an_answer_under_an_odd_id_is_not_accepted(odd):
    ours = Connection(LIMIT)
    assert ours.send_request("ping") == 1
    for received in ours.receive_data(framing.encode(b'{"jsonrpc":"2.0","id":%b,"result":1}' % odd)):
        assert isinstance(received, errors.InvalidRequest) or not ours.accept_answer(received)


def test_notifications_carry_no_id_and_keep_their_order_among_requests():
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    ours.send_notification("first")
    ours.send_request("second")
    ours.send_notification("third", {"x": 1})
    received = deliver(ours.data_to_send(), theirs, 3)
    assert [(found.method, found.id) for found in received] == [("first", UNSET), ("second", 1), ("third", UNSET)]


def test_what_was_taken_to_be_sent_is_not_sent_again():
    ours = Connection(LIMIT)
    ours.send_request("ping")
    assert ours.data_to_send() != b""
    assert ours.data_to_send() == b""


def test_a_body_that_is_no_message_stands_between_its_neighbours_as_an_error():
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    ours.send_request("first")
    first = ours.data_to_send()
    ours.send_request("third")
    stream = first + framing.encode(b"[]") + framing.encode(b"nonsense") + ours.data_to_send()
    found = theirs.receive_data(stream)
    assert [type(item) for item in found] == [Envelope, errors.InvalidRequest, errors.ParseFailed, Envelope]


def test_a_broken_header_ends_the_stream_behind_what_came_before_it():
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    ours.send_request("first")
    assert len(theirs.receive_data(ours.data_to_send() + b"Content-Length: 1e3\r\n\r\n")) == 1
    assert isinstance(theirs.fault, errors.ParseFailed)
    with pytest.raises(errors.ParseFailed):
        theirs.receive_data(b"")


def test_a_message_over_the_limit_is_refused():
    ours, theirs = Connection(LIMIT), Connection(LIMIT)
    ours.send_request("big", {"x": "y" * LIMIT})
    with pytest.raises(errors.FrameTooLarge):
        theirs.receive_data(ours.data_to_send())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(min_value=1, max_value=50))
@example([framing.encode(b'{"id":1,"method":"a","params":' + b"[" * 5000)], 50)
@example([framing.encode(b'{"id":1,"method":"\xff"}')], 1)
def test_any_bytes_in_either_role_are_messages_or_documented_refusals(parts, piece):
    data = b"".join(parts)
    for receiver in (Connection(LIMIT), Connection(LIMIT)):
        receiver.send_request("pending")
        for at in range(0, len(data), piece):
            try:
                found = receiver.receive_data(data[at : at + piece])
            except errors.InvalidRequest:
                break
            for item in found:
                if isinstance(item, Envelope):
                    receiver.accept_answer(item)
                else:
                    assert item.code in ("request_invalid", "parse_failed")
