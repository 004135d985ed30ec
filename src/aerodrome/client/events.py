"""The events of a session, for as long as one wants: a broken stream is opened again behind the last event that was heard.

So there is no gap and no duplicate, whatever breaks: the network, a gateway, a runtime.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
import msgspec

from aerodrome.client import errors
from aerodrome.client.caller import Attempts, Caller, connection_lost
from aerodrome.client.shapes import Event
from aerodrome.client.sse import Reader, Said

#: A stream that says nothing for so long is broken: the gateway says at least a comment every 15 seconds.
SILENCE_SECONDS = 45.0
#: A stream that stood for so long has worked, also where nothing was said: its end is the first failure of a new count.
_STOOD_SECONDS = 5.0


class EventReader:
    """Reads the events of one session; `cursor` is where it is, `start` where it begins without one: now, beginning."""

    def __init__(self, caller: Caller, path: str, after: str | None, start: str) -> None:
        self.cursor = after or ""
        self._caller = caller
        self._path = path
        self._start = start
        self._attempts = Attempts(caller.retry)

    async def read(self) -> AsyncGenerator[Event | None, None]:
        """Yield the events as they come, and None each time that a stream has been opened.

        Raises:
            errors.ApiError: the gateway refuses. errors.ConnectionLost: it could not be reached again within the time for it.
        """
        while True:
            began = time.monotonic()
            try:
                async with aclosing(self._read_once()) as events:
                    async for event in events:
                        yield event
                lost: errors.ClientError = errors.ConnectionLost("expected a stream without end, found its end")
            except httpx.TransportError as error:
                lost = connection_lost(error)
            except errors.ApiError as error:
                if not error.retryable:
                    raise
                lost = error
            if time.monotonic() - began >= _STOOD_SECONDS:
                self._attempts.reset()
            await self._attempts.wait(lost)

    async def _read_once(self) -> AsyncGenerator[Event | None, None]:
        reader = Reader(self.cursor)
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        async with self._caller.stream(self._path, {"start": self._start}, headers, SILENCE_SECONDS) as answer:
            yield None
            async for data in answer.aiter_bytes():
                for said in reader.feed(data):
                    self._attempts.reset()
                    self.cursor = said.event_id
                    yield _event(said)
                # The gateway names where a reader is also before its first event.
                self.cursor = reader.last_event_id


def _event(said: Said) -> Event:
    try:
        event = msgspec.json.decode(said.data, type=Event)
    except msgspec.DecodeError:
        event = Event(said.kind, {"text": said.data})
    return msgspec.structs.replace(event, cursor=said.event_id)
