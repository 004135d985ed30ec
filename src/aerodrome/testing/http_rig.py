"""The HTTP edge over a rig: real sockets on loopback, so that streams, disconnects and slow readers are what they are.

For tests of http/: callers are httpx clients with a user's token; everything behind them is the product's.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from aerodrome.adapters.memory.conversations import MemoryConversationStore
from aerodrome.adapters.memory.idempotency import MemoryIdempotencyStore
from aerodrome.http.edge import HttpEdge
from aerodrome.http.site import HttpSettings, HttpStores
from aerodrome.testing.rig import Rig

WAIT_SECONDS = 10.0
#: Nothing is encrypted here; to read the machine's authorities would take each client 30 ms.
_NOTHING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event as a browser would have it."""

    event_id: str
    kind: str
    data: Any


@dataclass(slots=True)
class HttpRig:
    """An HTTP edge that listens, and the rig behind it."""

    rig: Rig
    edge: HttpEdge
    url: str
    stores: HttpStores
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def caller(self, tenant: str, user: str = "user") -> httpx.AsyncClient:
        """Return a client with a user's token; the rig closes it."""
        return await self.with_token(await self.rig.token(tenant, user))

    async def with_token(self, token: str) -> httpx.AsyncClient:
        """Return a client that shows a token; the rig closes it."""
        headers = {"Authorization": f"Bearer {token}"}
        return await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, headers=headers, timeout=WAIT_SECONDS, verify=_NOTHING)
        )

    async def stranger(self) -> httpx.AsyncClient:
        """Return a client that proves nothing."""
        return await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, timeout=WAIT_SECONDS, verify=_NOTHING)
        )

    async def aclose(self) -> None:
        """Close clients, then the edge."""
        await self._stack.aclose()
        await self.edge.aclose()


async def read_events(answer: httpx.Response) -> AsyncIterator[ServerEvent]:
    """Yield the events of a stream as they come; comments and `retry` are left out."""
    found: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            found[name] = value
            continue
        if "data" in found:
            yield ServerEvent(found.get("id", ""), found.get("event", "message"), json.loads(found["data"]))
        found = {}


@asynccontextmanager
async def open_http(
    rig: Rig, settings: HttpSettings | None = None, stores: HttpStores | None = None
) -> AsyncIterator[HttpRig]:
    """Serve HTTP over a rig for the length of a block; `stores` may be those of an edge before."""
    stores = stores or HttpStores(MemoryConversationStore(), MemoryIdempotencyStore())
    edge = HttpEdge(rig.gateway, stores, rig.clock, settings or HttpSettings(), minting=rig.minting)
    host, port = await edge.start()
    http = HttpRig(rig, edge, f"http://{host}:{port}", stores)
    try:
        yield http
    finally:
        await http.aclose()
