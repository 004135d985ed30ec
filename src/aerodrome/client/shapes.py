"""What the gateway answers, as values. Members this client does not know are left out: a newer gateway may say more.

Times are seconds since the Unix epoch.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from aerodrome.client import errors

TurnStatus = Literal["queued", "running", "waiting", "completed", "failed", "aborted", "withdrawn"]
PendingKind = Literal["permission", "question", "tool", "form", "plan"]
SessionState = Literal["idle", "busy", "waiting", "unloaded"]
_OVER = frozenset({"completed", "failed", "aborted", "withdrawn"})


class Usage(msgspec.Struct, frozen=True):
    """What the model calls of a turn took: tokens, and the cost as the runtime reckons it."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0
    model_calls: int = 0


class Pending(msgspec.Struct, frozen=True):
    """What an agent waits for."""

    request_id: str
    kind: PendingKind
    data: dict[str, Any] = {}
    opened_at: float = 0.0

    @property
    def tool(self) -> str:
        """Return the name of the tool that is to be called, or that a permission is asked for; else nothing."""
        return str(self.data.get("tool") or self.data.get("toolName") or "")

    @property
    def question(self) -> str:
        """Return what is asked."""
        return str(self.data.get("question") or self.data.get("message") or "")

    @property
    def choices(self) -> list[str]:
        """Return the answers that are offered."""
        return [str(one) for one in self.data.get("choices") or []]


class Turn(msgspec.Struct, frozen=True):
    """A prompt and what came of it."""

    turn_id: str
    session_id: str
    status: TurnStatus
    prompt: str = ""
    sender: str = ""
    content: str | None = None
    model: str | None = None
    error: dict[str, Any] | None = None
    usage: Usage = Usage()
    pending: list[Pending] = []
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Say whether nothing more will come of it."""
        return self.status in _OVER

    @property
    def text(self) -> str:
        """Return the answer. Raises errors.TurnFailed: there is none."""
        if self.status != "completed":
            raise errors.TurnFailed(self.status, self.error)
        return self.content or ""


class SessionInfo(msgspec.Struct, frozen=True):
    """A session of the user's own, or one that `owner` shares with them."""

    session_id: str
    owner: str = ""
    state: SessionState = "unloaded"
    created_at: float = 0.0
    used_at: float = 0.0
    pending: int = 0
    options: dict[str, Any] = {}

    @property
    def title(self) -> str | None:
        """Return what its creator called it."""
        return self.options.get("title")


class SessionPage(msgspec.Struct, frozen=True):
    """Some sessions, the most recently used first; `next` is where the following ones are."""

    sessions: list[SessionInfo]
    next: str | None = None


class Event(msgspec.Struct, frozen=True):
    """One event of a session. `cursor` is where a reader goes on behind it."""

    type: str
    data: dict[str, Any] = {}
    cursor: str = ""
    id: str | None = None
    timestamp: str | None = None
    ephemeral: bool = False

    @property
    def text(self) -> str:
        """Return the part of the answer that this event brings (`assistant.message_delta`), else nothing."""
        return str(self.data.get("deltaContent", "")) if self.type == "assistant.message_delta" else ""


class History(msgspec.Struct, frozen=True):
    """Kept events, oldest first. `cursor` is where `Session.events` goes on behind them."""

    events: list[Event]
    cursor: str | None = None
    next: str | None = None


class TurnList(msgspec.Struct, frozen=True):
    """Turns of a session, oldest first."""

    turns: list[Turn]


class RequestList(msgspec.Struct, frozen=True):
    """What an agent waits for, oldest first."""

    requests: list[Pending]


class Me(msgspec.Struct, frozen=True):
    """Who calls, and what holds for them; None: any."""

    tenant: str
    user: str
    expires_at: float | None = None
    isolation: str = ""
    models: list[str] | None = None
    tools: list[str] | None = None
    providers: list[str] = []


class Model(msgspec.Struct, frozen=True):
    """A model that sessions may use, and the provider that has it."""

    id: str
    provider: str
    is_default: bool = False


class ModelList(msgspec.Struct, frozen=True):
    """Models that sessions may use."""

    models: list[Model]
