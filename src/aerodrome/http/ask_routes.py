"""`/v1/ask`: one question, one answer, nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request
from pydantic import Field

from aerodrome import errors
from aerodrome.http import idempotency, presence, problems, shapes, sse, turn_routes
from aerodrome.http.asks import Ask
from aerodrome.http.callers import Authenticated, Caller
from aerodrome.http.options import Permissions, SessionOptions
from aerodrome.http.shapes import TurnView

router = APIRouter(tags=["ask"])
_STREAM: dict[str, Any] = {
    "description": "What came of it; with `Accept: text/event-stream` its events, ending with `turn.ended`",
    "content": {sse.MEDIA_TYPE: {"schema": {"type": "string", "description": "server-sent events; data is JSON"}}},
}


class Question(SessionOptions):
    """A question, and what the session that answers it is opened with."""

    prompt: str = Field(min_length=1, max_length=1_000_000, examples=["What is a lease?"])
    timeout_seconds: float = Field(default=300.0, gt=0, le=3600, description="then the turn is aborted")
    permissions: Permissions = Field(
        default="reject", description="`ask` needs a stream: the requests name what is to be answered"
    )
    ask_user: bool = Field(default=False, description="needs a stream, too")


@router.post(
    "/v1/ask",
    responses={**problems.documented(422), 200: _STREAM},
    response_model=TurnView,
    operation_id="ask",
)
async def ask(
    question: Question, caller: Authenticated, request: Request, accept: Annotated[str | None, Header()] = None
) -> Any:
    """Ask a question in a session of its own, which is deleted when it is answered, fails, takes too long, or its caller leaves.

    A caller with an idempotency key may come back for the answer, and so may leave.
    """
    wants_stream = accept is not None and sse.MEDIA_TYPE in accept
    chosen = SessionOptions(**question.model_dump(exclude={"prompt", "timeout_seconds"}))
    if not wants_stream:
        _check_needs_nobody(chosen)
    seconds = min(question.timeout_seconds, caller.site.settings.ask_seconds)
    asked = await caller.site.asks.begin(caller.principal, question.prompt, chosen, seconds)
    attempt = idempotency.attempt_of(request.scope)
    if wants_stream:
        if attempt is not None:
            caller.site.replays.follow(attempt, _view_when_told(asked))
        return turn_routes.stream(caller, _events_of(asked), left=asked.left.set if attempt is None else None)
    return await answered(caller, asked, request)


async def answered(caller: Caller, asked: Ask, request: Request) -> TurnView:
    """Return what came of a question; it is ended when its caller leaves, or their token ends.

    Not so where they have an idempotency key, and may come back for the answer.

    Raises:
        errors.AuthenticationFailed: their token has ended meanwhile.
    """
    try:
        if idempotency.attempt_of(request.scope) is None:
            await presence.stays(request, caller, _until_told(asked))
        else:
            await asked.told.wait()
    finally:
        asked.left.set()
    await asked.told.wait()
    return shapes.view_turn(asked.held.session_id, asked.turn, [])


async def answer_of(caller: Caller, prompt: str, request: Request) -> str:
    """Return the answer to a question that nobody needs to help with.

    Raises:
        errors.AerodromeError: why there is none.
    """
    chosen = SessionOptions(permissions="reject", ask_user=False)
    asked = await caller.site.asks.begin(caller.principal, prompt, chosen, caller.site.settings.ask_seconds)
    return content_of(await answered(caller, asked, request))


def content_of(view: TurnView) -> str:
    """Return what a turn answered.

    Raises:
        errors.AerodromeError: it failed, or was aborted.
    """
    if view.status != "completed":
        said = view.error or {}
        reason = str(said.get("message") or f"the turn was {view.status}")
        kind = errors.RuntimeLost if said.get("code") == "runtime_lost" else errors.RuntimeRefused
        raise kind(reason)
    return view.content or ""


async def _until_told(asked: Ask) -> None:
    await asked.told.wait()


async def _view_when_told(asked: Ask) -> bytes:
    await asked.told.wait()
    return shapes.view_turn(asked.held.session_id, asked.turn, []).model_dump_json().encode()


async def _events_of(asked: Ask) -> AsyncGenerator[list[bytes], None]:
    reading = turn_routes.events_of(asked.held, asked.turn)
    begun = {"session_id": asked.held.session_id, "turn_id": asked.turn.turn_id}
    try:
        yield [b"event: ask.started\ndata: %b\n\n" % msgspec.json.encode({"type": "ask.started", "data": begun})]
        async for batch in reading:
            yield batch
    finally:
        await reading.aclose()


def _check_needs_nobody(chosen: SessionOptions) -> None:
    """Check that nothing has to be answered by a caller who waits for the answer."""
    for name, needs in (
        ("permissions", chosen.permissions == "ask"),
        ("ask_user", chosen.ask_user),
        ("tools", bool(chosen.tools)),
    ):
        if needs:
            raise errors.InvalidParams(
                f"{name}: the agent would wait for an answer of yours; ask with Accept: text/event-stream"
            )
