"""The demo model's HTTP exchange: checks the key, reads a request, sends the scripted reply on time or fails as scripted.

Plain ASGI rather than request and response objects: this is the path whose cost benchmarks pay. It knows neither the script's
words (`demo_script`) nor a wire form (`demo_chat`, `demo_responses`); `demo_model` puts it behind its routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from aerodrome.testing import demo_script, demo_wire
from aerodrome.testing.demo_script import Conversation, Failure

MAX_REQUEST_BYTES = 64 * 1024 * 1024
MAX_ATTEMPTS_KEPT = 4096
#: A long answer lets other requests run after so many deltas.
_DELTAS_PER_YIELD = 64
_JSON = (b"content-type", b"application/json")
_EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Attempts:
    """Counts the attempts at each point of each conversation, the least recently tried forgotten first."""

    def __init__(self, kept: int = MAX_ATTEMPTS_KEPT) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._kept = kept

    def count(self, conversation: Conversation) -> int:
        """Count one more attempt at this point and return their number so far."""
        key = _fingerprint(conversation)
        number = self._counts.pop(key, 0) + 1
        self._counts[key] = number
        if len(self._counts) > self._kept:
            self._counts.popitem(last=False)
        return number


def _fingerprint(conversation: Conversation) -> bytes:
    digest = hashlib.blake2b(conversation.bearer.encode(), digest_size=16)
    for message in conversation.messages:
        digest.update(f"\0{message.role}\0{len(message.text)}\0{message.text}".encode())
    return digest.digest()


class Exchange:
    """One HTTP request and its answer: reads the body, writes, and notices while it waits that the client has gone."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[object] | None = None

    async def body(self) -> bytes | None:
        """Return the request's body; None if it is too large or the client went away."""
        parts: list[bytes] = []
        size_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size_bytes += len(parts[-1])
            if size_bytes > MAX_REQUEST_BYTES:
                return None
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def pause(self, seconds: float) -> bool:
        """Wait, and say whether the client is still there; returns at once when it leaves."""
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._receive())
        done, _ = await asyncio.wait({self._watch}, timeout=seconds)
        return not done

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the status and the headers."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body; waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def write_document(self, status: int, body: bytes) -> None:
        """Send a whole JSON answer."""
        await self.begin(status, [_JSON, (b"content-length", b"%d" % len(body))])
        await self.write(body, more=False)

    async def write_error(self, status: int, message: str, code: str) -> None:
        """Send an error as OpenAI's API words it."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        await self.write_document(status, demo_wire.encode({"error": error}))

    def close(self) -> None:
        """Stop watching the client."""
        if self._watch is not None:
            self._watch.cancel()


class KeyGuard:
    """Lets a request through to an ASGI application when it carries the API key; without a key, every one."""

    def __init__(self, api_key: str | None, application: ASGIApp) -> None:
        self._expected = None if api_key is None else api_key.encode()
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer 401."""
        if self._expected is None or hmac.compare_digest(self._expected, _bearer(scope).encode("latin-1")):
            await self._application(scope, receive, send)
            return
        exchange = Exchange(receive, send)
        await exchange.body()  # closing with unread bytes would reset the connection and lose the answer
        await exchange.write_error(401, "expected the demo model's API key as bearer token", "invalid_api_key")


class Endpoint:
    """The ASGI application behind one wire form."""

    def __init__(self, name: str, wire: demo_wire.Wire, attempts: Attempts) -> None:
        self._name = name
        self._wire = wire
        self._attempts = attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(receive, send)
        try:
            await self._answer(exchange, _bearer(scope))
        finally:
            exchange.close()

    async def _answer(self, exchange: Exchange, bearer: str) -> None:
        body = await exchange.body()
        if body is None:
            await exchange.write_error(413, f"expected at most {MAX_REQUEST_BYTES} bytes", "request_too_large")
            return
        try:
            request = self._wire.decode(body, bearer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            await exchange.write_error(400, f"expected a request of this API: {error}", "invalid_request")
            return
        reply = demo_script.answer(request.conversation)
        if reply.delay_seconds and not await exchange.pause(reply.delay_seconds):
            return
        if reply.failure and self._fails(reply.failure, request.conversation):
            await exchange.write_error(reply.failure.status, "the prompt asked for this error", "scripted")
            return
        ident = hashlib.blake2b(body, digest_size=8).hexdigest()
        await self._write(exchange, demo_wire.Answer(reply, ident, self._name, request))

    def _fails(self, failure: Failure, conversation: Conversation) -> bool:
        return failure.attempts is None or self._attempts.count(conversation) <= failure.attempts

    async def _write(self, exchange: Exchange, answer: demo_wire.Answer) -> None:
        if answer.request.stream:
            await exchange.begin(200, _EVENT_STREAM)
            await _stream(exchange, answer, self._wire.events(answer))
            return
        if answer.reply.stream_seconds and not await exchange.pause(answer.reply.stream_seconds):
            return
        document = self._wire.document(answer)
        if answer.reply.drop:
            await exchange.begin(200, [_JSON, (b"content-length", b"%d" % len(document))])
            await exchange.write(document[: len(document) // 2])
        else:
            await exchange.write_document(200, document)


async def _stream(exchange: Exchange, answer: demo_wire.Answer, events: demo_wire.Events) -> None:
    """Send the events on schedule; an answer left unfinished makes the server close the connection."""
    await exchange.write(events.head)
    reply, loop = answer.reply, asyncio.get_running_loop()
    started = loop.time()
    count = max(1, min(reply.deltas, len(reply.text)))
    for number, event in enumerate(events.deltas):
        if reply.drop and number * 2 >= count:
            return
        await exchange.write(event)
        due_seconds = started + reply.stream_seconds * (number + 1) / count - loop.time()
        if reply.stream_seconds and due_seconds > 0:
            if not await exchange.pause(due_seconds):
                return
        elif number % _DELTAS_PER_YIELD == _DELTAS_PER_YIELD - 1:
            await asyncio.sleep(0)
    if not reply.drop:
        await exchange.write(events.tail, more=False)


def _bearer(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return str(value[7:].decode("latin-1"))
    return ""
