"""`/v1/sessions/{id}/messages` and `/turns`: prompts in, answers out, as JSON or as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from aerodrome import errors
from aerodrome.http import presence, problems, shapes, sse
from aerodrome.http.callers import Authenticated, Caller, StreamGuest
from aerodrome.http.conversation import Conversation
from aerodrome.http.events import Event
from aerodrome.http.session_routes import SessionId
from aerodrome.http.shapes import Aborted, NewMessage, TurnList, TurnView
from aerodrome.http.sse import EventStream
from aerodrome.http.turns import Turn

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["turns"])
_STREAM: dict[str, Any] = {
    "description": "The turn; with `Accept: text/event-stream` its events, ending with `turn.ended`",
    "content": {sse.MEDIA_TYPE: {"schema": {"type": "string", "description": "server-sent events; data is JSON"}}},
}


@router.post(
    "/messages",
    responses={**problems.documented(404, 422), 200: _STREAM, 202: {"model": TurnView, "description": "It goes on"}},
    response_model=TurnView,
    operation_id="sendMessage",
)
async def send(
    session_id: SessionId,
    message: NewMessage,
    caller: Authenticated,
    request: Request,
    response: Response,
    accept: Annotated[str | None, Header()] = None,
) -> Any:
    """Send a prompt. Answers when the turn is over, needs an answer, or `wait_seconds` have passed; it goes on in any case."""
    held = await caller.conversation(session_id, "http.message.send")
    await held.open()
    turn = held.ask(message.prompt, caller.owner.user)
    await held.wait_taken(turn)
    if accept is not None and sse.MEDIA_TYPE in accept:
        return stream(caller, encoded(held.read_turn(turn)))
    if not await presence.stays(request, caller, held.wait(turn, message.wait_seconds)):
        return presence.nobody()
    if not turn.is_over:
        response.status_code = 202
    return shapes.view_turn(session_id, turn, held.pending)


@router.get("/turns", responses=problems.documented(404), operation_id="listTurns")
async def list_turns(session_id: SessionId, caller: Authenticated) -> TurnList:
    """List the session's last turns; the whole conversation is its history."""
    held = await caller.conversation(session_id, "http.turn.list")
    return TurnList(turns=[shapes.view_turn(session_id, turn, held.pending) for turn in held.turns])


@router.get("/turns/{turn_id}", responses=problems.documented(404), response_model=TurnView, operation_id="getTurn")
async def get_turn(
    session_id: SessionId,
    turn_id: str,
    caller: Authenticated,
    request: Request,
    wait_seconds: Annotated[float, Query(ge=0, le=3600, description="until it is over or needs an answer")] = 0,
) -> Any:
    """Return a turn."""
    held, turn = await _find(caller, session_id, turn_id)
    if wait_seconds and not await presence.stays(request, caller, held.wait(turn, wait_seconds)):
        return presence.nobody()
    return shapes.view_turn(session_id, turn, held.pending)


@router.delete("/turns/{turn_id}", responses=problems.documented(404, 409), operation_id="withdrawTurn")
async def withdraw(session_id: SessionId, turn_id: str, caller: Authenticated) -> TurnView:
    """Take back a turn that waits. One that runs is aborted by `abort`."""
    held, turn = await _find(caller, session_id, turn_id)
    if not held.withdraw(turn):
        raise errors.AlreadyExists(f"turn {turn_id} does not wait: it is {turn.state.value}")
    return shapes.view_turn(session_id, turn, held.pending)


@router.post("/abort", responses=problems.documented(404, 422), operation_id="abortTurn")
async def abort(session_id: SessionId, caller: Authenticated) -> Aborted:
    """Abort the turn that runs; those that wait are sent."""
    held = await caller.conversation(session_id, "http.turn.abort")
    return Aborted(aborted=await held.abort())


def stream(caller: Caller, batches: AsyncGenerator[list[bytes], None]) -> EventStream:
    """Return an event stream that ends with its caller's principal."""
    guest = StreamGuest(caller.principal)
    guests = caller.site.gateway.guests
    guests.add(guest)

    async def until_left() -> AsyncGenerator[list[bytes], None]:
        try:
            async for batch in batches:
                yield batch
        finally:
            guests.discard(guest)
            await batches.aclose()

    return EventStream(until_left(), caller.site.settings.stream, guest.over)


async def encoded(reading: AsyncGenerator[list[Event], None]) -> AsyncGenerator[list[bytes], None]:
    """Yield events in the form of a stream."""
    try:
        async for batch in reading:
            yield [one.sse for one in batch]
    finally:
        await reading.aclose()


async def _find(caller: Caller, session_id: str, turn_id: str) -> tuple[Conversation, Turn]:
    held = await caller.conversation(session_id, "http.turn.get")
    turn = held.find_turn(turn_id)
    if turn is None:
        raise errors.SessionMissing("no such turn; the history has the whole conversation")
    return held, turn
