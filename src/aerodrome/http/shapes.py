"""The bodies of the API: what callers send and get, as the OpenAPI document has them. Times are seconds since the Unix epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from aerodrome import errors
from aerodrome.http import pending as pendings
from aerodrome.http.options import Body, Mode, Permissions, SessionOptions
from aerodrome.http.pending import Pending
from aerodrome.http.turns import Turn

SESSION_ID = r"^[A-Za-z0-9_-]{1,250}$"


class NewSession(SessionOptions):
    """A session to be made."""

    session_id: str | None = Field(default=None, pattern=SESSION_ID, description="yours; default: a new one")


class SessionChange(Body):
    """What of a session is to be other from now on; what is left out stays."""

    title: str | None = Field(default=None, max_length=200)
    model: str | None = Field(default=None, max_length=200)
    mode: Mode | None = None
    permissions: Permissions | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


class Session(BaseModel):
    """A session of the caller's."""

    session_id: str
    owner: str = Field(description="who made it; somebody else where it is shared with the caller")
    state: Literal["idle", "busy", "waiting", "unloaded"] = Field(
        description="waiting: a turn needs an answer; unloaded: in no runtime now, the next message brings it back"
    )
    created_at: float
    used_at: float
    pending: int = Field(description="requests that wait for an answer")
    options: SessionOptions


class SessionPage(BaseModel):
    """Sessions of the caller's, the most recently used first."""

    sessions: list[Session]
    next: str | None = Field(description="give it as `after` for the next page; null: this is the last")


class NewFork(Body):
    """What a fork is to be called, and where it branches off."""

    title: str | None = Field(default=None, max_length=200, description="default: that of its origin")
    before_event: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]{1,100}$",
        description="a kept event: what came before it is taken along; default: all",
    )


class ModelUsage(BaseModel):
    """What the calls of one model took in a session."""

    model: str
    requests: int
    cost: float
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int


class SessionUsage(BaseModel):
    """What a session took over its whole life, as the runtime counts it."""

    session_id: str
    user_requests: int
    premium_cost: float = Field(description="of premium requests; models of a provider of your own cost none")
    model_seconds: float = Field(description="spent in model calls")
    lines_added: int
    lines_removed: int
    models: list[ModelUsage]


class NewMessage(Body):
    """A prompt."""

    prompt: str = Field(min_length=1, max_length=1_000_000)
    lease: int | None = Field(
        default=None, ge=0, description="the token of a lease that the caller holds (shared sessions)"
    )
    wait_seconds: float | None = Field(
        default=None, ge=0, le=3600, description="answer after so long at the latest, with the turn as it is then"
    )


class UsageFigures(BaseModel):
    """What model calls took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0
    model_calls: int = 0


class PendingRequest(BaseModel):
    """What the agent waits for."""

    request_id: str
    kind: Literal["permission", "question", "tool", "form", "plan"]
    data: dict[str, Any]
    opened_at: float


class TurnView(BaseModel):
    """A prompt and what came of it."""

    turn_id: str
    session_id: str
    status: Literal["queued", "running", "waiting", "completed", "failed", "aborted", "withdrawn"]
    prompt: str
    sender: str
    content: str | None = Field(description="the answer; null while there is none")
    model: str | None
    error: dict[str, Any] | None
    usage: UsageFigures
    pending: list[PendingRequest] = Field(description="what this turn waits for")
    created_at: float
    started_at: float | None
    ended_at: float | None


class TurnList(BaseModel):
    """The last turns of a session that this gateway knows of, oldest first."""

    turns: list[TurnView]
    next: str | None = Field(
        default=None, description="give it as `after` for the next page; null: these were the last"
    )


class PendingList(BaseModel):
    """What a session's agent waits for, oldest first."""

    requests: list[PendingRequest]
    next: str | None = Field(
        default=None, description="give it as `after` for the next page; null: these were the last"
    )


class HistoryEvent(BaseModel):
    """A kept event, as the runtime said it."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str
    timestamp: str
    data: dict[str, Any]
    sender: str | None = Field(default=None, description="of `user.message` in a shared session: who sent it")


class History(BaseModel):
    """The kept events of a session, oldest first. `cursor` is where a stream goes on behind them."""

    events: list[HistoryEvent]
    cursor: str | None = Field(description="for Last-Event-ID or `after` of the event stream")
    next: str | None = Field(description="give it as `after` for the next page; null: these were the last")


class PermissionAnswer(Body):
    """A decision on a permission request."""

    kind: Literal["permission"]
    decision: Literal["approve", "approve_for_session", "reject"]
    feedback: str | None = Field(default=None, max_length=10_000, description="told to the agent with a rejection")


class QuestionAnswer(Body):
    """An answer to the agent's question."""

    kind: Literal["question"]
    answer: str = Field(max_length=100_000)


class ToolAnswer(Body):
    """The result of a tool call: one of the two."""

    kind: Literal["tool"]
    result: JsonValue = None
    error: str | None = Field(default=None, max_length=100_000)


class FormAnswer(Body):
    """A form, filled in or not."""

    kind: Literal["form"]
    action: Literal["accept", "decline", "cancel"]
    content: dict[str, JsonValue] | None = None


class PlanAnswer(Body):
    """A decision on a plan."""

    kind: Literal["plan"]
    approved: bool
    feedback: str | None = Field(default=None, max_length=10_000)


class Aborted(BaseModel):
    """Whether there was a turn to abort."""

    aborted: bool


Item = TypeVar("Item")


def page(
    items: Sequence[Item], key: Callable[[Item], str], limit: int, after: str | None
) -> tuple[list[Item], str | None]:
    """Return a page of a list, and what to give as `after` for the next one, None for the last.

    Raises:
        errors.InvalidParams: `after` names nothing of the list (any more).
    """
    begin = 0
    if after is not None:
        begin = next((number + 1 for number, one in enumerate(items) if key(one) == after), 0)
        if not begin:
            raise errors.InvalidParams("after: what it names is not in the list any more; begin again without it")
    found = list(items[begin : begin + limit])
    return found, key(found[-1]) if found and begin + limit < len(items) else None


def view_pending(one: Pending) -> PendingRequest:
    """Return a request as callers see it."""
    return PendingRequest(
        request_id=one.request_id,
        kind=one.kind.value,
        data=pendings.describe(one.kind, one.data),
        opened_at=one.opened_at,
    )


def view_turn(session_id: str, turn: Turn, open_requests: list[Pending]) -> TurnView:
    """Return a turn as callers see it; `open_requests` are those of its session."""
    waits_for = [view_pending(one) for one in open_requests] if turn.started_at and not turn.is_over else []
    return TurnView(
        turn_id=turn.turn_id,
        session_id=session_id,
        status="waiting" if waits_for else turn.state.value,
        prompt=turn.prompt,
        sender=turn.sender,
        content=turn.content,
        model=turn.model,
        error=turn.error,
        usage=UsageFigures(
            input_tokens=turn.usage.input_tokens,
            output_tokens=turn.usage.output_tokens,
            cache_read_tokens=turn.usage.cache_read_tokens,
            cache_write_tokens=turn.usage.cache_write_tokens,
            cost=turn.usage.cost,
            model_calls=turn.usage.model_calls,
        ),
        pending=waits_for,
        created_at=turn.created_at,
        started_at=turn.started_at,
        ended_at=turn.ended_at,
    )


def as_json(value: JsonValue) -> str:
    """Return a value as compact JSON text."""
    return msgspec.json.encode(value).decode()


def view_session_usage(session_id: str, metrics: dict[str, Any]) -> SessionUsage:
    """Return a runtime's metrics (`session.usage.getMetrics`) as callers see them."""
    changes, models = _members(metrics, "codeChanges"), _members(metrics, "modelMetrics")
    return SessionUsage(
        session_id=session_id,
        user_requests=int(_figure(metrics, "totalUserRequests")),
        premium_cost=_figure(metrics, "totalPremiumRequestCost"),
        model_seconds=_figure(metrics, "totalApiDurationMs") / 1000,
        lines_added=int(_figure(changes, "linesAdded")),
        lines_removed=int(_figure(changes, "linesRemoved")),
        models=[_view_model_usage(name, _members(models, name)) for name in sorted(models)],
    )


def _view_model_usage(model: str, metrics: dict[str, Any]) -> ModelUsage:
    requests, used = _members(metrics, "requests"), _members(metrics, "usage")
    return ModelUsage(
        model=model,
        requests=int(_figure(requests, "count")),
        cost=_figure(requests, "cost"),
        input_tokens=int(_figure(used, "inputTokens")),
        output_tokens=int(_figure(used, "outputTokens")),
        cache_read_tokens=int(_figure(used, "cacheReadTokens")),
        cache_write_tokens=int(_figure(used, "cacheWriteTokens")),
        reasoning_tokens=int(_figure(used, "reasoningTokens")),
    )


def _members(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _figure(value: dict[str, Any], name: str) -> float:
    found = value.get(name)
    return float(found) if isinstance(found, (int, float)) else 0.0
