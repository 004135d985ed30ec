"""The endpoints that the Copilot SDK's scaling guide has its readers write: same paths, same shapes, over the sessions of `/v1`.

An app written against the guide is pointed here. What its snippets leave out is here: authentication, ownership, queueing.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from aerodrome import errors
from aerodrome.http import ask_routes, idempotency, presence, problems, shapes, teams
from aerodrome.http.callers import Authenticated, Caller
from aerodrome.http.conversation import Conversation
from aerodrome.http.options import Body, InfiniteSession, SessionOptions
from aerodrome.http.shapes import SESSION_ID

router = APIRouter(tags=["guide"])
#: As the guide has it.
_COMPACTION = InfiniteSession(background_compaction_threshold=0.80)


class Prompt(Body):
    """What is to be analyzed."""

    prompt: str = Field(min_length=1, max_length=1_000_000, examples=["Summarize: the cat sat on the mat."])


class Result(BaseModel):
    """The analysis."""

    result: str


class Start(BaseModel):
    """Nothing has to be said; what else the app sends is not read."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, max_length=200)
    provider: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,64}$")


class Started(BaseModel):
    """A chat that was begun."""

    sessionId: str


class Message(Body):
    """What is said in a chat."""

    sessionId: str = Field(pattern=SESSION_ID)
    message: str = Field(min_length=1, max_length=1_000_000)


class TeamMessage(Body):
    """What is said in the team's chat."""

    message: str = Field(min_length=1, max_length=1_000_000)


class Content(BaseModel):
    """The answer."""

    content: str


class End(Body):
    """The chat that is over."""

    sessionId: str = Field(pattern=SESSION_ID)


class Ended(BaseModel):
    """It is deleted."""

    success: bool


@router.post("/api/analyze", responses=problems.documented(422), operation_id="guideAnalyze")
async def analyze(wanted: Prompt, caller: Authenticated, request: Request) -> Result:
    """Answer a prompt in a session of its own, of which nothing is left."""
    return Result(result=await ask_routes.answer_of(caller, wanted.prompt, request))


@router.post("/api/chat/start", responses=problems.documented(422), operation_id="guideChatStart")
async def start(caller: Authenticated, wanted: Start | None = None) -> Started:
    """Begin a chat: a session whose context is compacted in the background."""
    said = wanted or Start()
    chosen = SessionOptions(
        model=said.model, provider=said.provider, permissions="reject", ask_user=False, infinite=_COMPACTION
    )
    session_id = str(uuid.uuid4())
    await (await caller.user()).create(session_id, chosen)
    return Started(sessionId=session_id)


@router.post(
    "/api/chat/message",
    responses=problems.documented(404, 422),
    response_model=Content,
    operation_id="guideChatMessage",
)
async def say(wanted: Message, caller: Authenticated, request: Request) -> Any:
    """Say something in a chat; answers when the turn is over, which goes on in any case."""
    held = await caller.conversation(wanted.sessionId, "http.guide.message")
    return await _speak(caller, held, wanted.message, caller.owner.user, request)


@router.post("/api/chat/end", responses=problems.documented(404, 422), operation_id="guideChatEnd")
async def end(wanted: End, caller: Authenticated) -> Ended:
    """End a chat: its session is deleted."""
    await caller.check_session(wanted.sessionId, "http.guide.end")
    await (await caller.user()).delete(wanted.sessionId)
    return Ended(success=True)


@router.post("/team-chat", responses=problems.documented(422), response_model=Content, operation_id="guideTeamChat")
async def team_chat(wanted: TeamMessage, caller: Authenticated, request: Request) -> Any:
    """Say something in the session that the users of a tenant have in common; messages are answered in their order.

    The agent is told who each message is from. Only where `http.team_chat` is set.
    """
    if not caller.site.settings.team_chat:
        raise errors.PolicyRejected("a team's chat is shared by all users of a tenant: set http.team_chat to have one")
    held = await caller.site.teams.find(caller.owner.tenant)
    sender = caller.owner.user
    return await _speak(caller, held, teams.attributed(sender, wanted.message), sender, request)


async def _speak(caller: Caller, held: Conversation, prompt: str, sender: str, request: Request) -> Any:
    await held.open()
    turn = held.ask(prompt, sender)
    await held.wait_taken(turn)
    attempt = idempotency.attempt_of(request.scope)
    if attempt is not None:
        await caller.site.replays.made(attempt, {"session_id": held.session_id, "turn_id": turn.turn_id})
        await held.wait_over(turn)  # whether they stay or not: they may come back for the answer
    elif not await presence.stays(request, caller, held.wait_over(turn)):
        return presence.nobody()
    try:
        if turn.refusal is not None:
            raise turn.refusal
        return Content(content=ask_routes.content_of(shapes.view_turn(held.session_id, turn, [])))
    except errors.AerodromeError as error:
        if attempt is not None and error.retryable:
            caller.site.replays.unmake(attempt)
        raise
