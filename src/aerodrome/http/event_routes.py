"""`/v1/sessions/{id}/events` and `/history`: what was said, as it comes or page by page, without gap or duplicate."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Header, Query

from aerodrome.http import problems, sse
from aerodrome.http.callers import Authenticated, Caller
from aerodrome.http.conversation import Conversation
from aerodrome.http.events import Event
from aerodrome.http.history import BEGINNING
from aerodrome.http.session_routes import SessionId
from aerodrome.http.shapes import History, HistoryEvent
from aerodrome.http.turn_routes import encoded, stream

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["events"])
_EVENTS: dict[str, Any] = {
    "description": "server-sent events: `id` is a cursor, `event` the type, `data` the event as JSON",
    "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}},
}
Cursor = Annotated[str | None, Query(max_length=200, description="a cursor: what comes behind it")]


@router.get(
    "/events",
    status_code=200,
    responses={**problems.documented(404, 422), 200: _EVENTS},
    response_class=sse.EventStream,
    operation_id="streamEvents",
)
async def follow(
    session_id: SessionId,
    caller: Authenticated,
    last_event_id: Annotated[str | None, Header(max_length=200)] = None,
    after: Cursor = None,
    start: Annotated[Literal["now", "beginning"], Query(description="where to begin without a cursor")] = "now",
) -> sse.EventStream:
    """Stream the events of a session, for as long as the reader stays; with a cursor all that came behind it first."""
    held = await caller.conversation(session_id, "http.events.follow")
    await held.open()
    cursor = last_event_id or after
    if cursor or start == "beginning":
        return stream(caller, encoded(held.read_from(cursor)))
    here = await _here(held)
    return stream(caller, _from(here, encoded(held.read_from(here, held.log.end))))


async def _here(held: Conversation) -> str:
    """Return a cursor behind all that was said; where nothing was, one that means the beginning."""
    kept = [] if held.log.cursor else await held.history()
    return held.log.cursor or (kept[-1].cursor if kept else BEGINNING)


async def _from(cursor: str, batches: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[list[bytes], None]:
    """Yield where a reader is, then what comes: one that is cut off before its first event comes back to here all the same."""
    async with aclosing(batches):
        yield [b"id: %b\n\n" % cursor.encode()]
        async for batch in batches:
            yield batch
            del batch


@router.get("/history", responses=problems.documented(404, 422), operation_id="getHistory")
async def history(
    session_id: SessionId,
    caller: Authenticated,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    after: Cursor = None,
) -> History:
    """Return the kept events of a session, oldest first."""
    held = await caller.conversation(session_id, "http.history.get")
    page, has_more = await held.read_history(after, limit)
    senders = await _senders(caller, session_id, page)
    return History(
        events=[_view(one, senders) for one in page],
        cursor=page[-1].cursor if page else after,
        next=page[-1].cursor if has_more else None,
    )


async def _senders(caller: Caller, session_id: str, page: list[Event]) -> dict[str, str]:
    """Return who sent the messages of a page, in a shared session, by the runtime's ids of them."""
    shared, turns = caller.site.services.sharing, caller.site.services.turns
    if shared is None or turns is None or await shared.sharing(session_id) is None:
        return {}
    return await turns.senders(
        session_id, {str(one.data.get("messageId")) for one in page if one.kind == "user.message"}
    )


def _view(event: Event, senders: dict[str, str]) -> HistoryEvent:
    said = msgspec.json.decode(event.body)
    sender = senders.get(str(event.data.get("messageId"))) if event.kind == "user.message" else None
    return HistoryEvent.model_validate(said if sender is None else {**said, "sender": sender})
