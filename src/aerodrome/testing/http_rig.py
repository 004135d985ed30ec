"""The HTTP edge over a rig: real sockets on loopback, so that streams, disconnects and slow readers are what they are.

For tests of http/: callers are httpx clients with a user's token; everything behind them is the product's.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from aerodrome.adapters.memory.browsers import MemoryBrowserStore
from aerodrome.adapters.memory.conversations import MemoryConversationStore
from aerodrome.adapters.memory.idempotency import MemoryIdempotencyStore
from aerodrome.adapters.memory.open_turns import MemoryOpenTurnStore
from aerodrome.admin.operations import Operations
from aerodrome.admin.views import Facts
from aerodrome.core import identity
from aerodrome.core.identity import Owner, Scope
from aerodrome.http.edge import HttpEdge
from aerodrome.http.site import HttpSettings, HttpStores, Office, ReadAudit, SignInDoor
from aerodrome.testing.rig import Rig

WAIT_SECONDS = 30.0
FACTS = Facts("tenants", "127.0.0.1:1", "/state", 50, 100, 0.0, 300.0, 30.0)
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

    async def token_with(self, tenant: str, user: str, *scopes: Scope) -> str:
        """Return the token of a new key with other scopes; an operator's has the tenant ""."""
        key, token = identity.create_key(Owner(tenant, user), self.rig.clock.now(), scopes=frozenset(scopes))
        await self.rig.keys.add(key)
        return token

    async def admin(self, tenant: str, user: str = "boss") -> httpx.AsyncClient:
        """Return a client of a tenant's admin who may use sessions too."""
        return await self.bearer(await self.token_with(tenant, user, Scope.CONNECT, Scope.ADMIN))

    async def operator(self, name: str = "ops") -> httpx.AsyncClient:
        """Return an operator's client."""
        return await self.bearer(await self.token_with(identity.NO_TENANT, name, Scope.OPERATE))

    async def bearer(self, token: str) -> httpx.AsyncClient:
        """Return a client that shows a token."""
        client = await self.stranger()
        client.headers["Authorization"] = f"Bearer {token}"
        return client

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


def office(rig: Rig) -> Office:
    """Return what roles are for, over a rig."""
    return Office(
        keys=rig.keys,
        people=_People(rig),
        erasures=rig.erasures,
        find_tenant=rig.policies.find_tenant,
        list_tenants=rig.policies.list_tenants,
        operations=Operations(rig.pool, FACTS, rig.gateway, rig.drains.set, rig.minter),
        read_audit=_audit_of(rig),
        minter=rig.minter,
    )


class _People:
    """The users of a rig: those who have keys or sessions."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def list_users(self, tenant: str) -> list[str]:
        """Return the users of a tenant."""
        return sorted({key.owner.user for key in await self._rig.keys.list_all(tenant)})

    async def count(self, owner: Owner) -> dict[str, int]:
        """Return how many keys a user has."""
        return {"keys": sum(key.owner == owner for key in await self._rig.keys.list_all(owner.tenant))}

    async def erase(self, owner: Owner, keep_sessions: bool = False) -> dict[str, int]:
        """Erase nothing: that is for tests of erasures."""
        return {}

    async def purge(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


def _audit_of(rig: Rig) -> ReadAudit:
    async def read(count: int, tenant: str | None) -> list[dict[str, Any]]:
        entries = [
            {
                "number": number,
                "at": rig.clock.now(),
                "action": entry.action.value,
                "outcome": entry.outcome.value,
                "by": entry.by,
                "tenant": entry.tenant or (entry.owner.tenant if entry.owner is not None else None),
                "method": entry.method,
            }
            for number, entry in enumerate(rig.audit_log.entries, 1)
        ]
        return [entry for entry in reversed(entries) if tenant in (None, entry["tenant"])][:count]

    return read


def memory_stores() -> HttpStores:
    """Return empty stores."""
    return HttpStores(MemoryConversationStore(), MemoryIdempotencyStore(), MemoryBrowserStore(), MemoryOpenTurnStore())


@asynccontextmanager
async def open_http(
    rig: Rig,
    settings: HttpSettings | None = None,
    sign_in: SignInDoor | None = None,
    stores: HttpStores | None = None,
) -> AsyncIterator[HttpRig]:
    """Serve HTTP over a rig for the length of a block; `stores` may be those of an edge before."""
    stores = stores or memory_stores()
    edge = HttpEdge(rig.gateway, replace(office(rig), sign_in=sign_in), stores, rig.clock, settings or HttpSettings())
    host, port = await edge.start()
    http = HttpRig(rig, edge, f"http://{host}:{port}", stores)
    try:
        yield http
    finally:
        await http.aclose()
