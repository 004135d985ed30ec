"""The log of a session for HTTP readers: cursors, bounds, and what a cursor means when the log has moved on."""

from __future__ import annotations

import json

import pytest

from aerodrome.http import events
from aerodrome.http.events import EventLog, LogBudget


def said(number: int, kind: str = "assistant.message", ephemeral: bool = False, size: int = 0, **more) -> bytes:
    event = {
        "type": kind,
        "id": f"id{number}",
        "data": {"text": "x" * size},
        "timestamp": f"2026-01-01T00:00:{number:02}.000Z",
        "ephemeral": ephemeral,
        **more,
    }
    return json.dumps(event).encode()


def log_of(*bodies: bytes, **settings) -> EventLog:
    log = EventLog(**settings)
    for body in bodies:
        log.append(body)
    return log


def test_a_kept_event_comes_once_and_noise_never():
    log = log_of(said(1), said(1), said(2, "model.call_start"))

    assert [event.cursor for event in log.read(0)] == ["id1_1767225601000"]


def test_each_cursor_names_the_place_behind_its_event():
    log = log_of(said(1), said(2, "assistant.message_delta", True), said(3))
    log.say("turn.ended", {})

    assert [log.after(event.cursor) for event in log.read(0)] == [1, 2, 3, 4]
    assert log.after("id1") == 1, "the id alone, as the history has it, is a cursor too"


def test_a_cursor_of_another_life_goes_on_behind_the_kept_event_before_it():
    first = log_of(said(1), said(2, "assistant.message_delta", True))
    cursor = first.cursor
    second = first.follow()

    assert second.after(cursor) is None
    assert [one.cursor for one in events.behind(events.kept([said(1), said(3)]), cursor)] == ["id3_1767225603000"]


def test_what_was_said_before_anything_was_kept_stands_on_the_beginning_of_the_session():
    log = log_of(said(1, "session.start"))
    cursor = log.say("turn.queued", {}).cursor

    history = events.kept([said(1, "session.start"), said(2, "user.message")])
    assert [one.kind for one in events.behind(history, cursor)] == ["user.message"]
    assert [one.kind for one in events.behind(history, "")] == ["user.message"]


def test_a_cursor_that_a_killed_runtime_never_wrote_goes_on_by_its_time():
    cursor = log_of(said(3)).cursor

    history = events.kept([said(1), said(2), said(4), said(5)])
    assert [one.cursor[:3] for one in events.behind(history, cursor)] == ["id4", "id5"]
    assert len(events.behind(history, "nonsense")) == 4


@pytest.mark.parametrize("count", [1, 5, 50])
def test_a_log_lets_go_of_the_oldest_and_positions_keep_their_meaning(count):
    log = log_of(*(said(number, size=1000) for number in range(count)), limit_bytes=4000)

    assert log.end == count
    assert log.first == max(0, count - 2)
    assert log.after("id0") == (1 if count == 1 else None)
    assert [event.position for event in log.read(count - 1)] == [count - 1]


def test_all_logs_together_are_bounded_and_the_one_that_was_silent_longest_gives_way():
    budget = LogBudget(limit_bytes=10_000)
    silent, lively = EventLog(budget=budget), EventLog(budget=budget)
    silent.append(said(0, size=3000))
    last = silent.cursor
    for number in range(1, 50):
        lively.append(said(number, size=3000))
        assert budget.size_bytes <= 10_000

    assert silent.first == silent.end == 1
    assert (silent.cursor, silent.after(last)) == (last, 1)
    budget.drop(lively)
    assert budget.size_bytes == 0


def test_events_that_would_break_the_framing_of_a_stream_do_not():
    log = log_of(json.dumps(json.loads(said(1)), indent=2).encode(), said(2, id="a\nb"), said(3, "a\nb"))

    (event,) = log.read(0)
    assert event.sse.count(b"\n") == 4
    assert json.loads(event.body)["id"] == "id1"
