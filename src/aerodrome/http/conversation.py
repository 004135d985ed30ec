"""One session as HTTP callers of its owner use it: opened when it is wanted, its turns in order, its events to all who read.

Lives on the owner's program (http.program) and hears what that link hears. Callers may vanish at any moment: nothing here
depends on one. What the session was opened with is kept in the registry (http.options), so that it opens again anywhere.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import msgspec

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.http import events, options, pending
from aerodrome.http.events import Event, EventLog
from aerodrome.http.options import SessionOptions
from aerodrome.http.pending import Pending, PendingKind
from aerodrome.http.program import Program
from aerodrome.http.turns import Turn, TurnState
from aerodrome.protocol import messages
from aerodrome.protocol.messages import RequestId

#: Turns that are over and can still be asked for, and those that may wait.
KEPT_TURNS = 100
QUEUED_TURNS = 100
_PAGE_EVENTS = 500
_SETTLE_SECONDS = 30.0


class Conversation:
    """A session of one owner."""

    def __init__(
        self,
        session_id: str,
        program: Program,
        chosen: SessionOptions,
        clock: Clock,
        is_new: bool,
        is_ours: bool = True,
    ) -> None:
        self.session_id = session_id
        self.options = chosen
        #: Whether it was made over HTTP: then it can be made again where nothing of it was on disk yet.
        self._is_ours = is_ours
        self.log = EventLog()
        self._program = program
        self._clock = clock
        self._is_new = is_new
        self._is_open = False
        self._opening = asyncio.Lock()
        self._said = asyncio.Event()
        self._queue: deque[Turn] = deque()
        self._current: Turn | None = None
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        self._pending: dict[str, Pending] = {}
        self._sending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._readers = 0

    # -- opening ----------------------------------------------------------------------------------------------------------

    @property
    def is_in_use(self) -> bool:
        """Say whether its link must stay: a turn runs or waits, a question is open, someone reads."""
        return self._current is not None or bool(self._queue or self._pending or self._readers or self._tasks)

    @property
    def is_busy(self) -> bool:
        """Say whether a turn of ours runs."""
        return self._current is not None

    async def open(self) -> None:
        """Have the session on this link. Idempotent.

        Raises:
            errors.SessionMissing: there is no such session. errors.AerodromeError: it cannot be opened now, or by policy.
        """
        async with self._opening:
            if self._is_open:
                return
            params = {**options.opening(self.options), "sessionId": self.session_id}
            if self._is_new:
                await self._program.call("session.create", params)
            else:
                await self._resume(params)
            self._is_open, self._is_new = True, False

    async def _resume(self, params: dict[str, Any]) -> None:
        try:
            await self._program.call("session.resume", {**params, "continuePendingWork": True})
        except errors.SessionMissing:
            # One that never had a turn is not on disk (protocol facts 1.8); whose it is the gateway has checked.
            if not self._is_ours:
                raise
            await self._program.call("session.create", params)

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Make a call about this session, opened first."""
        await self.open()
        return await self._program.call(method, {**params, "sessionId": self.session_id})

    # -- turns ------------------------------------------------------------------------------------------------------------

    @property
    def turns(self) -> list[Turn]:
        """Return the turns that are known here, oldest first."""
        return list(self._turns.values())

    def find_turn(self, turn_id: str) -> Turn | None:
        """Return a turn of this session."""
        return self._turns.get(turn_id)

    def ask(self, prompt: str, sender: str) -> Turn:
        """Queue a turn; it is sent when those before it are over.

        Raises:
            errors.OverCapacity: too many wait.
        """
        if len(self._queue) >= QUEUED_TURNS:
            raise errors.OverCapacity(f"{QUEUED_TURNS} turns wait in this session; wait for some of them first")
        turn = Turn(prompt, self._clock.now(), sender, position=self.log.end)
        self._turns[turn.turn_id] = turn
        self._queue.append(turn)
        self._say("turn.queued", {"turn_id": turn.turn_id, "position": len(self._queue), "sender": sender})
        self._send_next()
        return turn

    def withdraw(self, turn: Turn) -> bool:
        """Take back a turn that waits; say whether it did."""
        if turn not in self._queue:
            return False
        self._queue.remove(turn)
        self._finish(turn, TurnState.WITHDRAWN)
        return True

    async def abort(self) -> bool:
        """Abort the turn that runs; say whether one did. It is over when its events say so."""
        if self._current is None:
            return False
        await self.call("session.abort", {})
        return True

    async def wait(self, turn: Turn, seconds: float | None = None) -> None:
        """Wait until a turn is over or needs an answer, or so many seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not turn.is_over and not (turn is self._current and self._waits_for_caller):
                    await self._said_more()

    async def wait_over(self, turn: Turn) -> None:
        """Wait until a turn is over, however long that takes."""
        while not turn.is_over:
            await self._said_more()

    @property
    def _waits_for_caller(self) -> bool:
        """Say whether a request is open that is not answered here by itself."""
        is_decided = self.options.permissions != "ask"
        return any(not (is_decided and one.kind is PendingKind.PERMISSION) for one in self._pending.values())

    def _send_next(self) -> None:
        if self._current is None and self._queue:
            self._current = self._queue.popleft()
            self._sending = self._spawn(self._send(self._current))

    async def _send(self, turn: Turn) -> None:
        try:
            await self.open()
            turn.state, turn.started_at, turn.position = TurnState.RUNNING, self._clock.now(), self.log.end
            self._say("turn.started", {"turn_id": turn.turn_id, "sender": turn.sender})
            sent = await self._program.call("session.send", {"sessionId": self.session_id, "prompt": turn.prompt})
            turn.message_id = str(sent.get("messageId", ""))
        except errors.AerodromeError as error:
            turn.error = {"code": error.code, "message": error.message, "retryable": error.retryable}
            self._end_current(turn)

    def _end_current(self, turn: Turn, is_aborted: bool = False) -> None:
        if self._current is not turn or (turn.is_over and turn.ended_at is not None):
            return
        self._current = None
        turn.end(self._clock.now(), self.log.end + 1, is_aborted)
        self._pending = {key: one for key, one in self._pending.items() if one.rpc_id is not None}
        self._tell_end(turn)
        self._send_next()

    def _finish(self, turn: Turn, state: TurnState) -> None:
        turn.state, turn.ended_at, turn.end_position = state, self._clock.now(), self.log.end + 1
        self._tell_end(turn)

    def _tell_end(self, turn: Turn) -> None:
        self._say("turn.ended", {"turn_id": turn.turn_id, "status": turn.state.value, "error": turn.error})
        over = [one for one in self._turns.values() if one.is_over]
        for old in over[: max(0, len(over) - KEPT_TURNS)]:
            del self._turns[old.turn_id]

    # -- pending requests -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[Pending]:
        """Return what waits for an answer, oldest first."""
        return list(self._pending.values())

    def find_pending(self, request_id: str) -> Pending | None:
        """Return an open request."""
        return self._pending.get(request_id)

    async def answer(self, one: Pending, answer: Any) -> None:
        """Answer an open request: first answer wins.

        Raises:
            errors.AlreadyExists: it was answered by someone else meanwhile.
        """
        if self._pending.pop(one.request_id, None) is None:
            raise errors.AlreadyExists(f"request {one.request_id} has been answered")
        if one.rpc_id is not None:
            self._program.answer(one.rpc_id, answer)
            self._close_pending(one)
            return
        method, params = pending.answer_call(one, answer)
        try:
            result = await self.call(method, params)
        except errors.AerodromeError:
            self._pending[one.request_id] = one
            raise
        self._close_pending(one)
        if result.get("success") is False:
            raise errors.AlreadyExists(f"request {one.request_id} has been answered")

    def _open_pending(self, one: Pending) -> None:
        self._pending[one.request_id] = one
        if one.kind is PendingKind.PERMISSION and self.options.permissions != "ask":
            self._spawn(self._decide(one))
            return
        said = {"request_id": one.request_id, "kind": one.kind.value, "data": pending.describe(one.kind, one.data)}
        self._say("request.opened", said)

    async def _decide(self, one: Pending) -> None:
        decision = "approve" if self.options.permissions == "approve" else "reject"
        with suppress(errors.AerodromeError):
            await self.answer(one, pending.permission_result(decision, None, one.data))

    def _close_pending(self, one: Pending) -> None:
        self._pending.pop(one.request_id, None)
        self._say("request.closed", {"request_id": one.request_id, "kind": one.kind.value})

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def hear(self, body: bytes) -> None:
        """Note an event of the session."""
        event = self.log.append(body)
        if event is None:
            return
        self._wake()
        kind = pending.OPENED.get(event.kind)
        request_id = str(event.data.get("requestId", ""))
        if kind is not None and request_id:
            self._open_pending(Pending(request_id, kind, event.data, self._clock.now()))
        elif event.kind in pending.CLOSED and request_id in self._pending:
            self._close_pending(self._pending[request_id])
        if self._current is not None:
            self._current.hear(event)
            if event.kind == "session.idle" and event.agent_id is None and self._current.started_at is not None:
                self._end_current(self._current, bool(event.data.get("aborted")))

    def hear_request(self, method: str, params: dict[str, Any], rpc_id: RequestId) -> bool:
        """Note a request of the runtime; say whether callers can answer it."""
        kind = pending.ASKED.get(method)
        if kind is None:
            return False
        self._open_pending(Pending(f"rpc-{rpc_id}", kind, params, self._clock.now(), rpc_id))
        return True

    def hear_end(self) -> None:
        """Note that the link is over: what ran on it has ended, what waited cannot be sent."""
        self._is_open = False
        error = {"code": "runtime_lost", "message": "the link to the gateway has ended; try again", "retryable": True}
        for turn in ([self._current] if self._current is not None else []) + list(self._queue):
            turn.error = error
            turn.end(self._clock.now(), self.log.end + 1)
            self._tell_end(turn)
        self._current = None
        self._queue.clear()
        self._pending.clear()
        for task in list(self._tasks):
            task.cancel()
        self._wake()

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        self.log.say(kind, data)
        self._wake()

    def _wake(self) -> None:
        said, self._said = self._said, asyncio.Event()
        said.set()

    async def _said_more(self) -> None:
        await self._said.wait()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=f"session {self.session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- reading ----------------------------------------------------------------------------------------------------------

    async def history(self) -> list[Event]:
        """Return the kept events of the session, oldest first: from the runtime where it is open, else from disk."""
        if self._is_open:
            said = await self._program.call("session.getMessages", {"sessionId": self.session_id})
            return events.kept(_bodies(said))
        return await self._read_disk()

    async def _read_disk(self) -> list[Event]:
        found: list[Event] = []
        cursor: str | None = None
        while True:
            params = {"sessionId": self.session_id, "max": _PAGE_EVENTS} | ({"cursor": cursor} if cursor else {})
            try:
                page = await self._program.call("sessions.readPersistedEvents", params)
            except errors.RuntimeRefused:
                return found  # never had a turn: nothing is on disk
            found += events.kept(_bodies(page))
            cursor = page.get("cursor")
            if page.get("cursorStatus") == "expired":
                found, cursor = [], None  # evicted between two pages: from the beginning
            elif not page.get("hasMore") or not cursor:
                return found

    async def read_from(
        self, cursor: str | None, position: int | None = None, until: Callable[[], bool] | None = None
    ) -> AsyncGenerator[list[Event], None]:
        """Yield events in batches, for as long as the session goes on: behind `cursor`, or from a position of the log.

        An empty cursor means from the beginning. A reader that is slower than the log is long goes on from disk.
        `until` says whether nothing more is wanted.
        """
        self._readers += 1
        try:
            if position is None:
                position = self.log.after(cursor) if cursor else None
            last = cursor or ""
            while True:
                if position is None or position < self.log.first:
                    older, position = await self._older_than_log(last)
                    if older:
                        last = older[-1].cursor
                        yield older
                        continue
                batch = self.log.read(position)
                if batch:
                    position, last = batch[-1].position + 1, batch[-1].cursor
                    yield batch
                elif (until is not None and until()) or self._program.is_over.done():
                    return
                else:
                    await self._said_more()
        finally:
            self._readers -= 1

    async def _older_than_log(self, cursor: str) -> tuple[list[Event], int]:
        """Return the kept events behind a cursor that came before the log begins, and where the log begins.

        A cursor that is not of this session's history reads all of it.
        """
        kept = await self.history()
        here = {event.cursor for event in self.log.read(self.log.first)}
        anchor = events.anchor_of(cursor)
        at = next((number for number, event in enumerate(kept) if event.cursor == anchor), -1)
        return [event for event in kept[at + 1 :] if event.cursor not in here], self.log.first


def _bodies(result: dict[str, Any]) -> list[bytes]:
    said = result.get("events")
    return [msgspec.json.encode(one) for one in said] if isinstance(said, list) else []


def params_of(raw: Any) -> dict[str, Any]:
    """Return decoded params; what is no object counts as empty."""
    try:
        return messages.params_object(raw)
    except errors.InvalidParams:
        return {}
