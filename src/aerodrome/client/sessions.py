"""A session of the caller's: asked, streamed, watched, answered, changed, deleted."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Literal, Required, TypedDict, Unpack

import msgspec

from aerodrome.client import errors
from aerodrome.client.answering import Answers
from aerodrome.client.caller import Caller
from aerodrome.client.events import EventReader
from aerodrome.client.shapes import Event, History, Pending, RequestList, SessionInfo, Turn, TurnList

#: How long one call waits for a turn; then it is asked for again, so that no proxy on the way takes it for dead.
_WAIT_SECONDS = 25.0
#: How long a stream may be silent that has more to say of a turn that is over.
_LAST_SECONDS = 5.0


class Change(TypedDict, total=False):
    """What of a session is to be other from now on."""

    title: str
    model: str
    mode: Literal["interactive", "plan", "autopilot"]
    permissions: Literal["ask", "approve", "reject"]
    metadata: dict[str, str]


class GivenAnswer(TypedDict, total=False):
    """An answer to a request: the members that its kind has."""

    decision: Literal["approve", "approve_for_session", "reject"]
    feedback: str
    answer: str
    result: Any
    error: str
    action: Literal["accept", "decline", "cancel"]
    content: dict[str, Any]
    approved: bool


class Message(TypedDict, total=False):
    """A prompt as it is sent."""

    prompt: Required[str]
    wait_seconds: float


class Session:
    """One session. Made by `Aerodrome.create_session`, or by `Aerodrome.session` for one that is there."""

    def __init__(self, caller: Caller, session_id: str, answers: Answers) -> None:
        self.session_id = session_id
        self._caller = caller
        self._answers = answers
        self._path = f"/v1/sessions/{urllib.parse.quote(session_id, safe='')}"

    async def ask(self, prompt: str) -> Turn:
        """Send a prompt; return the turn when it is over, or when it waits for an answer that no handler gives.

        Raises:
            errors.ApiError: the gateway refused. errors.ConnectionLost: it could not be reached.
        """
        return await self._finish(await self.send(prompt, _WAIT_SECONDS))

    async def send(self, prompt: str, wait_seconds: float = 0.0) -> Turn:
        """Send a prompt; return its turn as it is after so many seconds at the latest. It goes on."""
        message: Message = {"prompt": prompt, "wait_seconds": wait_seconds}
        return await self._caller.call("POST", f"{self._path}/messages", Turn, message)

    async def wait(self, turn: Turn) -> Turn:
        """Wait until a turn is over, or waits for an answer that no handler gives; return it as it is then."""
        return await self._finish(await self.turn(turn.turn_id, _WAIT_SECONDS))

    async def _finish(self, turn: Turn) -> Turn:
        while not turn.is_over:
            if turn.pending and not await self._answer_all(turn.pending):
                return turn
            turn = await self.turn(turn.turn_id, _WAIT_SECONDS)
        return turn

    async def _answer_all(self, requests: list[Pending]) -> bool:
        given = [await self._answer(asked) for asked in requests]
        return all(given)

    async def _answer(self, asked: Pending) -> bool:
        """Answer a request by its handler; say whether it is answered."""
        answer = await self._answers.answer(asked)
        if answer is None:
            return False
        try:
            await self._post_answer(asked, answer)
        except errors.ApiError as error:
            if error.status not in (404, 409):
                raise  # else someone else was first, or the turn is over
        return True

    async def answer(self, asked: Pending, **answer: Unpack[GivenAnswer]) -> None:
        """Answer a request: the first answer wins.

        Raises:
            errors.ApiError: it was answered by someone else (409), is over (404), or the answer is not one to its kind (400).
        """
        await self._post_answer(asked, answer)

    async def _post_answer(self, asked: Pending, answer: Any) -> None:
        path = f"{self._path}/requests/{urllib.parse.quote(asked.request_id, safe='')}"
        await self._caller.call("POST", path, Pending, {"kind": asked.kind, **answer})

    def stream(self, prompt: str) -> TurnStream:
        """Send a prompt when the stream is first read; yield the events of its turn from its start to its end."""
        return TurnStream(self, prompt)

    async def events(
        self, after: str | None = None, start: Literal["now", "beginning"] = "now"
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of the session for as long as the caller wants, behind a cursor or from `start` on.

        Reconnects by itself without gap or duplicate. Close it where you leave it early: `contextlib.aclosing`.
        """
        async with aclosing(self.read(after, start).read()) as heard:
            async for event in heard:
                if event is not None:
                    yield event

    def read(self, after: str | None, start: str) -> EventReader:
        """Return a reader of the session's events."""
        return EventReader(self._caller, f"{self._path}/events", after, start)

    async def turn(self, turn_id: str, wait_seconds: float = 0.0) -> Turn:
        """Return a turn, after so long at the latest; at once when it is over or waits for an answer."""
        path = f"{self._path}/turns/{urllib.parse.quote(turn_id, safe='')}"
        return await self._caller.call("GET", path, Turn, query={"wait_seconds": wait_seconds})

    async def turns(self) -> list[Turn]:
        """Return the last turns that the gateway knows of, oldest first."""
        return (await self._caller.call("GET", f"{self._path}/turns", TurnList)).turns

    async def withdraw(self, turn: Turn) -> Turn:
        """Take back a turn that waits for those before it."""
        path = f"{self._path}/turns/{urllib.parse.quote(turn.turn_id, safe='')}"
        return await self._caller.call("DELETE", path, Turn)

    async def abort(self) -> bool:
        """Abort the turn that runs; say whether there was one."""
        return bool((await self._caller.call("POST", f"{self._path}/abort", dict[str, Any])).get("aborted"))

    async def pending(self) -> list[Pending]:
        """Return what the agent waits for."""
        return (await self._caller.call("GET", f"{self._path}/requests", RequestList)).requests

    async def history(self, after: str | None = None, limit: int = 200) -> History:
        """Return a page of the kept events, oldest first; `next` of one page is `after` of the following."""
        history = await self._caller.call(
            "GET", f"{self._path}/history", History, query={"after": after, "limit": limit}
        )
        events = [msgspec.structs.replace(event, cursor=event.id or "") for event in history.events]
        return msgspec.structs.replace(history, events=events)

    async def info(self) -> SessionInfo:
        """Return the session as it is now."""
        return await self._caller.call("GET", self._path, SessionInfo)

    async def change(self, **change: Unpack[Change]) -> SessionInfo:
        """Change what is named; the rest stays."""
        return await self._caller.call("PATCH", self._path, SessionInfo, change)

    async def fork(self, title: str | None = None, before_event: str | None = None) -> Session:
        """Return a new session with the history of this one (before a kept event: with what came before it), and its handlers."""
        wanted = {"title": title, "before_event": before_event}
        body = {name: value for name, value in wanted.items() if value is not None}
        made = await self._caller.call("POST", f"{self._path}/fork", SessionInfo, body)
        return Session(self._caller, made.session_id, self._answers)

    async def delete(self) -> None:
        """Delete the session, its history and its files. One that is gone already is as good."""
        try:
            await self._caller.call("DELETE", self._path, type(None))
        except errors.ApiError as error:
            if error.code != "session_missing":
                raise

    async def hear(self, event: Event) -> None:
        """Answer what an event asks, where there is a handler for it."""
        if event.type == "request.opened":
            await self._answer(msgspec.convert(event.data, Pending))


class TurnStream:
    """The events of one turn as they come. `turn` is the turn as it was last seen; at the end, as it ended."""

    def __init__(self, session: Session, prompt: str) -> None:
        self.turn: Turn | None = None
        self._session = session
        self._prompt = prompt

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    async def text(self) -> AsyncGenerator[str, None]:
        """Yield the answer alone, in the parts that it comes in."""
        async with aclosing(self._read()) as events:
            async for event in events:
                if event.text:
                    yield event.text

    async def _read(self) -> AsyncGenerator[Event, None]:
        # The events are listened to before the prompt is sent: nothing of it can be missed, whatever breaks meanwhile.
        has_started = False
        async with aclosing(self._session.read(None, "now").read()) as heard:
            async for event in self._until_told(heard):
                if event is None:
                    await self._opened()
                    continue
                assert self.turn is not None
                is_own = event.data.get("turn_id") == self.turn.turn_id
                has_started = has_started or (is_own and event.type == "turn.started")
                if not has_started and not is_own:
                    continue
                if has_started:
                    await self._session.hear(event)
                yield event
                if is_own and event.type == "turn.ended":
                    break
        assert self.turn is not None
        self.turn = await self._session.turn(self.turn.turn_id)

    async def _until_told(self, heard: AsyncGenerator[Event | None, None]) -> AsyncIterator[Event | None]:
        """Yield what is heard. Of a turn that is over and nothing more is said, the end has passed while nobody listened."""
        while True:
            try:
                async with asyncio.timeout(_LAST_SECONDS if self.turn is not None and self.turn.is_over else None):
                    event = await anext(heard)
            except TimeoutError:
                return
            yield event

    async def _opened(self) -> None:
        if self.turn is None:
            self.turn = await self._session.send(self._prompt)
        else:
            # A gateway that was started again may know nothing of the turn: then its end would be waited for in vain.
            self.turn = await self._session.turn(self.turn.turn_id)
