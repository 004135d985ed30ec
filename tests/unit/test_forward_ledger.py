"""What a local link has open at its gateway: who is answered what, exactly once, before and after the gateway is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.forward.ledger import Ledger, OwnAnswer
from aerodrome.protocol import messages

LOST = errors.RuntimeLost("the connection to the gateway ended; try again")


def up(ledger, method, params=None, request_id="a"):
    """Have the program ask; return what the gateway hears."""
    body = messages.request(request_id, method, messages.encode(params or {}))
    return json.loads(ledger.pass_up(messages.decode(body)))


def answer(ledger, asked, result=None, error=None):
    """Have the gateway answer; return what the program hears."""
    body = messages.failure(asked["id"], -32603, error) if error else messages.result(asked["id"], result or {})
    return json.loads(ledger.pass_down(body))


def event(ledger, session_id, kind, agent=None):
    said = {"type": kind, "data": {}, **({"agentId": agent} if agent else {})}
    params = messages.encode({"sessionId": session_id, "event": said})
    return ledger.pass_down(messages.notification("session.event", params))


def opened(ledger, session_id="s1", method="session.create", **params):
    asked = up(ledger, method, {"sessionId": session_id, **params})
    answer(ledger, asked, {"sessionId": session_id})
    return ledger.sessions[session_id]


def said_on_loss(ledger):
    return [json.loads(body) for body in ledger.lose(LOST)]


@given(st.lists(st.one_of(st.text(max_size=5), st.integers(-5, 5)), max_size=20), st.data())
def test_every_request_is_answered_once_under_its_own_id_whenever_the_gateway_is_lost(ids, data):
    ledger = Ledger()
    asked = [up(ledger, "ping", {}, request_id) for request_id in ids]
    heard = []
    for at in data.draw(st.permutations(range(len(ids))))[: data.draw(st.integers(0, len(ids)))]:
        heard.append(answer(ledger, asked[at])["id"])
    heard += [said["id"] for said in said_on_loss(ledger)]
    key = lambda found: (str(type(found)), found)  # noqa: E731
    assert sorted(heard, key=key) == sorted(ids, key=key)
    assert all(ledger.pass_down(messages.result(one["id"], {})) is None for one in asked)


def test_in_flight_requests_get_a_retryable_error_after_the_events_of_their_turns():
    ledger = Ledger()
    opened(ledger)
    answer(ledger, up(ledger, "session.send", {"sessionId": "s1", "prompt": "x"}))
    up(ledger, "session.getMessages", {"sessionId": "s1"}, 7)
    first, second = said_on_loss(ledger)
    assert first["params"]["event"]["type"] == "session.error"
    assert (second["id"], second["error"]["code"]) == (7, -32014)
    assert second["error"]["data"]["retryable"] is True
    assert [json.loads(body)["params"]["event"]["type"] for body in ledger.end_turns()] == ["session.idle"]
    assert ledger.end_turns() == []


def test_the_end_of_an_interrupted_turn_is_not_said_once_another_was_asked_for():
    for ask in ("pass_up", "expect_turn"):
        ledger = Ledger()
        opened(ledger)
        answer(ledger, up(ledger, "session.send", {"sessionId": "s1", "prompt": "x"}))
        said_on_loss(ledger)
        body = messages.request(2, "session.send", messages.encode({"sessionId": "s1", "prompt": "again"}))
        getattr(ledger, ask)(messages.decode(body))
        assert ledger.end_turns() == []


def test_a_turn_that_has_ended_or_never_began_is_not_told_as_interrupted():
    ledger = Ledger()
    held = opened(ledger)
    answer(ledger, up(ledger, "session.send", {"sessionId": "s1", "prompt": "x"}))
    event(ledger, "s1", "session.idle", agent="sub")
    assert held.has_turn
    event(ledger, "s1", "session.idle")
    answer(ledger, up(ledger, "session.send", {"sessionId": "s1", "prompt": "x"}), error="refused")
    assert said_on_loss(ledger) == []
    assert held.is_kept


def test_a_turn_that_another_program_began_is_told_too():
    ledger = Ledger()
    opened(ledger)
    event(ledger, "s1", "assistant.turn_start")
    assert [said["params"]["event"]["type"] for said in said_on_loss(ledger)] == ["session.error"]


def test_what_a_session_was_opened_with_and_told_since_is_kept_where_it_succeeded():
    ledger = Ledger()
    held = opened(ledger, model="m")
    answer(ledger, up(ledger, "session.options.update", {"sessionId": "s1", "a": 1}))
    answer(ledger, up(ledger, "session.options.update", {"sessionId": "s1", "b": 2}))
    answer(ledger, up(ledger, "session.options.update", {"sessionId": "s1", "c": 3}), error="no")
    answer(ledger, up(ledger, "session.model.switchTo", {"sessionId": "s1", "modelId": "x"}))
    answer(ledger, up(ledger, "session.model.switchTo", {"sessionId": "s1", "modelId": "y"}))
    assert held.create == {"sessionId": "s1", "model": "m"}
    assert held.options == {"sessionId": "s1", "a": 1, "b": 2}
    assert list(held.replays.values()) == [("session.model.switchTo", {"sessionId": "s1", "modelId": "y"})]


def test_a_session_whose_id_the_runtime_chose_is_known_by_it():
    ledger = Ledger()
    answer(ledger, up(ledger, "session.create", {"model": "m"}), {"sessionId": "chosen"})
    assert ledger.sessions["chosen"].create == {"model": "m", "sessionId": "chosen"}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("session.detach", {"sessionId": "s1"}),
        ("session.destroy", {"sessionId": "s1"}),
        ("session.delete", {"sessionId": "s1"}),
    ],
)
def test_a_session_that_was_let_go_is_forgotten_unless_that_failed(method, params):
    ledger = Ledger()
    opened(ledger)
    answer(ledger, up(ledger, method, params), error="no")
    assert "s1" in ledger.sessions
    answer(ledger, up(ledger, method, params))
    assert ledger.sessions == {}


def test_a_late_answer_of_the_program_never_reaches_the_next_gateway():
    ledger = Ledger()
    first = json.loads(ledger.pass_down(messages.request(1, "userInput.request", b"{}")))
    said_on_loss(ledger)
    second = json.loads(ledger.pass_down(messages.request(1, "userInput.request", b"{}")))
    assert first["id"] != second["id"]
    assert ledger.pass_up(messages.decode(messages.result(first["id"], "late"))) is None
    assert json.loads(ledger.pass_up(messages.decode(messages.result(second["id"], "due"))))["id"] == 1


def test_cancellations_name_the_other_sides_ids_both_ways():
    ledger = Ledger()
    asked = up(ledger, "session.sendAndWait", {"sessionId": "s1"}, "mine")
    cancel = messages.decode(messages.notification("$/cancelRequest", b'{"id":"mine"}'))
    assert json.loads(ledger.pass_up(cancel))["params"]["id"] == asked["id"]
    due = json.loads(ledger.pass_down(messages.request(9, "hooks.invoke", b"{}")))
    assert json.loads(ledger.pass_down(messages.notification("$/cancelRequest", b'{"id":9}')))["params"] == {
        "id": due["id"]
    }
    assert ledger.pass_up(messages.decode(messages.notification("$/cancelRequest", b'{"id":"none"}'))) is None


def test_answers_to_our_own_requests_are_no_news_for_the_program():
    ledger = Ledger()
    request_id, body = ledger.call("session.resume", {"sessionId": "s1"})
    assert json.loads(body)["method"] == "session.resume"
    found = ledger.pass_down(messages.result(request_id, {}))
    assert isinstance(found, OwnAnswer)
    ledger.call("session.resume", {"sessionId": "s1"})
    assert said_on_loss(ledger) == []


def test_what_a_runtime_says_of_being_opened_again_is_hushed_until_a_turn_begins():
    ledger = Ledger()
    held = opened(ledger)
    held.hush()
    assert event(ledger, "s1", "session.resume") is None
    assert event(ledger, "s1", "session.tools_updated") is None
    assert event(ledger, "s1", "session.tools_updated") is None
    assert event(ledger, "s1", "session.resume") is not None
    event(ledger, "s1", "assistant.turn_start")
    assert event(ledger, "s1", "session.tools_updated") is not None


def test_more_requests_than_a_link_may_have_open_are_refused():
    ledger = Ledger(limit=2)
    up(ledger, "ping")
    up(ledger, "ping")
    with pytest.raises(errors.OverCapacity):
        up(ledger, "ping")
