"""Those who only read a shared session: they hear all of it, in order, and cost no connection to its runtime."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.testing.peer import RpcError

from .sharing import join, said, share, shared_session

TENANTS = ["alone", "shared"]


def connections(rig) -> int:
    return sum(len(runtime.peers) for runtime in rig.scripted.runtimes)


@pytest.mark.parametrize("tenant", TENANTS)
async def test_a_reader_hears_what_its_holders_hear_and_has_no_connection_of_its_own(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    before = connections(rig)
    await share(owner, "s1", eve=["observer"], fay=["observer"])
    readers = [await join(rig, tenant, user) for user in ("eve", "fay")]
    assert connections(rig) == before

    for number in range(3):
        await owner.call("session.send", {"sessionId": "s1", "prompt": f"ann {number}"})
        await members["ben"].call("session.send", {"sessionId": "s1", "prompt": f"ben {number}"})
    for peer in (owner, members["ben"], *readers):
        await peer.wait_for_event("s1", "session.idle", 6)
        # That one has begun is told by the link that sent it, and may be heard after its end on another.
        await peer.wait_for_event("s1", "aerodrome.turn_started", 6)

    expected = [f"{user} {number}" for number in range(3) for user in ("ann", "ben")]
    for peer in (owner, *readers):
        assert [data["content"] for data in said(peer)] == expected
        assert [data["sender"] for data in said(peer, "aerodrome.turn_started")] == ["ann", "ben"] * 3
    kinds = [
        [kind for kind in peer.events("s1") if "." in kind and not kind.startswith("aerodrome")]
        for peer in (owner, *readers)
    ]
    assert kinds[1] == kinds[2] == kinds[0][-len(kinds[1]) :]
    assert connections(rig) == before


async def test_a_reader_may_read_what_is_to_be_read_and_nothing_else(rig):
    owner, members = await shared_session(rig, "shared", eve=["observer"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "hello"})
    await owner.wait_for_event("s1", "session.idle")
    eve = members["eve"]

    kinds = [event["type"] for event in (await eve.call("session.getMessages", {"sessionId": "s1"}))["events"]]
    assert "assistant.message" in kinds
    assert (await eve.call("session.options.update", {"sessionId": "s1", "model": "x"}))["success"] is True
    for method in ("session.send", "session.abort", "session.delete", "session.tools.set"):
        with pytest.raises(RpcError) as refused:
            await eve.call(method, {"sessionId": "s1", "prompt": "x"})
        assert refused.value.data["code"] == "policy_rejected"
    assert "x" not in [call.params.get("model") for call in rig.scripted.runtimes[0].calls]


@pytest.mark.parametrize("tenant", TENANTS)
async def test_holders_that_come_and_go_leave_no_gap_and_no_double(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"], eve=["observer"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "one"})
    await members["eve"].wait_for_event("s1", "session.idle", 1)
    await owner.aclose()
    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "two"})
    await members["eve"].wait_for_event("s1", "session.idle", 2)
    back = await rig.client(tenant, "ann")
    await back.call("session.resume", {"sessionId": "s1"})
    await members["ben"].aclose()
    await back.call("session.send", {"sessionId": "s1", "prompt": "three"})
    await members["eve"].wait_for_event("s1", "session.idle", 3)

    assert [data["content"] for data in said(members["eve"])] == ["one", "two", "three"]
    ids = [params["event"]["id"] for params in members["eve"].notifications("session.event")]
    assert len(set(ids)) == len(ids)


async def test_a_reader_whose_session_nobody_holds_takes_a_seat_when_it_asks(rig):
    owner, members = await shared_session(rig, "shared", eve=["observer"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "kept"})
    await owner.wait_for_event("s1", "session.idle")
    await owner.aclose()
    await rig.settled(lambda: not len(rig.services.residents))

    found = await members["eve"].call("session.getMessages", {"sessionId": "s1"})

    assert "assistant.message" in [event["type"] for event in found["events"]]
    back = await rig.client("shared", "ann")
    await back.call("session.resume", {"sessionId": "s1"})
    await back.call("session.send", {"sessionId": "s1", "prompt": "again"})
    await members["eve"].wait_until(lambda: [data["content"] for data in said(members["eve"])][-1:] == ["again"])


@pytest.mark.parametrize("tenant", TENANTS)
async def test_a_reader_that_becomes_a_driver_goes_on_hearing_and_may_send_at_once(rig, tenant):
    owner, members = await shared_session(rig, tenant, eve=["observer"])
    eve = members["eve"]
    await owner.call("session.send", {"sessionId": "s1", "prompt": "one"})
    await eve.wait_for_event("s1", "session.idle", 1)

    await owner.call("aerodrome.members.change", {"sessionId": "s1", "user": "eve", "roles": ["driver"]})
    await eve.call("session.send", {"sessionId": "s1", "prompt": "two"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "three"})

    await eve.wait_for_event("s1", "session.idle", 3)
    assert [data["content"] for data in said(eve)] == ["one", "two", "three"]
    ids = [params["event"]["id"] for params in eve.notifications("session.event")]
    assert len(set(ids)) == len(ids)
    await owner.call("aerodrome.members.change", {"sessionId": "s1", "user": "eve", "roles": ["observer"]})
    with pytest.raises(RpcError):
        await eve.call("session.send", {"sessionId": "s1", "prompt": "four"})


async def test_a_reader_that_is_removed_hears_nothing_from_then_on(rig):
    owner, members = await shared_session(rig, "shared", eve=["observer"], fay=["observer"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    await owner.call("aerodrome.members.remove", {"sessionId": "s1", "user": "eve"})
    await owner.call("session.abort", {"sessionId": "s1"})
    await members["fay"].wait_for_event("s1", "session.idle")
    await members["eve"].wait_for_event("s1", "aerodrome.member_removed")

    assert "session.idle" not in members["eve"].events("s1")
    with pytest.raises(RpcError, match="not found"):
        await members["eve"].call("session.getMessages", {"sessionId": "s1"})


async def test_a_turn_whose_runtime_dies_is_told_to_readers_once(rig):
    owner, members = await shared_session(rig, "alone", ben=["driver"], eve=["observer"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "kept"})
    await owner.wait_for_event("s1", "session.idle")
    dying = owner.ask("session.send", {"sessionId": "s1", "prompt": "[die]"})
    await members["eve"].wait_for_event("s1", "session.error")
    await members["eve"].wait_for_event("s1", "session.idle", 2)
    await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "after"})
    await members["eve"].wait_until(lambda: [data["content"] for data in said(members["eve"])][-1:] == ["after"])

    assert members["eve"].events("s1").count("session.error") == 1
    await asyncio.wait((dying,), timeout=30)


async def test_readers_are_here_as_others_are_and_leave_nothing_behind(rig):
    owner, members = await shared_session(rig, "team", eve=["observer"])
    look = await owner.call("aerodrome.sharing.look", {"sessionId": "s1"})
    assert look["here"] == [{"user": "ann", "links": 1}, {"user": "eve", "links": 1}]
    before = rig.baseline()

    await members["eve"].aclose()

    await rig.settled(lambda: rig.sharing.audiences.find(rig.realm("team"), "s1") is None)
    await rig.settled(lambda: rig.baseline().tasks <= before.tasks)
    look = await owner.call("aerodrome.sharing.look", {"sessionId": "s1"})
    assert look["here"] == [{"user": "ann", "links": 1}]


async def test_a_reader_that_does_not_read_loses_its_link_and_holds_nobody_up(open_rig):
    rig = await open_rig(stall_seconds=0.3)
    owner, members = await shared_session(rig, "shared", eve=["observer"])
    members["eve"].stop_reading()

    async def talk() -> None:
        for number in range(60):
            await owner.call("session.send", {"sessionId": "s1", "prompt": f"[size 400000] {number}"})
            await owner.wait_for_event("s1", "session.idle", number + 1)
            if len(rig.gateway.clients) < 2:
                return

    await asyncio.wait_for(talk(), 30)
    await rig.settled(lambda: rig.sharing.audiences.find(rig.realm("shared"), "s1") is None)
    members["eve"].read_on()
