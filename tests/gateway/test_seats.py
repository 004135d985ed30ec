"""What a member's link has in another's session: a seat that ends when it is not needed, and loses nothing while roles change."""

from __future__ import annotations

import asyncio
import errno
import gc
from contextlib import suppress
from dataclasses import replace

import pytest

from aerodrome import errors
from aerodrome.core.identity import Tenant
from aerodrome.gateway import seats
from aerodrome.gateway.seats import Seat
from aerodrome.protocol import member_methods
from aerodrome.testing import peer as peers
from aerodrome.testing.peer import RpcError

from .sharing import join, said, share, shared_session

TENANTS = ["alone", "shared"]


class SlowMembers:
    """Has those who ask what somebody is in a session wait, or fail, from the moment it is told."""

    def __init__(self, rig) -> None:
        self._find = rig.sharing.stores.members.find
        self._may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.failures = 0
        rig.sharing.stores.members.find = self.find

    async def find(self, session_id, person):
        self.asked.set()
        if self.failures:
            self.failures -= 1
            raise errors.StoreUnavailable("the database is busy: try again")
        await self._may_answer.wait()
        return await self._find(session_id, person)

    def answer(self) -> None:
        self._may_answer.set()


def seat_of(rig, user: str, session_id: str = "s1") -> Seat:
    [seat] = [
        client.seats[session_id]
        for client in rig.gateway.clients
        if client.actor.user == user and session_id in client.seats
    ]
    assert isinstance(seat, Seat)
    return seat


@pytest.mark.parametrize("tenant", TENANTS)
async def test_a_member_that_comes_and_goes_leaves_no_seat_behind(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    ben = members["ben"]
    await ben.call("session.detach", {"sessionId": "s1"})
    before = await rig.settled(lambda: len(rig.gateway.clients) == 2 and rig.baseline())

    for number in range(3):
        await ben.call("session.resume", {"sessionId": "s1"})
        await ben.call("session.send", {"sessionId": "s1", "prompt": f"ben {number}"})
        await ben.wait_for_event("s1", "session.idle", number + 1)
        await ben.call("session.detach", {"sessionId": "s1"})

    await rig.settled(lambda: len(rig.gateway.clients) == 2 and rig.links() <= before.links)
    await rig.settled(lambda: rig.baseline().descriptors <= before.descriptors)
    await owner.wait_until(lambda: len(said(owner)) >= 3)
    assert [data["content"] for data in said(owner)] == ["ben 0", "ben 1", "ben 2"]


async def test_a_seat_stays_while_another_session_of_the_same_owner_needs_it(rig):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    await owner.call("session.create", {"sessionId": "s2"})
    await share(owner, "s2", ben=["driver"])
    ben = members["ben"]
    await ben.call("aerodrome.members.accept", {"sessionId": "s2"})
    await ben.call("session.resume", {"sessionId": "s2"})

    await ben.call("session.detach", {"sessionId": "s1"})

    await ben.call("session.send", {"sessionId": "s2", "prompt": "still here"})
    await ben.wait_for_event("s2", "session.idle")
    await ben.call("session.resume", {"sessionId": "s1"})
    await ben.call("session.send", {"sessionId": "s1", "prompt": "back"})
    await ben.wait_for_event("s1", "session.idle")
    assert len(rig.gateway.clients) == 3


@pytest.mark.parametrize("role", ["driver", "observer"])
async def test_members_that_leave_at_any_moment_of_joining_leave_nothing_behind(rig, role):
    """Each leaves one step of the event loop later than the one before."""
    await shared_session(rig, "shared", ben=["driver"], churn=[role])
    for client in rig.gateway.clients:
        if client.actor.user == "churn":
            client.link.abort()
    # The owner's, ben's, and that of ben's seat.
    before = await rig.settled(lambda: len(rig.gateway.clients) == 3 and rig.baseline())
    watchers = len(rig.sharing._watchers)
    token = await rig.token("shared", "churn")
    for steps in range(60):
        churn = await peers.open_client(*rig.address, token)
        churn.ask("session.resume", {"sessionId": "s1"})
        for _ in range(steps):
            await asyncio.sleep(0)
        await churn.aclose()

    await rig.settled(lambda: len(rig.gateway.clients) == 3 and rig.links() == before.links)
    await rig.settled(lambda: len(rig.sharing._watchers) == watchers)
    gc.collect()
    await rig.settled(lambda: rig.baseline().descriptors <= before.descriptors)


@pytest.mark.parametrize("role", ["driver", "observer"])
async def test_what_a_member_cannot_answer_it_does_not_have_the_runtime_ask(rig, role):
    _, members = await shared_session(rig, "alone", ben=[role])
    interest = {"sessionId": "s1", "eventType": "mcp.oauth_required"}

    handle = (await members["ben"].call("session.eventLog.registerInterest", interest))["handle"]
    released = await members["ben"].call("session.eventLog.releaseInterest", {"sessionId": "s1", "handle": handle})

    assert released == {"success": True}
    assert [call.method for call in rig.scripted.runtimes[0].calls if "Interest" in call.method] == []


def connection_of(rig, number: int):
    """Return the runtime's connection on which the session was opened as the n-th, the owner's first."""
    opened = [
        call.peer for call in rig.scripted.runtimes[0].calls if call.method in ("session.create", "session.resume")
    ]
    return opened[number]


@pytest.mark.parametrize("method", sorted(member_methods.OWNERS))
async def test_what_only_the_owners_program_knows_it_is_asked_also_where_a_member_joined_last(rig, method):
    owner, members = await shared_session(rig, "alone", ben=["driver", "approver"])

    async def answer(_params):
        return {"token": "the owner's"}

    owner.answers[method] = answer
    asked = connection_of(rig, 1).ask(method, {"sessionId": "s1"})

    assert await asyncio.wait_for(asked, 30) == {"token": "the owner's"}
    assert method not in [one.method for one in members["ben"].heard]


async def test_where_the_owner_leaves_what_its_program_was_asked_is_answered(rig):
    owner, members = await shared_session(rig, "alone", ben=["driver"])
    owner.answers["providerToken.getToken"] = lambda _params: asyncio.get_running_loop().create_future()
    asked = connection_of(rig, 1).ask("providerToken.getToken", {"sessionId": "s1"})
    await owner.wait_until(lambda: "providerToken.getToken" in [one.method for one in owner.heard])

    await owner.aclose()

    with pytest.raises(RpcError):
        await asyncio.wait_for(asked, 30)
    with pytest.raises(RpcError):
        await asyncio.wait_for(connection_of(rig, 1).ask("providerToken.getToken", {"sessionId": "s1"}), 30)
    assert "providerToken.getToken" not in [one.method for one in members["ben"].heard]


async def test_a_seat_is_under_its_owners_policy_as_it_is_now(rig):
    _, members = await shared_session(rig, "alone", ben=["driver"])
    tenant = rig.configured["alone"]
    changed = Tenant("alone", replace(tenant.policy, tools=("custom:allowed",)), "config")
    await rig.policies.replace_configured({**rig.configured, "alone": changed})

    tools = [{"name": "allowed"}, {"name": "denied"}]
    with suppress(RpcError):
        await members["ben"].call("session.resume", {"sessionId": "s1", "tools": tools})

    resumed = [call for call in rig.scripted.runtimes[0].called("session.resume") if call.get("tools")]
    assert "denied" not in [tool["name"] for call in resumed for tool in call["tools"]]


@pytest.mark.parametrize("tenant", ["team", "shared"])
async def test_a_session_that_a_member_opens_alone_has_no_tool_that_its_owner_did_not_choose(rig, tenant):
    owner = await rig.client(tenant, "ann")
    await owner.call("session.create", {"sessionId": "s1", "availableTools": ["custom:hers"]})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "x"})
    await owner.wait_for_event("s1", "session.idle")
    await share(owner, "s1", ben=["driver"])
    await owner.aclose()
    await rig.settled(lambda: not len(rig.services.residents))

    ben = await join(rig, tenant, "ben", tools=[{"name": "his"}])
    runtime = rig.scripted.runtimes[-1]
    assert runtime.called("session.resume")[-1]["availableTools"] == []
    await ben.call("session.send", {"sessionId": "s1", "prompt": "y"})

    back = await rig.client(tenant, "ann")
    await back.call("session.resume", {"sessionId": "s1", "availableTools": ["custom:hers"]})
    assert runtime.called("session.resume")[-1]["availableTools"] == ["custom:hers"]


async def test_a_session_that_cannot_be_joined_leaves_no_seat_behind(rig):
    owner, members = await shared_session(rig, "alone", ben=["driver"])
    await owner.call("session.send", {"sessionId": "s1", "prompt": "kept"})
    await owner.wait_for_event("s1", "session.idle")
    await owner.aclose()
    await members["ben"].aclose()
    await rig.settled(lambda: not rig.gateway.clients)
    ben = await rig.client("alone", "ben")

    for _ in range(3):
        with pytest.raises(RpcError, match="have its owner resume it first"):
            await ben.call("session.resume", {"sessionId": "s1"})

    await rig.settled(lambda: len(rig.gateway.clients) == 1)


@pytest.mark.parametrize("tenant", TENANTS)
async def test_while_roles_are_looked_up_again_nothing_is_lost_and_nothing_refused(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    ben = members["ben"]
    await owner.call("session.send", {"sessionId": "s1", "prompt": "[hold]"})
    await ben.wait_for_event("s1", "assistant.turn_start")
    slow = SlowMembers(rig)

    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "billing": "owner"})
    await asyncio.wait_for(slow.asked.wait(), 30)
    await owner.call("session.abort", {"sessionId": "s1"})
    await owner.wait_for_event("s1", "session.idle")
    sent = ben.ask("session.send", {"sessionId": "s1", "prompt": "from ben"})
    await ben.call("ping", {})
    assert (ben.events("s1").count("session.idle"), sent.done()) == (0, False)
    slow.answer()

    await asyncio.wait_for(sent, 30)
    for peer in (ben, owner):
        await peer.wait_for_event("s1", "session.idle", 2)
    assert [kind for kind in ben.events("s1") if kind != "session.shutdown" and "aerodrome" not in kind] == [
        kind for kind in owner.events("s1") if kind != "session.shutdown" and "aerodrome" not in kind
    ]


@pytest.mark.parametrize("role", ["driver", "observer"])
async def test_a_store_that_does_not_answer_for_a_while_silences_no_member(rig, role):
    owner, members = await shared_session(rig, "shared", ben=[role])
    slow = SlowMembers(rig)
    slow.failures = 2

    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "billing": "owner"})
    await asyncio.wait_for(slow.asked.wait(), 30)
    slow.answer()
    await owner.call("session.send", {"sessionId": "s1", "prompt": "hear me"})

    await members["ben"].wait_for_event("s1", "session.idle")
    assert [data["content"] for data in said(members["ben"])] == ["hear me"]


@pytest.mark.parametrize("tenant", TENANTS)
async def test_who_is_removed_while_roles_are_looked_up_is_let_in_by_no_old_answer(rig, tenant):
    owner, members = await shared_session(rig, tenant, ben=["driver"])
    find, has_read, may_answer = rig.sharing.stores.members.find, asyncio.Event(), asyncio.Event()

    async def find_slowly(session_id, person):
        found = await find(session_id, person)
        rig.sharing.stores.members.find = find
        has_read.set()
        await may_answer.wait()
        return found

    rig.sharing.stores.members.find = find_slowly
    rig.sharing.forget("s1")
    await asyncio.wait_for(has_read.wait(), 30)
    await owner.call("aerodrome.members.remove", {"sessionId": "s1", "user": "ben"})
    may_answer.set()

    await members["ben"].wait_for_event("s1", "aerodrome.member_removed")
    await owner.call("session.send", {"sessionId": "s1", "prompt": "among us"})
    await owner.wait_for_event("s1", "session.idle")
    with pytest.raises(RpcError):
        await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "x"})
    assert said(members["ben"]) == []


@pytest.mark.parametrize(("method", "params"), [("remove", {}), ("change", {"roles": ["observer"]})])
async def test_who_accepts_again_undoes_nothing_that_the_owner_does_meanwhile(rig, method, params):
    owner, members = await shared_session(rig, "shared", ben=["driver"])
    find, has_read, may_answer = rig.sharing.stores.members.find, asyncio.Event(), asyncio.Event()

    async def find_slowly(session_id, person):
        found = await find(session_id, person)
        if person.user != "ben":
            return found
        has_read.set()
        await may_answer.wait()
        return found

    await members["ben"].call("session.getMessages", {"sessionId": "s1"})
    rig.sharing.stores.members.find = find_slowly
    accepting = members["ben"].ask("aerodrome.members.accept", {"sessionId": "s1"})
    await asyncio.wait_for(has_read.wait(), 30)
    rig.sharing.stores.members.find = find
    await owner.call(f"aerodrome.members.{method}", {"sessionId": "s1", "user": "ben", **params})
    may_answer.set()
    await asyncio.wait((accepting,), timeout=30)

    look = await owner.call("aerodrome.sharing.look", {"sessionId": "s1"})
    assert [one["roles"] for one in look["members"]] == ([["observer"]] if method == "change" else [])


@pytest.mark.parametrize("role", ["driver", "observer"])
async def test_a_member_for_whom_no_connection_can_be_opened_is_told_so(rig, role, monkeypatch):
    owner, members = await shared_session(rig, "shared", ben=[role])
    await owner.call("session.create", {"sessionId": "s2"})
    await share(owner, "s2", ben=["driver"])
    other = await rig.client("shared", "ben")
    await other.call("aerodrome.members.accept", {"sessionId": "s2"})

    def refuse():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(seats.socket, "socketpair", refuse)
    await owner.call("aerodrome.members.change", {"sessionId": "s1", "user": "ben", "roles": ["driver"]})
    if role == "observer":
        with pytest.raises(RpcError) as refused:
            await members["ben"].call("session.send", {"sessionId": "s1", "prompt": "x"})
        assert refused.value.data["code"] == "over_capacity"
    with pytest.raises(RpcError) as refused:
        await other.call("session.resume", {"sessionId": "s2"})
    assert refused.value.data["code"] == "over_capacity"


async def test_a_reader_whose_seat_is_refused_goes_on_reading(rig):
    owner, members = await shared_session(rig, "shared", eve=["observer"])
    eve = members["eve"]
    refused = rig.scripted.runtimes[0]
    rig.scripted.runtimes[0].faults = type(refused.faults)(refuses="session.resume")

    await owner.call("aerodrome.members.change", {"sessionId": "s1", "user": "eve", "roles": ["driver"]})
    with pytest.raises(RpcError, match=r"refused session\.resume"):
        await eve.call("session.send", {"sessionId": "s1", "prompt": "x"})
    await owner.call("session.send", {"sessionId": "s1", "prompt": "one"})
    await eve.wait_for_event("s1", "session.idle")

    rig.scripted.runtimes[0].faults = type(refused.faults)()
    await eve.call("session.send", {"sessionId": "s1", "prompt": "two"})
    await eve.wait_for_event("s1", "session.idle", 2)
    assert [data["content"] for data in said(eve)] == ["one", "two"]
    await rig.settled(lambda: len(rig.gateway.clients) == 3)


async def test_what_a_member_was_asked_by_a_session_that_it_left_is_owed_no_more(open_rig):
    rig = await open_rig(max_requests_in_flight=2)
    owner, members = await shared_session(rig, "alone", cat=["approver"])
    cat = members["cat"]
    await cat.call("session.detach", {"sessionId": "s1"})
    cat.answers["userInput.request"] = lambda _params: asyncio.get_running_loop().create_future()
    runtime = rig.scripted.runtimes[0]
    for number in range(4):
        await cat.call("session.resume", {"sessionId": "s1", "requestUserInput": True})
        guest = [call.peer for call in runtime.calls if call.method == "session.resume"][-1]
        guest.ask("userInput.request", {"sessionId": "s1", "question": "?"})
        await cat.wait_until(lambda n=number: sum(one.method == "userInput.request" for one in cat.heard) > n)
        await cat.call("session.detach", {"sessionId": "s1"})
    assert "userInput.request" not in [one.method for one in owner.heard]


async def test_a_member_that_sends_faster_than_a_runtime_reads_is_read_no_further(open_rig):
    rig = await open_rig(stall_seconds=1.0)
    _, members = await shared_session(rig, "shared", ben=["driver"])
    for peer in rig.scripted.runtimes[0].peers:
        peer.stop_reading()
    near = seat_of(rig, "ben")._near

    for _ in range(64):
        members["ben"].ask("session.getMessages", {"sessionId": "s1", "padding": "x" * 1_000_000})

    await rig.settled(lambda: near.is_stalled)
    with pytest.raises(TimeoutError):
        await rig.settled(lambda: near.unsent_bytes > 8_000_000, 1)
