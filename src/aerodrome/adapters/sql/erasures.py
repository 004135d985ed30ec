"""Erasures, in SQL (port: ports.people.ErasureStore). Neighbours: tables.py (columns), engine.py (transactions)."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core.erasure import Erasure

_T = tables.ERASURES.c


class SqlErasureStore:
    """Erasures, in a table without names."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def note(self, erasure: Erasure, now: float) -> None:
        """Remember an erasure, in one transaction with forgetting old ones."""

        def write(connection: sa.Connection) -> None:
            is_it = _T.digest == erasure.digest
            was = connection.execute(sa.select(_T.issued_until, _T.kept_until).where(is_it)).first()
            until = max(erasure.until, was[0] if was is not None else erasure.until)
            kept_until = max(erasure.kept_until, was[1] if was is not None else erasure.kept_until)
            connection.execute(sa.delete(tables.ERASURES).where(is_it | (_T.kept_until <= now)))
            if kept_until > now:
                row = {"digest": erasure.digest, "issued_until": until, "kept_until": kept_until}
                connection.execute(sa.insert(tables.ERASURES), row)

        await self._database.write(write)

    async def find(self, digests: Sequence[str], now: float) -> float | None:
        """Return the latest time of these, in one query."""
        select = sa.select(sa.func.max(_T.issued_until)).where(_T.digest.in_(digests), _T.kept_until > now)
        found: float | None = await self._database.read(lambda connection: connection.execute(select).scalar())
        return found

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()
