"""What belongs to a turn in a session that others use too: what their turns said before and behind it does not."""

from __future__ import annotations

import msgspec

from aerodrome.http.events import EventLog
from aerodrome.http.turns import Turn, TurnState


class Session:
    """A session's events as a turn that was sent hears them."""

    def __init__(self) -> None:
        self.log = EventLog()
        self.turn = Turn("mine", 1.0)
        self.turn.state, self.turn.started_at = TurnState.RUNNING, 1.0

    def say(self, kind: str, **data: object) -> bool:
        """Have the turn hear an event; say whether that ends it."""
        body = msgspec.json.encode({"type": kind, "data": data, "id": f"e{self.log.end}", "ephemeral": True})
        event = self.log.append(body)
        assert event is not None
        if kind == "session.idle":
            return self.turn.ends_with_idle()
        self.turn.hear(event)
        return False

    def turn_of(self, message_id: str, *more: str) -> list[bool]:
        """Have it hear a whole turn; `more`: events of it that say nothing."""
        return [
            self.say("user.message", content="?", messageId=message_id),
            self.say("assistant.message", content=f"answer to {message_id}"),
            self.say("assistant.usage", model=f"model of {message_id}", outputTokens=len(message_id)),
            *(self.say(kind, errorType="query", message=f"of {message_id}") for kind in more),
            self.say("session.idle"),
        ]


def said_of(turn: Turn) -> tuple:
    return turn.content, turn.model, turn.usage.output_tokens, turn.error


def test_turns_of_others_that_are_heard_before_and_behind_it_before_its_answer_are_not_its_own():
    session = Session()

    heard = [*session.turn_of("before"), *session.turn_of("own"), *session.turn_of("behind it")]

    assert not any(heard), "whose they are is not known before the answer"
    assert session.turn.take_answer("own") is True
    assert said_of(session.turn) == ("answer to own", "model of own", 3, None)


def test_the_end_of_a_turn_before_it_is_nothing_of_a_turn_that_is_heard_after_its_answer():
    session = Session()
    session.say("assistant.message", content="late words of the turn before")
    session.say("session.error", errorType="query", message="of the turn before")
    assert session.say("session.idle") is False

    assert session.turn.take_answer("own") is None, "it may be over: whoever asks the session knows"
    assert session.turn_of("own")[-1] is True
    assert said_of(session.turn) == ("answer to own", "model of own", 3, None)


def test_a_turn_that_is_heard_in_part_before_its_answer_has_all_of_it():
    session = Session()
    session.turn_of("before", "session.error", "abort")
    session.say("user.message", content="?", messageId="own")
    session.say("assistant.message", content="first words")

    assert session.turn.take_answer("own") is False
    assert session.turn.content == "first words"
    assert session.say("session.idle") is True
    session.turn.end(2.0, session.log.end)
    assert session.turn.state is TurnState.COMPLETED


def test_an_error_of_its_own_that_was_heard_before_its_answer_is_its_own():
    session = Session()
    session.turn_of("own", "session.error")

    assert session.turn.take_answer("own") is True
    session.turn.end(2.0, session.log.end)
    assert (session.turn.state, session.turn.error["message"]) == (TurnState.FAILED, "of own")


def test_a_turn_that_is_told_to_be_aborted_is_over_when_its_session_is_idle_and_not_before():
    session = Session()
    session.turn.take_answer("own")
    session.say("user.message", content="?", messageId="own")

    session.say("abort")
    assert not session.turn.is_over
    session.say("assistant.message", content="what there was")
    assert session.say("session.idle") is True
    session.turn.end(2.0, session.log.end)

    assert (session.turn.state, session.turn.content) == (TurnState.ABORTED, "what there was")
