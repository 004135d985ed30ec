"""`/v1/sessions/{id}/requests`: what an agent waits for is listed and answered."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from aerodrome import errors
from aerodrome.http import pending, problems, shapes
from aerodrome.http.callers import Authenticated
from aerodrome.http.pending import Pending
from aerodrome.http.session_routes import SessionId
from aerodrome.http.shapes import (
    FormAnswer,
    PendingList,
    PendingRequest,
    PermissionAnswer,
    PlanAnswer,
    QuestionAnswer,
    ToolAnswer,
)

router = APIRouter(prefix="/v1/sessions/{session_id}/requests", tags=["requests"])
Answer = Annotated[PermissionAnswer | QuestionAnswer | ToolAnswer | FormAnswer | PlanAnswer, Body(discriminator="kind")]


@router.get("", responses=problems.documented(404), operation_id="listRequests")
async def list_all(
    session_id: SessionId,
    caller: Authenticated,
    limit: Annotated[int, Query(ge=1, le=200)] = 200,
    after: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
) -> PendingList:
    """List what the agent waits for, oldest first."""
    held = await caller.conversation(session_id, "http.request.list")
    page, following = shapes.page(await held.list_pending(), lambda one: one.request_id, limit, after)
    return PendingList(requests=[shapes.view_pending(one) for one in page], next=following)


@router.post("/{request_id}", responses=problems.documented(404, 409, 422), operation_id="answerRequest")
async def answer(session_id: SessionId, request_id: str, given: Answer, caller: Authenticated) -> PendingRequest:
    """Answer a request. The first answer wins; a later one is told 409."""
    held = await caller.conversation(session_id, "http.request.answer")
    one = held.find_pending(request_id)
    if one is None:
        raise errors.SessionMissing("no such request waits: it has been answered, or its turn is over")
    if given.kind != one.kind.value:
        raise errors.InvalidParams(
            f"kind: request {request_id} is a {one.kind.value}, found an answer to a {given.kind}"
        )
    await held.answer(one, _wire(one, given))
    return shapes.view_pending(one)


def _wire(one: Pending, given: Any) -> Any:
    """Return an answer in the runtime's form."""
    match given:
        case PermissionAnswer():
            return pending.permission_result(given.decision, given.feedback, one.data)
        case QuestionAnswer():
            choices = one.data.get("choices") or []
            return {"answer": given.answer, "wasFreeform": given.answer not in choices}
        case ToolAnswer():
            if given.error is not None:
                return {"error": given.error}
            text = given.result if isinstance(given.result, str) else shapes.as_json(given.result)
            return {"result": text}
        case FormAnswer():
            return {"action": given.action} | ({"content": given.content} if given.content is not None else {})
        case _:
            return {"approved": given.approved} | ({"feedback": given.feedback} if given.feedback else {})
