"""What becomes of a running turn whose client has left: under the policy `finish` it goes on, and the client that comes back
for its session hears what it missed.

A link that leaves in the middle of a turn leaves its upstream links behind: the runtime would abort the turn with the last of
them (protocol facts 1.8). Events of the session are kept meanwhile. A client of the same owner that resumes the session takes
the upstream link over, with the tools and questions that belong to it, and hears the events after the answer to its resume,
before any later one. When the turn has ended without anyone coming, the links close, and the events are kept for some time.
Deliberately in memory only: a gateway that dies takes its turns along. Under `close` none of this happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from aerodrome.core.attachment import AttachmentState
from aerodrome.core.identity import Owner
from aerodrome.core.policy import ClientLoss
from aerodrome.gateway.missed import Missed
from aerodrome.gateway.upstream import Upstream

if TYPE_CHECKING:
    from aerodrome.gateway.client import Client

_log = structlog.get_logger()
_Place = tuple[str, str, Owner]


class Finishing:
    """The clients that have left while a turn of theirs goes on, and what those that left for good have missed."""

    def __init__(self, seconds: float, keep_seconds: float, missed_bytes: int) -> None:
        self._seconds = seconds
        self._keep_seconds = keep_seconds
        self._missed_bytes = missed_bytes
        self._left: dict[Client, asyncio.Task[None]] = {}
        self._kept: dict[_Place, tuple[Missed, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._left)

    def take(self, client: Client, release: Callable[[Client], Awaitable[None]]) -> bool:
        """Keep what serves a client whose link has ended, if policy says so and a turn of it runs; `release` ends it later."""
        if client.principal.policy.client_loss is not ClientLoss.FINISH or not client.turns:
            return False
        client.missed = {session_id: Missed(self._missed_bytes) for session_id in client.turns}
        kept = {held.upstream for held in client.attachments.values() if held.session_id in client.missed}
        for task in client.tasks - {pump for upstream, pump in client.pumps.items() if upstream in kept}:
            task.cancel()
        for upstream in client.upstreams.values():
            if upstream not in kept:
                upstream.link.abort()
        work = self._finish(client, release)
        self._left[client] = asyncio.get_running_loop().create_task(work, name=f"turns left by link {client.number}")
        _log.info("link.left_turns", link=client.number, sessions=sorted(client.missed))
        return True

    def adopt(self, client: Client, session_id: str) -> None:
        """Give a client that is about to resume a session what an earlier link of its owner left of it."""
        place = (client.realm.key, session_id, client.owner)
        for left in list(self._left):
            if session_id in left.missed and (left.realm.key, session_id, left.owner) == place:
                self._hand_over(left, client, session_id)
        kept = self._kept.pop(place, None)
        if kept is not None:
            kept[1].cancel()
            client.missed[session_id] = kept[0]

    async def aclose(self) -> None:
        """End every turn that is left, and forget what was missed."""
        for task in list(self._left.values()):
            task.cancel()
        if self._left:
            await asyncio.wait(list(self._left.values()))
        for _, timer in self._kept.values():
            timer.cancel()
        self._kept.clear()

    async def _finish(self, client: Client, release: Callable[[Client], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                while client.turns:
                    client.turn_ended.clear()
                    await client.turn_ended.wait()
        except TimeoutError:
            _log.warning("link.turns_cut", link=client.number, seconds=self._seconds)
        finally:
            del self._left[client]
            self._keep(client)
            await release(client)

    def _keep(self, client: Client) -> None:
        for session_id, missed in client.missed.items():
            place = (client.realm.key, session_id, client.owner)
            timer = asyncio.get_running_loop().call_later(self._keep_seconds, self._kept.pop, place, None)
            earlier = self._kept.pop(place, None)
            if earlier is not None:
                earlier[1].cancel()
            self._kept[place] = (missed, timer)
        client.missed = {}

    def _hand_over(self, left: Client, client: Client, session_id: str) -> None:
        """Move a session, its upstream link and all that came by it from the link that left to the one that is here."""
        held = left.attachments[session_id]
        upstream = held.upstream
        if upstream is None or held.state is not AttachmentState.TURN or client.attachments.get(session_id) is not None:
            return
        sharing = [other for other in left.attachments.values() if other.upstream is upstream]
        if any(other.session_id in client.attachments for other in sharing):
            return
        services = client.services
        for other in sharing:
            del left.attachments[other.session_id]
            client.attachments[other.session_id] = other
            services.router.attach(client.realm.key, other.session_id, upstream.handle.runtime_id, client.number)
            services.router.detach(client.realm.key, other.session_id, left.number)
            services.residents.release(left, other.session_id)
            services.residents.hold(client, other)
            if other.session_id in left.missed:
                client.missed[other.session_id] = left.missed.pop(other.session_id)
        _move_upstream(upstream, left, client)
        left.turn_ended.set()


def _move_upstream(upstream: Upstream, left: Client, client: Client) -> None:
    """Have a link's messages go to another client; what the earlier one still waited for is answered to nobody."""
    left.pumps.pop(upstream).cancel()
    left.forget_upstream(upstream)
    for pending in upstream.owed.origins():
        if pending.waiter is None:
            pending.client_id, pending.finish = None, None
    for request_id, asked in left.asked.items():
        if asked.upstream is upstream:
            left.asked.close(request_id)
            client.ask(asked)
    services = client.services
    services.occupancy.leave(upstream)
    services.occupancy.enter(upstream, client)
    key = upstream.handle.runtime_id
    client.upstreams[key if key not in client.upstreams else f"{key} of link {left.number}"] = upstream
    client.run_pump(upstream)
