"""The events of one session as HTTP readers see them: a bounded log with cursors, and which events are for them at all.

A cursor is where a reader is. Events that the runtime keeps on disk have their own id as cursor, so that it holds across a
hibernation, a runtime's death and a restart of the gateway. Passing ones (deltas, usage, idle) have `ANCHOR.LIFE-N`: the kept
event before them, and a count within the life of this log. A reader that comes back with one of another life goes on after its
anchor: what passed in between is complete in the kept events that follow.

Pure: no I/O, no waiting. Readers that wait are for http.conversation; what lies before the log is read from the runtime there.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

#: What a log may hold; the oldest go first. Kept events are on disk all the same.
LOG_BYTES = 4 * 1024 * 1024
#: Parts of the runtime's own bookkeeping: whole conversations repeated at every turn, system prompts, and where a session lives.
_NOISE_PREFIXES = ("model.", "session.fusion", "assistant.fusion", "hook.", "sandbox.")
_NOISE = frozenset(
    {
        "assistant.idle",
        "assistant.streaming_delta",
        "capabilities.changed",
        "commands.changed",
        "pending_messages.modified",
        "session.background_tasks_changed",
        "session.binary_asset",
        "session.custom_agents_updated",
        "session.extensions_loaded",
        "session.indexed_search",
        "session.managed_settings_resolved",
        "session.mcp_servers_loaded",
        "session.resume",
        "session.shutdown",
        "session.skills_loaded",
        "session.start",
        "session.tools_updated",
        "session.usage_record",
        "system.message",
    }
)


class _Event(msgspec.Struct):
    """The members of a runtime's event that a log reads."""

    type: str = ""
    id: str = ""
    parentId: str | None = None
    ephemeral: bool = False
    data: Any = None
    timestamp: str = ""
    agentId: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `body` is its JSON as the runtime said it; `position` counts within its log."""

    kind: str
    cursor: str
    body: bytes
    is_kept: bool
    data: dict[str, Any]
    position: int = -1
    agent_id: str | None = None
    at: str = ""

    @property
    def sse(self) -> bytes:
        """Return it as a server-sent event (WHATWG HTML, section 9.2)."""
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.cursor.encode(), self.kind.encode(), self.body)


def is_noise(kind: str) -> bool:
    """Say whether events of this type are not for HTTP readers."""
    return kind in _NOISE or kind.startswith(_NOISE_PREFIXES)


def decode(body: bytes) -> tuple[_Event, dict[str, Any]] | None:
    """Return an event and its data; None for what has not the form of one."""
    try:
        event = msgspec.json.decode(body, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return event, event.data if isinstance(event.data, dict) else {}


def kept(bodies: Iterable[bytes]) -> list[Event]:
    """Return the events of a history, without noise; what passes only is not in one."""
    found = []
    for body in bodies:
        decoded = decode(body)
        if decoded is None:
            continue
        event, data = decoded
        if event.id and not event.ephemeral and not is_noise(event.type):
            found.append(
                Event(event.type, event.id, bytes(body), True, data, agent_id=event.agentId, at=event.timestamp)
            )
    return found


def anchor_of(cursor: str) -> str:
    """Return the kept event that a cursor stands on; ids of the runtime hold no dot."""
    return cursor.partition(".")[0]


@dataclass(slots=True)
class EventLog:
    """What has been said in a session since this log began, within a bound. Positions never change their meaning."""

    limit_bytes: int = LOG_BYTES
    _events: deque[Event] = field(default_factory=deque)
    _size_bytes: int = 0
    _next: int = 0
    _anchor: str = ""
    _passing: int = 0
    _life: str = field(default_factory=lambda: secrets.token_hex(4))
    _positions: dict[str, int] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Return the position of the oldest event that is here."""
        return self._next - len(self._events)

    @property
    def end(self) -> int:
        """Return the position that the next event will have."""
        return self._next

    @property
    def cursor(self) -> str:
        """Return the cursor of a reader who has heard everything; empty while nothing was said."""
        return self._events[-1].cursor if self._events else ""

    def append(self, body: bytes) -> Event | None:
        """Note an event; return it, or None if readers have no use for it (or have had it: a kept event comes once)."""
        decoded = decode(body)
        if decoded is None:
            return None
        event, data = decoded
        is_kept = bool(event.id) and not event.ephemeral
        if is_noise(event.type) or (is_kept and event.id in self._positions):
            return None
        if is_kept:
            cursor, self._anchor, self._passing = event.id, event.id, 0
        else:
            self._anchor = self._anchor or anchor_of(event.parentId or "")
            self._passing += 1
            cursor = f"{self._anchor}.{self._life}-{self._passing}"
        noted = Event(event.type, cursor, bytes(body), is_kept, data, self._next, event.agentId, event.timestamp)
        self._add(noted)
        return noted

    def say(self, kind: str, data: dict[str, Any]) -> Event:
        """Note an event of the gateway's own; it passes."""
        self._passing += 1
        cursor = f"{self._anchor}.{self._life}-{self._passing}"
        body = msgspec.json.encode({"type": kind, "data": data, "ephemeral": True})
        noted = Event(kind, cursor, body, False, data, self._next)
        self._add(noted)
        return noted

    def after(self, cursor: str) -> int | None:
        """Return the position behind a cursor; None if what it stands on is not here (any more)."""
        found = self._positions.get(cursor)
        if found is not None:
            return found + 1
        anchor, _, passing = cursor.partition(".")
        if passing.startswith(f"{self._life}-"):
            return None  # of this life, and gone
        found = self._positions.get(anchor)
        return None if found is None else found + 1

    def read(self, position: int) -> list[Event]:
        """Return the events from a position on; a position that is gone reads from the oldest."""
        skipped = max(0, position - self.first)
        if skipped == 0:
            return list(self._events)
        return [self._events[at] for at in range(skipped, len(self._events))]

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._positions[event.cursor] = event.position
        self._next += 1
        self._size_bytes += len(event.body)
        while self._size_bytes > self.limit_bytes and len(self._events) > 1:
            gone = self._events.popleft()
            self._size_bytes -= len(gone.body)
            del self._positions[gone.cursor]
