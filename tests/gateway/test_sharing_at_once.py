"""Calls that change how a session is shared, made at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.core.membership import Billing, BusyPolicy, Sharing
from aerodrome.testing.peer import RpcError

from .sharing import said


class Gate:
    """Holds back one call of a store until the test lets it go."""

    def __init__(self, store, name: str) -> None:
        self._call = getattr(store, name)
        self.reached, self.may_go = asyncio.Event(), asyncio.Event()
        setattr(store, name, self._pass)

    async def _pass(self, *arguments):
        found = await self._call(*arguments)
        if not self.reached.is_set():
            self.reached.set()
            await self.may_go.wait()
        return found


@pytest.mark.parametrize("tenant", ["alone", "shared"])
async def test_an_invitation_undoes_nothing_of_what_is_set_at_the_same_moment(rig, tenant):
    owner = await rig.client(tenant, "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    gate = Gate(rig.sharing.stores.sharings, "find_sharing")
    inviting = owner.ask("aerodrome.members.invite", {"sessionId": "s1", "user": "ben", "roles": ["driver"]})
    await asyncio.wait_for(gate.reached.wait(), 5)

    second = await rig.client(tenant, "ann")
    await second.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "reject", "billing": "owner"})
    gate.may_go.set()
    await asyncio.wait_for(inviting, 5)

    look = await owner.call("aerodrome.sharing.look", {"sessionId": "s1"})
    assert (look["busy"], look["billing"]) == ("reject", "owner")
    assert [member["user"] for member in look["members"]] == ["ben"]


async def test_what_another_gateway_has_set_meanwhile_stays_where_it_is_not_said(rig):
    owner = await rig.client("shared", "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "busy": "enqueue"})
    await owner.call("aerodrome.sharing.look", {"sessionId": "s1"})
    store = rig.sharing.stores.sharings
    await store.amend_sharing("s1", lambda _: Sharing("s1", BusyPolicy.REJECT))

    await owner.call("aerodrome.sharing.set", {"sessionId": "s1", "billing": "owner"})

    assert await store.find_sharing("s1") == Sharing("s1", BusyPolicy.REJECT, Billing.OWNER)


async def test_of_invitations_that_come_at_once_each_is_kept_once_and_turns_are_serial_from_then_on(rig):
    owner = await rig.client("shared", "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    users = [f"user-{number}" for number in range(8)]

    await asyncio.gather(
        *(
            owner.call("aerodrome.members.invite", {"sessionId": "s1", "user": user, "roles": ["driver"]})
            for user in (*users, *users)
        )
    )

    look = await owner.call("aerodrome.sharing.look", {"sessionId": "s1"})
    assert sorted(member["user"] for member in look["members"]) == users
    await asyncio.gather(*(owner.call("session.send", {"sessionId": "s1", "prompt": f"m{n}"}) for n in range(3)))
    await owner.wait_for_event("s1", "aerodrome.turn_ended", 3)
    assert [data["content"] for data in said(owner)] == ["m0", "m1", "m2"]


@pytest.mark.parametrize("store", ["find_sharing", "use_link"])
async def test_who_joins_by_a_link_as_the_session_is_deleted_is_no_member_of_the_next_one_of_that_name(rig, store):
    owner, ben = await rig.client("shared", "ann"), await rig.client("shared", "ben")
    await owner.call("session.create", {"sessionId": "s1"})
    link = await owner.call("aerodrome.links.create", {"sessionId": "s1", "roles": ["driver"]})
    gate = Gate(rig.sharing.stores.sharings, store)
    joining = ben.ask("aerodrome.links.use", {"token": link["token"]})
    await asyncio.wait_for(gate.reached.wait(), 5)

    deleting = owner.ask("session.delete", {"sessionId": "s1"})
    if store == "use_link":  # nothing of the session is held yet: it goes
        await asyncio.wait_for(deleting, 5)
    gate.may_go.set()
    await asyncio.wait((joining, deleting), timeout=5)
    joining.exception()
    await (await rig.client("shared", "cyd")).call("session.create", {"sessionId": "s1"})

    with pytest.raises(RpcError) as missing:
        await ben.call("aerodrome.sharing.look", {"sessionId": "s1"})
    assert missing.value.data["code"] == "session_missing"
    assert await rig.sharing.stores.members.list_of("s1") == []
    assert await rig.sharing.stores.sharings.find_sharing("s1") is None
