"""`/v1/sessions`: sessions are made, listed, changed and deleted."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response

from aerodrome import errors
from aerodrome.core.membership import Right
from aerodrome.core.session import SessionRecord
from aerodrome.http import problems, shapes
from aerodrome.http.callers import Authenticated, Caller
from aerodrome.http.options import SessionOptions
from aerodrome.http.shapes import NewFork, NewSession, Session, SessionChange, SessionPage, SessionUsage

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
SessionId = Annotated[str, Path(pattern=shapes.SESSION_ID, max_length=250)]
_PAGE = 50


@router.post("", status_code=201, responses=problems.documented(409, 422), operation_id="createSession")
async def create(wanted: NewSession, caller: Authenticated, response: Response) -> Session:
    """Make a session. It is in a runtime when this answers; its conversation begins with the first message."""
    session_id = wanted.session_id or str(uuid.uuid4())
    chosen = SessionOptions(**wanted.model_dump(exclude={"session_id"}))
    await (await caller.user()).create(session_id, chosen)
    response.headers["Location"] = f"/v1/sessions/{session_id}"
    return await describe(caller, session_id, chosen)


@router.get("", responses=problems.documented(), operation_id="listSessions")
async def list_all(
    caller: Authenticated,
    limit: Annotated[int, Query(ge=1, le=200)] = _PAGE,
    after: Annotated[str | None, Query(pattern=shapes.SESSION_ID, description="`next` of the page before")] = None,
) -> SessionPage:
    """List the caller's sessions, the most recently used first; also those made over SDK links."""
    site = caller.site
    with site.asks.hiding() as hidden:
        records = [record for record in await _list_records(caller) if record.session_id not in hidden]
    page, following = shapes.page(records, lambda one: one.session_id, limit, after)
    kept = await site.users.store.find_all([one.session_id for one in page], caller.owner)
    sessions = []
    for record in page:
        chosen = site.users.shown_options(kept.get(record.session_id), caller.owner, record.session_id)
        sessions.append(_view(caller, record, chosen))
    return SessionPage(sessions=sessions, next=following)


@router.get("/{session_id}", responses=problems.documented(404), operation_id="getSession")
async def get(session_id: SessionId, caller: Authenticated) -> Session:
    """Return a session of the caller's."""
    await caller.check_session(session_id, "http.session.get")
    users = caller.site.users
    stored = await users.store.find(session_id, caller.owner)
    return await describe(caller, session_id, users.shown_options(stored, caller.owner, session_id))


@router.patch("/{session_id}", responses=problems.documented(404, 422), operation_id="changeSession")
async def change(session_id: SessionId, wanted: SessionChange, caller: Authenticated) -> Session:
    """Change a session: its model and mode at once, the rest from the next opening on too."""
    await caller.check_own(session_id, "http.session.change")
    held = await caller.conversation(session_id, "http.session.change")
    said = wanted.model_dump(exclude_unset=True, exclude_none=True)
    mode = said.pop("mode", None)
    async with held.changing:
        chosen = SessionOptions.model_validate({**held.options.model_dump(), **said})
        if "model" in said:
            await held.call("session.model.switchTo", {"modelId": said["model"]})
        if mode is not None:
            await held.call("session.mode.set", {"mode": mode})
        await (await caller.user()).change(session_id, chosen)
    return await describe(caller, session_id, chosen)


@router.delete("/{session_id}", status_code=204, responses=problems.documented(404, 422), operation_id="deleteSession")
async def delete(session_id: SessionId, caller: Authenticated) -> None:
    """Delete a session, its history and its files; a turn that runs in it ends."""
    await caller.check_session(session_id, "http.session.delete")
    await (await caller.user()).delete(session_id)


@router.post(
    "/{session_id}/fork", status_code=201, responses=problems.documented(404, 409, 422), operation_id="forkSession"
)
async def fork(
    session_id: SessionId, caller: Authenticated, response: Response, wanted: NewFork | None = None
) -> Session:
    """Make a new session with the history of this one, or the beginning of it; one that never had a turn has none."""
    held = await caller.conversation(session_id, "http.session.fork")
    said = wanted or NewFork()
    chosen = held.options.model_copy(update={"title": said.title} if said.title is not None else {})
    params: dict[str, str] = {}
    if said.before_event is not None:
        params["toEventId"] = said.before_event
    if said.title is not None:
        params["name"] = said.title
    made = str((await held.call("sessions.fork", params)).get("sessionId", ""))
    await (await caller.user()).adopt(made, chosen)
    response.headers["Location"] = f"/v1/sessions/{made}"
    return await describe(caller, made, chosen)


@router.get("/{session_id}/usage", responses=problems.documented(404, 422), operation_id="getSessionUsage")
async def usage(session_id: SessionId, caller: Authenticated) -> SessionUsage:
    """Return what a session took; it is loaded for that if it is not."""
    held = await caller.conversation(session_id, "http.session.usage")
    return shapes.view_session_usage(session_id, await held.call("session.usage.getMetrics", {}))


async def describe(caller: Caller, session_id: str, chosen: SessionOptions) -> Session:
    """Return a session as its owner or a member sees it. Raises errors.SessionMissing: it is gone."""
    record = await caller.site.services.ownership.find_record(session_id)
    if record is None:
        raise errors.SessionMissing("no such session")
    if record.owner != caller.owner:
        await caller.check_session(session_id, "http.session.get")
    return _view(caller, record, chosen)


async def _list_records(caller: Caller) -> list[SessionRecord]:
    """Return the caller's sessions and those shared with them, the most recently used first."""
    services = caller.site.services
    records = await services.ownership.list_records(caller.owner)
    shared = services.sharing
    if shared is None:
        return records
    for member in await shared.stores.members.list_for(caller.owner):
        record = None if member.is_invited else await services.ownership.find_record(member.session_id)
        # Its id may be another session's by now: members go with their session, and are asked for after the record is read.
        if record is not None and Right.READ in await shared.rights(record.session_id, caller.owner, record.owner):
            records.append(record)
    return sorted(records, key=lambda record: record.used_at, reverse=True)


def _view(caller: Caller, record: SessionRecord, chosen: SessionOptions) -> Session:
    user = caller.site.users.peek(caller.owner)
    held = user.conversations.get(record.session_id) if user is not None else None
    waits = len(held.pending) if held is not None else 0
    resident = caller.site.services.residents.find(record.realm, record.session_id)
    state: Literal["idle", "busy", "waiting", "unloaded"]
    if waits:
        state = "waiting"
    elif resident is not None and resident.live:
        state = "busy" if resident.is_at_work else "idle"
    else:
        state = "unloaded"
    return Session(
        session_id=record.session_id,
        owner=record.owner.user,
        state=state,
        created_at=record.created_at,
        used_at=record.used_at,
        pending=waits,
        options=chosen,
    )
