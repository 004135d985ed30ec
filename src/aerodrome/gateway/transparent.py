"""The `transparent` policy: one tenant, one upstream, as thin as a gateway can be.

After the handshake the client's frames pass whole and undecoded (only their size is checked), the runtime's bytes as they
come. So nothing a client or runtime says can be lost in translation. One client link has one upstream link; when either
ends, the other is closed at once.
"""

from __future__ import annotations

import asyncio

import structlog

from aerodrome import errors
from aerodrome.core import placement
from aerodrome.gateway import handshake
from aerodrome.gateway.admission import Admission
from aerodrome.gateway.handshake import Greeting
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.ports.fleet import Fleet, RuntimeHandle
from aerodrome.protocol import messages
from aerodrome.transport import link as link_module
from aerodrome.transport.link import Link

_log = structlog.get_logger()

#: A `connect` request is short; a longer frame is forwarded without a look.
_CONNECT_BYTES = 16 * 1024


class TransparentRelay:
    """Joins each client link to an upstream link of its own."""

    def __init__(self, fleet: Fleet, admission: Admission, settings: GatewaySettings) -> None:
        self._fleet = fleet
        self._admission = admission
        self._settings = settings

    async def serve(self, client: Link) -> None:
        """Serve one client link until either side ends."""
        greeting = await handshake.greet(client, self._admission, self._settings)
        if greeting is None:
            return
        realm = placement.realm_of(greeting.principal.owner, greeting.principal.policy)
        try:
            handle = await self._fleet.acquire(realm)
        except errors.AerodromeError as error:
            self._refuse(client, greeting, error)
            return
        try:
            await self._join(client, greeting, handle)
        finally:
            self._fleet.release(handle)

    async def _join(self, client: Link, greeting: Greeting, handle: RuntimeHandle) -> None:
        try:
            upstream = await link_module.connect(
                handle.host, handle.port, self._settings.max_frame_bytes, self._settings.connect_seconds
            )
        except errors.RuntimeUnavailable as error:
            self._refuse(client, greeting, error)
            return
        try:
            await self._introduce(upstream, greeting, handle)
            await self._pump_both(client, upstream, greeting.rest, handle)
        finally:
            upstream.abort()

    def _refuse(self, client: Link, greeting: Greeting, error: errors.AerodromeError) -> None:
        _log.warning("upstream.unavailable", reason=error.message)
        if greeting.request_id is not None:
            client.send(handshake.answer_error(greeting.request_id, error))

    async def _introduce(self, upstream: Link, greeting: Greeting, handle: RuntimeHandle) -> None:
        """Pass the client's `connect` on under the upstream's token, or connect for a client that did not."""
        if greeting.request_id is not None:
            upstream.stop_framing()
            upstream.send(_connect_request(greeting, handle.token))
        elif handle.token is not None:
            upstream.send(messages.request("aerodrome", "connect", messages.encode({"token": handle.token})))
            upstream.flush()
            answers = await upstream.receive()
            if not answers or b'"error"' in answers[0]:
                _log.error("upstream.refused_token", upstream=f"{handle.host}:{handle.port}")
            upstream.stop_framing()
        else:
            upstream.stop_framing()

    async def _pump_both(self, client: Link, upstream: Link, rest: list[bytes], handle: RuntimeHandle) -> None:
        for body in rest:
            upstream.send(body)
        upstream.flush()
        up = asyncio.create_task(self._pump_up(client, upstream, handle), name="pump up")
        down = asyncio.create_task(self._pump_down(upstream, client), name="pump down")
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            outcomes = await asyncio.gather(up, down, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _pump_up(self, client: Link, upstream: Link, handle: RuntimeHandle) -> None:
        while batch := await client.receive():
            for body in batch:
                if len(body) < _CONNECT_BYTES and b"connect" in body:
                    await self._forward_connect(client, upstream, body, handle)
                else:
                    upstream.send(body)
            upstream.flush()
            if upstream.is_stalled:
                await upstream.drain(self._settings.stall_seconds)

    async def _pump_down(self, upstream: Link, client: Link) -> None:
        stall_seconds = self._settings.stall_seconds
        while chunks := await upstream.receive():
            for chunk in chunks:
                client.send_raw(chunk)
            client.flush()
            if client.is_stalled:
                await client.drain(stall_seconds)

    async def _forward_connect(self, client: Link, upstream: Link, body: bytes, handle: RuntimeHandle) -> None:
        """Check the token of a repeated `connect` as strictly as the first; anything else passes untouched."""
        try:
            envelope = messages.decode(body)
        except errors.InvalidRequest:
            upstream.send(body)
            return
        request_id = envelope.id
        if envelope.method != "connect" or not isinstance(request_id, (str, int)):
            upstream.send(body)
            return
        try:
            params = messages.params_object(envelope.params)
            principal = await self._admission.authenticate(handshake.take_token(params))
        except errors.AerodromeError as error:
            client.send(handshake.answer_error(request_id, error))
            client.flush()
            return
        upstream.send(_connect_request(Greeting(principal, request_id, params, []), handle.token))


def _connect_request(greeting: Greeting, token: str | None) -> bytes:
    assert greeting.request_id is not None
    params = dict(greeting.params) if token is None else {**greeting.params, "token": token}
    return messages.request(greeting.request_id, "connect", messages.encode(params))
