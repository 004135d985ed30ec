"""What a guarded client may decide about a pending permission request: for its own session, never beyond it."""

import pytest

from aerodrome import errors
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.protocol import hardening

METHOD = "session.permissions.handlePendingPermissionRequest"
POLICY = Policy(Isolation.SHARED, Trust.LIMITED)


def decide(kind: str, **more: object) -> dict[str, object]:
    """Return what is left of an answer to a permission request."""
    params = {"sessionId": "s", "requestId": "r", "result": {"kind": kind, **more}}
    return hardening.harden_call(METHOD, params, POLICY)


@pytest.mark.parametrize("kind", ["approve-once", "approve-for-session", "reject", "user-not-available"])
def test_a_decision_for_this_session_passes_as_it_is(kind):
    assert decide(kind) == {"sessionId": "s", "requestId": "r", "result": {"kind": kind}}


@pytest.mark.parametrize(
    "kind",
    ["approve-for-location", "approved-for-location", "approve-permanently", "approve-read-only-for-session", "?"],
)
def test_a_decision_that_reaches_further_is_refused_by_name(kind):
    with pytest.raises(errors.PolicyRejected, match=r"result\.kind"):
        decide(kind, directories=["/"])


def test_an_answer_without_a_decision_is_refused():
    with pytest.raises(errors.InvalidParams):
        hardening.harden_call(METHOD, {"sessionId": "s", "requestId": "r", "result": "approve-once"}, POLICY)
