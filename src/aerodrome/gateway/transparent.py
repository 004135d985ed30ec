"""The `transparent` policy: one tenant, one upstream, as thin as a gateway can be.

After the handshake bytes pass as they come, both ways and unread; only the sizes of the client's frames are held, and a `connect`
said again gets its token exchanged like the first. So nothing a client or runtime says can be lost in translation. One client
link has one upstream link; when either ends, the other is closed at once.
"""

from __future__ import annotations

import asyncio

import structlog

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
                handle.host, handle.port, settings.max_frame_bytes, settings.connect_seconds
            )
        except errors.RuntimeUnavailable as error:
            _refuse(client, greeting, error)
            return
        client.closed.add_done_callback(lambda _: upstream.abort())
        try:
            await _Joint(client, upstream, greeting, handle, self._admission, settings).run()
        finally:
            upstream.abort()
