"""Events of a runtime that are no UTF-8 where the gateway looks inside: nothing is made of them, and nobody's link ends."""

from __future__ import annotations

from aerodrome.core.flights import TurnFlight
from aerodrome.gateway import turn_queue
from aerodrome.gateway.recorder import FlightRecorder
from aerodrome.protocol import messages

BODY = (
    b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s","event":'
    b'{"type":"session.error","id":"e","data":{"errorType":"\xff","messageId":"\xff"}}}}'
)


def test_a_turn_keeps_nothing_of_an_event_that_is_no_text():
    assert messages.peek(BODY) is not None
    turn = TurnFlight(0.0, "rt")

    FlightRecorder().hear(turn, "session.error", BODY)

    assert turn.error is None


def test_a_message_that_is_no_text_has_no_name():
    assert turn_queue._message_id(BODY) == ""
