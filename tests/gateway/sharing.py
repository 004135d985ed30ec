"""Scenes of shared sessions: an owner, and members who have joined."""

from __future__ import annotations

from aerodrome.testing.peer import Peer


async def share(owner: Peer, session_id: str, **roles: list[str]) -> None:
    for user, given in roles.items():
        await owner.call("aerodrome.members.invite", {"sessionId": session_id, "user": user, "roles": given})


async def join(rig, tenant: str, user: str, session_id: str = "s1", **options) -> Peer:
    member = await rig.client(tenant, user)
    await member.call("aerodrome.members.accept", {"sessionId": session_id})
    await member.call("session.resume", {"sessionId": session_id, **options})
    return member


async def shared_session(rig, tenant: str, **roles: list[str]) -> tuple[Peer, dict[str, Peer]]:
    """Return the owner's client of a session and its members' clients, all in it."""
    owner = await rig.client(tenant, "ann")
    await owner.call("session.create", {"sessionId": "s1"})
    await share(owner, "s1", **roles)
    return owner, {user: await join(rig, tenant, user) for user in roles}


def said(peer: Peer, kind: str = "assistant.message") -> list:
    events = [params["event"] for params in peer.notifications("session.event")]
    return [event["data"] for event in events if event["type"] == kind]
