"""The stores that the contract suites run over: one fixture per port family, one parameter per adapter."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from aerodrome.adapters.memory.browsers import MemoryBrowserStore
from aerodrome.adapters.memory.conversations import MemoryConversationStore
from aerodrome.adapters.memory.erasures import MemoryErasureStore
from aerodrome.adapters.memory.idempotency import MemoryIdempotencyStore
from aerodrome.adapters.memory.open_turns import MemoryOpenTurnStore
from aerodrome.adapters.memory.registry import MemoryKeyStore, MemorySessionRegistry, MemoryTenantStore
from aerodrome.adapters.memory.tokens import MemoryTokenStore
from aerodrome.adapters.memory.usage import MemoryUsageStore
from aerodrome.adapters.sql import engine, migrate
from aerodrome.adapters.sql.browsers import SqlBrowserStore
from aerodrome.adapters.sql.conversations import SqlConversationStore
from aerodrome.adapters.sql.erasures import SqlErasureStore
from aerodrome.adapters.sql.idempotency import SqlIdempotencyStore
from aerodrome.adapters.sql.keys import SqlKeyStore
from aerodrome.adapters.sql.open_turns import SqlOpenTurnStore
from aerodrome.adapters.sql.sessions import SqlSessionRegistry
from aerodrome.adapters.sql.tenants import SqlTenantStore
from aerodrome.adapters.sql.tokens import SqlTokenStore
from aerodrome.adapters.sql.usage import SqlUsageStore

from .registry_suite import FixedClock, Stores


@contextlib.asynccontextmanager
async def open_sqlite(path) -> AsyncIterator[Stores]:
    # Patient: many calls at once wait for each other, and how long is the machine's doing.
    database = await engine.open_database(f"sqlite:///{path}", busy_seconds=60.0)
    try:
        await migrate.migrate(database)
        yield Stores(
            SqlSessionRegistry(database),
            SqlTenantStore(database, FixedClock()),
            SqlKeyStore(database),
            SqlTokenStore(database),
            SqlErasureStore(database),
            SqlConversationStore(database),
            SqlUsageStore(database),
            SqlIdempotencyStore(database),
            SqlBrowserStore(database),
            SqlOpenTurnStore(database),
        )
    finally:
        await database.aclose()


def memory() -> Stores:
    keys = MemoryKeyStore()
    return Stores(
        MemorySessionRegistry(),
        MemoryTenantStore(keys, FixedClock()),
        keys,
        MemoryTokenStore(),
        MemoryErasureStore(),
        MemoryConversationStore(),
        MemoryUsageStore(),
        MemoryIdempotencyStore(),
        MemoryBrowserStore(),
        MemoryOpenTurnStore(),
    )


@pytest.fixture(params=["memory", "sqlite"])
async def twins(request, tmp_path):
    """Two ways to the same stores: for SQLite two engines on one file, as two processes have."""
    if request.param == "memory":
        stores = memory()
        yield stores, stores
        return
    path = tmp_path / "registry.db"
    async with open_sqlite(path) as one, open_sqlite(path) as other:
        yield one, other


@pytest.fixture
def stores(twins):
    return twins[0]
