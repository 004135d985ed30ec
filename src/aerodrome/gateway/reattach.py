"""Sessions that are in no runtime any more while client links hold them, and how they come back.

`settle` answers everything that was in flight when an upstream link ends, at once: requests with a retryable error, a running
turn with `session.error` (an SDK waits for an event, not for an answer; measured: without it, until its own timeout) and, unless
a new turn begins first, `session.idle`.
`bring_back` is the one mechanism behind failover, wake, the return of an evicted session and migration: at the next call that
names the session it is resumed, for every link that holds it and in the order in which they opened it, with what each client sent
when it did and set since, because a runtime keeps none of that (protocol facts 1.4). Clients hear nothing of it: what a
runtime says of a resume, and the hooks it calls for it, are kept from them. A turn is never repeated by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.flights import TurnEnd
from aerodrome.gateway import tightening
from aerodrome.gateway.client import Attachment, Client
from aerodrome.gateway.residents import Holder, Resident
from aerodrome.gateway.upstream import Upstream
from aerodrome.protocol import reopening
from aerodrome.protocol.messages import Envelope


def settle(client: Client, upstream: Upstream) -> None:
    """Answer for an upstream that has ended: every request once, every running turn with an end. Idempotent."""
    client.forget_upstream(upstream)
    if upstream.is_settled:
        return
    upstream.is_settled = True
    client.services.occupancy.leave(upstream)
    lost = upstream.handle.lost
    reason = lost.result() if lost.done() and not lost.cancelled() else "the connection to the runtime ended"
    error = errors.RuntimeLost(
        f"{reason}; what this request did is not known; try again, a fresh runtime will serve it"
    )
    # Events go first: a client that hears its request fail may send the next one, which they would seem to be about.
    for held in client.attachments.values():
        if held.upstream is upstream:
            _lose(client, held, error)
    for pending in upstream.owed.drain():
        if pending.heard is not None:
            pending.heard(Envelope(error=msgspec.Raw(b"null")))
        if pending.waiter is not None:
            if not pending.waiter.done():
                pending.waiter.set_exception(error)
        elif pending.client_id is not None:
            client.refuse(pending.client_id, error)
            if pending.method == "session.resume" and pending.session_id is not None and not client.link.is_closing:
                client.release_missed(pending.session_id)
    for request_id, asked in client.asked.items():
        if asked.upstream is upstream:
            client.asked.close(request_id)
    if upstream.provider_roles:
        # A runtime whose provider connection is gone never serves a session again (protocol facts 1.9).
        client.services.fleet.retire(
            upstream.handle, "the client that provided its file system or model calls has left"
        )
    client.services.fleet.release(upstream.handle)


def _lose(client: Client, held: Attachment, error: errors.RuntimeLost) -> None:
    lost = held.upstream.handle.lost if held.upstream is not None else None
    why = "the connection to its runtime ended" if lost is None or not lost.done() else "its runtime is lost"
    client.services.router.detach(client.realm.key, held.session_id, client.number, why)
    held.upstream = None
    if held.state is AttachmentState.CLOSED:
        return
    if held.state is AttachmentState.TURN:
        message = f"the turn was interrupted: {error.message}"
        _emit(client, held.session_id, "session.error", {"errorType": "runtime_lost", "message": message})
        loop = asyncio.get_running_loop()
        held.ending = loop.call_later(reopening.IDLE_AFTER_ERROR_SECONDS, _end_turn, client, held)
    is_lost = not client.link.is_closing or (lost is not None and lost.done())
    client.end_turn(held, TurnEnd.LOST if is_lost else TurnEnd.LEFT)
    held.move(AttachmentState.LOST)
    client.turn_ended.set()


def _end_turn(client: Client, held: Attachment) -> None:
    held.ending = None
    if client.services.turns is not None:
        client.services.turns.lost(client, held.session_id)
    if client.attachments.get(held.session_id) is held:
        _emit(client, held.session_id, "session.idle", {})
        client.link.flush()


def _emit(client: Client, session_id: str, kind: str, data: dict[str, Any]) -> None:
    body = reopening.event(session_id, kind, data)
    client.deliver(session_id, kind, body)
    resident, shared = client.services.residents.find(client.realm.key, session_id), client.services.sharing
    # Each holder is told by an event of its own; those who only read are told by the first one's.
    if shared is not None and resident is not None and next(iter(resident.holders), None) == client.number:
        shared.overhear(client.realm.key, session_id, body)


def is_absent(client: Client, session_id: str) -> bool:
    """Say whether a call about a session must wait until it is in a runtime again."""
    resident = client.services.residents.find(client.realm.key, session_id)
    if resident is None:
        return False
    holder = resident.holders.get(client.number)
    # Any link of its owner may call about a session that another one holds, as long as it is in a runtime.
    is_live = holder.held.is_live if holder is not None else bool(resident.live)
    return not is_live and (resident.lock.locked() or bool(resident.absent))


async def bring_back(client: Client, session_id: str) -> None:
    """Have a session in a runtime again for every link that holds it; `client` is the one that needs it.

    Raises:
        errors.RuntimeUnavailable: there is no runtime to be had, or it refuses the session to `client`.
        errors.SessionMissing: the session is not on disk any more.
    """
    await _bring_back(client, session_id, its_own=True)


async def bring_back_others(client: Client, session_id: str) -> None:
    """Have a session that `client` is about to open itself in a runtime again for every other link that holds it."""
    await _bring_back(client, session_id, its_own=False)


async def _bring_back(client: Client, session_id: str, its_own: bool) -> None:
    resident = client.services.residents.find(client.realm.key, session_id)
    if resident is None:
        return
    async with resident.alone():
        for holder in _one_after_another(resident):
            if holder.client is client and not its_own:
                continue
            try:
                await _resume(resident, holder)
            except errors.AerodromeError as error:
                if its_own and (holder.client is client or client.number not in resident.holders):
                    raise
                holder.client.log.warning("session.reattach_failed", session=session_id, reason=error.message)


def _one_after_another(resident: Resident) -> Iterator[Holder]:
    """Yield each absent holder once, those included that are found to be absent meanwhile."""
    seen: set[int] = set()
    while holder := next((found for found in resident.absent if found.client.number not in seen), None):
        seen.add(holder.client.number)
        yield holder


def leave_the_dead(client: Client, session_id: str, upstream: Upstream) -> bool:
    """Settle the links of holders that are in another runtime than this; say whether there were any.

    A session is in one runtime: the other is dead, and a link to it whose end has not come yet would leave a holder who
    only listens without a word of what follows.
    """
    resident = client.services.residents.find(client.realm.key, session_id)
    dead = [
        (holder.client, holder.held.upstream)
        for holder in (resident.live if resident is not None else [])
        if holder.held.upstream is not None and holder.held.upstream.handle is not upstream.handle
    ]
    for other, link in dead:
        link.link.abort()
        settle(other, link)
        other.link.flush()
    return bool(dead)


async def _resume(resident: Resident, holder: Holder) -> None:
    client, held = holder.client, holder.held
    upstream = await client.upstream_for(held.session_id)
    await client.services.evictor.make_room(upstream.handle.runtime_id)
    if held.state not in (AttachmentState.LOST, AttachmentState.EVICTED) or client.number not in resident.holders:
        return  # its client has let go of it meanwhile
    tightening.renew(client, held)
    runtime_id = upstream.handle.runtime_id
    client.services.router.attach(client.realm.key, held.session_id, runtime_id, client.number, "brought back")
    held.move(AttachmentState.OPENING)
    held.upstream = upstream
    _hush(resident, held)
    try:
        await _open_again(client, upstream, held)
    except BaseException:
        client.services.router.detach(client.realm.key, held.session_id, client.number)
        if held.upstream is upstream:
            held.upstream = None
            held.move(AttachmentState.LOST)
        raise
    held.move(AttachmentState.IDLE)
    leave_the_dead(client, held.session_id, upstream)
    upstream.handle.opened += 1
    client.services.evictor.note(upstream.handle.runtime_id)
    client.log.info("session.reattached", session=held.session_id, runtime=upstream.handle.runtime_id)


def _hush(resident: Resident, held: Attachment) -> None:
    """Keep what the runtime will say of this opening from everyone who will hear it."""
    held.hushed |= dict.fromkeys(reopening.OPENING_EVENTS, reopening.ALWAYS) | {"session.start": 1, "session.resume": 1}
    for other in (holder.held for holder in resident.live):
        other.hushed |= dict.fromkeys(reopening.OPENING_EVENTS, reopening.ALWAYS)
        other.hushed["session.resume"] = other.hushed.get("session.resume", 0) + 1
    if held.is_begun:
        held.hushed["hook"] = 1


async def _open_again(client: Client, upstream: Upstream, held: Attachment) -> None:
    """Resume or make anew, then say again what was set since.

    Raises:
        errors.SessionMissing: the runtime has lost what was said in the session, and a new one would not be it.
        errors.RuntimeUnavailable: the runtime refuses.
    """

    def supplied(params: dict[str, Any]) -> dict[str, Any]:
        return client.services.supplier.fill(client.realm.key, held.session_id, params)

    async def opening(params: dict[str, Any]) -> dict[str, Any]:
        return await client.services.supplier.fill_opening(client.owner, client.realm.key, held.session_id, params)

    resumed = reopening.resume_params(held.session_id, held.create, held.resume)
    answer = await upstream.call("session.resume", await opening(resumed))
    if answer.error is not UNSET and not held.is_kept and reopening.is_missing(answer):
        held.hushed.pop("session.resume", None)
        answer = await upstream.call("session.create", await opening(reopening.create_params(held.create, held.resume)))
    if answer.error is not UNSET and reopening.is_missing(answer):
        raise errors.SessionMissing(
            f"session {held.session_id} is not on disk any more: {reopening.message_of(answer)}"
        )
    if answer.error is not UNSET:
        raise errors.RuntimeUnavailable(
            f"session {held.session_id} could not be resumed: {reopening.message_of(answer)}"
        )
    if held.options:
        await upstream.call("session.options.update", supplied({**held.options, "sessionId": held.session_id}))
    for method, params in list(held.replays.values()):
        await upstream.call(method, supplied(params))
