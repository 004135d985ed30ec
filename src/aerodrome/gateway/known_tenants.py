"""Which tenants there are: those of the configuration and those of the database. Whom they let in is gateway.admission."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from aerodrome.core.identity import Tenant
from aerodrome.ports.registry import TenantStore

#: Returns the tenant of a name, None if there is none.
FindTenant: TypeAlias = Callable[[str], Awaitable[Tenant | None]]


async def find_tenant(configured: Mapping[str, Tenant], stored: TenantStore, name: str) -> Tenant | None:
    """Return the tenant of that name: that of the configuration goes before that of the database."""
    return configured.get(name) or await stored.find(name)


async def list_tenants(configured: Mapping[str, Tenant], stored: TenantStore) -> list[Tenant]:
    """Return every tenant once: those of the configuration go before those of the database."""
    others = [tenant for tenant in await stored.list_all() if tenant.name not in configured]
    return [*configured.values(), *others]
