"""Everything that the registry keeps of a user, in SQL (port: ports.people.PersonStore).

Goes by columns, not by a list of tables: whatever has `tenant_name` and `user_name` is a user's. One table has no tenant's name:
who sent a message is of the tenant whose the session is.
Neighbours: tables.py, engine.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Owner

_OWN = [table for table in tables.METADATA.sorted_tables if {"tenant_name", "user_name"} <= set(table.c.keys())]
#: What is told by the sessions goes before them.
_PERSONAL = [tables.SENT_MESSAGES, *_OWN]


class SqlPersonStore:
    """A user's rows, in all tables."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def list_users(self, tenant: str) -> Sequence[str]:
        """Return the users of a tenant, by name."""

        def find(connection: sa.Connection) -> set[str]:
            selects = [sa.select(table.c.user_name).where(_of_tenant(table, tenant)) for table in _PERSONAL]
            return {row[0] for select in selects for row in connection.execute(select)}

        return sorted(await self._database.read(find))

    async def count(self, owner: Owner) -> Mapping[str, int]:
        """Return how many rows each table has."""

        def find(connection: sa.Connection) -> dict[str, int]:
            counts = {}
            for table in _PERSONAL:
                select = sa.select(sa.func.count()).select_from(table).where(*_whose(table, owner))
                counts[table.name] = connection.execute(select).scalar_one()
            return {name: count for name, count in counts.items() if count}

        return await self._database.read(find)

    async def erase(self, owner: Owner, keep_sessions: bool = False) -> Mapping[str, int]:
        """Remove the rows in one transaction."""
        wanted = [table for table in _PERSONAL if not (keep_sessions and table is tables.SESSIONS)]

        def remove(connection: sa.Connection) -> dict[str, int]:
            counts = {t.name: connection.execute(sa.delete(t).where(*_whose(t, owner))).rowcount for t in wanted}
            return {name: count for name, count in counts.items() if count}

        return await self._database.write(remove)

    async def purge(self) -> None:
        """Rewrite the file without free pages, and empty the write-ahead log."""
        await self._database.write(_rewrite)

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _rewrite(connection: sa.Connection) -> None:
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        raise errors.StoreUnavailable("this database cannot be rewritten from here: run its own VACUUM FULL")
    # Neither works within the transaction that this work was given; both wait for others by the busy timeout.
    raw.execute("COMMIT")
    try:
        raw.execute("VACUUM")
        (is_busy, *_) = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        raise errors.StoreUnavailable(f"the database could not be rewritten: {error}") from error
    finally:
        raw.execute("BEGIN IMMEDIATE")
    if is_busy:
        raise errors.StoreUnavailable("the database's log could not be emptied: another process reads it; try again")


def _whose(table: sa.Table, owner: Owner) -> tuple[sa.ColumnElement[bool], ...]:
    return _of_tenant(table, owner.tenant), table.c.user_name == owner.user


def _of_tenant(table: sa.Table, tenant: str) -> sa.ColumnElement[bool]:
    if table is not tables.SENT_MESSAGES:
        return table.c.tenant_name == tenant
    sessions = sa.select(tables.SESSIONS.c.session_id).where(tables.SESSIONS.c.tenant_name == tenant)
    return table.c.session_id.in_(sessions)
