"""The kept events of one session, read from its runtime: page by page, or all of them where there is no other way.

Where the session is open its runtime is asked by `session.eventLog.read`, else by `sessions.readPersistedEvents`, which reads the
disk: either is read up to the very end of a page, so that the runtime's own cursor there can be remembered for whoever comes
for the next one. Without it (another gateway's page, one that was asked for twice) the way there is walked again from the
beginning, in parts. Measured (1.0.102): both give the same events in the order of `session.getMessages`, noise aside; a cursor
of the disk can be used once. Not live events: http.conversation and http.reading.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from aerodrome import errors
from aerodrome.http import events
from aerodrome.http.events import Event
from aerodrome.http.program import Program

T = TypeVar("T")
#: Read at once where all of a history is wanted, or a place in it.
_PART_EVENTS = 500
#: The same where the page behind that place must not end within a part: such a cursor cannot be used for the rest of it.
_DISK_PART_EVENTS = 100
_LIVE, _DISK = "session.eventLog.read", "sessions.readPersistedEvents"
#: Ends of pages that are remembered, the latest ones.
_REMEMBERED = 32
#: How often a history that was evicted while it was read is begun anew.
_ATTEMPTS = 5
#: A cursor that no event has, which reads everything.
BEGINNING = "0"


class _Part(NamedTuple):
    events: list[Event]
    following: str | None
    has_more: bool


class _Expired(Exception):
    """A cursor of the runtime's leads nowhere any more."""


class History:
    """What is kept of one session."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        #: The runtime's cursor by ours, at the ends of pages; by the call that it is for.
        self._ends: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def page(self, program: Program, is_open: bool, after: str | None, limit: int) -> tuple[list[Event], bool]:
        """Return at most so many events behind a cursor, without noise, and whether there may be more.

        Raises:
            errors.AerodromeError: as Program.call says.
        """
        call = _LIVE if is_open else _DISK
        anchor = events.anchor_of(after or "") if after != BEGINNING else ""
        if anchor:
            end = self._ends.pop((call, anchor), None)
            if end is not None:
                try:
                    return await self._read_page(program, call, end, limit, anchor)
                except _Expired:
                    pass
            return await self._find_page(program, call, after or "", limit)
        return await self._begun_anew(lambda: self._read_page(program, call, None, limit))

    async def all(self, program: Program, is_open: bool) -> list[Event]:
        """Return every event, noise included."""
        if is_open:
            said = await program.call("session.getMessages", {"sessionId": self._session_id})
            return events.kept(bodies(said))

        async def read() -> list[Event]:
            found: list[Event] = []
            part = _Part([], None, True)
            while part.has_more:
                part = await self._read(program, _DISK, part.following, _PART_EVENTS)
                found += part.events
            return found

        return await self._begun_anew(read)

    async def _begun_anew(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read a history that may be evicted between two of its parts: then from the beginning."""
        for _ in range(_ATTEMPTS):
            try:
                return await read()
            except _Expired:
                continue
        raise errors.RuntimeUnavailable("the session's history changes faster than it can be read; try again")

    async def _read_page(
        self,
        program: Program,
        call: str,
        cursor: str | None,
        limit: int,
        anchor: str = "",
        begun: list[Event] | None = None,
    ) -> tuple[list[Event], bool]:
        """Read up to the very end of a page; `begun` is what it has already, `anchor` the event before."""
        page = begun or []
        part = _Part([], cursor, True)
        while part.has_more and len(page) < limit:
            part = await self._read(program, call, part.following, limit - len(page))
            page += [event for event in part.events if not events.is_noise(event.kind)]
        last = events.anchor_of(page[-1].cursor) if page else anchor
        if part.following and last:
            self._ends[call, last] = part.following
            if len(self._ends) > _REMEMBERED:
                self._ends.popitem(last=False)
        return page, part.has_more

    async def _find_page(self, program: Program, call: str, after: str, limit: int) -> tuple[list[Event], bool]:
        """Walk from the beginning to the event that a cursor stands on, and read the page behind it."""
        anchor = events.anchor_of(after)

        async def read() -> tuple[list[Event], bool] | None:
            part = _Part([], None, True)
            while part.has_more:
                before = part.following
                part = await self._read(
                    program, call, before, max(limit, _PART_EVENTS if call == _LIVE else _DISK_PART_EVENTS)
                )
                at = next((n for n, one in enumerate(part.events) if events.anchor_of(one.cursor) == anchor), None)
                if at is None:
                    continue
                found = [one for one in part.events[at + 1 :] if not events.is_noise(one.kind)]
                if len(found) > limit and call == _LIVE:
                    here = await self._read(program, call, before, at + 1)
                    return await self._read_page(program, call, here.following, limit, anchor)
                if len(found) > limit:
                    return found[:limit], True
                if not part.has_more:
                    return found, False
                return await self._read_page(program, call, part.following, limit, anchor, found)
            return None

        found = await self._begun_anew(read)
        if found is None:
            # One that a killed runtime had not written yet: its time says where it stood.
            later = events.behind(await self.all(program, call == _LIVE), after)
            return later[:limit], len(later) > limit
        page, has_more = found
        return page, has_more

    async def _read(self, program: Program, call: str, cursor: str | None, most: int) -> _Part:
        params: dict[str, Any] = {"sessionId": self._session_id, "max": most} | ({"cursor": cursor} if cursor else {})
        if call == _LIVE:
            params |= {"includeEphemeral": False, "waitMs": 0}
        try:
            said = await program.call(call, params)
        except errors.RuntimeRefused:
            if call == _LIVE:
                raise
            return _Part([], None, False)  # never had a turn: nothing is on disk
        if said.get("cursorStatus") == "expired":
            raise _Expired
        following = said.get("cursor") if isinstance(said.get("cursor"), str) else None
        is_more = bool(said.get("hasMore")) and following not in (None, cursor)
        return _Part(events.kept(bodies(said)), following, is_more)


def bodies(result: dict[str, Any]) -> list[bytes]:
    """Return the events that a runtime's answer has, each as JSON."""
    said = result.get("events")
    return [msgspec.json.encode(one) for one in said] if isinstance(said, list) else []
