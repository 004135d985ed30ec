"""A server-sent event stream as an ASGI answer: batches of events out, a reader that vanishes or stalls noticed.

A stream never holds more than the batch it is sending: a reader that does not read within the time loses the connection, and
comes back with Last-Event-ID. Comments keep proxies from closing a silent one. Events: WHATWG HTML, section 9.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aerodrome.transport import asgi

MEDIA_TYPE = "text/event-stream"
_KEEP_ALIVE = b": keep-alive\n\n"
#: Told to readers: how long to wait before they come back, in milliseconds.
_FIRST = b"retry: 1000\n\n"
#: Parts of a batch: so much is written at once at most, before the reader must have read most of it.
_PART_BYTES = 64 * 1024
_LAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Times in seconds."""

    keep_alive_seconds: float = 15.0
    stall_seconds: float = 30.0


class EventStream(Response):
    """Streams batches of events; ends early when `over` is done, where it is given.

    `ended` is called at the end in any case: a reader may leave before the first batch is asked for.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        batches: AsyncGenerator[list[bytes], None],
        settings: StreamSettings,
        over: asyncio.Future[None] | None = None,
        headers: Mapping[str, str] | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._batches = batches
        self._settings = settings
        self._over = over
        self._ended = ended
        self._is_sending = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there are no more, or nobody reads them."""
        writing = asyncio.create_task(self._write(send), name="event stream")
        keeping = asyncio.create_task(self._keep_alive(send), name="event stream keep-alive")
        leaving = asyncio.create_task(_left(receive), name="event stream reader")
        ends: list[asyncio.Future[Any]] = [writing, keeping, leaving]
        try:
            await asyncio.wait([*ends, *([self._over] if self._over else [])], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.wait(ends)
            if self._ended is not None:
                self._ended()
        failures = [task.exception() for task in (writing, keeping) if not task.cancelled()]
        failure = next((found for found in failures if found is not None), None)
        if self._over is not None and self._over.done() and writing.cancelled():
            failure = await self._end(send)
        if isinstance(failure, TimeoutError):
            asgi.abort(scope)
        elif failure is not None:
            raise failure

    async def _end(self, send: Send) -> Exception | None:
        """End the stream in the middle, if its reader still reads."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError as stalled:
            return stalled
        return None

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send(send, _FIRST)
        async with aclosing(self._batches) as batches:
            async for batch in batches:
                for part in filter(None, _parts(batch)):
                    await self._send(send, part)
                del batch
        await send({"type": "http.response.body", "body": b""})

    async def _keep_alive(self, send: Send) -> None:
        """Say something where nothing else was said for a while; a part that is being sent is something."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.keep_alive_seconds)
            is_silent = loop.time() - self._sent_at >= self._settings.keep_alive_seconds
            if is_silent and not self._is_sending and self._sent_at:
                await self._send(send, _KEEP_ALIVE)

    async def _send(self, send: Send, data: bytes) -> None:
        """Send a part; a reader that does not take it in time loses the stream."""
        self._is_sending = True
        async with asyncio.timeout(self._settings.stall_seconds):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending, self._sent_at = False, asyncio.get_running_loop().time()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _parts(batch: list[bytes]) -> Iterator[bytes]:
    """Yield a batch in parts of about the same size: small events together, a large one piece by piece."""
    open_part: list[bytes] = []
    size = 0
    for one in batch:
        if len(one) > _PART_BYTES:
            yield b"".join(open_part)
            open_part, size = [], 0
            yield from (one[at : at + _PART_BYTES] for at in range(0, len(one), _PART_BYTES))
            continue
        open_part.append(one)
        size += len(one)
        if size >= _PART_BYTES:
            yield b"".join(open_part)
            open_part, size = [], 0
    if open_part:
        yield b"".join(open_part)
