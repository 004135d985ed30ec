"""What members ask of the gateway itself, as methods `aerodrome.*` on any link: members, share links, turns.

Beside the runtime's own methods, so that an SDK program and the HTTP edge share sessions by the same code. Every call names its
session and is judged by the caller's rights in it; a session that one is no member of is as good as missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from aerodrome import errors
from aerodrome.core import identity, membership
from aerodrome.core.identity import Owner
from aerodrome.core.membership import Billing, BusyPolicy, Member, Right, Role, Sharing
from aerodrome.gateway.client import Client, Request
from aerodrome.gateway.sharing import SharedSessions, who_is_here
from aerodrome.gateway.turn_queue import TurnQueue
from aerodrome.protocol import messages

PREFIX = "aerodrome."
#: The one call that waits for others' turns.
WAITS = "aerodrome.turns.acquire"
#: Of a session, that may still be used.
MOST_LINKS = 100
_Id = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,250}$")]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Roles = Annotated[list[str], Meta(min_length=1, max_length=3)]
_Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """A session."""

    sessionId: _Id


class Person(Named):
    """Somebody in a session."""

    user: _Name


class Given(Person):
    """Roles for somebody."""

    roles: _Roles


class Shared(Named):
    """How a session is shared; what is left out stays."""

    busy: BusyPolicy | None = None
    billing: Billing | None = None


class NewLink(Named):
    """A share link to be made."""

    roles: _Roles
    seconds: _Seconds = 86400.0
    uses: Annotated[int, Meta(ge=1, le=1000)] = 1


class Link(Named):
    """A share link."""

    linkId: _Id


class Token(msgspec.Struct, forbid_unknown_fields=True):
    """The token of a share link."""

    token: Annotated[str, Meta(max_length=200)]


class Turn(Named):
    """A turn that waits."""

    turnId: _Id


class Acquire(Named):
    """How long a lease is to last, and how long to wait for it."""

    ttlSeconds: Annotated[float, Meta(ge=0.1, le=3600)] = 15.0
    waitSeconds: Annotated[float, Meta(ge=0, le=3600)] = 30.0


class Held(Named):
    """A lease, by its fencing token."""

    token: int
    ttlSeconds: Annotated[float, Meta(ge=0.1, le=3600)] = 15.0


class _Call(NamedTuple):
    params: type[msgspec.Struct]
    #: What the caller must be able to do in the session; None: nothing yet.
    right: Right | None
    run: Callable[[_Asking, Any], Awaitable[Any]]


class _Asking(NamedTuple):
    client: Client
    shared: SharedSessions
    turns: TurnQueue
    #: Whose the session is.
    owner: Owner

    @property
    def caller(self) -> Owner:
        return self.client.actor


async def answer(client: Client, shared: SharedSessions, request: Request) -> None:
    """Answer a call.

    Raises:
        errors.MethodUnknown, errors.InvalidParams: no such call, or not its form. errors.SessionMissing: not the caller's.
        errors.PolicyRejected: the caller has not the right.
    """
    call = _CALLS.get(request.method)
    if call is None:
        raise errors.MethodUnknown(f"no such method; there are {', '.join(sorted(_CALLS))}")
    try:
        params = msgspec.convert(request.object(), call.params)
    except msgspec.ValidationError as error:
        raise errors.InvalidParams(f"{request.method}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    owner = client.owner
    if isinstance(params, Named):
        request.session_ids = [params.sessionId]
        owner = await _judge(client, shared, params.sessionId, call, request.method)
    assert client.services.turns is not None
    result = await call.run(_Asking(client, shared, client.services.turns, owner), params)
    client.link.send(messages.result(request.id, result if result is not None else {}))


async def _judge(client: Client, shared: SharedSessions, session_id: str, call: _Call, method: str) -> Owner:
    owner = await client.services.ownership.find_owner(session_id)
    rights = await shared.rights(session_id, client.actor, owner)
    is_invited = False
    if not rights and owner is not None and owner.tenant == client.actor.tenant:
        member = await shared.member(session_id, client.actor)
        is_invited = member is not None and member.is_invited
    if owner is None or not (rights or is_invited):
        client.services.audit.foreign(client, method, session_id, owner)
        raise errors.SessionMissing("no such session")
    if call.right is not None and call.right not in rights:
        raise errors.PolicyRejected(
            f"{method} needs the right to {call.right.value} in this session", right=call.right.value
        )
    return owner


# -- members --------------------------------------------------------------------------------------------------------------------


async def _look(asking: _Asking, wanted: Named) -> dict[str, Any]:
    shared, services = asking.shared, asking.client.services
    sharing = await shared.sharing(wanted.sessionId) or Sharing(wanted.sessionId)
    realm = await shared.realm_key(asking.owner)
    resident = services.residents.find(realm, wanted.sessionId)
    members = await shared.stores.members.list_of(wanted.sessionId)
    return {
        "owner": asking.owner.user,
        "busy": sharing.busy.value,
        "billing": sharing.billing.value,
        "members": [_view(member) for member in members],
        "here": who_is_here(resident, shared.audiences.users(realm, wanted.sessionId)),
        **await _turns(asking, wanted),
    }


async def _share(asking: _Asking, wanted: Shared) -> dict[str, Any]:
    def change(before: Sharing | None) -> Sharing:
        before = before or Sharing(wanted.sessionId)
        return replace(before, busy=wanted.busy or before.busy, billing=wanted.billing or before.billing)

    async with _changing(asking, wanted.sessionId):
        sharing = await asking.shared.stores.sharings.amend_sharing(wanted.sessionId, change)
    assert sharing is not None
    asking.shared.forget(wanted.sessionId)
    _note(asking, wanted.sessionId, "sharing")
    return {"busy": sharing.busy.value, "billing": sharing.billing.value}


async def _invite(asking: _Asking, wanted: Given) -> dict[str, Any]:
    try:
        identity.check_name("user", wanted.user)
    except errors.ConfigError as error:
        raise errors.InvalidParams(error.message) from None
    person = Owner(asking.owner.tenant, wanted.user)
    if person == asking.owner:
        raise errors.InvalidParams("the owner of a session is its owner; invite somebody else")
    roles, now = membership.check_roles(wanted.roles), asking.shared.clock.now()

    def invite(before: Member | None) -> Member:
        return Member(wanted.sessionId, person, roles, now, before is None or before.is_invited)

    await _begin_sharing(asking, wanted.sessionId)
    return _view(await _amend(asking, wanted.sessionId, person, invite, "invite"))


async def _accept(asking: _Asking, wanted: Named) -> dict[str, Any]:
    now = asking.shared.clock.now()

    def accept(before: Member | None) -> Member:
        if before is None:
            raise errors.SessionMissing("no such session")
        return replace(before, is_invited=False, since=now)

    return _view(await _amend(asking, wanted.sessionId, asking.caller, accept, "accept"))


async def _change(asking: _Asking, wanted: Given) -> dict[str, Any]:
    person = Owner(asking.owner.tenant, wanted.user)
    roles = membership.check_roles(wanted.roles)

    def change(before: Member | None) -> Member:
        if before is None:
            raise errors.KeyMissing(f"{wanted.user} is no member of this session")
        return replace(before, roles=roles)

    changed = await _amend(asking, wanted.sessionId, person, change, "change")
    if Right.SEND not in changed.rights:
        await _dismiss(asking, wanted.sessionId, person, "change")
    return _view(changed)


async def _remove(asking: _Asking, wanted: Person) -> dict[str, Any]:
    return await _take_out(asking, wanted.sessionId, Owner(asking.owner.tenant, wanted.user), "remove")


async def _leave(asking: _Asking, wanted: Named) -> dict[str, Any]:
    if asking.caller == asking.owner:
        raise errors.PolicyRejected("the owner of a session cannot leave it; delete it, or remove its members")
    return await _take_out(asking, wanted.sessionId, asking.caller, "leave")


async def _take_out(asking: _Asking, session_id: str, person: Owner, what: str) -> dict[str, Any]:
    if not await asking.shared.stores.members.remove(session_id, person):
        raise errors.KeyMissing(f"{person.user} is no member of this session")
    asking.shared.forget(session_id, person)
    _note(asking, session_id, what, person)
    return {"withdrawn": await _dismiss(asking, session_id, person, what)}


async def _dismiss(asking: _Asking, session_id: str, person: Owner, why: str) -> list[str]:
    """Take back the turns of somebody who may send no more; return those that waited."""
    dismissal = await asking.turns.dismiss(session_id, person)
    for turn_id in (*dismissal.withdrawn, *([] if dismissal.held is None else [dismissal.held])):
        _note_withdrawn(asking, session_id, (turn_id, person), why)
    return dismissal.withdrawn


async def _begin_sharing(asking: _Asking, session_id: str) -> None:
    """Have a session's turns wait for each other, before anybody else can send one."""
    if await asking.shared.stores.sharings.find_sharing(session_id) is None:
        sharings = asking.shared.stores.sharings
        async with _changing(asking, session_id):
            await sharings.amend_sharing(session_id, lambda before: Sharing(session_id) if before is None else None)
        asking.shared.forget(session_id)


def _changing(asking: _Asking, session_id: str) -> AbstractAsyncContextManager[None]:
    return asking.shared.changing(asking.client.services.ownership, session_id, asking.owner)


async def _amend(
    asking: _Asking, session_id: str, person: Owner, change: Callable[[Member | None], Member], what: str
) -> Member:
    """Change what somebody is in one step with reading it: who is removed meanwhile must not be back by an older answer."""
    async with _changing(asking, session_id):
        member = await asking.shared.stores.members.amend(session_id, person, change)
    assert member is not None
    asking.shared.forget(session_id, person)
    _note(asking, session_id, what, person)
    return member


# -- share links ----------------------------------------------------------------------------------------------------------------


async def _create_link(asking: _Asking, wanted: NewLink) -> dict[str, Any]:
    roles = membership.check_roles(wanted.roles)
    now = asking.shared.clock.now()
    link, token = membership.create_link(wanted.sessionId, roles, now, wanted.seconds, wanted.uses)
    async with _changing(asking, wanted.sessionId):
        await _check_links(asking, wanted.sessionId, now)
        await asking.shared.stores.sharings.add_link(link)
    _note(asking, wanted.sessionId, "link.create")
    return {"linkId": link.link_id, "token": token, "expiresAt": link.expires_at, "uses": wanted.uses}


async def _check_links(asking: _Asking, session_id: str, now: float) -> None:
    """Forget links that open nothing any more, and check that there is room for one."""
    sharings = asking.shared.stores.sharings
    links = await sharings.list_links(session_id)
    spent = [link for link in links if link.is_spent(now)]
    for link in spent:
        await sharings.revoke_link(session_id, link.link_id)
    if len(links) - len(spent) >= MOST_LINKS:
        raise errors.OverCapacity(f"expected at most {MOST_LINKS} share links of a session: revoke some")


async def _list_links(asking: _Asking, wanted: Named) -> dict[str, Any]:
    links = await asking.shared.stores.sharings.list_links(wanted.sessionId)
    return {
        "links": [
            {
                "linkId": link.link_id,
                "roles": sorted(role.value for role in link.roles),
                "expiresAt": link.expires_at,
                "usesLeft": link.uses_left,
            }
            for link in links
        ]
    }


async def _revoke_link(asking: _Asking, wanted: Link) -> dict[str, Any]:
    was_there = await asking.shared.stores.sharings.revoke_link(wanted.sessionId, wanted.linkId)
    _note(asking, wanted.sessionId, "link.revoke")
    return {"revoked": was_there}


async def _use_link(asking: _Asking, wanted: Token) -> dict[str, Any]:
    """Become a member by a link; why one does not open is not said, nor whether its session is there."""
    client, shared = asking.client, asking.shared
    parts = membership.split_link(wanted.token)
    link = await shared.stores.sharings.find_link(parts[0]) if parts is not None else None
    refused = errors.PolicyRejected("the share link does not open: it is wrong, used up, expired or revoked")
    if parts is None or link is None or not link.opens(parts[1], shared.clock.now()):
        raise refused
    owner = await client.services.ownership.find_owner(link.session_id)
    if owner is None or owner.tenant != client.actor.tenant:
        raise refused
    if owner == client.actor:
        return _view(Member(link.session_id, owner, frozenset({Role.OWNER}), shared.clock.now()))
    if await shared.stores.sharings.use_link(link.link_id, shared.clock.now()) is None:
        raise refused
    session_id, given, now = link.session_id, link.roles, shared.clock.now()

    def join(before: Member | None) -> Member:
        roles = given | (before.roles if before is not None and not before.is_invited else frozenset())
        return Member(session_id, client.actor, roles, now)

    as_owners = asking._replace(owner=owner)
    await _begin_sharing(as_owners, session_id)
    return _view(await _amend(as_owners, session_id, client.actor, join, "link.use"))


# -- turns ----------------------------------------------------------------------------------------------------------------------


async def _turns(asking: _Asking, wanted: Named) -> dict[str, Any]:
    order = await asking.shared.stores.coordinator.look(wanted.sessionId)
    lease = order.lease
    running = None
    if lease is not None:
        running = {"turnId": lease.turn_id, "sender": lease.member, "sinceSeconds": round(order.now - lease.since, 3)}
    queue = [
        {
            "turnId": ticket.turn_id,
            "sender": ticket.member,
            "position": at,
            "waitingSeconds": round(order.now - ticket.since, 3),
        }
        for at, ticket in enumerate(order.queue, start=1)
    ]
    return {"running": running, "queue": queue}


async def _withdraw(asking: _Asking, wanted: Turn) -> dict[str, Any]:
    coordinator = asking.shared.stores.coordinator
    order = await coordinator.look(wanted.sessionId)
    ticket = next((one for one in order.queue if one.turn_id == wanted.turnId), None)
    if ticket is None:
        raise errors.KeyMissing(f"turn {wanted.turnId} does not wait in this session")
    if ticket.member != asking.caller.user and asking.caller != asking.owner:
        raise errors.PolicyRejected("a waiting turn can be withdrawn by its sender and by the owner of the session")
    if not await coordinator.withdraw(wanted.sessionId, wanted.turnId):
        raise errors.KeyMissing(
            f"turn {wanted.turnId} does not wait in this session any more: it runs, or was withdrawn"
        )
    sender = Owner(asking.owner.tenant, ticket.member)
    _note_withdrawn(asking, wanted.sessionId, (wanted.turnId, sender), "withdraw")
    return {"withdrawn": [wanted.turnId]}


async def _acquire(asking: _Asking, wanted: Acquire) -> dict[str, Any]:
    realm = await asking.shared.realm_key(asking.owner)
    lease = await asking.turns.acquire(
        asking.client.services, realm, wanted.sessionId, asking.caller.user, wanted.ttlSeconds, wanted.waitSeconds
    )
    asking.client.services.audit.took_over(asking.client, wanted.sessionId, asking.owner, lease)
    return {"turnId": lease.turn_id, "token": lease.token, "ttlSeconds": wanted.ttlSeconds}


async def _renew(asking: _Asking, wanted: Held) -> dict[str, Any]:
    await _check_own(asking, wanted)
    lease = await asking.shared.stores.coordinator.renew(wanted.sessionId, wanted.token, wanted.ttlSeconds)
    return {"token": lease.token, "ttlSeconds": wanted.ttlSeconds}


async def _release(asking: _Asking, wanted: Held) -> dict[str, Any]:
    await _check_own(asking, wanted)
    return {"released": await asking.shared.stores.coordinator.release(wanted.sessionId, wanted.token)}


async def _check_own(asking: _Asking, wanted: Held) -> None:
    lease = (await asking.shared.stores.coordinator.look(wanted.sessionId)).lease
    if lease is not None and lease.token == wanted.token and lease.member != asking.caller.user:
        raise errors.PolicyRejected("the lease is another member's")


def _view(member: Member) -> dict[str, Any]:
    return {
        "sessionId": member.session_id,
        "user": member.person.user,
        "roles": sorted(role.value for role in member.roles),
        "since": member.since,
        "isInvited": member.is_invited,
    }


def _note(asking: _Asking, session_id: str, what: str, whose: Owner | None = None) -> None:
    asking.client.services.audit.shared(asking.client, session_id, asking.owner, what, whose)


def _note_withdrawn(asking: _Asking, session_id: str, turn: tuple[str, Owner], why: str) -> None:
    asking.client.services.audit.withdrew(asking.client, session_id, asking.owner, turn, why)


_CALLS: dict[str, _Call] = {
    "aerodrome.sharing.look": _Call(Named, Right.READ, _look),
    "aerodrome.sharing.set": _Call(Shared, Right.MANAGE, _share),
    "aerodrome.members.invite": _Call(Given, Right.MANAGE, _invite),
    "aerodrome.members.accept": _Call(Named, None, _accept),
    "aerodrome.members.change": _Call(Given, Right.MANAGE, _change),
    "aerodrome.members.remove": _Call(Person, Right.MANAGE, _remove),
    "aerodrome.members.leave": _Call(Named, None, _leave),
    "aerodrome.links.create": _Call(NewLink, Right.MANAGE, _create_link),
    "aerodrome.links.list": _Call(Named, Right.MANAGE, _list_links),
    "aerodrome.links.revoke": _Call(Link, Right.MANAGE, _revoke_link),
    "aerodrome.links.use": _Call(Token, None, _use_link),
    "aerodrome.turns.look": _Call(Named, Right.READ, _turns),
    "aerodrome.turns.withdraw": _Call(Turn, Right.SEND, _withdraw),
    WAITS: _Call(Acquire, Right.SEND, _acquire),
    "aerodrome.turns.renew": _Call(Held, Right.SEND, _renew),
    "aerodrome.turns.release": _Call(Held, Right.SEND, _release),
}
