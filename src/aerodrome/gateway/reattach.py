"""What becomes of sessions whose runtime died under an open client link, and how they come back.

`settle` answers everything that was in flight, at once: requests with a retryable error, a running turn with `session.error` (an
SDK waits for an event, not for an answer; measured: without it, it waits until its own timeout) and, unless a new turn begins
first, `session.idle`.
`bring_back` resumes a lost session on a fresh runtime at the next call that names it, with what the client sent when it created
or resumed it, because a runtime keeps none of that (protocol facts 1.4). A turn is never repeated by itself.
"""

from __future__ import annotations

import asyncio
import datetime
import uuid
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.attachment import AttachmentState
from aerodrome.gateway.client import Attachment, Client
from aerodrome.gateway.upstream import Upstream
from aerodrome.protocol import messages
from aerodrome.protocol.messages import Envelope

#: A program that hears of the error may ask again at once, and the npm SDK takes any idle for the end of what it asked last.
_IDLE_AFTER_ERROR_SECONDS = 0.5
_CREATE_ONLY = ("cloud", "name", "refreshCustomInstructions", "trustWorkingDirectory")


def settle(client: Client, upstream: Upstream) -> None:
    """Answer for an upstream that has ended: every request once, every running turn with an end."""
    runtime_id = upstream.handle.runtime_id
    if client.upstreams.get(runtime_id) is upstream:
        del client.upstreams[runtime_id]
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
        if pending.waiter is not None:
            if not pending.waiter.done():
                pending.waiter.set_exception(error)
        elif pending.client_id is not None:
            client.refuse(pending.client_id, error)
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
    client.services.router.detach(client.realm.key, held.session_id, client.number)
    held.upstream = None
    if held.state is AttachmentState.CLOSED:
        return
    if held.state is AttachmentState.TURN:
        message = f"the turn was interrupted: {error.message}"
        _emit(client, held.session_id, "session.error", {"errorType": "runtime_lost", "message": message})
        loop = asyncio.get_running_loop()
        held.ending = loop.call_later(_IDLE_AFTER_ERROR_SECONDS, _end_turn, client, held)
    held.move(AttachmentState.LOST)


def _end_turn(client: Client, held: Attachment) -> None:
    held.ending = None
    if client.attachments.get(held.session_id) is held:
        _emit(client, held.session_id, "session.idle", {})
        client.link.flush()


def _emit(client: Client, session_id: str, kind: str, data: dict[str, Any]) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event = {"type": kind, "data": data, "id": str(uuid.uuid4()), "timestamp": now, "parentId": None, "ephemeral": True}
    client.link.send(messages.notification("session.event", messages.encode({"sessionId": session_id, "event": event})))


async def bring_back(client: Client, held: Attachment) -> Upstream:
    """Resume a lost session on a fresh runtime; return its upstream.

    Raises:
        errors.RuntimeUnavailable: there is no runtime to be had, or it refuses the session.
    """
    upstream = await client.upstream_for(held.session_id)
    client.services.router.attach(client.realm.key, held.session_id, upstream.handle.runtime_id, client.number)
    held.move(AttachmentState.OPENING)
    held.upstream = upstream
    try:
        answer = await upstream.call("session.resume", resume_params(held))
        if answer.error is not UNSET and held.create is not None and is_missing(answer):
            # A session that never had a turn is not on disk (protocol facts 1.8): make it again.
            answer = await upstream.call("session.create", held.create)
        if answer.error is not UNSET:
            raise errors.RuntimeUnavailable(f"session {held.session_id} could not be resumed: {message_of(answer)}")
        if held.options:
            await upstream.call("session.options.update", {**held.options, "sessionId": held.session_id})
    except BaseException:
        client.services.router.detach(client.realm.key, held.session_id, client.number)
        if held.state is AttachmentState.OPENING:
            held.upstream = None
            held.move(AttachmentState.LOST)
        raise
    held.move(AttachmentState.IDLE)
    client.log.info("session.reattached", session=held.session_id, runtime=upstream.handle.runtime_id)
    return upstream


def resume_params(held: Attachment) -> dict[str, Any]:
    """Return the parameters that resume a session as its client last asked for it."""
    if held.resume is not None:
        return held.resume
    create = held.create or {}
    return {**{k: v for k, v in create.items() if k not in _CREATE_ONLY}, "sessionId": held.session_id}


def is_missing(answer: Envelope) -> bool:
    """Say whether the runtime does not have the session; it has no machine-readable code for that (measured)."""
    return "not found" in message_of(answer).lower()


def message_of(answer: Envelope) -> str:
    """Return an error answer's message."""
    if answer.error is UNSET:
        return ""
    error = msgspec.json.decode(answer.error)
    return str(error.get("message", "")) if isinstance(error, dict) else ""
