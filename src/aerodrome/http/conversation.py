"""One session as HTTP callers of its owner use it: opened when it is wanted, its turns in order, its events to all who read.

Lives on the owner's program (http.program), whichever that is now, and hears what that link hears. Callers may vanish at any
moment: nothing here depends on one. What the session was opened with is kept in the registry (http.options), so that it opens
again anywhere. Its requests are http.requests, its readers http.reading.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.http import events, open_turns, options
from aerodrome.http import history as history_module
from aerodrome.http import program as program_module
from aerodrome.http.events import Event, EventLog, LogBudget
from aerodrome.http.history import History
from aerodrome.http.open_turns import OpenTurns
from aerodrome.http.options import SessionOptions
from aerodrome.http.pending import Pending
from aerodrome.http.program import Program
from aerodrome.http.reading import Readers
from aerodrome.http.requests import Requests, Tools
from aerodrome.http.turns import Turn, TurnState
from aerodrome.protocol import messages
from aerodrome.protocol.messages import RequestId

#: Turns that are over and can still be asked for, in number and together in bytes; and those that may wait.
KEPT_TURNS = 100
KEPT_TURN_BYTES = 2 * 1024 * 1024
QUEUED_TURNS = 100
QUEUED_BYTES = 8 * 1024 * 1024
#: A turn may take an hour, and others go before.
_SHARED_SECONDS = 6 * 3600.0


async def _never(_: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all sessions of one owner share: their link, opened if it is not there; the clock; who answers tools."""

    connect: Callable[[], Awaitable[Program]]
    clock: Clock
    budget: LogBudget = field(default_factory=LogBudget)
    tools: Tools | None = None
    #: Says whether a session is shared: then turns wait for those of other people.
    is_shared: Callable[[str], Awaitable[bool]] = _never
    #: What another link of the owner has a session open with, None if none has.
    find_recipe: Callable[[str], dict[str, Any] | None] = lambda _: None
    open_turns: OpenTurns | None = None


class Conversation:
    """A session of one owner."""

    def __init__(
        self,
        session_id: str,
        surroundings: Surroundings,
        chosen: SessionOptions,
        is_new: bool,
        is_ours: bool = True,
    ) -> None:
        self.session_id = session_id
        self.options = chosen
        self.used_at = 0.0
        #: Held while its options are changed: what one caller changes, another who changes something else must not undo.
        self.changing = asyncio.Lock()
        #: Whether it was made over HTTP: then it can be made again where nothing of it was on disk yet.
        self._is_ours = is_ours
        self._surroundings = surroundings
        self._clock = surroundings.clock
        self._readers = Readers(surroundings.budget)
        self._requests = Requests(self)
        self._history = History(session_id)
        self._program: Program | None = None
        self._is_new = is_new
        self._is_open = False
        self._was_open = is_new
        self._is_gone = False
        self._opening = asyncio.Lock()
        self._queue: deque[Turn] = deque()
        self._current: Turn | None = None
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        self._sending: asyncio.Task[None] | None = None
        #: Those that ended with the gateway; and what is noted of open ones (None: not known), with the lock for doing so.
        self._left: list[Turn] = []
        self._noted: list[tuple[str, float | None]] | None = []
        self._noting = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- opening ----------------------------------------------------------------------------------------------------------

    @property
    def log(self) -> EventLog:
        """Return what was said in it, as far as it is in memory."""
        return self._readers.log

    @property
    def is_open(self) -> bool:
        """Say whether its link holds it."""
        return self._is_open

    @property
    def is_ours(self) -> bool:
        """Say whether it was made over HTTP."""
        return self._is_ours

    @property
    def is_gone(self) -> bool:
        """Say whether it was deleted, or its user is no member of it any more."""
        return self._is_gone

    @property
    def is_in_use(self) -> bool:
        """Say whether its link must stay: a turn runs or waits, a question is open, someone reads."""
        return self._has_use or self._opening.locked()

    @property
    def _has_use(self) -> bool:
        has_work = self._current is not None or bool(self._queue or self._requests or self._tasks)
        return has_work or self._readers.count > 0

    @property
    def is_busy(self) -> bool:
        """Say whether a turn of ours runs."""
        return self._current is not None

    @property
    def size_bytes(self) -> int:
        """Return about what its turns take in memory."""
        return sum(turn.size_bytes for turn in self._turns.values())

    async def open(self) -> None:
        """Have the session on this link. Idempotent.

        Raises:
            errors.SessionMissing: there is no such session. errors.AerodromeError: it cannot be opened now, or by policy.
        """
        await self._opened()

    async def _opened(self) -> Program:
        async with self._opening:
            if self._is_gone:
                raise errors.SessionMissing("no such session")
            program = await self._surroundings.connect()
            if self._is_open and program is self._program:
                return program
            self._program = program
            params = self._opening_params()
            if self._is_new:
                await program.call("session.create", params)
            else:
                await self._resume(program, params)
                await self._requests.take_up(program)
                if not self._was_open:
                    await self._take_up_turns(program)
            self._is_open, self._was_open, self._is_new = True, True, False
            return program

    def _opening_params(self) -> dict[str, Any]:
        recipe = None if self._is_ours else self._surroundings.find_recipe(self.session_id)
        if recipe is None:
            return {**options.opening(self.options), "sessionId": self.session_id}
        # The last to resume decides for everyone (protocol facts 1.4): who only joins says what was said already.
        return {**options.joining(recipe), "sessionId": self.session_id}

    async def _resume(self, program: Program, params: dict[str, Any]) -> None:
        try:
            await program.call("session.resume", params)
        except errors.SessionMissing:
            # One that never had a turn is not on disk (protocol facts 1.8); whose it is the gateway has checked.
            if not self._is_ours:
                raise
            await program.call("session.create", params)

    async def _take_up_turns(self, program: Program) -> None:
        """Go on with the turns that were open when their gateway ended, and tell which of them are over."""
        store = self._surroundings.open_turns
        left = await store.find(self.session_id) if store is not None else []
        if not left:
            return
        said = await program.call("session.getMessages", {"sessionId": self.session_id})
        heard = functools.partial(self._hear_left, left, events.kept(history_module.bodies(said)))
        await program.call("session.metadata.activity", {"sessionId": self.session_id}, heard=heard)
        await self.note_turns()

    def _hear_left(self, left: list[Turn], history: list[Event], activity: dict[str, Any]) -> None:
        """Note what became of turns, before what is said behind the answer: that may be the end of one that goes on."""
        is_at_work = _says_work(activity)
        self._noted = [(turn.turn_id, turn.started_at) for turn in left]
        for turn in left:
            self._turns[turn.turn_id] = turn
            turn.position = self.log.end
            is_over = turn.started_at is not None and open_turns.hear_history(turn, history)
            if is_at_work and not is_over and turn.message_id is not None and self._current is None:
                self._current = turn
                continue
            if not is_over:
                turn.fail(errors.RuntimeLost("the gateway ended in the turn; the history says what came of it"))
            turn.end(self._clock.now(), self.log.end + 1)
            self._tell_end(turn)

    async def recall(self) -> None:
        """Have the turns here that were open when their gateway ended: opens the session, if there are any."""
        store = self._surroundings.open_turns
        if not self._was_open and store is not None and await store.find(self.session_id):
            await self.open()

    @property
    def has_noted_turns(self) -> bool:
        """Say whether turns are noted as open, or may be."""
        return self._noted != []

    async def note_turns(self) -> None:
        """Note which turns are open, so that they are not forgotten if this gateway ends."""
        store = self._surroundings.open_turns
        if store is None:
            return
        async with self._noting:
            running = [self._current] if self._current is not None else []
            open_now = [*self._left, *running, *self._queue]
            wanted = [(turn.turn_id, turn.started_at) for turn in open_now]
            if wanted != self._noted:
                self._noted = None
                if await store.note(self.session_id, open_now):
                    self._noted = wanted

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Make a call about this session, opened first."""
        program = await self._opened()
        return await program.call(method, {**params, "sessionId": self.session_id})

    async def let_go(self) -> None:
        """Have its link hold it no longer, if nothing needs it: a runtime may unload it, memory is given back."""
        async with self._opening:
            program = self._program
            if self._is_open and not self._has_use and program is not None and not program.is_over.done():
                self._is_open = False
                self._readers.begin_anew()
                with suppress(errors.AerodromeError):
                    await program.call("session.detach", {"sessionId": self.session_id})

    # -- turns ------------------------------------------------------------------------------------------------------------

    @property
    def turns(self) -> list[Turn]:
        """Return the turns that are known here, oldest first."""
        return list(self._turns.values())

    def find_turn(self, turn_id: str) -> Turn | None:
        """Return a turn of this session."""
        return self._turns.get(turn_id)

    def ask(self, prompt: str, sender: str, lease: int | None = None) -> Turn:
        """Queue a turn; it is sent when those before it are over. `lease` is one that its sender holds (gateway.turn_queue).

        Raises:
            errors.OverCapacity: too many wait.
        """
        waiting_bytes = sum(turn.size_bytes for turn in self._queue)
        if len(self._queue) >= QUEUED_TURNS or (self._queue and waiting_bytes + len(prompt) > QUEUED_BYTES):
            raise errors.OverCapacity(f"{len(self._queue)} turns wait in this session; wait for some of them first")
        turn = Turn(prompt, self._clock.now(), sender, position=self.log.end, cursor=self.log.cursor, lease=lease)
        self._turns[turn.turn_id] = turn
        self._queue.append(turn)
        self.say("turn.queued", {"turn_id": turn.turn_id, "position": len(self._queue), "sender": sender})
        self._send_next()
        if turn is not self._current:
            self.spawn(self.note_turns())
        return turn

    async def wait_taken(self, turn: Turn) -> None:
        """Wait until the session has taken a turn, or has others to end first.

        Raises:
            errors.AerodromeError: it was not taken, and nothing was done: a cap is reached, policy, the gateway stops.
        """
        while turn is self._current and turn.message_id is None and not (turn.is_over or turn.is_waiting):
            await self._readers.more()
        if turn.refusal is not None:
            self._turns.pop(turn.turn_id, None)
            raise turn.refusal

    def withdraw(self, turn: Turn) -> bool:
        """Take back a turn that waits; say whether it did."""
        if turn not in self._queue:
            return False
        self._queue.remove(turn)
        turn.state = TurnState.WITHDRAWN
        self._tell_end(turn)
        return True

    async def take_back(self, turn: Turn) -> bool:
        """Take back a turn that waits, here or among those of other people; say whether it did."""
        if self.withdraw(turn):
            return True
        if turn is not self._current or not turn.is_waiting or self._sending is None:
            return False
        try:
            await self.call("aerodrome.turns.withdraw", {"turnId": turn.turn_id})
        except errors.KeyMissing:
            return False  # it was granted meanwhile
        await asyncio.wait((self._sending,))
        return turn.state is TurnState.WITHDRAWN

    async def abort(self) -> bool:
        """Abort the turn that runs, whosever it is where others share the session; say whether one did.

        It is over when its events say so.
        """
        turn = self._current
        if (turn is None or turn.started_at is None) and await self._surroundings.is_shared(self.session_id):
            is_running = (await self.call("aerodrome.turns.look", {})).get("running") is not None
            if is_running:
                await self.call("session.abort", {})
            return is_running
        if turn is None:
            return False
        if turn.message_id is None and self._sending is not None:
            await asyncio.wait((self._sending,))  # a runtime that has not got it yet has nothing to abort
        if self._current is not turn:
            return False
        await self.call("session.abort", {})
        return True

    async def wait(self, turn: Turn, seconds: float | None = None) -> None:
        """Wait until a turn is over or needs an answer, or so many seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not turn.is_over and not self._waits_for_answer(turn):
                    await self._readers.more()

    def _waits_for_answer(self, turn: Turn) -> bool:
        # Until it has begun, what is open is of somebody else's turn.
        return turn is self._current and turn.started_at is not None and bool(self.pending)

    async def wait_over(self, turn: Turn) -> None:
        """Wait until a turn is over, however long that takes."""
        while not turn.is_over:
            await self._readers.more()

    def _send_next(self) -> None:
        if self._current is None and self._queue:
            self._current = self._queue.popleft()
            self._sending = self.spawn(self._send(self._current))

    async def _send(self, turn: Turn) -> None:
        try:
            program = await self._opened()
            params: dict[str, Any] = {"sessionId": self.session_id, "prompt": turn.prompt}
            seconds = program_module.CALL_SECONDS
            if await self._surroundings.is_shared(self.session_id):
                # It waits for its turn among those of other people (gateway.turn_queue), and begins when it is told so.
                params |= {"aerodromeTurn": turn.turn_id} | (
                    {} if turn.lease is None else {"aerodromeLease": turn.lease}
                )
                seconds = _SHARED_SECONDS
            else:
                self._begin(turn)
            await self.note_turns()
            await program.call("session.send", params, seconds, functools.partial(self._hear_taken, turn, program))
        except errors.AerodromeError as error:
            turn.fail(error)
            # Whether a runtime that died had begun it is not known; it is one that failed.
            is_done = isinstance(error, (errors.RuntimeLost, errors.TurnWithdrawn))
            turn.refusal = None if is_done else error
            self._end_current(turn)

    def _hear_taken(self, turn: Turn, program: Program, sent: dict[str, Any]) -> None:
        """Note that the session has taken a turn: before what it said behind that, which may be of other people's turns."""
        if self._current is not turn:
            return
        self._begin(turn)
        is_over = turn.take_answer(str(sent.get("messageId", "")))
        self._readers.wake()
        if is_over:
            self._end_current(turn)
        elif is_over is None:
            self.spawn(self._end_if_missed(turn, program))

    async def _end_if_missed(self, turn: Turn, program: Program) -> None:
        """End a turn whose session is not at work any more.

        What it fell idle after while the turn was on its way was another link's turn, most likely; but an idle that is missed
        would leave this turn open for ever.
        """
        with suppress(errors.AerodromeError):
            if not await self._is_at_work(program):
                self._end_current(turn)

    def _begin(self, turn: Turn) -> None:
        """Note that a turn runs from now on; what the session said before is not of it. Idempotent."""
        if turn.started_at is None:
            turn.state, turn.started_at, turn.is_waiting = TurnState.RUNNING, self._clock.now(), False
            turn.position, turn.cursor = self.log.end, self.log.cursor
            self.say("turn.started", {"turn_id": turn.turn_id, "sender": turn.sender})

    def _hear_queue(self, event: Event) -> None:
        """Note what the gateway says of the turn that is on its way to a shared session."""
        turn = self._current
        if turn is None or event.data.get("turnId") != turn.turn_id:
            return
        if event.kind == "aerodrome.turn_queued":
            turn.is_waiting = True
        elif event.kind == "aerodrome.turn_granted":
            self._begin(turn)
            self.spawn(self.note_turns())

    def _end_current(self, turn: Turn, is_aborted: bool = False) -> None:
        if self._current is not turn:
            return
        self._current = None
        if turn.started_at is not None:  # else what is open is of somebody else's turn
            self._requests.drop(is_turn_over=True)
        turn.end(self._clock.now(), self.log.end + 1, is_aborted)
        self._tell_end(turn)
        self._send_next()

    def _tell_end(self, turn: Turn) -> None:
        turn.ended_at, turn.end_position = turn.ended_at or self._clock.now(), self.log.end + 1
        self.say("turn.ended", {"turn_id": turn.turn_id, "status": turn.state.value, "error": turn.error})
        turn.end_cursor = self.log.cursor
        self.spawn(self.note_turns())
        over = deque(one for one in self._turns.values() if one.is_over)
        size = sum(one.size_bytes for one in over)
        while len(over) > 1 and (len(over) > KEPT_TURNS or size > KEPT_TURN_BYTES):
            old = over.popleft()
            size -= old.size_bytes
            del self._turns[old.turn_id]

    # -- pending requests -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[Pending]:
        """Return what waits for a caller's answer, oldest first."""
        return self._requests.open

    async def list_pending(self) -> list[Pending]:
        """Return the same; a session that was at work before this gateway started is brought back first, to say what waits."""
        if not self._was_open and (self._is_ours or await self._surroundings.is_shared(self.session_id)):
            await self.open()
        return self.pending

    def find_pending(self, request_id: str) -> Pending | None:
        """Return an open request."""
        return self._requests.find(request_id)

    async def answer(self, one: Pending, answer: Any) -> None:
        """Answer an open request: first answer wins.

        Raises:
            errors.AlreadyExists: it was answered by someone else meanwhile.
        """
        await self._requests.answer(one, answer)

    def answer_rpc(self, rpc_id: RequestId, answer: Any) -> None:
        """Answer a request of the runtime to this link."""
        if self._program is not None:
            self._program.answer(rpc_id, answer)

    def now(self) -> float:
        """Return the time."""
        return self._clock.now()

    @property
    def tools(self) -> Tools | None:
        """Return who answers for tools that no caller does."""
        return self._surroundings.tools

    # -- hearing ----------------------------------------------------------------------------------------------------------

    def hear(self, body: bytes) -> None:
        """Note an event of the session."""
        event = self.log.append(body)
        if event is None:
            return
        self._readers.wake()
        if event.kind == "session.error" and event.data.get("errorType") == "runtime_lost":
            self._hear_loss(event)
            return
        self._requests.hear(event, self._clock.now())
        if event.kind == "session.idle" and event.agent_id is None:
            self._hear_idle(event)
        elif event.kind == "aerodrome.member_removed":
            self.hear_end(errors.SessionMissing("no such session"), is_gone=True)
        elif event.kind.startswith("aerodrome."):
            self._hear_queue(event)
        elif self._current is not None and self._current.started_at is not None:
            self._current.hear(event)

    def _hear_idle(self, event: Event) -> None:
        if event.parent is None and not event.data:
            return  # the gateway's own, a moment after the loss of a runtime: that was heard
        is_aborted = bool(event.data.get("aborted"))
        if self._current is None or self._current.started_at is None:
            self._requests.drop(is_turn_over=True)
        elif self._current.ends_with_idle():
            self._end_current(self._current, is_aborted)

    def _hear_loss(self, event: Event) -> None:
        """The runtime has died in a turn: what it had asked may still be answered in the next one, if it is on disk."""
        # Opened anew by us, and not brought back by the gateway: only so is work that waits continued.
        self._is_open = False
        self._requests.drop(is_turn_over=False)
        turn = self._current
        if self._requests:
            self.spawn(self._revive(turn, event))
        elif turn is not None and turn.started_at is not None:
            turn.hear(event)
            self._end_current(turn)

    async def _revive(self, turn: Turn | None, loss: Event) -> None:
        goes_on = False
        with suppress(errors.AerodromeError):
            goes_on = await self._is_at_work(await self._opened())
        if not goes_on:
            self._requests.drop(is_turn_over=True)
            if turn is not None and turn is self._current:
                turn.hear(loss)
                self._end_current(turn)

    async def _is_at_work(self, program: Program) -> bool:
        return _says_work(await program.call("session.metadata.activity", {"sessionId": self.session_id}))

    def hear_request(self, method: str, params: dict[str, Any], rpc_id: RequestId) -> bool:
        """Note a request of the runtime; say whether callers can answer it."""
        return self._requests.ask(method, params, rpc_id, self._clock.now())

    def hear_cancelled(self, rpc_id: RequestId) -> None:
        """Note that a request of the runtime needs no answer any more."""
        self._requests.cancel(rpc_id)

    def hear_end(
        self, error: errors.AerodromeError | None = None, is_gone: bool = False, keeps_turns: bool = False
    ) -> None:
        """Note that the link is over, or the session gone: what ran on it has ended, what waited cannot be sent.

        With `keeps_turns` open turns stay noted: nobody is there any more who could hear of their end.
        """
        self._is_open, self._is_gone = False, self._is_gone or is_gone
        error = error or errors.RuntimeLost("the link to the gateway has ended; try again")
        ending = ([self._current] if self._current is not None else []) + list(self._queue)
        self._left = ending if keeps_turns else []
        self._current = None
        self._queue.clear()
        self._requests.drop(is_turn_over=True, is_link_over=True)
        for turn in ending:
            turn.fail(error)
            turn.end(self._clock.now(), self.log.end + 1)
            self._tell_end(turn)
        for task in list(self._tasks):
            task.cancel()
        self._readers.begin_anew()

    def say(self, kind: str, data: dict[str, Any]) -> None:
        """Tell readers something of the gateway's own."""
        self.log.say(kind, data)
        self._readers.wake()

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Run a task that ends with the link at the latest."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=f"session {self.session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- reading ----------------------------------------------------------------------------------------------------------

    async def history(self) -> list[Event]:
        """Return the kept events of the session, oldest first: from the runtime where it is open, else from disk."""
        return [event for event in await self._all_history() if not events.is_noise(event.kind)]

    async def read_history(self, after: str | None, limit: int) -> tuple[list[Event], bool]:
        """Return a page of the same behind a cursor, and whether there may be more; it costs what the page does."""
        program = await self._surroundings.connect()
        return await self._history.page(program, self._is_open and program is self._program, after, limit)

    async def _all_history(self) -> list[Event]:
        program = await self._surroundings.connect()
        return await self._history.all(program, self._is_open and program is self._program)

    def read_from(self, cursor: str | None, position: int | None = None) -> AsyncGenerator[list[Event], None]:
        """Yield events in batches, for as long as the session goes on: behind `cursor`, or from a position of the log.

        An empty cursor means from the beginning. A reader that is slower than the log is long goes on from disk.
        """
        return self._readers.read(self._all_history, cursor or "", position)

    def read_turn(self, turn: Turn) -> AsyncGenerator[list[Event], None]:
        """Yield the events of a turn, from its sending to its end."""
        return self._readers.read_turn(self._all_history, turn)


def _says_work(activity: dict[str, Any]) -> bool:
    return activity.get("hasActiveWork") is not False


def params_of(raw: Any) -> dict[str, Any]:
    """Return decoded params; what is no object counts as empty."""
    try:
        return messages.params_object(raw)
    except errors.InvalidParams:
        return {}
