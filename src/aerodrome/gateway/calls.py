"""The calls that begin and end a client's hold on a session: create, resume, detach, delete, and those that make new ones.

Ownership is recorded before the runtime hears of a new session, so that no event about it can come before its owner is known;
a create that fails gives the id back. Each function here forwards one request and says how its answer is finished.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core import quota
from aerodrome.core import session as sessions
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.audit import Action
from aerodrome.core.flights import TurnEnd
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Access
from aerodrome.core.session import Claim
from aerodrome.gateway import reattach, seats, workplaces
from aerodrome.gateway.client import Attachment, Client, Opening, Request
from aerodrome.gateway.upstream import Finish, Pending, Upstream
from aerodrome.gateway.workplaces import Workplace
from aerodrome.protocol import hardening, id_paths, messages, missing, named_providers, reopening, stored_tokens
from aerodrome.protocol.messages import Envelope
from aerodrome.protocol.methods import Method


async def create(client: Client, request: Request) -> None:
    """Forward `session.create` under a claimed id.

    Raises:
        errors.AlreadyExists: the id is someone else's. errors.PolicyRejected: a parameter is refused.
    """
    params = request.object()
    if not params.get("sessionId") and "cloud" in params and client.access is Access.OPEN:
        await _create_in_cloud(client, request, params)
        return
    session_id = _choose_id(request, params)
    client.services.audit.check()
    hardened = client.access is Access.GUARDED
    opening = _opening(client, params)
    params = _chosen(client, params)
    if hardened:
        params = hardening.harden_create(params, client.principal.policy)
    caps = quota.sessions_of(client.principal.policy)
    claiming = asyncio.ensure_future(client.services.ownership.claim(session_id, client.owner, client.realm.key, caps))
    place: Workplace | None = None
    try:
        if not client.is_alone or caps.is_set:
            # A runtime that others use must not hear of an id before it is known not to be theirs: create would join it.
            await claiming
        if reattach.is_absent(client, session_id):
            # To its holders it is live, and a create would join it; in the runtime it would begin a second conversation.
            with suppress(errors.SessionMissing):
                await reattach.bring_back(client, session_id)
        upstream = await _upstream_to_open(client, session_id)
        if hardened:
            place = _workplace(client, upstream)
            await _work_in_own_directory(params, place, claiming)
        sent = await _supplied(client, session_id, params)
        upstream.check_open()
    except BaseException:
        _take_back(client, session_id)
        await _unclaim(client, claiming, place)
        raise
    held = _hold(client, session_id, upstream)
    held.describe(create=params, resume=None)
    held.opening = opening

    async def finish(answer: Envelope) -> bytes:
        if answer.error is not UNSET:
            let_go(client, session_id)
            await _unclaim(client, claiming, place)
            return messages.response(request.id, answer)
        try:
            await claiming
        except errors.AerodromeError as error:
            # Only where the runtime is the caller's alone: the session is its own, but the id is another's elsewhere.
            client.services.audit.refused(client, request, error)
            await upstream.call("session.detach", {"sessionId": session_id})
            let_go(client, session_id)
            raise
        return await _opened(client, held, upstream, answer, request)

    _forward(upstream, request, session_id, sent, _holding_turns(client, held, upstream, finish))


def _choose_id(request: Request, params: dict[str, Any]) -> str:
    """Return the id of a new session, the client's or a random one; note it in the request and its params."""
    session_id = params.get("sessionId") or str(uuid.uuid4())
    if isinstance(session_id, str):
        request.session_ids = [session_id]
    if not isinstance(session_id, str) or not sessions.is_valid_id(session_id):
        raise errors.InvalidParams("invalid sessionId: expected 1 to 250 of A-Z, a-z, 0-9, '_' and '-'")
    params["sessionId"] = session_id
    return session_id


def _opening(client: Client, params: dict[str, Any]) -> Opening:
    policy = client.principal.policy
    return Opening(stored_tokens.leave_out(params, policy), policy)


def _chosen(client: Client, params: dict[str, Any]) -> dict[str, Any]:
    """Name what the tenant's policy gives its sessions; what is stored of one has these names, not what they stand for."""
    policy = client.principal.policy
    return stored_tokens.choose(named_providers.choose(params, policy), policy)


async def _supplied(client: Client, session_id: str, params: dict[str, Any]) -> dict[str, Any]:
    return await client.services.supplier.fill_opening(client.owner, client.realm.key, session_id, params)


def _take_back(client: Client, session_id: str) -> None:
    """Withdraw what a session was given that did not come to be opened, and that nobody else holds."""
    if client.services.residents.find(client.realm.key, session_id) is None:
        client.services.supplier.withdraw(client.realm.key, session_id)


async def _unclaim(client: Client, claiming: asyncio.Future[Claim], place: Workplace | None) -> None:
    """Give back an id that this create claimed and did not come to use, and its directory."""
    await asyncio.wait((claiming,))
    if not claiming.cancelled() and claiming.exception() is None and claiming.result().created:
        session_id = claiming.result().record.session_id
        if place is not None:
            place.remove_unused(session_id)
        await client.services.ownership.forget(session_id, client.owner)


async def _create_in_cloud(client: Client, request: Request, params: dict[str, Any]) -> None:
    """Forward a create whose id the service will choose; it is recorded when it is known."""
    upstream = await client.upstream_for(None)

    async def finish(answer: Envelope) -> bytes:
        if answer.error is UNSET:
            session_id = messages.params_object(answer.result).get("sessionId")
            if isinstance(session_id, str):
                await client.services.ownership.claim(session_id, client.owner, client.realm.key)
                held = _hold(client, session_id, upstream)
                held.create = params
                held.move(AttachmentState.IDLE)
                client.services.audit.session(client, Action.SESSION_CREATE, session_id, request.method)
        return messages.response(request.id, answer)

    _forward(upstream, request, None, params, finish)


async def resume(client: Client, request: Request) -> None:
    """Forward `session.resume` of an owned session, with every restriction sent again."""
    params = request.object()
    session_id = params.get("sessionId")
    if not isinstance(session_id, str):
        raise errors.InvalidParams("expected sessionId to be a string; name the session to resume")
    owner = await client.services.ownership.find_owner(session_id)
    if not sessions.is_valid_id(session_id) or not may_name(client, session_id, owner):
        await _resume_other(client, request, session_id, owner)
        return
    request.session_ids = [session_id]
    hardened = client.access is Access.GUARDED
    opening = _opening(client, params)
    params = _chosen(client, params)
    if hardened:
        params = hardening.harden_resume(params, client.principal.policy)
    client.services.finishing.adopt(client, session_id)
    try:
        upstream = await _upstream_to_open(client, session_id)
        if hardened:
            await _work_in_own_directory(params, _workplace(client, upstream))
        sent = await _supplied(client, session_id, params)
        upstream.check_open()
    except BaseException:
        _take_back(client, session_id)
        client.release_missed(session_id)
        raise
    before = client.attachments.get(session_id)
    was_live = before is not None and before.is_live
    is_kept = _is_kept(client, session_id)
    held = _hold(client, session_id, upstream)
    recipe = (held.create, held.resume, held.options, held.replays, held.opening)
    held.describe(create=None, resume=params)
    held.opening = opening
    held.is_kept = is_kept

    async def finish(answer: Envelope) -> bytes:
        # Once this answer is on its way, what the client has missed may follow it.
        asyncio.get_running_loop().call_soon(client.release_missed, session_id)
        if answer.error is not UNSET:
            held.create, held.resume, held.options, held.replays, held.opening = recipe
            if was_live:
                held.move(AttachmentState.TURN if held.is_mid_turn else AttachmentState.IDLE)
            else:
                let_go(client, session_id)
            return messages.response(request.id, answer)
        if owner is None:
            await client.services.ownership.claim(session_id, client.owner, client.realm.key)
            client.services.audit.session(client, Action.SESSION_CLAIM, session_id, request.method)
        return await _opened(client, held, upstream, answer, request)

    _forward(upstream, request, session_id, sent, _holding_turns(client, held, upstream, finish))


async def _resume_other(client: Client, request: Request, session_id: str, owner: Owner | None) -> None:
    """Have a member join a session; answer everyone else as for a missing one.

    Where the runtime is the caller's alone it has no other's session, and says so itself.
    """
    seat = await seats.find_seat(client, session_id, owner)
    if seat is not None:
        request.session_ids = [session_id]
        seat.take(request)
        return
    client.services.audit.foreign(client, request.method, session_id, owner)
    if client.access is Access.GUARDED:
        client.link.send(missing.answer(request.id, "session.resume", session_id))
        return
    upstream = await client.upstream_for(None)
    upstream.forward(Pending(request.method, request.id), request.params)
    upstream.link.flush()


def _holding_turns(client: Client, held: Attachment, upstream: Upstream, finish: Finish) -> Finish:
    """Let no turn begin in a guarded session before `finish` has locked it down: clients need not wait for the answer."""
    if client.access is Access.OPEN:
        return finish
    restricting = held.restricting = asyncio.get_running_loop().create_future()

    def release(_: object = None) -> None:
        if not restricting.done():
            restricting.set_result(None)

    async def finish_and_release(answer: Envelope) -> bytes:
        try:
            return await finish(answer)
        finally:
            upstream.link.closed.remove_done_callback(release)
            release()

    upstream.link.closed.add_done_callback(release)
    return finish_and_release


async def _opened(client: Client, held: Attachment, upstream: Upstream, answer: Envelope, request: Request) -> bytes:
    """Finish a successful create or resume: lock down what only `session.options.update` can, then let the client know."""
    client.services.ownership.touch(held.session_id)
    if client.access is Access.GUARDED:
        held.options = {**hardening.OPTIONS_AFTER_OPEN}
        try:
            locked = await upstream.call("session.options.update", {**held.options, "sessionId": held.session_id})
        except errors.AerodromeError:
            upstream.link.abort()  # whatever the runtime has of it now, it unloads with this link
            raise
        if locked.error is not UNSET:
            # A session that could not be locked down must not be used at all.
            await upstream.call("session.detach", {"sessionId": held.session_id})
            let_go(client, held.session_id)
            raise errors.RuntimeUnavailable(f"the session could not be restricted: {reopening.message_of(locked)}")
    if held.upstream is not upstream:
        raise errors.RuntimeLost("the runtime was lost while the session was opening; try again")
    if held.state is AttachmentState.OPENING:
        held.move(AttachmentState.TURN if held.is_mid_turn else AttachmentState.IDLE)
        client.services.evictor.note(upstream.handle.runtime_id)
    held.answered = bytes(answer.result) if answer.result is not UNSET else None
    action = Action.SESSION_RESUME if request.method == "session.resume" else Action.SESSION_CREATE
    client.services.audit.session(client, action, held.session_id)
    return messages.response(request.id, answer)


def detach_finish(client: Client, request: Request) -> Finish:
    """Finish `session.detach` and `session.destroy`: this link lets go of the session."""

    async def finish(answer: Envelope) -> bytes:
        if answer.error is UNSET:
            for session_id in request.session_ids:
                let_go(client, session_id)
        return messages.response(request.id, answer)

    return finish


def delete_finish(client: Client, upstream: Upstream, request: Request) -> Finish:
    """Finish the calls that delete sessions: remove their working directories, free their ids."""

    async def finish(answer: Envelope) -> bytes:
        if answer.error is UNSET and not _says_failure(answer):
            for session_id in request.session_ids:
                _let_everyone_go(client, session_id)
                await _remove_own_directory(client, upstream, session_id)
                await client.services.ownership.forget(session_id, client.owner)
                client.services.audit.session(client, Action.SESSION_DELETE, session_id, request.method)
        return messages.response(request.id, answer)

    return finish


def close_finish(client: Client, request: Request) -> Finish:
    """Finish `sessions.close`: the session is unloaded for everyone, its record stays."""

    async def finish(answer: Envelope) -> bytes:
        if answer.error is UNSET:
            for session_id in request.session_ids:
                _let_everyone_go(client, session_id)
        return messages.response(request.id, answer)

    return finish


def birth_finish(client: Client, request: Request, row: Method) -> Finish:
    """Finish the calls that make a new session by another name (fork): it belongs to the caller."""

    async def finish(answer: Envelope) -> bytes:
        if answer.error is UNSET and answer.result is not UNSET:
            for session_id in id_paths.find_ids(msgspec.json.decode(answer.result), row.born_ids):
                await client.services.ownership.claim(session_id, client.owner, client.realm.key)
                client.services.audit.session(client, Action.SESSION_CREATE, session_id, request.method)
        return messages.response(request.id, answer)

    return finish


def complete_finish(request: Request, finish: Finish | None) -> Finish:
    """Finish a call on several sessions of which some are not the caller's: they are told as missing."""

    async def complete(answer: Envelope) -> bytes:
        if answer.error is UNSET and answer.result is not UNSET:
            result = missing.complete(request.method, msgspec.json.decode(answer.result), request.missing_ids)
            answer = msgspec.structs.replace(answer, result=msgspec.Raw(messages.encode(result)))
        return messages.response(request.id, answer) if finish is None else await finish(answer)

    return complete


def filter_finish(client: Client, request: Request, row: Method) -> Finish:
    """Finish the calls that list sessions: only the caller's stay."""

    async def finish(answer: Envelope) -> bytes:
        if answer.error is not UNSET or answer.result is UNSET:
            return messages.response(request.id, answer)
        owned = set(await client.services.ownership.list_ids(client.owner))
        listed = id_paths.filter_result(msgspec.json.decode(answer.result), row.result_ids, owned.__contains__)
        return messages.result(request.id, listed)

    return finish


def may_name(client: Client, session_id: str, owner: object) -> bool:
    """Say whether the caller may name a session with this owner.

    A session that nobody has claimed can only be the caller's where the runtime is: sessions may come to be in other ways
    than through us (a fork, a task of the runtime, an imported home). Where strangers share a runtime, an id that it would
    read as the beginning of another one names nothing.
    """
    if client.access is Access.OPEN:
        return owner is None or owner == client.owner
    return owner == client.owner and not hardening.is_abbreviation(session_id)


def _hold(client: Client, session_id: str, upstream: Upstream) -> Attachment:
    held = client.attachments.get(session_id)
    if held is None:
        held = client.attachments[session_id] = Attachment(session_id, upstream)
    else:
        held.is_mid_turn = held.state is AttachmentState.TURN
        held.move(AttachmentState.OPENING)
        held.upstream = upstream
    held.hushed.clear()
    client.services.router.attach(client.realm.key, session_id, upstream.handle.runtime_id, client.number)
    client.services.residents.hold(client, held)
    upstream.handle.opened += 1
    return held


def _is_kept(client: Client, session_id: str) -> bool:
    """Say whether a session that is about to be resumed is on disk.

    One that links hold and that never had a turn is in a runtime's memory only: whoever joins it there has to have it made
    again when that runtime is gone.
    """
    resident = client.services.residents.find(client.realm.key, session_id)
    known = [holder.held.is_kept for holder in resident.holders.values()] if resident is not None else []
    return not known or any(known)


async def _upstream_to_open(client: Client, session_id: str) -> Upstream:
    """Return where to open a session: with the others who hold it, if any, and where there is room for it."""
    await reattach.bring_back_others(client, session_id)
    upstream = await client.upstream_for(session_id)
    if reattach.leave_the_dead(client, session_id, upstream):
        await reattach.bring_back_others(client, session_id)
    if client.services.router.find(client.realm.key, session_id) is None:
        await client.services.evictor.make_room(upstream.handle.runtime_id)
    return upstream


def let_go(client: Client, session_id: str) -> None:
    """Forget this link's hold on a session."""
    held = client.attachments.pop(session_id, None)
    if held is not None:
        client.end_turn(held, TurnEnd.LEFT)
        held.move(AttachmentState.CLOSED)
        held.upstream = None
    client.services.router.detach(client.realm.key, session_id, client.number)
    client.services.residents.release(client, session_id)


def _let_everyone_go(client: Client, session_id: str) -> None:
    """Forget every link's hold on a session that is deleted or closed for all."""
    resident = client.services.residents.find(client.realm.key, session_id)
    for holder in list(resident.holders.values()) if resident is not None else []:
        let_go(holder.client, session_id)
    client.services.router.forget(client.realm.key, session_id)


def _forward(
    upstream: Upstream, request: Request, session_id: str | None, params: dict[str, Any], finish: Finish
) -> None:
    upstream.forward(Pending(request.method, request.id, session_id, finish), messages.encode(params))
    upstream.link.flush()


def _workplace(client: Client, upstream: Upstream) -> Workplace:
    place = workplaces.find(client.principal.policy, client.owner, upstream.handle.work_directory)
    if place is None:
        raise errors.PolicyRejected("guarded sessions need a runtime that this gateway spawned; the upstream was given")
    return place


async def _work_in_own_directory(
    params: dict[str, Any], place: Workplace, claiming: asyncio.Future[Claim] | None = None
) -> None:
    """Give a guarded session a working directory of its own, below the realm's or where policy says.

    Raises:
        errors.PolicyRejected: it cannot be one of its own: a link is there, or a new session would find another's files.
    """
    session_id = params["sessionId"]
    if place.make(session_id) and claiming is not None and (await claiming).created:
        raise errors.PolicyRejected(
            f"session {session_id} is refused: files that are not its own are in what would be its working directory; "
            "choose another id, or ask your operator to remove them",
            parameter="sessionId",
        )
    params["workingDirectory"] = str(place.path(session_id))


async def _remove_own_directory(client: Client, upstream: Upstream, session_id: str) -> None:
    """Remove the working directory of a guarded session that is deleted."""
    if client.access is Access.OPEN or not sessions.is_valid_id(session_id):
        return
    try:
        await asyncio.to_thread(_workplace(client, upstream).remove, session_id)
    except (OSError, errors.PolicyRejected) as error:
        client.log.warning("session.directory_kept", session=session_id, reason=str(error))


def _says_failure(answer: Envelope) -> bool:
    """Say whether a deletion answered `success: false`: it never answers with an error (measured)."""
    if answer.result is UNSET:
        return False
    result = msgspec.json.decode(answer.result)
    return isinstance(result, dict) and result.get("success") is False
