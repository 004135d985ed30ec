"""`/v1/sessions/{id}/messages` and `/turns`: prompts in, answers out, as JSON or as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response

from aerodrome import errors
from aerodrome.http import idempotency, presence, problems, shapes, sse
from aerodrome.http.callers import Authenticated, Caller, StreamGuest
from aerodrome.http.conversation import Conversation
from aerodrome.http.events import Event
from aerodrome.http.idempotency import REPLAYED, Replayed
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
    earlier = getattr(request.state, "earlier", None)
    if isinstance(earlier, Replayed):
        return stream(caller, _events_again(held, earlier), {REPLAYED: "true"})
    await held.open()
    turn = held.ask(message.prompt, caller.owner.user, message.lease)
    await held.wait_taken(turn)
    attempt = idempotency.attempt_of(request.scope)
    if attempt is not None:
        await caller.site.replays.made(attempt, {"session_id": session_id, "turn_id": turn.turn_id})
    if accept is not None and sse.MEDIA_TYPE in accept:
        if attempt is not None:
            caller.site.replays.follow(attempt, _view_when_over(held, turn))
        return stream(caller, events_of(held, turn))
    is_here = False
    try:
        is_here = await presence.stays(request, caller, held.wait(turn, message.wait_seconds))
    finally:
        if not is_here and attempt is not None:
            # What they are told now says nothing of the turn: their retry has its answer.
            caller.site.replays.follow(attempt, _view_when_over(held, turn))
    if not is_here:
        return presence.nobody()
    if not turn.is_over:
        response.status_code = 202
    return shapes.view_turn(session_id, turn, held.pending)


@router.get("/turns", responses=problems.documented(404), operation_id="listTurns")
async def list_turns(
    session_id: SessionId,
    caller: Authenticated,
    limit: Annotated[int, Query(ge=1, le=200)] = 200,
    after: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
) -> TurnList:
    """List the session's last turns, oldest first; the whole conversation is its history."""
    held = await caller.conversation(session_id, "http.turn.list")
    await held.recall()
    page, following = shapes.page(held.turns, lambda turn: turn.turn_id, limit, after)
    return TurnList(turns=[shapes.view_turn(session_id, turn, held.pending) for turn in page], next=following)


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
    if not await held.take_back(turn):
        raise errors.AlreadyExists(f"turn {turn_id} does not wait: it is {turn.state.value}")
    return shapes.view_turn(session_id, turn, held.pending)


@router.post("/abort", responses=problems.documented(404, 422), operation_id="abortTurn")
async def abort(session_id: SessionId, caller: Authenticated) -> Aborted:
    """Abort the turn that runs; those that wait are sent."""
    held = await caller.conversation(session_id, "http.turn.abort")
    return Aborted(aborted=await held.abort())


def stream(
    caller: Caller,
    batches: AsyncGenerator[list[bytes], None],
    headers: dict[str, str] | None = None,
    left: Callable[[], None] | None = None,
) -> EventStream:
    """Return an event stream that ends with its caller's principal; `left` is called at its end, however that comes."""
    guest = StreamGuest(caller.principal)
    guests = caller.site.gateway.guests
    guests.add(guest)

    def ended() -> None:
        guests.discard(guest)
        if left is not None:
            left()

    return EventStream(batches, caller.site.settings.stream, guest.over, headers, ended)


async def _view_when_over(held: Conversation, turn: Turn) -> bytes:
    """Return the JSON form of a turn, once it is over."""
    await held.wait_over(turn)
    return shapes.view_turn(held.session_id, turn, []).model_dump_json().encode()


async def _events_again(held: Conversation, earlier: Replayed) -> AsyncGenerator[list[bytes], None]:
    """Yield the events of a turn that an earlier request began: from the log, or what is kept of it."""
    made = msgspec.json.decode(earlier.resource)
    turn = held.find_turn(str(made.get("turn_id")))
    if turn is not None and (not turn.is_over or turn.position >= held.log.first):
        reading = events_of(held, turn)
        try:
            async for batch in reading:
                yield batch
        finally:
            await reading.aclose()
        return
    try:
        view = TurnView.model_validate_json((earlier.answer.body if earlier.answer is not None else None) or "")
    except ValueError:
        # It was answered with a problem, or is lost with its link: what there is of it is in the history.
        error = {"code": "runtime_lost", "message": "the turn is lost; the history says what came of it"}
        yield [_said("turn.ended", {"turn_id": str(made.get("turn_id")), "status": "failed", "error": error})]
        return
    said = [] if view.content is None else [_said("assistant.message", {"content": view.content})]
    ended = {"turn_id": view.turn_id, "status": view.status, "error": view.error}
    yield [*said, _said("turn.ended", ended)]


def _said(kind: str, data: dict[str, Any]) -> bytes:
    """Return an event that was in no log: it has no cursor."""
    body = msgspec.json.encode({"type": kind, "data": data, "ephemeral": True})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


def events_of(held: Conversation, turn: Turn) -> AsyncGenerator[list[bytes], None]:
    """Return the events from a turn's sending to its end, in the form of a stream."""
    return encoded(held.read_turn(turn))


async def encoded(reading: AsyncGenerator[list[Event], None]) -> AsyncGenerator[list[bytes], None]:
    """Yield events in the form of a stream."""
    try:
        async for batch in reading:
            yield [one.sse for one in batch]
            del batch  # it may be a whole history, and the next one may be long in coming
    finally:
        await reading.aclose()


async def _find(caller: Caller, session_id: str, turn_id: str) -> tuple[Conversation, Turn]:
    held = await caller.conversation(session_id, "http.turn.get")
    await held.recall()
    turn = held.find_turn(turn_id)
    if turn is None:
        raise errors.SessionMissing("no such turn; the history has the whole conversation")
    return held, turn
