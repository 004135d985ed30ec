"""Readers of one session's events: each at its own pace, from memory where they are there, else from what is on disk.

Each reader has a cursor and holds one batch; the log (http.events) is one for all. Not the place of sockets, which is http.sse.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from aerodrome.http import events
from aerodrome.http.events import Event, EventLog, LogBudget
from aerodrome.http.turns import Turn

#: What a reader takes at once, about: while it does not read, that is all it holds.
_BATCH_BYTES = 256 * 1024
#: The same of a history, which is read anew for each batch: most are one.
_HISTORY_BYTES = 4 * 1024 * 1024
_OF_TURNS = frozenset({"turn.queued", "turn.started", "turn.ended"})
#: Returns the kept events of a session, noise included, oldest first.
History = Callable[[], Awaitable[list[Event]]]


class Readers:
    """The log of a session, and who reads it. A stream ends with the log's life: its reader comes back with its cursor."""

    def __init__(self, budget: LogBudget | None = None) -> None:
        self.log = EventLog(budget=budget)
        self.count = 0
        self._said = asyncio.Event()

    def wake(self) -> None:
        """Have everyone who waits look again."""
        said, self._said = self._said, asyncio.Event()
        said.set()

    async def more(self) -> None:
        """Wait until something was said."""
        await self._said.wait()

    def begin_anew(self) -> None:
        """End this life of the log: from now on others may have said what is not heard here."""
        self.log = self.log.follow()
        self.wake()

    async def read(
        self, history: History, cursor: str, position: int | None, until: Callable[[], bool] | None = None
    ) -> AsyncGenerator[list[Event], None]:
        """Yield events in batches: behind `cursor`, or from a position of the log that is behind that cursor.

        An empty cursor means from the beginning. What has left the log comes from `history`: kept events only. Ends with the
        log's life, and when `until` says that nothing more is wanted.
        """
        log = self.log
        self.count += 1
        try:
            if position is None and cursor:
                position = log.after(cursor)
            told: set[str] = set()
            while True:
                if position is None or position < log.first:
                    batch, position = await _older(history, log, cursor)
                    if until is None and (cut := _cut(batch)) < len(batch):
                        batch, position = batch[:cut], None  # a reader that is slow holds no more
                    if batch:
                        cursor = batch[-1].cursor
                        told = {event.cursor for event in batch}
                        yield batch
                    continue
                batch = log.read(position, _BATCH_BYTES)
                if batch:
                    position, cursor = batch[-1].position + 1, batch[-1].cursor
                    if told:
                        batch = [event for event in batch if event.cursor not in told]
                        if any(event.is_kept for event in batch):
                            told = set()  # it has come later than all of the history
                    if batch:
                        yield batch
                elif log is not self.log or (until is not None and until()):
                    return
                else:
                    del batch  # who waits holds nothing
                    await self.more()
        finally:
            self.count -= 1

    async def read_turn(self, history: History, turn: Turn) -> AsyncGenerator[list[Event], None]:
        """Yield the events of a turn from its sending to its end, which always is told; waits for a queued one."""
        while turn.started_at is None and not turn.is_over:
            await self.more()
        is_told = False
        log = self.log
        if turn.started_at is not None:
            reading = self.read(history, turn.cursor, turn.position, lambda: turn.is_over)
            try:
                async for batch in reading:
                    within, is_last = _within(turn, batch, log.first)
                    within = [one for one in within if not _is_of_another(turn, one)]
                    is_told = is_told or any(one.kind == "turn.ended" and one.position >= 0 for one in within)
                    if within:
                        yield within
                    if is_last or is_told:
                        break
                    del batch, within
            finally:
                await reading.aclose()
        if not is_told:
            said = {"turn_id": turn.turn_id, "status": turn.state.value, "error": turn.error}
            yield [events.own(turn.end_cursor, "turn.ended", said)]


async def _older(history: History, log: EventLog, cursor: str) -> tuple[list[Event], int | None]:
    """Return what a history says behind a cursor and the log does not, and the position to go on from; None: once more."""
    end = log.end
    kept = await history()
    here = {event.cursor for event in log.read(log.first)}
    older = [event for event in events.behind(kept, cursor) if event.cursor not in here]
    # What came and left the log meanwhile is in none of the two: then once more, from there.
    return older, log.first if log.first <= end else None


def _cut(batch: list[Event]) -> int:
    """Return how many events of a history are one batch."""
    size = 0
    for number, event in enumerate(batch, 1):
        size += len(event.sse)
        if size >= _HISTORY_BYTES:
            return number
    return len(batch)


def _is_of_another(turn: Turn, event: Event) -> bool:
    """Say whether an event tells of another turn, which was queued or withdrawn while this one ran."""
    return event.kind in _OF_TURNS and event.data.get("turn_id", turn.turn_id) != turn.turn_id


def _within(turn: Turn, batch: list[Event], first: int) -> tuple[list[Event], bool]:
    """Return those of a batch that are of a turn, and whether they are the last: in a history its end is a kept event.

    `first` is where the log begins: what a history says that is not in it is before that.
    """
    if turn.end_position is None:
        return batch, False
    if batch[0].position >= 0:
        within = [one for one in batch if one.position < turn.end_position]
        return within, batch[-1].position + 1 >= turn.end_position
    last = events.anchor_of(turn.end_cursor)
    at = next((number for number, one in enumerate(batch) if events.anchor_of(one.cursor) == last), -1)
    if at < 0 and turn.end_position > first:
        return batch, False  # its end is in the log still
    return batch[: at + 1], True
