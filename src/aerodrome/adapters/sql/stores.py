"""All stores of the registry, over one database: opened together, closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aerodrome.adapters.sql import engine, migrate
from aerodrome.adapters.sql.browsers import SqlBrowserStore
from aerodrome.adapters.sql.conversations import SqlConversationStore
from aerodrome.adapters.sql.erasures import SqlErasureStore
from aerodrome.adapters.sql.idempotency import SqlIdempotencyStore
from aerodrome.adapters.sql.keys import SqlKeyStore
from aerodrome.adapters.sql.members import SqlMemberStore
from aerodrome.adapters.sql.open_turns import SqlOpenTurnStore
from aerodrome.adapters.sql.people import SqlPersonStore
from aerodrome.adapters.sql.sessions import SqlSessionRegistry
from aerodrome.adapters.sql.tenants import SqlTenantStore
from aerodrome.adapters.sql.tokens import SqlTokenStore
from aerodrome.adapters.sql.usage import SqlUsageStore
from aerodrome.clock import Clock


@dataclass(frozen=True, slots=True)
class Stores:
    """The registry's stores over one database."""

    sessions: SqlSessionRegistry
    tenants: SqlTenantStore
    keys: SqlKeyStore
    tokens: SqlTokenStore
    people: SqlPersonStore
    erasures: SqlErasureStore
    conversations: SqlConversationStore
    usage: SqlUsageStore
    idempotency: SqlIdempotencyStore
    members: SqlMemberStore
    browsers: SqlBrowserStore
    open_turns: SqlOpenTurnStore


@asynccontextmanager
async def open_stores(url: str, clock: Clock) -> AsyncIterator[Stores]:
    """Open the database, made or brought up to date first.

    Raises:
        errors.ConfigError: it is newer than this code. errors.StoreUnavailable: it cannot be opened.
    """
    database = await engine.open_database(url)
    try:
        await migrate.migrate(database)
        yield Stores(
            SqlSessionRegistry(database),
            SqlTenantStore(database, clock),
            SqlKeyStore(database),
            SqlTokenStore(database),
            SqlPersonStore(database),
            SqlErasureStore(database),
            SqlConversationStore(database),
            SqlUsageStore(database),
            SqlIdempotencyStore(database),
            SqlMemberStore(database),
            SqlBrowserStore(database),
            SqlOpenTurnStore(database),
        )
    finally:
        await database.aclose()
