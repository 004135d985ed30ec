"""The events of one session as HTTP readers see them: a bounded log with cursors, and which events are for them at all.

A cursor is where a reader is. Events that the runtime keeps on disk have `ID_MILLISECONDS` as cursor (their own id, and when they
were), so that it holds across a hibernation, a runtime's death and a restart of the gateway. Passing ones (deltas, usage, idle)
have `ANCHOR.LIFE-N`: the cursor of the kept event before them, and a count within the life of this log. A reader that comes back
with one of another life goes on after its anchor: what passed in between is complete in the kept events that follow. The time is
for an anchor that a killed runtime had not written yet (it writes some 0.2 s behind, measured): then what is later counts.

Pure: no I/O, no waiting. Readers that wait are for http.conversation; what lies before the log is read from the runtime there.
"""

from __future__ import annotations

import datetime
import secrets
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

#: What a log may hold; the oldest go first. Kept events are on disk all the same.
LOG_BYTES = 4 * 1024 * 1024
#: What all logs of a gateway may hold together.
ALL_LOGS_BYTES = 128 * 1024 * 1024
#: What an event takes besides its body (measured on CPython 3.11, rounded up).
_ENTRY_BYTES = 600
#: Noise on which a reader may stand all the same, where nothing else was said yet: the beginnings of a session's lives.
_BEGINNINGS = ("session.start", "session.resume")
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
    """One event. `sse`: as a server-sent event, which all its readers are sent; `position` counts within its log."""

    kind: str
    cursor: str
    sse: bytes
    is_kept: bool
    position: int = -1
    agent_id: str | None = None
    at: str = ""
    parent: str | None = None
    said: dict[str, Any] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """Return what it says."""
        if self.said is not None:
            return self.said
        decoded = decode(self.body)
        return decoded[1] if decoded is not None else {}

    @property
    def body(self) -> bytes:
        """Return its JSON as the runtime said it, in one line."""
        return self.sse[self.sse.index(b"\ndata: ") + len(b"\ndata: ") : -2]


def framed(cursor: str, kind: str, body: bytes) -> bytes:
    """Return a server-sent event (WHATWG HTML, section 9.2); JSON of several lines becomes one line."""
    is_plain = b"\n" not in body and b"\r" not in body
    line = body if is_plain else msgspec.json.format(bytes(body), indent=-1)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (cursor.encode(), kind.encode(), line)


def is_noise(kind: str) -> bool:
    """Say whether events of this type are not for HTTP readers."""
    return kind in _NOISE or kind.startswith(_NOISE_PREFIXES)


def decode(body: bytes) -> tuple[_Event, dict[str, Any]] | None:
    """Return an event and its data; None for what has not the form of one."""
    try:
        event = msgspec.json.decode(body, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not (event.id.isprintable() and event.type.isprintable()):
        return None  # it would break the framing of a stream
    return event, event.data if isinstance(event.data, dict) else {}


def kept(bodies: Iterable[bytes]) -> list[Event]:
    """Return the events of a history, noise included; what passes only is not in one."""
    found = []
    for body in bodies:
        decoded = decode(body)
        if decoded is None:
            continue
        event, _ = decoded
        if event.id and not event.ephemeral:
            cursor = _cursor_of(event)
            sse = framed(cursor, event.type, body)
            found.append(Event(event.type, cursor, sse, True, agent_id=event.agentId, at=event.timestamp))
    return found


def behind(history: Sequence[Event], cursor: str) -> list[Event]:
    """Return the events of a history that come behind a cursor, without noise: all of them for one that it does not know."""
    return [event for event in history[_index(history, cursor) + 1 :] if not is_noise(event.kind)]


def _index(history: Sequence[Event], cursor: str) -> int:
    anchor = anchor_of(cursor)
    if not anchor:
        return -1
    for number in range(len(history) - 1, -1, -1):
        if anchor_of(history[number].cursor) == anchor:
            return number
    at = _milliseconds_in(cursor)
    if at is None:
        return -1
    # Not written before its runtime was killed: the reader has heard what is on disk of that time.
    for number in range(len(history) - 1, -1, -1):
        when = _milliseconds_in(history[number].cursor)
        if when is not None and when <= at:
            return number
    return -1


def anchor_of(cursor: str) -> str:
    """Return the id of the kept event that a cursor stands on; ids of the runtime hold neither dot nor underscore."""
    return cursor.partition(".")[0].partition("_")[0]


def _milliseconds_in(cursor: str) -> int | None:
    text = cursor.partition(".")[0].partition("_")[2]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _cursor_of(event: _Event) -> str:
    try:
        when = datetime.datetime.fromisoformat(event.timestamp)
    except ValueError:
        return event.id
    return f"{event.id}_{int(when.timestamp() * 1000)}"


@dataclass(slots=True)
class LogBudget:
    """What the logs of all sessions may hold together: the one that was written to longest ago gives way first."""

    limit_bytes: int = ALL_LOGS_BYTES
    size_bytes: int = 0
    _logs: OrderedDict[int, EventLog] = field(default_factory=OrderedDict)

    def grow(self, log: EventLog, size_bytes: int) -> None:
        """Note that a log was written to; others, and then itself, may be emptied for it."""
        self.size_bytes += size_bytes
        self._logs[id(log)] = log
        self._logs.move_to_end(id(log))
        while self.size_bytes > self.limit_bytes and self._logs:
            self.drop(next(iter(self._logs.values())))

    def shrink(self, size_bytes: int) -> None:
        """Note that a log has let go of something."""
        self.size_bytes -= size_bytes

    def drop(self, log: EventLog) -> None:
        """Empty a log."""
        self.forget(log)
        log.clear()

    def forget(self, log: EventLog) -> None:
        """Count a log no longer."""
        self._logs.pop(id(log), None)


@dataclass(slots=True, eq=False)
class EventLog:
    """What has been said in a session since this log began, within a bound. Positions never change their meaning."""

    limit_bytes: int = LOG_BYTES
    budget: LogBudget | None = None
    _events: deque[Event] = field(default_factory=deque)
    _size_bytes: int = 0
    _next: int = 0
    _anchor: str = ""
    _passing: int = 0
    _cursor: str = ""
    _life: str = field(default_factory=lambda: secrets.token_hex(4))
    #: Position by cursor, for what is here; by its anchor for a kept event.
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
        return self._cursor or self._anchor

    def append(self, body: bytes) -> Event | None:
        """Note an event; return it, or None if readers have no use for it (or have had it: a kept event comes once)."""
        decoded = decode(body)
        if decoded is None:
            return None
        event, data = decoded
        is_kept = bool(event.id) and not event.ephemeral
        if is_noise(event.type):
            if is_kept and not self._anchor and event.type in _BEGINNINGS:
                self._anchor = _cursor_of(event)
            return None
        if is_kept and event.id in self._positions:
            return None
        if is_kept:
            cursor = self._anchor = _cursor_of(event)
            self._passing = 0
        else:
            self._anchor = self._anchor or anchor_of(event.parentId or "")
            cursor = self._pass()
        sse = framed(cursor, event.type, body)
        noted = Event(event.type, cursor, sse, is_kept, self._next, event.agentId, event.timestamp)
        self._add(noted)
        return replace(noted, said=data, parent=event.parentId)

    def say(self, kind: str, data: dict[str, Any]) -> Event:
        """Note an event of the gateway's own; it passes."""
        noted = replace(own(self._pass(), kind, data), position=self._next)
        self._add(noted)
        return noted

    def after(self, cursor: str) -> int | None:
        """Return the position behind a cursor; None if what it stands on is not here (any more)."""
        if cursor == self.cursor:
            return self._next
        found = self._positions.get(cursor)
        if found is not None:
            return found + 1
        passing = cursor.partition(".")[2]
        if passing.startswith(f"{self._life}-"):
            return None  # of this life, and gone
        found = self._positions.get(anchor_of(cursor))
        return None if found is None else found + 1

    def read(self, position: int, limit_bytes: int | None = None) -> list[Event]:
        """Return the events from a position on, about so many bytes; a position that is gone reads from the oldest."""
        skipped = max(0, position - self.first)
        if skipped == 0 and limit_bytes is None:
            return list(self._events)
        found, size = [], 0
        for at in range(skipped, len(self._events)):
            found.append(self._events[at])
            size += len(self._events[at].sse)
            if limit_bytes is not None and size >= limit_bytes:
                break
        return found

    def follow(self) -> EventLog:
        """Return a log of another life: what was said meanwhile nobody heard. Positions go on where these end."""
        following = EventLog(self.limit_bytes, self.budget, _next=self._next)
        if self.budget is not None:
            self.budget.forget(self)
            self.budget.shrink(self._size_bytes)
            self.budget = None  # whoever still reads it has the last word, then it is gone
        return following

    def clear(self) -> None:
        """Let go of all events; cursors and positions go on counting."""
        if self.budget is not None:
            self.budget.shrink(self._size_bytes)
        self._events.clear()
        self._positions.clear()
        self._size_bytes = 0

    def _pass(self) -> str:
        self._passing += 1
        return f"{self._anchor}.{self._life}-{self._passing}"

    def _add(self, event: Event) -> None:
        size = _size_of(event)
        self._events.append(event)
        self._positions[_key_of(event)] = event.position
        self._cursor = event.cursor
        self._next += 1
        self._size_bytes += size
        if self.budget is not None:
            self.budget.grow(self, size)
        while self._size_bytes > self.limit_bytes and len(self._events) > 1:
            gone = self._events.popleft()
            self._size_bytes -= _size_of(gone)
            if self.budget is not None:
                self.budget.shrink(_size_of(gone))
            del self._positions[_key_of(gone)]


def own(cursor: str, kind: str, data: dict[str, Any]) -> Event:
    """Return an event of the gateway's own."""
    body = msgspec.json.encode({"type": kind, "data": data, "ephemeral": True})
    return Event(kind, cursor, framed(cursor, kind, body), False)


def _key_of(event: Event) -> str:
    return anchor_of(event.cursor) if event.is_kept else event.cursor


def _size_of(event: Event) -> int:
    return len(event.sse) + _ENTRY_BYTES
