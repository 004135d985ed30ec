"""The composition root's part for HTTP: its edge from settings. Beside app, which stays quick to import without it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from aerodrome import tailoring
from aerodrome.adapters.audit.trail import AuditTrail
from aerodrome.adapters.sql.stores import Stores
from aerodrome.admin.operations import Operations
from aerodrome.clock import SystemClock
from aerodrome.gateway.policy_watch import PolicyWatch
from aerodrome.gateway.service import TenantGateway
from aerodrome.http.edge import HttpEdge
from aerodrome.http.site import HttpStores, Office
from aerodrome.settings import Settings
from aerodrome.transport.tls import ServerCertificate


async def open_edge(
    settings: Settings,
    gateway: TenantGateway,
    stores: Stores,
    office: Office,
    certificate: ServerCertificate | None,
    stack: AsyncExitStack,
) -> HttpEdge:
    """Serve HTTP until the stack is closed.

    Raises:
        errors.ConfigError: the address cannot be listened on.
    """
    context = certificate.following_context() if certificate is not None else None
    kept = HttpStores(stores.conversations, stores.idempotency, stores.browsers, stores.open_turns)
    edge = HttpEdge(gateway, office, kept, SystemClock(), tailoring.http_settings(settings), context)
    stack.push_async_callback(edge.aclose)
    await edge.start()
    return edge


def office(
    settings: Settings, stores: Stores, policies: PolicyWatch, operations: Operations | None, trail: AuditTrail
) -> Office:
    """Return what the roles of HTTP callers are for."""

    async def read_audit(count: int, tenant: str | None) -> list[dict[str, Any]]:
        return await asyncio.to_thread(trail.tail, count, tenant)

    return Office(
        keys=stores.keys,
        people=stores.people,
        erasures=stores.erasures,
        find_tenant=policies.find_tenant,
        list_tenants=policies.list_tenants,
        operations=operations,
        read_audit=read_audit if settings.audit.enabled else None,
    )
