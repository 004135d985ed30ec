"""Turns of one HTTP session: what was asked, in order, and what came of it. Pure: events in, states out.

A turn is sent when the one before it is over, so that an answer belongs to one prompt. What another link of the same owner sends
into the session goes by in the events and is nobody's turn here.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aerodrome import errors
from aerodrome.core.usage import Usage
from aerodrome.http.events import Event


class TurnState(Enum):
    """Where a turn is."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    WITHDRAWN = "withdrawn"


OVER = frozenset({TurnState.COMPLETED, TurnState.FAILED, TurnState.ABORTED, TurnState.WITHDRAWN})


@dataclass(slots=True)
class _Stretch:
    """What a session said between two times at which it was idle, and the prompts that it took meanwhile."""

    content: str | None = None
    model: str | None = None
    error: dict[str, Any] | None = None
    usage: Usage = field(default_factory=Usage)
    is_aborted: bool = False
    taken: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Turn:
    """One prompt until the session is idle again. Times are seconds since the Unix epoch."""

    prompt: str
    created_at: float
    sender: str = ""
    turn_id: str = field(default_factory=lambda: f"turn_{secrets.token_hex(12)}")
    state: TurnState = TurnState.QUEUED
    #: The runtime's name for the prompt, once it has it.
    message_id: str | None = None
    model: str | None = None
    content: str | None = None
    error: dict[str, Any] | None = None
    usage: Usage = field(default_factory=Usage)
    started_at: float | None = None
    ended_at: float | None = None
    #: The position in the session's log at which its events begin, and the cursor of a reader who is there.
    position: int = 0
    cursor: str = ""
    #: The position behind its last event, and the cursor of a reader who has heard that, once it is over.
    end_position: int | None = None
    end_cursor: str = ""
    #: The fencing token of a lease that its sender holds, in a shared session.
    lease: int | None = None
    #: Whether it waits for turns of other people.
    is_waiting: bool = False
    #: Why it was not taken; then nothing was done.
    refusal: errors.AerodromeError | None = None
    #: Whether it was told that it is aborted; it is over when the session is idle.
    is_aborted: bool = False
    #: The prompts that the session took while this turn was on its way, and what it said until it fell idle before the answer
    #: came: in a session that others use too, that may be their turns, before this one and behind it.
    _taken: set[str] = field(default_factory=set)
    _early: list[_Stretch] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Say whether nothing more will come of it."""
        return self.state in OVER

    @property
    def size_bytes(self) -> int:
        """Return about what it costs to keep it."""
        return len(self.prompt) + len(self.content or "") + 1000

    def take_answer(self, message_id: str) -> bool | None:
        """Note what the runtime calls the prompt; say whether the session has fallen idle after it already; None: not known."""
        self.message_id = message_id
        early, self._early = self._early, []
        if not early or message_id in self._taken:
            return False
        own = next((stretch for stretch in early if message_id in stretch.taken), None)
        if own is None:
            return None
        self._go_on_from(own)
        return True

    def ends_with_idle(self) -> bool:
        """Say whether the session's falling idle ends it: not what ends another link's turn while this one is on its way."""
        if self.started_at is None:
            return False
        if self.message_id is None:
            said = _Stretch(self.content, self.model, self.error, self.usage, self.is_aborted, self._taken)
            self._early.append(said)
            self._go_on_from(_Stretch())
            return False
        return True

    def _go_on_from(self, stretch: _Stretch) -> None:
        self.content, self.model, self.error = stretch.content, stretch.model, stretch.error
        self.usage, self.is_aborted, self._taken = stretch.usage, stretch.is_aborted, stretch.taken

    def hear(self, event: Event) -> None:
        """Note what an event of its session says of it while it runs."""
        if event.agent_id is not None:
            if event.kind == "assistant.usage":
                self.usage.add(event.data)
            return
        match event.kind:
            case "assistant.message":
                self._hear_message(event.data)
            case "assistant.usage":
                self.model = event.data.get("model") or self.model
                self.usage.add(event.data)
            case "user.message" if self.message_id is None:
                self._taken.add(str(event.data.get("messageId")))
            case "abort":
                self.is_aborted = True
            case "session.error":
                self._fail(event.data)
            case _:
                pass

    def _hear_message(self, data: dict[str, Any]) -> None:
        origin, content = data.get("originatingMessageId"), data.get("content")
        if origin is not None and self.message_id is not None and origin != self.message_id:
            return
        if isinstance(content, str) and (content or self.content is None):
            self.content = content

    def _fail(self, data: dict[str, Any]) -> None:
        code = str(data.get("errorType", "unknown"))
        self.error = {"code": code, "message": str(data.get("message", "")), "retryable": code == "runtime_lost"}

    def fail(self, error: errors.AerodromeError) -> None:
        """Note why nothing more will come of it."""
        if isinstance(error, errors.TurnWithdrawn):
            self.state = TurnState.WITHDRAWN
            return
        self.error = {"code": error.code, "message": error.message, "retryable": error.retryable}

    def end(self, now: float, position: int, is_aborted: bool = False) -> None:
        """Note that the session is idle again."""
        if self.state is TurnState.WITHDRAWN:
            pass
        elif is_aborted or self.is_aborted:
            self.state = TurnState.ABORTED
        elif self.error is not None:
            self.state = TurnState.FAILED
        else:
            self.state = TurnState.COMPLETED
        self.ended_at, self.end_position = now, position
