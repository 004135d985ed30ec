"""An upstream link lent to one client link: its requests in flight, and calls of our own between them.

Deliberately decides nothing: what may be sent is for the relay and its rules; what comes back is handed to the relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from aerodrome import errors
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.ports.fleet import RuntimeHandle
from aerodrome.protocol import messages
from aerodrome.protocol.correlation import Correlation
from aerodrome.protocol.messages import Envelope, RequestId
from aerodrome.transport import link as link_module
from aerodrome.transport.link import Link

#: Turns the runtime's answer into the body for the client; may wait (then other messages pass meanwhile).
Finish = Callable[[Envelope], Awaitable[bytes]]


@dataclass(slots=True)
class Pending:
    """A request in flight upstream: whose it is and what to do with the answer.

    `client_id` is None for calls of our own, whose answer goes to `waiter`.
    """

    method: str
    client_id: RequestId | None = None
    session_id: str | None = None
    finish: Finish | None = None
    waiter: asyncio.Future[Envelope] | None = None
    #: Called with the answer in its place among the runtime's other messages, before `finish`, which may wait.
    heard: Callable[[Envelope], None] | None = None


class Upstream:
    """One link to a runtime, for one client link."""

    def __init__(self, handle: RuntimeHandle, link: Link, max_in_flight: int) -> None:
        self.handle = handle
        self.link = link
        self.owed: Correlation[Pending] = Correlation(max_in_flight)
        #: Provider roles this link took (sessionFs, llmInference): they end with it, and with them the runtime's use.
        self.provider_roles: set[str] = set()
        #: When it was last at work, in the loop's time.
        self.used_at = 0.0
        self.touch()
        #: Whether gateway.reattach has answered for all it left open.
        self.is_settled = False

    def check_open(self) -> None:
        """Check that one more request can be sent, before what must not be undone.

        Raises:
            errors.RuntimeLost: it has ended, and what it left open was answered. errors.OverCapacity: too many wait.
        """
        if self.is_settled:
            raise errors.RuntimeLost("the connection to the runtime ended before this request was sent; try again")
        self.owed.check_room()

    def forward(self, pending: Pending, params: bytes | Raw | msgspec.UnsetType) -> None:
        """Send a client's request under an id of ours; it leaves with the next flush.

        Raises:
            errors.RuntimeLost, errors.OverCapacity: it cannot be sent.
        """
        self.check_open()
        raw = params if params is UNSET else bytes(params)
        self.send(messages.request(self.owed.open(pending), pending.method, raw))

    def touch(self) -> None:
        """Note that something is or was at work through it."""
        self.used_at = asyncio.get_running_loop().time()

    def send(self, body: bytes) -> None:
        """Send one message to a runtime that runs, or will at once; it leaves with the next flush."""
        self.touch()
        self.handle.thaw()
        self.link.send(body)

    def owes(self, session_id: str) -> bool:
        """Say whether the runtime owes an answer to a request of the client's about a session."""
        return any(pending.session_id == session_id for pending in self.owed.origins())

    async def call(self, method: str, params: dict[str, Any], timeout_seconds: float = 60.0) -> Envelope:
        """Make a call of our own on this link, in order with the client's; return the answer, an error included.

        Raises:
            errors.RuntimeLost: the runtime went away or did not answer in time.
        """
        if self.link.is_closing:
            raise errors.RuntimeLost("the connection to the runtime ended")  # nobody is left to hear an answer
        waiter: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        request_id = self.owed.open(Pending(method, waiter=waiter))
        self.handle.thaw()
        self.link.send(messages.request(request_id, method, messages.encode(params)))
        self.link.flush()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await waiter
        except TimeoutError:
            raise errors.RuntimeLost(f"the runtime did not answer {method} within {timeout_seconds:g} s") from None
        finally:
            self.owed.close(request_id)


async def open_upstream(handle: RuntimeHandle, settings: GatewaySettings) -> Upstream:
    """Connect to a runtime; the caller starts reading, then introduces the client with `connect`.

    Raises:
        errors.RuntimeUnavailable: it does not accept the connection.
    """
    link = await link_module.connect(
        handle.host, handle.port, settings.max_frame_bytes, settings.connect_seconds, handle.dial
    )
    return Upstream(handle, link, settings.max_requests_in_flight)
