"""Turns of shared sessions where something comes between: caps, policies that change, members that go, turns that were there."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome.core.audit import Action
from aerodrome.core.identity import Owner, Tenant
from aerodrome.testing.peer import RpcError

from .sharing import join, said, share, shared_session


async def put(rig, name: str, **changes) -> None:
    """Change the policy of a configured tenant, as a reload does."""
    tenant = rig.configured[name]
    changed = Tenant(name, replace(tenant.policy, **changes), "config")
    await rig.policies.replace_configured({**rig.configured, name: changed})


async def code_of(answer) -> str:
    with pytest.raises(RpcError) as refused:
        await asyncio.wait_for(answer, 30)
    return refused.value.data["code"]


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_message_that_a_cap_refuses_lets_the_next_turn_go(rig, tenant):
    await put(rig, tenant, max_turns_per_user=1)
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    await owner.call("session.create", {"sessionId": "other"})
    await owner.call("session.send", {"sessionId": "other", "prompt": "[hold]"})

    assert await code_of(owner.ask("session.send", {"sessionId": "s1", "prompt": "too many"})) == "over_capacity"
    await owner.call("session.abort", {"sessionId": "other"})
    await owner.wait_for_event("other", "session.idle")

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "mine"})
    await owner.wait_for_event("s1", "session.idle")
    assert [data["content"] for data in said(owner)][-1] == "mine"


async def test_the_first_message_after_a_change_of_policy_keeps_its_turn_while_its_session_comes_back(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "before"})
    await owner.wait_for_event("s1", "aerodrome.turn_ended")
    await put(rig, "shared", tools=("custom:*",))

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "after"})

    await owner.wait_for_event("s1", "session.idle", 2)
    assert [data["content"] for data in said(owner)] == ["before", "after"]


async def test_a_turn_that_waits_for_one_from_before_the_sharing_can_be_withdrawn(rig):
    owner = await rig.client("shared", "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    await share(owner, "s1", ben=["driver"])
    ben = await join(rig, "shared", "ben")
    waiting = ben.ask("session.send", {"sessionId": "s1", "prompt": "no", "aerodromeTurn": "turn-ben"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued")

    await ben.call("aerodrome.turns.withdraw", {"sessionId": "s1", "turnId": "turn-ben"})

    assert await code_of(waiting) == "turn_withdrawn"
    await owner.call("session.abort", {"sessionId": "s1"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "yes"})
    await owner.wait_for_event("s1", "session.idle", 2)
    assert "no" not in [data["content"] for data in said(owner)]


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_driver_that_may_send_no_more_has_no_turn_left_to_come(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "from an observer"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)

    await owner.call("aerodrome.members.change", {"sessionId": "s1", "user": "ben", "roles": ["observer"]})
    await owner.call("session.abort", {"sessionId": "s1"})

    assert await code_of(waiting) == "turn_withdrawn"
    look = await owner.call("aerodrome.turns.look", {"sessionId": "s1"})
    assert look["queue"] == []
    await owner.call("session.send", {"sessionId": "s1", "prompt": "next"})
    await owner.wait_for_event("s1", "session.idle", 2)
    assert "from an observer" not in [data["content"] for data in said(owner)]


async def test_a_message_on_its_way_when_its_sender_is_removed_is_not_sent(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    sent = rig.sharing.stores.coordinator.acquire
    reached, may_go = asyncio.Event(), asyncio.Event()

    async def acquire(session_id, turn_id, ttl):
        reached.set()
        await may_go.wait()
        return await sent(session_id, turn_id, ttl)

    rig.sharing.stores.coordinator.acquire = acquire
    enqueue = rig.sharing.stores.coordinator.enqueue
    late = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "late"})
    await asyncio.wait_for(reached.wait(), 30)
    await rig.sharing.stores.members.remove("s1", next(iter(await rig.sharing.stores.members.list_of("s1"))).person)
    rig.sharing.forget("s1")
    await enqueue("s1", (await rig.sharing.stores.coordinator.look("s1")).queue[0].turn_id, "ben", 3.0)
    may_go.set()

    with pytest.raises(RpcError):
        await asyncio.wait_for(late, 30)
    await owner.call("session.send", {"sessionId": "s1", "prompt": "next"})
    await owner.wait_for_event("s1", "session.idle")
    assert [call["prompt"] for call in rig.scripted.runtimes[0].called("session.send")] == ["next"]


@pytest.mark.parametrize(
    ("method", "params"),
    [("aerodrome.members.remove", {}), ("aerodrome.members.change", {"roles": ["observer"]})],
)
async def test_a_lease_of_a_member_that_may_send_no_more_holds_nobody_up(rig, method, params):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 3600})

    await owner.call(method, {"sessionId": "s1", "user": "ben", **params})

    await owner.call("session.send", {"sessionId": "s1", "prompt": "free"})


async def test_a_lease_of_a_user_who_is_erased_holds_nobody_up(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 3600})

    assert await rig.sharing.leave_everything(Owner("shared", "ben")) == 1

    await owner.call("session.send", {"sessionId": "s1", "prompt": "free"})


async def test_of_two_messages_sent_under_one_lease_at_once_both_are_said_to_be_over(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    lease = await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1"})

    for prompt in ("one", "two"):
        said_by_ben = {"sessionId": "s1", "prompt": prompt, "aerodromeTurn": prompt, "aerodromeLease": lease["token"]}
        members["ben"].ask("session.send", said_by_ben)

    await owner.wait_for_event("s1", "aerodrome.turn_ended", 2)
    assert {data["turnId"] for data in said(owner, "aerodrome.turn_ended")} == {"one", "two"}


@pytest.mark.parametrize("tenant", ["alone", "shared"])
@pytest.mark.parametrize("user", ["ann", "ben"])
async def test_messages_of_one_link_have_their_turns_in_its_order_however_long_each_look_takes(rig, tenant, user):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    coordinator = rig.sharing.stores.coordinator
    look, steps = coordinator.look, [200, 100, 0, 0]

    async def look_slowly(session_id):
        for _ in range(steps.pop(0) if steps else 0):
            await asyncio.sleep(0)
        return await look(session_id)

    coordinator.look = look_slowly
    sender = {"ann": owner, **members}[user]
    await asyncio.gather(
        *(sender.call("session.send", {"sessionId": "s1", "prompt": f"message {n}"}) for n in range(4))
    )

    await owner.wait_for_event("s1", "session.idle", 4)
    assert [data["content"] for data in said(owner)] == [f"message {n}" for n in range(4)]


async def test_messages_of_one_link_under_a_lease_are_sent_in_its_order_however_long_each_look_takes(rig):
    _, members = await shared_session(rig, "shared", ben=["driver"])
    lease = await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1"})
    rights, steps = rig.sharing.rights, [200, 100, 0]

    async def rights_slowly(*asked):
        for _ in range(steps.pop(0) if steps else 0):
            await asyncio.sleep(0)
        return await rights(*asked)

    rig.sharing.rights = rights_slowly
    under = {"sessionId": "s1", "aerodromeLease": lease["token"]}
    await asyncio.gather(*(members["ben"].call("session.send", {**under, "prompt": f"{n}"}) for n in range(3)))

    sent = [call["prompt"] for call in rig.scripted.runtimes[0].called("session.send")]
    assert sent == ["0", "1", "2"]


async def test_a_lease_lasts_until_the_turn_of_a_member_that_was_removed_is_over_and_no_longer(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"], cat=["driver"])
    lease = await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 3600})
    said_by_ben = {"sessionId": "s1", "prompt": "[permit]", "aerodromeLease": lease["token"]}
    await members["ben"].call("session.send", said_by_ben)
    await owner.wait_for_event("s1", "permission.requested")

    await owner.call("aerodrome.members.remove", {"sessionId": "s1", "user": "ben"})
    waiting = members["cat"].ask("session.send", {"sessionId": "s1", "prompt": "from cat"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)
    assert not waiting.done()
    await owner.call("session.abort", {"sessionId": "s1"})

    assert (await asyncio.wait_for(waiting, 30))["messageId"]


async def test_nobody_takes_the_place_of_another_members_turn_by_naming_it(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"], mal=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "bens", "aerodromeTurn": "turn-ben"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)

    for user in ("mal", "ben"):
        again = members[user].ask("session.send", {"sessionId": "s1", "prompt": "mals", "aerodromeTurn": "turn-ben"})
        assert await code_of(again) == "already_exists"
    await owner.call("session.abort", {"sessionId": "s1"})

    assert (await asyncio.wait_for(waiting, 30))["messageId"]
    await owner.wait_for_event("s1", "session.idle", 2)
    assert [data["content"] for data in said(owner)][1:] == ["bens"]


@pytest.mark.parametrize("user", ["ann", "ben"])
async def test_what_waits_for_its_turn_is_bounded_by_its_size(open_rig, user):
    rig = await open_rig(max_frame_bytes=300_000)
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    sender = {"ann": owner, **members}[user]
    message = {"sessionId": "s1", "prompt": "x" * 200_000}
    waiting = sender.ask("session.send", message)
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)

    assert await code_of(sender.ask("session.send", message)) == "over_capacity"
    await owner.call("session.abort", {"sessionId": "s1"})
    assert (await asyncio.wait_for(waiting, 30))["messageId"]
    assert (await sender.call("session.send", message))["messageId"]


@pytest.mark.parametrize("turn_id", ["", "x" * 1000, "a b", 7])
async def test_a_turn_is_named_as_a_session_is(rig, turn_id):
    owner, _ = await shared_session(rig, "shared", ben=["driver"])

    named = owner.ask("session.send", {"sessionId": "s1", "prompt": "x", "aerodromeTurn": turn_id})

    assert await code_of(named) == "params_invalid"
    assert said(owner, "aerodrome.turn_queued") == []


async def test_what_is_to_steer_a_turn_waits_where_a_lease_is_held_and_no_turn_runs(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "steer"})
    lease = await members["ben"].call("aerodrome.turns.acquire", {"sessionId": "s1"})

    waiting = owner.ask("session.send", {"sessionId": "s1", "prompt": "not into bens work"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)
    assert rig.scripted.runtimes[0].called("session.send") == []
    await members["ben"].call("aerodrome.turns.release", {"sessionId": "s1", "token": lease["token"]})

    assert (await asyncio.wait_for(waiting, 30))["messageId"]
    [sent] = rig.scripted.runtimes[0].called("session.send")
    assert "mode" not in sent


async def test_who_steered_a_turn_is_kept_as_who_sent_one_is(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "steer"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})

    sent = await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "a hint"})

    entries = [entry for entry in rig.audit_log.entries if entry.action is Action.TURN_SEND]
    assert [entry.owner.user for entry in entries] == ["ann", "ben"]
    await rig.settled(lambda: not rig.turns._keeping)
    kept = await rig.sharing.stores.sharings.list_sent("s1")
    assert {one.message_id: one.user for one in kept}[sent["messageId"]] == "ben"


class Steered:
    """A runtime whose turns end when the test says so; a message that comes in one's time is of it (protocol facts, queueing)."""

    def __init__(self, runtime) -> None:
        self._runtime = runtime
        self._waiting: list[tuple[str, str]] = []
        #: Whether the turn ends as the next message comes: before that is answered, or after.
        self.ends_at_message = ""
        runtime.on["session.send"] = self._send

    async def _send(self, _peer, params) -> dict:
        message_id = f"message-{params['prompt']}"
        self._waiting.append((params["prompt"], message_id))
        when, self.ends_at_message = self.ends_at_message, ""
        if when == "before":
            self.idle()
        elif when == "after":
            asyncio.get_running_loop().call_soon(self.idle)
        return {"messageId": message_id}

    def begin(self) -> None:
        """Begin all that was sent and has not begun."""
        session, self._waiting, waiting = self._runtime.sessions["s1"], [], self._waiting
        for prompt, message_id in waiting:
            self._runtime.emit(session, "user.message", {"content": prompt, "messageId": message_id})
        self._runtime.emit(session, "assistant.turn_start")

    def idle(self) -> None:
        self._runtime.emit(self._runtime.sessions["s1"], "session.idle", {"aborted": False})


async def steered_session(rig, billing: str = "sender") -> tuple:
    """Return the clients of a session in which ann's turn runs and is to be steered by whoever sends."""
    owner, members = await shared_session(rig, "shared", ben=["driver"], cat=["driver"])
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "steer", "billing": billing})
    runtime = Steered(rig.scripted.runtimes[0])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "ann"})
    runtime.begin()
    for peer in (owner, *members.values()):
        await peer.wait_for_event("s1", "assistant.turn_start")
    return owner, members, runtime


async def test_a_message_whose_turn_to_steer_ends_before_it_is_sent_waits_for_a_turn_of_its_own(rig):
    owner, members, runtime = await steered_session(rig)
    order, find_owner = rig.sharing.stores.coordinator.look, rig.ownership.find_owner
    chosen, may_go = asyncio.Event(), asyncio.Event()

    async def look(session_id):
        chosen.set()
        return await order(session_id)

    async def find(session_id):
        if chosen.is_set():
            reached.set()
            await may_go.wait()
        return await find_owner(session_id)

    reached = asyncio.Event()
    rig.sharing.stores.coordinator.look, rig.ownership.find_owner = look, find
    late = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "ben", "aerodromeTurn": "turn-ben"})
    await asyncio.wait_for(reached.wait(), 5)
    runtime.idle()
    await owner.wait_for_event("s1", "aerodrome.turn_ended")
    may_go.set()

    assert (await asyncio.wait_for(late, 5))["messageId"] == "message-ben"
    sent = rig.scripted.runtimes[0].called("session.send")
    assert [(one["prompt"], one.get("mode")) for one in sent] == [("ann", None), ("ben", None)]
    began = [(data["turnId"], data["sender"]) for data in said(owner, "aerodrome.turn_started")]
    assert began[1:] == [("turn-ben", "ben")]


async def used(rig, user: str) -> int:
    days = await rig.services.usage.list_days(Owner("shared", user), "2000-01-01", "2999-12-31")
    return sum(day.usage.model_calls for day in days)


@pytest.mark.parametrize(("billing", "payer"), [("sender", "ben"), ("owner", "ann")])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_message_that_comes_too_late_to_steer_a_turn_runs_under_its_lease_alone(rig, when, billing, payer):
    owner, members, runtime = await steered_session(rig, billing)
    scripted = rig.scripted.runtimes[0]
    runtime.ends_at_message = when
    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "ben"})
    await owner.wait_for_event("s1", "session.idle")
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "enqueue"})

    waiting = members["cat"].ask("session.send", {"sessionId": "s1", "prompt": "cat", "aerodromeTurn": "turn-cat"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)
    runtime.begin()
    scripted.emit(scripted.sessions["s1"], "assistant.usage", {"model": "m", "cost": 1})
    await owner.wait_for_event("s1", "assistant.usage")
    look = await owner.call("aerodrome.turns.look", {"sessionId": "s1"})
    assert [one["turnId"] for one in look["queue"]] == ["turn-cat"]
    runtime.idle()

    assert (await asyncio.wait_for(waiting, 5))["messageId"] == "message-cat"
    assert [one["prompt"] for one in scripted.called("session.send")] == ["ann", "ben", "cat"]
    kept = await rig.sharing.stores.sharings.list_sent("s1")
    assert {one.message_id: one.user for one in kept}["message-ben"] == "ben"
    assert await used(rig, payer) == 1


async def test_a_message_that_steers_a_turn_in_time_ends_with_it_and_is_on_its_account(rig):
    owner, members, runtime = await steered_session(rig)
    scripted = rig.scripted.runtimes[0]

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "ben"})
    runtime.begin()
    scripted.emit(scripted.sessions["s1"], "assistant.usage", {"model": "m", "cost": 1})
    runtime.idle()

    await owner.wait_for_event("s1", "aerodrome.turn_ended")
    assert (await used(rig, "ann"), await used(rig, "ben")) == (1, 0)
    assert (await members["cat"].call("session.send", {"sessionId": "s1", "prompt": "cat"}, 5))["messageId"]


async def test_a_message_that_a_runtime_refuses_to_take_into_a_turn_leaves_that_turn_as_it_was(rig):
    owner, members, runtime = await steered_session(rig)
    scripted = rig.scripted.runtimes[0]
    send = scripted.on.pop("session.send")
    scripted.faults = replace(scripted.faults, refuses="session.send")
    with pytest.raises(RpcError):
        await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "ben"})
    scripted.faults, scripted.on["session.send"] = replace(scripted.faults, refuses=""), send

    assert said(owner, "aerodrome.turn_ended") == []
    runtime.idle()
    await owner.wait_for_event("s1", "aerodrome.turn_ended")
    assert (await members["cat"].call("session.send", {"sessionId": "s1", "prompt": "cat"}, 5))["messageId"]
