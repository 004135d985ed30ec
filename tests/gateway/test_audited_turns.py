"""What the audit log has of turns that were taken back, and of leases that were lost: who did it, whose they were, why."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.core.audit import Action
from aerodrome.core.identity import Owner
from aerodrome.testing.peer import RpcError

from .sharing import shared_session


def records(rig, action: Action) -> list[tuple]:
    found = [entry for entry in rig.audit_log.entries if entry.action is action]
    assert {(entry.session_id, entry.session_owner) for entry in found} <= {("s1", Owner("shared", "ann"))}
    return [(entry.owner.user, entry.whose.user, entry.target, entry.reason) for entry in found]


async def waiting_turn(rig) -> tuple:
    """Return the clients of a session in which ann's turn runs and ben's waits, and ben's call."""
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "x", "aerodromeTurn": "turn-ben"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)
    return owner, members["ben"], waiting


@pytest.mark.parametrize(
    ("method", "params", "by", "why"),
    [
        ("turns.withdraw", {"turnId": "turn-ben"}, "ben", "withdraw"),
        ("turns.withdraw", {"turnId": "turn-ben"}, "ann", "withdraw"),
        ("members.remove", {"user": "ben"}, "ann", "remove"),
        ("members.change", {"user": "ben", "roles": ["observer"]}, "ann", "change"),
        ("members.leave", {}, "ben", "leave"),
    ],
)
async def test_a_turn_that_is_taken_back_is_recorded_with_who_did_it_whose_it_was_and_why(rig, method, params, by, why):
    ann, ben, waiting = await waiting_turn(rig)

    await {"ann": ann, "ben": ben}[by].call(f"aerodrome.{method}", {"sessionId": "s1", **params})

    with pytest.raises(RpcError):
        await asyncio.wait_for(waiting, 5)
    assert records(rig, Action.TURN_WITHDRAW) == [(by, "ben", "turn-ben", why)]


async def test_a_lease_that_goes_with_its_member_is_recorded_as_a_turn_taken_back(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    lease = await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 3600})

    await owner.call("aerodrome.members.remove", {"sessionId": "s1", "user": "ben"})

    assert records(rig, Action.TURN_WITHDRAW) == [("ann", "ben", lease["turnId"], "remove")]
    removed = [entry for entry in rig.audit_log.entries if entry.method == "remove"]
    assert [(entry.owner.user, entry.whose.user) for entry in removed] == [("ann", "ben")]


@pytest.mark.parametrize("is_explicit", [True, False])
async def test_a_lease_that_its_holder_lost_is_recorded_with_who_has_it_now(rig, is_explicit):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    ben = members["ben"]
    lost = await ben.call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 0.1})

    if is_explicit:
        held = await owner.call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 30})
        await owner.call("aerodrome.turns.release", {"sessionId": "s1", "token": held["token"]})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "hers"}, 10)

    assert records(rig, Action.TURN_TAKEOVER) == [("ann", "ben", lost["turnId"], "expired")]


async def test_turns_that_follow_each_other_are_no_takeovers_and_take_back_nothing(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    for sender in (owner, members["ben"], owner):
        await sender.call("session.send", {"sessionId": "s1", "prompt": "x"})
    await owner.wait_for_event("s1", "aerodrome.turn_ended", 3)

    assert records(rig, Action.TURN_TAKEOVER) == records(rig, Action.TURN_WITHDRAW) == []
