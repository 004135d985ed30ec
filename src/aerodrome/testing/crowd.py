"""A crowd in one shared session: members that send as fast as they are let, and what must be true of it afterwards.

For the end-to-end test and the benchmark of shared sessions. Members are raw peers, so that what is measured is the gateway.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aerodrome.admin import client as admin
from aerodrome.testing import peer
from aerodrome.testing.demo_process import DemoProcess
from aerodrome.testing.peer import Heard, Peer

SESSION = "crowd"


#: What `check` reads; all else would be gigabytes: the runtime repeats the whole conversation to every member at every turn.
_READ = frozenset({"user.message", "assistant.message", "session.idle", "aerodrome.turn_started"})


class _Kept(list[Heard]):
    """What a peer heard, as far as it is read."""

    def __init__(self, kinds: frozenset[str]) -> None:
        super().__init__()
        self._kinds = kinds

    def append(self, heard: Heard) -> None:
        """Keep an event of these types."""
        event = heard.params.get("event") if isinstance(heard.params, dict) else None
        if event is not None and event["type"] in self._kinds:
            super().append(heard)


@dataclass
class Crowd:
    """What the members saw and did."""

    owner: Peer
    members: dict[str, Peer]
    waits: list[float] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    answered: list[str] = field(default_factory=list)

    def events(self) -> list[dict[str, Any]]:
        """Return all events of the session, as its owner heard them."""
        return [params["event"] for params in self.owner.notifications("session.event")]


async def gather(demo: DemoProcess, count: int) -> Crowd:
    """Make a session of one tenant's user and have members join it."""
    first = demo.tenants("shared")[0][0]
    owner = await connect(demo, first.token)
    owner.heard = _Kept(_READ)
    provider = {"type": "openai", "baseUrl": demo.model["base_url"], "apiKey": demo.model["api_key"]}
    await owner.call("session.create", {"sessionId": SESSION, "model": demo.model["name"], "provider": provider}, 30)
    members = {}
    (state,) = demo.directory.glob("aerodrome-demo-*")
    async with admin.open_client(state) as operator:
        for number in range(count):
            user = f"m{number:02}"
            minted = await operator.call("token.mint", tenant=first.tenant, user=user, expires_seconds=3600.0)
            await owner.call("aerodrome.members.invite", {"sessionId": SESSION, "user": user, "roles": ["driver"]}, 30)
            member = await connect(demo, minted["token"])
            member.heard = _Kept(frozenset())
            await member.call("aerodrome.members.accept", {"sessionId": SESSION}, 30)
            await member.call("session.resume", {"sessionId": SESSION}, 30)
            members[user] = member
    return Crowd(owner, members)


async def connect(demo: DemoProcess, token: str) -> Peer:
    """Connect a member."""
    host, port = demo.sdk.split(":")
    return await peer.open_client(host, int(port), token)


async def hammer(crowd: Crowd, seconds: float) -> float:
    """Send from all members until the time is up; return how long it took until all was answered."""
    begun = time.monotonic()
    await asyncio.gather(*(_take_part(crowd, user, begun + seconds) for user in crowd.members))
    total = sum(crowd.sent.values())
    await crowd.owner.wait_until(lambda: crowd.owner.events(SESSION).count("session.idle") >= total, 60)
    return time.monotonic() - begun


async def _take_part(crowd: Crowd, user: str, until: float) -> None:
    while time.monotonic() < until:
        prompt = f"[say {user} {crowd.sent[user]}]"
        asked = time.monotonic()
        sent = await crowd.members[user].call("session.send", {"sessionId": SESSION, "prompt": prompt}, 120)
        crowd.waits.append(time.monotonic() - asked)
        crowd.sent[user] += 1
        crowd.answered.append(sent["messageId"])


def check(crowd: Crowd) -> list[str]:
    """Check what must be true, from the runtime's own events; return the order of the senders.

    Raises:
        AssertionError: turns overlapped, were lost or doubled, came out of order, or somebody starved.
    """
    is_running = False
    order, started, said = [], [], []
    for event in crowd.events():
        data = event["data"]
        if event["type"] == "user.message":
            assert not is_running, "a turn began while another ran"
            is_running = True
            order.append(data["content"])
        elif event["type"] == "assistant.message":
            said.append(data["content"])
        elif event["type"] == "session.idle":
            assert is_running, "the session fell idle twice"
            is_running = False
        elif event["type"] == "aerodrome.turn_started":
            started.append(data["sender"])
    prompts = [f"[say {user} {number}]" for user, count in crowd.sent.items() for number in range(count)]
    assert sorted(order) == sorted(prompts), "messages were lost or doubled"
    assert said == [prompt[5:-1] for prompt in order], "an answer was lost, doubled or out of order"
    senders = [prompt.split()[1] for prompt in order]
    assert senders == started, "turns ran in another order than the queue's"
    members = len(crowd.members)
    for user in crowd.members:
        own = [at for at, sender in enumerate(senders) if sender == user]
        longest = max((b - a for a, b in itertools.pairwise(own)), default=0)
        # At most one turn of each other member, and what was under way or just granted as it asked.
        assert longest <= 2 * members, f"{user} waited for {longest} turns of others"
    return senders
