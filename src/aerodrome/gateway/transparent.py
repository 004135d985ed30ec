"""The `transparent` policy: one tenant, one upstream, as thin as a gateway can be.

After the handshake bytes pass as they come, both ways and unread; only the sizes of the client's frames are held, and every
`connect` has its token exchanged. So nothing a client or runtime says can be lost in translation. One client link has one
upstream link; when either ends, the other is closed at once. A client's half-close passes too: the runtime still answers it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core import placement
from aerodrome.gateway import handshake
from aerodrome.gateway.admission import FixedAdmission
from aerodrome.gateway.handshake import Greeting
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.ports.fleet import Fleet, RuntimeHandle
from aerodrome.protocol import framing, messages
from aerodrome.protocol.frame_watch import FrameWatch
from aerodrome.protocol.messages import RequestId
from aerodrome.transport import link as link_module
from aerodrome.transport.link import Link
from aerodrome.transport.splice import Flow

_log = structlog.get_logger()

_CONNECT_MARK = b'"connect"'
_OWN_ID = "aerodrome"
#: A client that has said its last may hear the answers this long; the runtime itself ends such a connection sooner.
_LAST_ANSWERS_SECONDS = 10.0


_AUTHENTICATION_FAILED = errors.WIRE[errors.AuthenticationFailed.code].jsonrpc


class _Refusal(msgspec.Struct):
    code: Any = None


class TransparentRelay:
    """Joins each client link to an upstream link of its own."""

    def __init__(self, fleet: Fleet, admission: FixedAdmission, settings: GatewaySettings) -> None:
        self._fleet = fleet
        self._admission = admission
        self._settings = settings

    async def serve(self, client: Link) -> None:
        """Serve one client link until either side ends.

        Raises:
            errors.InvalidRequest: the client broke the framing (the caller answers and closes).
        """
        client.stay_half_open()
        greeting = await handshake.greet(client, self._admission, self._settings)
        if greeting is None:
            return
        realm = placement.realm_of(greeting.principal.owner, greeting.principal.policy)
        try:
            handle = await self._fleet.acquire(realm)
        except errors.AerodromeError as error:
            _refuse(client, greeting, error)
            return
        try:
            await self._join(client, greeting, handle)
        finally:
            self._fleet.release(handle)

    async def _join(self, client: Link, greeting: Greeting, handle: RuntimeHandle) -> None:
        settings = self._settings
        try:
            upstream = await link_module.connect(
                handle.host, handle.port, settings.max_frame_bytes, settings.connect_seconds, handle.dial
            )
        except errors.RuntimeUnavailable as error:
            _refuse(client, greeting, error)
            return
        client.closed.add_done_callback(lambda _: upstream.abort())
        try:
            await _Joint(client, upstream, handle, self._admission, settings).run(greeting)
        finally:
            upstream.abort()


class _Joint:
    """One client link and its upstream link, joined until the upstream link is closed."""

    def __init__(
        self, client: Link, upstream: Link, handle: RuntimeHandle, admission: FixedAdmission, settings: GatewaySettings
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._handle = handle
        self._address = f"{handle.host}:{handle.port}"
        self._admission = admission
        self._up = Flow(client, upstream, settings.stall_seconds)
        self._down = Flow(upstream, client, settings.stall_seconds)
        self._watch = FrameWatch(settings.max_frame_bytes, _CONNECT_MARK, self._exchange_token)

    async def run(self, greeting: Greeting) -> None:
        """Introduce the client, then let everything pass.

        Raises:
            errors.InvalidRequest: the client broke the framing, or a frame of its is too large.
        """
        try:
            if greeting.request_id is None:
                await self._introduce_ourselves()
                self._open_up(greeting)
            else:
                self._open_up(greeting)
                await self._hear_answer(greeting.request_id)
            self._open_down()
        except errors.RuntimeUnavailable as error:
            _refuse(self._client, greeting, error)
            return
        await self._upstream.closed
        if self._watch.fault is not None:
            raise self._watch.fault

    # -- from the client --------------------------------------------------------------------------------------------------

    def _open_up(self, greeting: Greeting) -> None:
        first = (
            greeting.first if greeting.request_id is None else self._exchange_token(greeting.first) or greeting.first
        )
        rest = self._watch.feed(b"".join(map(framing.encode, greeting.rest)))
        # In one write, as the client did: what a runtime answers to calls right behind `connect` depends on it.
        self._up.take(framing.encode(first) + rest)
        self._client.hand_over(self._pass_up, self._end_up)

    def _pass_up(self, data: bytes) -> None:
        passing = self._watch.feed(data)
        if passing:
            self._up.take(passing)
        if self._watch.fault is not None:
            self._client.pause_reading()
            self._upstream.abort()

    def _end_up(self) -> None:
        """Tell the upstream that the client says no more; it answers what it still can, and closes."""
        self._upstream.send_end()
        asyncio.get_running_loop().call_later(_LAST_ANSWERS_SECONDS, self._upstream.abort)

    def _exchange_token(self, body: bytes) -> bytes | None:
        """Put the upstream's token into a `connect` that has the client's, for the first as for every later one."""
        try:
            envelope = messages.decode(body)
        except errors.InvalidRequest:
            return None
        request_id = envelope.id
        if envelope.method != "connect" or not isinstance(request_id, (str, int)):
            return None
        params = handshake.connect_params(envelope)
        token = handshake.take_token(params)
        try:
            self._admission.check(token)
        except errors.AuthenticationFailed as error:
            self._client.send(handshake.answer_error(request_id, error))
            self._client.flush()
            return b""
        if token == self._handle.token:
            return None
        if self._handle.token is not None:
            params["token"] = self._handle.token
        return messages.request(request_id, "connect", messages.encode(params))

    # -- from the upstream ------------------------------------------------------------------------------------------------

    def _open_down(self) -> None:
        try:
            self._upstream.hand_over(self._down.take, self._upstream.abort)
        except errors.InvalidRequest as error:
            raise self._broken(error) from None

    async def _introduce_ourselves(self) -> None:
        """Connect for a client that did not, where the upstream wants a token."""
        if self._handle.token is None:
            return
        params = messages.encode({"token": self._handle.token})
        self._upstream.send(messages.request(_OWN_ID, "connect", params))
        self._upstream.flush()
        await self._hear_answer(_OWN_ID)

    async def _hear_answer(self, request_id: RequestId) -> None:
        """Pass on what the upstream says until it has answered `connect`, to notice if it refuses our token.

        Raises:
            errors.RuntimeUnavailable: it does, or it broke the framing.
        """
        answered = False
        while not answered:
            try:
                batch = await self._upstream.receive()
            except errors.InvalidRequest as error:
                raise self._broken(error) from None
            for body in batch:
                is_answer = not answered and _answers(body, request_id)
                answered = answered or is_answer
                if is_answer:
                    self._check_answer(body)
                if not is_answer or request_id != _OWN_ID:
                    self._client.send(body)
            self._client.flush()
            answered = answered or not batch

    def _check_answer(self, body: bytes) -> None:
        error = messages.decode(body).error
        if error is not UNSET and msgspec.json.decode(error, type=_Refusal).code == _AUTHENTICATION_FAILED:
            _log.error(
                "upstream.refused_token", upstream=self._address, fix="set AERODROME_UPSTREAM_TOKEN to its token"
            )
            raise errors.RuntimeUnavailable("the upstream refuses the token of this gateway; tell its operator")

    def _broken(self, error: errors.InvalidRequest) -> errors.RuntimeUnavailable:
        _log.error("upstream.broke_framing", upstream=self._address, reason=error.message)
        return errors.RuntimeUnavailable("the upstream does not speak the protocol of a runtime; tell its operator")


def _answers(body: bytes, request_id: RequestId) -> bool:
    try:
        envelope = messages.decode(body)
    except errors.InvalidRequest:
        return False
    return envelope.method is UNSET and envelope.id == request_id


def _refuse(client: Link, greeting: Greeting, error: errors.AerodromeError) -> None:
    """Answer the `connect` of a client that cannot be served; the caller closes."""
    _log.warning("upstream.unavailable", reason=error.message)
    if greeting.request_id is not None:
        client.send(handshake.answer_error(greeting.request_id, error))
