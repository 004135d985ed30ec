"""Several people in one session: roles on every message, turns in order, under a lease, and who did what."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.core.audit import Action
from aerodrome.gateway.turn_queue import TurnSettings
from aerodrome.testing.peer import RpcError

from .sharing import join, said, share, shared_session

OWNERS = ["alone", "guarded", "team", "shared"]


@pytest.mark.parametrize("tenant", OWNERS)
async def test_a_driver_sends_and_everyone_hears_the_same_in_the_same_order(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"], eve=["observer"])

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "from ben"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "from ann"})

    for peer in (owner, *members.values()):
        await peer.wait_for_event("s1", "session.idle", 2)
        # That one has begun is told by the link that sent it, and may be heard after its end on another.
        await peer.wait_for_event("s1", "aerodrome.turn_started", 2)
        assert [data["content"] for data in said(peer)] == ["from ben", "from ann"]
        assert [data["sender"] for data in said(peer, "aerodrome.turn_started")] == ["ben", "ann"]


@pytest.mark.parametrize("tenant", OWNERS)
async def test_each_role_may_do_its_own_and_nothing_else(rig, tenant):
    roles = {"ben": ["driver"], "cat": ["approver"], "eve": ["observer"]}
    owner, members = await shared_session(rig, tenant, **roles)
    calls = {
        "read": ("session.getMessages", {}),
        "send": ("session.send", {"prompt": "x"}),
        "approve": (
            "session.permissions.handlePendingPermissionRequest",
            {"requestId": "r", "result": {"kind": "reject"}},
        ),
        "manage": ("session.delete", {}),
        "manage, by a call that nobody knows": ("session.tools.set", {"tools": []}),
        "invite": ("aerodrome.members.invite", {"user": "mal", "roles": ["driver"]}),
    }
    allowed = {"ben": {"read", "send"}, "cat": {"read", "approve"}, "eve": {"read"}}

    for user, member in members.items():
        for name, (method, params) in calls.items():
            if name in allowed[user]:
                await member.call(method, {"sessionId": "s1", **params})
            else:
                with pytest.raises(RpcError) as refused:
                    await member.call(method, {"sessionId": "s1", **params})
                assert refused.value.data["code"] == "policy_rejected", (user, name)
    assert (await owner.call("session.getMessages", {"sessionId": "s1"}))["events"]


@pytest.mark.parametrize("tenant", OWNERS)
async def test_who_is_no_member_is_told_what_one_is_told_of_a_missing_session(rig, tenant):
    owner, _ = await shared_session(rig, tenant, ben=["driver"])
    stranger = await rig.client(tenant, "mal")
    invited = await rig.client(tenant, "ida")
    await share(owner, "s1", ida=["driver"])

    for outsider in (stranger, invited):
        for method, params in (
            ("session.resume", {}),
            ("session.send", {"prompt": "x"}),
            ("aerodrome.sharing.look", {}),
            ("aerodrome.turns.acquire", {}),
        ):
            heard = []
            for session_id in ("s1", "none"):
                with pytest.raises(RpcError) as refused:
                    await outsider.call(method, {"sessionId": session_id, **params})
                heard.append(str(refused.value).replace(session_id, "ID"))
            if outsider is stranger or not method.startswith("aerodrome"):
                assert heard[0] == heard[1], method
        assert not outsider.events("s1")


async def test_members_of_other_tenants_there_are_none(rig):
    await shared_session(rig, "shared", ben=["driver"])
    ben_of_another_tenant = await rig.client("other", "ben")

    with pytest.raises(RpcError, match="not found"):
        await ben_of_another_tenant.call("session.resume", {"sessionId": "s1"})
    with pytest.raises(RpcError, match="no such session"):
        await ben_of_another_tenant.call("aerodrome.members.accept", {"sessionId": "s1"})


@pytest.mark.parametrize("tenant", OWNERS)
async def test_a_removed_member_hears_and_says_nothing_more_and_its_waiting_turns_go(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    ben = members["ben"]
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = ben.ask("session.send", {"sessionId": "s1", "prompt": "late"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)

    removed = await owner.call("aerodrome.members.remove", {"sessionId": "s1", "user": "ben"})

    assert len(removed["withdrawn"]) == 1
    with pytest.raises(RpcError):
        await asyncio.wait_for(waiting, 30)
    await ben.wait_for_event("s1", "aerodrome.member_removed")
    await owner.call("session.abort", {"sessionId": "s1"})
    await owner.wait_for_event("s1", "session.idle")
    await owner.call("session.send", {"sessionId": "s1", "prompt": "among us"})
    await owner.wait_for_event("s1", "session.idle", 2)
    assert said(ben) == []
    with pytest.raises(RpcError):
        await ben.call("session.send", {"sessionId": "s1", "prompt": "x"})
    assert [data["content"] for data in said(owner)][-1] == "among us"


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_turns_are_serial_whoever_sends_them_and_a_busy_member_holds_nobody_up(rig, tenant):
    users = ["ben", "cat", "dan"]
    owner, members = await shared_session(rig, tenant, **{user: ["driver"] for user in users})
    first = await asyncio.gather(
        *(members["ben"].call("session.send", {"sessionId": "s1", "prompt": f"ben {n}"}) for n in range(4)),
        *(members[user].call("session.send", {"sessionId": "s1", "prompt": user}) for user in ("cat", "dan")),
    )
    assert len({answer["messageId"] for answer in first}) == 6
    await owner.wait_for_event("s1", "aerodrome.turn_ended", 6)
    await owner.wait_for_event("s1", "session.idle", 6)

    kinds = [kind for kind in owner.events("s1") if kind in ("assistant.turn_start", "session.idle")]
    assert kinds == ["assistant.turn_start", "session.idle"] * 6
    order = [data["content"] for data in said(owner)]
    assert set(order[:3]) >= {"cat", "dan"} - set(order[3:])
    assert max(order.index("cat"), order.index("dan")) <= 3
    assert [text for text in order if text.startswith("ben")] == [f"ben {n}" for n in range(4)]


async def test_while_a_turn_waits_its_link_goes_on_with_everything_else(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "later"})

    assert (await members["ben"].call("session.getMessages", {"sessionId": "s1"}))["events"]
    await members["ben"].call("session.create", {"sessionId": "bens"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)
    look = await members["ben"].call("aerodrome.turns.look", {"sessionId": "s1"})
    assert (look["running"]["sender"], [one["sender"] for one in look["queue"]]) == ("ann", ["ben"])

    await owner.call("session.abort", {"sessionId": "s1"})
    assert (await asyncio.wait_for(waiting, 30))["messageId"]


async def test_a_sender_withdraws_its_own_waiting_turn_and_nobody_elses(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"], cat=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "later", "aerodromeTurn": "turn-ben"})
    await owner.wait_until(lambda: any(data["turnId"] == "turn-ben" for data in said(owner, "aerodrome.turn_queued")))

    with pytest.raises(RpcError, match="by its sender"):
        await members["cat"].call("aerodrome.turns.withdraw", {"sessionId": "s1", "turnId": "turn-ben"})
    await members["ben"].call("aerodrome.turns.withdraw", {"sessionId": "s1", "turnId": "turn-ben"})

    with pytest.raises(RpcError) as withdrawn:
        await asyncio.wait_for(waiting, 30)
    assert withdrawn.value.data["code"] == "turn_withdrawn"


async def test_busy_policy_reject_says_who_holds_the_turn_and_for_how_long(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "reject"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})

    with pytest.raises(RpcError) as busy:
        await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "x"})

    assert (busy.value.data["code"], busy.value.data["holder"]) == ("session_busy", "ann")
    assert busy.value.data["since_seconds"] >= 0


async def test_busy_policy_interrupt_aborts_the_turn_that_runs(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "interrupt"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "mine now"})

    await owner.wait_for_event("s1", "session.idle", 2)
    assert "abort" in owner.events("s1")
    assert said(owner)[-1]["content"] == "mine now"


async def test_busy_policy_steer_sends_into_the_turn_that_runs(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "steer"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "a hint"})

    sent = [call.params for call in rig.scripted.runtimes[0].calls if call.method == "session.send"]
    assert sent[-1]["mode"] == "immediate"


async def test_a_share_link_makes_members_until_it_is_used_up_or_expired(rig):
    owner, _ = await shared_session(rig, "shared", ben=["observer"])
    made = await owner.call("aerodrome.links.create", {"sessionId": "s1", "roles": ["driver"], "uses": 1})

    cat = await rig.client("shared", "cat")
    assert (await cat.call("aerodrome.links.use", {"token": made["token"]}))["roles"] == ["driver"]
    await cat.call("session.resume", {"sessionId": "s1"})
    await cat.call("session.send", {"sessionId": "s1", "prompt": "hi"})
    await owner.wait_for_event("s1", "session.idle")

    expired = await owner.call("aerodrome.links.create", {"sessionId": "s1", "roles": ["driver"], "seconds": 0.01})
    revoked = await owner.call("aerodrome.links.create", {"sessionId": "s1", "roles": ["driver"]})
    await owner.call("aerodrome.links.revoke", {"sessionId": "s1", "linkId": revoked["linkId"]})
    await asyncio.sleep(0.02)  # its time is up then
    dan = await rig.client("shared", "dan")
    stranger = await rig.client("other", "dan")
    for peer, token in ((dan, made["token"]), (dan, expired["token"]), (dan, revoked["token"]), (dan, "share_x")):
        with pytest.raises(RpcError, match="does not open"):
            await peer.call("aerodrome.links.use", {"token": token})
    fresh = await owner.call("aerodrome.links.create", {"sessionId": "s1", "roles": ["driver"]})
    with pytest.raises(RpcError, match="does not open"):
        await stranger.call("aerodrome.links.use", {"token": fresh["token"]})


async def test_share_links_of_a_session_are_bounded_and_spent_ones_are_forgotten(rig):
    owner, _ = await shared_session(rig, "shared", ben=["observer"])
    wanted = {"sessionId": "s1", "roles": ["observer"]}
    spent = await owner.call("aerodrome.links.create", {**wanted, "uses": 1})
    await (await rig.client("shared", "cat")).call("aerodrome.links.use", {"token": spent["token"]})
    made = [await owner.call("aerodrome.links.create", wanted) for _ in range(100)]
    with pytest.raises(RpcError, match="at most 100 share links of a session: revoke some"):
        await owner.call("aerodrome.links.create", wanted)
    listed = (await owner.call("aerodrome.links.list", {"sessionId": "s1"}))["links"]
    assert {one["linkId"] for one in listed} == {one["linkId"] for one in made}
    await owner.call("aerodrome.links.revoke", {"sessionId": "s1", "linkId": made[0]["linkId"]})
    assert (await owner.call("aerodrome.links.create", wanted))["token"]


async def test_members_are_told_who_is_here(rig):
    owner, members = await shared_session(rig, "team", ben=["observer"])
    await owner.wait_until(lambda: len(said(owner, "aerodrome.presence")) >= 1)
    await owner.wait_until(
        lambda: {one["user"] for one in said(owner, "aerodrome.presence")[-1]["here"]} == {"ann", "ben"}
    )

    await members["ben"].aclose()

    await owner.wait_until(lambda: [one["user"] for one in said(owner, "aerodrome.presence")[-1]["here"]] == ["ann"])


async def test_a_member_joins_with_what_the_session_was_opened_with(rig):
    owner = await rig.client("alone", "ann")
    opened = {"model": "large", "tools": [{"name": "anns"}], "availableTools": ["bash"], "requestPermission": True}
    await owner.call("session.create", {"sessionId": "s1", **opened})
    await share(owner, "s1", ben=["driver"], eve=["observer"])
    wish = {
        "model": "tiny",
        "availableTools": ["*"],
        "hooks": True,
        "tools": [{"name": "bens"}],
        "requestPermission": True,
    }
    await join(rig, "alone", "ben", **wish)
    await join(rig, "alone", "eve", **wish)

    # Who only reads has no connection to a runtime, and says nothing to it (test_audiences.py).
    [ben] = [call.params for call in rig.scripted.runtimes[0].calls if call.method == "session.resume"]
    assert (ben["model"], ben["availableTools"]) == ("large", ["bash"])
    assert [tool["name"] for tool in ben["tools"]] == ["bens"]
    assert "hooks" not in ben
    assert ben["requestPermission"] is False


async def test_what_members_do_is_in_the_audit_log_under_their_own_names(rig):
    _, members = await shared_session(rig, "shared", ben=["driver"], eve=["observer"])
    with pytest.raises(RpcError):
        await members["eve"].call("session.send", {"sessionId": "s1", "prompt": "x"})

    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "x", "aerodromeTurn": "turn-ben"})

    entries = [entry for entry in rig.audit_log.entries if entry.session_id == "s1"]
    turns = [entry for entry in entries if entry.action is Action.TURN_SEND]
    assert [(entry.owner.user, entry.session_owner.user, entry.target) for entry in turns] == [
        ("ben", "ann", "turn-ben")
    ]
    shares = [(entry.owner.user, entry.method) for entry in entries if entry.action is Action.SESSION_SHARE]
    assert shares.count(("ann", "invite")) == 2
    assert ("ben", "accept") in shares
    resumed = [entry for entry in entries if entry.action is Action.SESSION_RESUME]
    assert {(entry.owner.user, entry.session_owner.user) for entry in resumed} == {("ben", "ann"), ("eve", "ann")}
    refused = [entry for entry in entries if entry.owner.user == "eve" and entry.action is Action.CALL]
    assert [entry.method for entry in refused] == ["session.send"]


async def test_a_holder_that_was_paused_past_its_lease_cannot_send_any_more(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    ben = members["ben"]
    lease = await ben.call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 0.2})

    await owner.call("session.send", {"sessionId": "s1", "prompt": "took over"})
    await owner.wait_for_event("s1", "session.idle")

    with pytest.raises(RpcError) as stale:
        await ben.call("session.send", {"sessionId": "s1", "prompt": "late", "aerodromeLease": lease["token"]})
    assert stale.value.data["code"] == "lease_lost"
    assert [data["content"] for data in said(owner)] == ["took over"]


async def test_a_lease_is_renewed_used_and_released_by_its_holder_alone(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"], cat=["driver"])
    ben, cat = members["ben"], members["cat"]
    lease = await ben.call("aerodrome.turns.acquire", {"sessionId": "s1", "ttlSeconds": 60})
    waiting = cat.ask("session.send", {"sessionId": "s1", "prompt": "from cat"})

    for prompt in ("one", "two"):
        await ben.call("session.send", {"sessionId": "s1", "prompt": prompt, "aerodromeLease": lease["token"]})
    await owner.wait_for_event("s1", "session.idle", 2)
    with pytest.raises(RpcError, match="another member's"):
        await cat.call("aerodrome.turns.release", {"sessionId": "s1", "token": lease["token"]})
    with pytest.raises(RpcError) as stolen:
        await cat.call("session.send", {"sessionId": "s1", "prompt": "x", "aerodromeLease": lease["token"]})
    assert stolen.value.data["code"] == "lease_lost"
    await ben.call("aerodrome.turns.renew", {"sessionId": "s1", "token": lease["token"]})
    await ben.call("aerodrome.turns.release", {"sessionId": "s1", "token": lease["token"]})

    await asyncio.wait_for(waiting, 30)
    await owner.wait_for_event("s1", "session.idle", 3)
    assert [data["content"] for data in said(owner)] == ["one", "two", "from cat"]


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_a_turn_whose_runtime_dies_lets_the_next_one_go(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "kept"})
    await owner.wait_for_event("s1", "session.idle")
    dying = owner.ask("session.send", {"sessionId": "s1", "prompt": "[die]"})
    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "after"})

    await members["ben"].wait_until(lambda: [data["content"] for data in said(members["ben"])][-1:] == ["after"])
    await asyncio.wait((dying,), timeout=30)


async def test_a_link_that_ends_leaves_nothing_behind(rig):
    owner = await rig.client("alone", "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    await share(owner, "s1", ben=["driver"])
    before = rig.baseline()
    ben = await join(rig, "alone", "ben")
    waiting = owner.ask("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    await asyncio.wait((waiting,), timeout=30)
    ben.ask("session.send", {"sessionId": "s1", "prompt": "never"})
    await owner.wait_for_event("s1", "aerodrome.turn_queued", 2)

    await ben.aclose()
    await owner.call("session.abort", {"sessionId": "s1"})

    await owner.wait_for_event("s1", "aerodrome.turn_ended", 1)
    await rig.settled(lambda: rig.baseline().tasks <= before.tasks and rig.links() <= before.links)
    look = await owner.call("aerodrome.turns.look", {"sessionId": "s1"})
    assert (look["queue"], look["running"]) == ([], None)


async def test_a_deleted_session_takes_its_members_and_links_along(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    made = await owner.call("aerodrome.links.create", {"sessionId": "s1", "roles": ["driver"]})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "x"})
    await owner.wait_for_event("s1", "session.idle")

    await owner.call("session.delete", {"sessionId": "s1"})
    await owner.call("session.create", {"sessionId": "s1"})

    with pytest.raises(RpcError):
        await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "x"})
    with pytest.raises(RpcError, match="does not open"):
        await members["ben"].call("aerodrome.links.use", {"token": made["token"]})


async def test_a_member_that_joins_takes_nothing_that_was_kept_for_the_owner(rig):
    owner = await rig.client("patient-shared", "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    await share(owner, "s1", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[permit]"})
    await owner.wait_for_event("s1", "permission.requested")
    await owner.aclose()
    await rig.settled(lambda: rig.services.finishing.clients)
    ben = await join(rig, "patient-shared", "ben")
    [request] = [
        event
        for event in (await ben.call("session.getMessages", {"sessionId": "s1"}))["events"]
        if event["type"] == "permission.requested"
    ]

    back = await rig.client("patient-shared", "ann")
    await back.call("session.resume", {"sessionId": "s1"})
    decision = {"sessionId": "s1", "requestId": request["data"]["requestId"], "result": {"kind": "approve-once"}}
    await back.call("session.permissions.handlePendingPermissionRequest", decision)

    await back.wait_for_event("s1", "session.idle")
    await ben.wait_for_event("s1", "session.idle")
    assert [data["content"] for data in said(back)] == ["approve-once"]


@pytest.mark.parametrize("user", ["ann", "ben"])
async def test_a_turn_whose_sender_vanished_goes_on_where_policy_says_so_and_the_next_waits_for_it(rig, user):
    owner, members = await shared_session(rig, "patient-shared", ben=["driver"], cat=["driver", "approver"])
    everyone = {"ann": owner, **members}
    await everyone[user].call("session.send", {"sessionId": "s1", "prompt": "[permit]"})
    waiting = members["cat"].ask("session.send", {"sessionId": "s1", "prompt": "after"})
    await members["cat"].wait_for_event("s1", "permission.requested")

    await everyone[user].aclose()
    assert not waiting.done()
    [asked] = said(members["cat"], "permission.requested")
    decision = {"sessionId": "s1", "requestId": asked["requestId"], "result": {"kind": "reject"}}
    await members["cat"].call("session.permissions.handlePendingPermissionRequest", decision)

    await asyncio.wait_for(waiting, 30)
    await members["cat"].wait_for_event("s1", "session.idle", 2)
    assert [data["content"] for data in said(members["cat"])] == ["reject", "after"]


async def test_nobody_can_be_invited_by_a_name_that_no_user_can_have(rig):
    owner, _ = await shared_session(rig, "shared")

    with pytest.raises(RpcError) as refused:
        await share(owner, "s1", **{"No One": ["driver"]})
    assert refused.value.data["code"] == "params_invalid"


async def test_a_turn_that_is_longer_than_its_lease_keeps_it(rig):
    rig.turns._settings = TurnSettings(lease_seconds=3.0)
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    waiting = members["ben"].ask("session.send", {"sessionId": "s1", "prompt": "after"})
    first = (await rig.sharing.stores.coordinator.look("s1")).lease

    await rig.settled(lambda: rig.clock.monotonic() > first.expires_at + 0.2)

    held = rig.sharing.stores.fence.check("s1", first.token)
    assert held.expires_at > first.expires_at
    assert not waiting.done()
    await owner.call("session.abort", {"sessionId": "s1"})
    assert (await asyncio.wait_for(waiting, 30))["messageId"]
