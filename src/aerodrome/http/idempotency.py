"""Requests that are sent again under their key are not done again: they wait for the first, and are answered as it was.

A keyed request runs in this process, or its answer is kept in the store, or it died with an earlier gateway: then nobody
knows what it did, and a retry is told so and never done. Of a streamed turn the turn's name is kept instead of the stream: a
retry streams the same turn. Neighbours: entry (where requests begin), ports.idempotency (what is kept).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import idempotency as keyed
from aerodrome.core.idempotency import Answer, KeyedRequest
from aerodrome.core.identity import Owner
from aerodrome.ports.idempotency import IdempotencyStore

_log = structlog.get_logger()
HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
#: Answers larger than this are not kept: a retry is told so, and not done again.
KEPT_BYTES = 1024 * 1024
#: Errors that say that something was decided; of all others nothing came, and they may be tried again under the same key.
_KEPT_ERRORS = frozenset({404, 409, 422})
_KEPT_HEADERS = frozenset({"content-type", "location"})


@dataclass(frozen=True, slots=True)
class IdempotencySettings:
    """How long keys hold, how long a retry waits for the first, how many an owner may have."""

    seconds: float = 86_400.0
    wait_seconds: float = 30.0
    keys_per_owner: int = 10_000


@dataclass(slots=True, eq=False)
class Attempt:
    """A request under its key while it runs here."""

    owner: Owner
    key: str
    fingerprint: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    resource: str = ""
    #: Whether its answer is kept by what follows the turn, not by what was sent.
    is_followed: bool = False
    #: Whether the store has an answer of it.
    is_kept: bool = False


class Replayed(Exception):
    """This request was answered before; here is the answer, and what it had made."""

    def __init__(self, answer: Answer | None, resource: str) -> None:
        super().__init__("replayed")
        self.answer = answer
        self.resource = resource


class Replays:
    """The keyed requests of this gateway."""

    def __init__(self, store: IdempotencyStore, clock: Clock, settings: IdempotencySettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        #: The life of this gateway: what another life left open is not running any more.
        self._life = secrets.token_hex(8)
        self._running: dict[tuple[Owner, str], Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, owner: Owner, key: str, fingerprint: str) -> Attempt:
        """Begin a request, unless it was made before.

        Raises:
            Replayed: it was, and has its answer, or a turn that runs.
            errors.KeyReused: the key stands for another request. errors.KeyBusy: the first still runs.
            errors.OutcomeUnknown: the first died with its gateway, or its answer could not be kept.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.wait_seconds
        while True:
            first = self._running.get((owner, key))
            if first is None:
                attempt = Attempt(owner, key, fingerprint)
                if await self._record(attempt):
                    return attempt
                continue
            if first.fingerprint != fingerprint:
                raise _reused()
            if first.resource and not first.over.is_set():
                raise Replayed(None, first.resource)
            await self._wait(first, deadline)

    async def wait(self, owner: Owner, key: str) -> None:
        """Wait until the first request of a key is over. Raises errors.KeyBusy: it is not in time."""
        first = self._running.get((owner, key))
        if first is not None:
            await self._wait(first, asyncio.get_running_loop().time() + self._settings.wait_seconds)

    async def _wait(self, first: Attempt, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await first.over.wait()
        except TimeoutError:
            raise errors.KeyBusy(
                "the first request of this key still runs; try again later with the same key"
            ) from None

    async def _record(self, attempt: Attempt) -> bool:
        """Record a request; say whether it is the first. One that was made before raises, as `begin` says."""
        place = (attempt.owner, attempt.key)
        # Before anything is waited for: a second request of this process must find it.
        self._running[place] = attempt
        is_first = False
        try:
            now, holder = self._clock.now(), f"{self._life}-{secrets.token_hex(8)}"
            wanted = KeyedRequest(attempt.owner, attempt.key, attempt.fingerprint, holder, now)
            limit = self._settings.keys_per_owner
            held = await self._store.begin(wanted, now - self._settings.seconds, limit)
            is_first = held.holder == holder
        finally:
            if not is_first:
                self._end(attempt)
        if is_first:
            return True
        if held.fingerprint != attempt.fingerprint:
            raise _reused()
        if held.answer is not None and held.answer.body is not None:
            raise Replayed(held.answer, held.resource)
        if held.answer is not None:
            raise errors.OutcomeUnknown(
                "it was done, and its answer is not kept, being too large or secret: read what it made"
            )
        raise errors.OutcomeUnknown(
            "the first request of this key ended with its gateway: what it did is not known; read the session's "
            "history, and use another key to do it again",
            **_named(held.resource),
        )

    async def made(self, attempt: Attempt, resource: dict[str, str]) -> None:
        """Note what a request has made: from now on it is never done again under its key."""
        attempt.resource = msgspec.json.encode(resource).decode()
        try:
            await self._store.note(attempt.owner, attempt.key, attempt.resource)
        except errors.StoreUnavailable as error:
            # It is made, and goes on: an error now would be kept as the answer.
            _log.warning("http.answer_not_kept", reason=error.message)

    def unmake(self, attempt: Attempt) -> None:
        """Note that what a request has made came to nothing, and may be made again under its key."""
        attempt.resource = ""

    def follow(self, attempt: Attempt, answer: Awaitable[bytes]) -> None:
        """Keep the JSON answer that will come, whoever reads the stream of it until then."""
        attempt.is_followed = True

        async def keep() -> None:
            try:
                body = await answer
                headers = [["content-type", "application/json"]]
                await self.finish(attempt, 200, headers, body)
            except errors.StoreUnavailable as error:
                _log.warning("http.answer_not_kept", reason=error.message)
            finally:
                self._end(attempt)

        self._spawn(keep(), "idempotent answer")

    async def finish(self, attempt: Attempt, status: int, headers: list[list[str]], body: bytes) -> None:
        """Keep an answer, if it is one that will not be another next time."""
        is_passing = any(name == "retry-after" for name, _ in headers)
        if status < 400 or (status in _KEPT_ERRORS and not is_passing) or attempt.resource:
            # What nobody is to store (a token, once shown) is not stored here either.
            is_secret = any(name == "cache-control" and "no-store" in value for name, value in headers)
            text = body.decode() if len(body) <= KEPT_BYTES and not is_secret else None
            kept = msgspec.json.encode([one for one in headers if one[0] in _KEPT_HEADERS]).decode()
            await self._store.finish(attempt.owner, attempt.key, Answer(status, kept, text))
            attempt.is_kept = True

    async def end(self, attempt: Attempt) -> None:
        """Let others go on; a request of which nothing came may be made again."""
        try:
            if not attempt.is_kept and not attempt.resource:
                with suppress(errors.StoreUnavailable):
                    await self._store.release(attempt.owner, attempt.key)
        finally:
            self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        self._running.pop((attempt.owner, attempt.key), None)
        attempt.over.set()

    async def sweep(self) -> None:
        """Forget keys that hold no more. Raises errors.StoreUnavailable."""
        await self._store.purge(self._clock.now() - self._settings.seconds)

    def _spawn(self, work: Awaitable[None], name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what keeps answers. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))


class KeepAnswers:
    """Keeps what keyed requests are answered with, before the last of it is sent (ASGI)."""

    def __init__(self, application: ASGIApp, replays: Replays) -> None:
        self._application = application
        self._replays = replays

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; where it has a key, keep its answer."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status, headers, parts = 0, list[list[str]](), list[bytes]()

        async def send_kept(message: Message) -> None:
            nonlocal status, headers
            attempt = state.get("attempt")
            if attempt is not None and not attempt.is_followed:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in message["headers"]]
                elif message["type"] == "http.response.body":
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        await self._keep(attempt, status, headers, b"".join(parts))
            await send(message)

        try:
            await self._application(scope, receive, send_kept)
        finally:
            attempt = state.get("attempt")
            if attempt is not None and not attempt.is_followed:
                await self._replays.end(attempt)

    async def _keep(self, attempt: Attempt, status: int, headers: list[list[str]], body: bytes) -> None:
        try:
            await self._replays.finish(attempt, status, headers, body)
        except errors.StoreUnavailable as error:
            # It was done: the answer goes out, and a retry is told that nobody knows.
            attempt.resource = attempt.resource or "{}"
            _log.warning("http.answer_not_kept", reason=error.message)


def attempt_of(scope: Scope) -> Attempt | None:
    """Return the keyed request that is being served, if it has a key."""
    attempt = scope.get("state", {}).get("attempt")
    return attempt if isinstance(attempt, Attempt) else None


def fingerprint(method: str, target: str, body: bytes) -> str:
    """Return what is the same for the same request only."""
    return keyed.fingerprint(method, target, body)


def replay(before: Replayed) -> Response:
    """Return the earlier answer, marked as such."""
    answer = before.answer
    assert answer is not None
    headers = {str(name): str(value) for name, value in msgspec.json.decode(answer.headers)}
    return Response(answer.body, answer.status, {**headers, REPLAYED: "true"})


def _reused() -> errors.KeyReused:
    return errors.KeyReused("this key was used for another request; use a new key for each request")


def _named(resource: str) -> dict[str, str]:
    """Return what a request made, for a problem's members."""
    made = msgspec.json.decode(resource or "{}")
    return {name: str(value) for name, value in made.items()} if isinstance(made, dict) else {}
