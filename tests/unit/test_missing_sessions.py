"""Calls on several sessions: those the caller has not are told as the runtime tells missing ones."""

import pytest

from aerodrome.protocol import missing


@pytest.mark.parametrize(
    ("method", "result", "completed"),
    [
        ("sessions.bulkDelete", {"freedBytes": {"mine": 7}}, {"freedBytes": {"mine": 7, "theirs": 0}}),
        ("sessions.bulkDelete", {"freedBytes": {}}, {"freedBytes": {"theirs": 0}}),
        ("sessions.checkInUse", {"inUse": ["mine"]}, {"inUse": ["mine"]}),
        (
            "sessions.getClientMetadata",
            [{"sessionId": "mine", "status": "ok", "metadata": {}}],
            [
                {"sessionId": "mine", "status": "ok", "metadata": {}},
                {"sessionId": "theirs", "status": "notFound"},
            ],
        ),
    ],
)
def test_a_result_is_completed_with_the_sessions_that_were_not_asked_about(method, result, completed):
    assert method in missing.LISTS
    assert missing.complete(method, result, ["theirs"]) == completed
