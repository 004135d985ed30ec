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
    from aerodrome.gateway.client import Attachment, Client

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

    @property
    def clients(self) -> list[Client]:
        """Return the clients that have left and whose turns go on."""
        return list(self._left)

    def cut(self, client: Client) -> None:
        """End the turns that a client left; does nothing if they have ended."""
        task = self._left.get(client)
        if task is not None:
            task.cancel()

    def take(self, client: Client, release: Callable[[Client], Awaitable[None]]) -> bool:
        """Keep what serves a client whose link has ended, if policy says so and a turn of it runs; `release` ends it later."""
        if client.principal.policy.client_loss is not ClientLoss.FINISH or not client.turns:
            self._keep(client)
            return False
        kept = {client.attachments[session_id].upstream for session_id in client.turns}
        for held in client.attachments.values():
            if held.upstream in kept and not self._is_heard_by_another(client, held.session_id):
                client.missed.setdefault(held.session_id, Missed(self._missed_bytes))
        for task in client.tasks - {pump for upstream, pump in client.pumps.items() if upstream in kept}:
            task.cancel()
        for upstream in client.upstreams.values():
            if upstream not in kept:
                upstream.link.abort()
        work = self._finish(client, release)
        self._left[client] = asyncio.get_running_loop().create_task(work, name=f"turns left by link {client.number}")
        _log.info("link.left_turns", link=client.number, sessions=sorted(client.turns))
        return True

    def adopt(self, client: Client, session_id: str) -> None:
        """Give a client that is about to resume a session what earlier links of its owner left of it.

        One that holds the session already has heard all of it.
        """
        if session_id in client.attachments:
            return
        place = (client.realm.key, session_id, client.actor)
        missed = Missed(self._missed_bytes)
        kept = self._kept.pop(place, None)
        if kept is not None:
            kept[1].cancel()
            missed.extend(kept[0])
        for left in list(self._left):
            held = left.attachments.get(session_id)
            if held is not None and (left.realm.key, session_id, left.actor) == place:
                missed.extend(left.missed.pop(session_id, Missed(0)))
                _hand_over(left, client, held)
        client.missed[session_id] = missed

    async def end(self, owner: Owner) -> None:
        """End the turns that an owner's links left, and forget what that owner has missed."""
        ending = [task for client, task in self._left.items() if owner in (client.owner, client.actor)]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        for place in [place for place in self._kept if place[2] == owner]:
            self._kept.pop(place)[1].cancel()

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

    def _is_heard_by_another(self, client: Client, session_id: str) -> bool:
        """Say whether a link of the same owner that is there holds the session too: then nobody misses anything."""
        resident = client.services.residents.find(client.realm.key, session_id)
        holders = resident.holders.values() if resident is not None else ()
        others = (holder.client for holder in holders if holder.client is not client)
        return any(other.actor == client.actor and other not in self._left for other in others)

    def _keep(self, client: Client) -> None:
        """Keep for some time what nobody has heard who could."""
        for session_id, missed in client.missed.items():
            if not len(missed):
                continue
            place = (client.realm.key, session_id, client.actor)
            earlier = self._kept.pop(place, None)
            if earlier is not None:
                earlier[1].cancel()
                earlier[0].extend(missed)
            timer = asyncio.get_running_loop().call_later(self._keep_seconds, self._kept.pop, place, None)
            self._kept[place] = (earlier[0] if earlier is not None else missed, timer)
        client.missed = {}


def _hand_over(left: Client, client: Client, held: Attachment) -> None:
    """Move a session, its upstream link and all that came by it from the link that left to the one that is here.

    Other sessions come along with the upstream link; of each that the client has by a link of its own it hears by that one.
    """
    upstream = held.upstream
    coming = [held] if upstream is None else [one for one in left.attachments.values() if one.upstream is upstream]
    for other in coming:
        _move_attachment(left, client, other)
    if upstream is not None:
        _move_upstream(upstream, left, client)
    left.turn_ended.set()


def _move_attachment(left: Client, client: Client, held: Attachment) -> None:
    """Move one session; what is neither idle nor in a turn is on its way in or out, and is opened anew by who wants it."""
    services, session_id = client.services, held.session_id
    del left.attachments[session_id]
    services.residents.release(left, session_id)
    if held.has_turn:
        held.move(AttachmentState.TURN)  # whose client was opening it again will not hear the answer
    if held.upstream is None or not held.is_live or session_id in client.attachments:
        services.router.detach(client.realm.key, session_id, left.number)
        held.forget_ending()
        held.move(AttachmentState.CLOSED)
        held.upstream = None
        return
    client.attachments[session_id] = held
    services.router.attach(client.realm.key, session_id, held.upstream.handle.runtime_id, client.number)
    services.router.detach(client.realm.key, session_id, left.number)
    services.residents.hold(client, held)
    if session_id in left.missed:
        client.missed[session_id] = left.missed.pop(session_id)


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
