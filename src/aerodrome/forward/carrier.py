"""One local link, carried to its gateway: the link stays open while connections to the gateway come and go.

The asyncio shell round `forward.ledger`. While there is no gateway, requests wait, bounded in number, size and time; whatever
was in flight when it was lost has been answered by then. What a runtime asks is answered by the program even while sessions are
being restored, because restoring may depend on it. No token of the gateway's goes to the program, nor the program's to it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import msgspec
import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core.backoff import Backoff
from aerodrome.forward.ledger import Ledger, OwnAnswer
from aerodrome.forward.restoring import restore
from aerodrome.gateway import handshake
from aerodrome.gateway.admission import FixedAdmission
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.protocol import messages, reopening
from aerodrome.protocol.messages import Envelope, RequestId
from aerodrome.transport.link import Link

_log = structlog.get_logger()
_AUTHENTICATION_FAILED = errors.WIRE["authentication_failed"].jsonrpc
_MOST_FAILURES = 16
_STOPS_RUNTIME = "runtime.shutdown"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a local link may cost, and how long a program waits for a gateway. Times in seconds."""

    max_frame_bytes: int = 64 * 1024 * 1024
    waiting_requests: int = 1000
    waiting_bytes: int = 64 * 1024 * 1024
    stall_seconds: float = 60.0
    patience_seconds: float = 30.0
    answer_seconds: float = 60.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first_seconds=0.1, limit_seconds=5.0, attempts=1 << 30))


@dataclass(frozen=True, slots=True)
class Upstream:
    """How a gateway is reached: `dial` opens a link to it, `read_token` returns what proves who we are, read anew each time."""

    address: str
    dial: Callable[[], Awaitable[Link]]
    read_token: Callable[[], str]


class Phase(Enum):
    """Where the way to the gateway is."""

    AWAY = "away"
    OUT = "out of patience"
    UP = "up"


class Carrier:
    """Carries one local link until it ends, or the gateway refuses it.

    `is_sole`: the program takes this for a process of its own, which it may tell to shut down.
    """

    def __init__(
        self, local: Link, upstream: Upstream, limits: Limits, local_token: str | None = None, is_sole: bool = False
    ) -> None:
        self._local = local
        self._upstream = upstream
        self._limits = limits
        self._admission = FixedAdmission(local_token)
        self._is_sole = is_sole
        self._ledger = Ledger()
        self._introduction: dict[str, Any] = {}
        self._greeting: Envelope | None = None
        self._phase = Phase.AWAY
        self._link: Link | None = None
        self._waiting: deque[tuple[Envelope, int]] = deque()
        self._waiting_bytes = 0
        self._answers: dict[int, asyncio.Future[Envelope]] = {}
        self._reason = "not connected yet"
        self._patience: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Carry messages until the program leaves.

        Raises:
            errors.InvalidRequest: it broke the framing.
        """
        settings = GatewaySettings(max_frame_bytes=self._limits.max_frame_bytes)
        greeting = await handshake.greet(self._local, self._admission, settings)
        if greeting is None:
            return
        self._introduction = greeting.params
        rest = greeting.rest if greeting.request_id is not None else [greeting.first, *greeting.rest]
        if greeting.request_id is not None:
            self._hold(Envelope(id=greeting.request_id, method="connect"), 0)
        self._start_patience()
        keeping = asyncio.create_task(self._keep(), name="gateway link")
        hearing = asyncio.create_task(self._hear(rest), name="local link")
        try:
            done, _ = await asyncio.wait((keeping, hearing), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._end(keeping, hearing)

    async def _end(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for timer in (self._patience, self._ending):
            if timer is not None:
                timer.cancel()
        self._local.flush()

    # -- from the program -----------------------------------------------------------------------------------------------

    async def _hear(self, rest: list[bytes]) -> None:
        batch = rest
        while True:
            for body in batch:
                self._take(body)
            self._local.flush()
            if self._link is not None:
                self._link.flush()
                if self._link.is_stalled:
                    await self._link.drain(self._limits.stall_seconds)
            if self._local.is_stalled:
                await self._local.drain(self._limits.stall_seconds)
            batch = await self._local.receive()
            if not batch:
                return

    def _take(self, body: bytes) -> None:
        try:
            envelope = messages.decode(body)
        except errors.InvalidRequest as error:
            self._refuse(None, error)
            return
        if not isinstance(envelope.id, (str, int)) or envelope.method is UNSET:
            self._pass(envelope)  # answers and notifications never wait
        elif envelope.method == "connect" and not self._proves_again(envelope):
            self._refuse(envelope.id, errors.AuthenticationFailed())
        elif self._is_sole and envelope.method == _STOPS_RUNTIME:
            # The runtime behind the gateway is not the program's to stop; what it has open ends with its link.
            self._local.send(messages.result(envelope.id, {}))
        elif self._phase is Phase.UP and self._link is not None and not self._link.is_closing:
            self._pass(envelope)
        else:
            # Also in the moment before the end of a link is dealt with: what was never sent need not fail.
            self._hold(envelope, len(body))

    def _proves_again(self, envelope: Envelope) -> bool:
        try:
            self._admission.check(handshake.take_token(handshake.connect_params(envelope)))
        except errors.AuthenticationFailed:
            return False
        return True

    def _hold(self, envelope: Envelope, size_bytes: int) -> None:
        """Keep a request until there is a gateway."""
        request_id = envelope.id if isinstance(envelope.id, (str, int)) else None
        limits = self._limits
        if self._phase is Phase.OUT:
            self._refuse(request_id, self._unreachable())
        elif len(self._waiting) >= limits.waiting_requests or self._waiting_bytes > limits.waiting_bytes:
            self._refuse(request_id, errors.OverCapacity("too many requests wait for the gateway; try again later"))
        else:
            self._ledger.expect_turn(envelope)
            self._waiting.append((envelope, size_bytes))
            self._waiting_bytes += size_bytes

    def _pass(self, envelope: Envelope) -> None:
        request_id = envelope.id if isinstance(envelope.id, (str, int)) else None
        if envelope.method == "connect" and request_id is not None and self._greeting is not None:
            self._local.send(messages.response(request_id, self._greeting))
            return
        if self._link is None:
            return
        try:
            body = self._ledger.pass_up(envelope)
        except errors.AerodromeError as error:
            self._refuse(request_id, error)
            return
        if body is not None:
            self._link.send(body)

    def _refuse(self, request_id: RequestId | None, error: errors.AerodromeError) -> None:
        self._local.send(handshake.answer_error(request_id, error))

    def _refuse_waiting(self, error: errors.AerodromeError) -> None:
        for envelope, _ in self._waiting:
            self._refuse(envelope.id if isinstance(envelope.id, (str, int)) else None, error)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._local.flush()

    def _unreachable(self) -> errors.RuntimeUnavailable:
        return errors.RuntimeUnavailable(
            f"the gateway at {self._upstream.address} cannot be reached ({self._reason}); try again later"
        )

    # -- towards the gateway --------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have a link to the gateway, whenever one can be had."""
        failures = 0
        while True:
            try:
                link = await self._upstream.dial()
                failures = 0 if await self._serve(link) else failures + 1
            except (errors.RuntimeUnavailable, errors.ConfigError, errors.AuthenticationFailed) as error:
                if self._is_final(error):
                    _log.error("gateway.refused", gateway=self._upstream.address, reason=error.message)
                    self._refuse_waiting(error)
                    return
                failures += 1
                if error.message != self._reason:
                    self._reason = error.message
                    _log.warning("gateway.unreachable", gateway=self._upstream.address, reason=error.message)
            delay = self._limits.backoff.delay_seconds(min(failures + 1, _MOST_FAILURES), random.random())  # noqa: S311
            await asyncio.sleep(delay or 0.0)

    def _is_final(self, error: errors.AerodromeError) -> bool:
        """Say whether trying again is no use; files and certificates that worked before may be about to be renewed."""
        is_first = self._greeting is None
        return isinstance(error, errors.AuthenticationFailed) or (is_first and isinstance(error, errors.ConfigError))

    async def _serve(self, link: Link) -> bool:
        """Use a link until it ends; say whether it was of use."""
        self._link = link
        pump = asyncio.create_task(self._pump(link), name="gateway reader")
        was_up = False
        try:
            await self._introduce()
            await restore(self._ledger, self._call)
            self._come_up()
            was_up = True
            await asyncio.wait((pump,))
        finally:
            link.abort()
            pump.cancel()
            await asyncio.wait((pump,))
            self._lose(was_up)
        return was_up

    async def _introduce(self) -> None:
        """Prove who we are, with what the program said of itself.

        Raises:
            errors.AuthenticationFailed: the gateway does not take our token.
        """
        answer = await self._call("connect", {**self._introduction, "token": self._upstream.read_token()})
        if answer.error is not UNSET:
            error = msgspec.json.decode(answer.error)
            if isinstance(error, dict) and error.get("code") == _AUTHENTICATION_FAILED:
                raise errors.AuthenticationFailed
            raise errors.RuntimeUnavailable(f"the gateway says: {reopening.message_of(answer)}")
        self._greeting = answer

    async def _call(self, method: str, params: dict[str, Any]) -> Envelope:
        """Ask the gateway something of our own. Raises errors.RuntimeUnavailable: no answer comes."""
        if self._link is None or self._link.is_closing:
            raise errors.RuntimeUnavailable("the connection ended")
        request_id, body = self._ledger.call(method, params)
        answer = self._answers[request_id] = asyncio.get_running_loop().create_future()
        self._link.send(body)
        self._link.flush()
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                return cast("Envelope", await answer)
        except TimeoutError:
            raise errors.RuntimeUnavailable(f"no answer to {method} in time") from None
        finally:
            self._answers.pop(request_id, None)

    async def _pump(self, link: Link) -> None:
        try:
            while batch := await link.receive():
                for body in batch:
                    self._take_down(body)
                self._local.flush()
                link.flush()
                if self._local.is_stalled:
                    await self._local.drain(self._limits.stall_seconds)
        except errors.AerodromeError as error:
            self._reason = error.message
        finally:
            link.abort()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(errors.RuntimeUnavailable("the connection ended"))

    def _take_down(self, body: bytes) -> None:
        found = self._ledger.pass_down(body)
        if isinstance(found, OwnAnswer):
            answer = self._answers.get(found.request_id)
            if answer is not None and not answer.done():
                answer.set_result(found.envelope)
        elif found is not None:
            self._local.send(found)

    # -- comings and goings -----------------------------------------------------------------------------------------------

    def _come_up(self) -> None:
        self._phase = Phase.UP
        self._reason = ""
        if self._patience is not None:
            self._patience.cancel()
        _log.info("gateway.reached", gateway=self._upstream.address, sessions=len(self._ledger.sessions))
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for envelope, _ in waiting:
            self._pass(envelope)
        self._local.flush()
        if self._link is not None:
            self._link.flush()

    def _lose(self, was_up: bool) -> None:
        self._link = None
        error = errors.RuntimeLost(
            "the connection to the gateway ended; what this request did is not known; try again, it is opened anew"
        )
        for body in self._ledger.lose(error):
            self._local.send(body)
        self._local.flush()
        if was_up:
            self._phase = Phase.AWAY
            for envelope, _ in self._waiting:
                self._ledger.expect_turn(envelope)
            _log.warning("gateway.lost", gateway=self._upstream.address, sessions=len(self._ledger.sessions))
            self._start_patience()
            loop = asyncio.get_running_loop()
            self._ending = loop.call_later(reopening.IDLE_AFTER_ERROR_SECONDS, self._end_turns)

    def _end_turns(self) -> None:
        for body in self._ledger.end_turns():
            self._local.send(body)
        self._local.flush()

    def _start_patience(self) -> None:
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(self._limits.patience_seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        self._phase = Phase.OUT
        self._refuse_waiting(self._unreachable())
