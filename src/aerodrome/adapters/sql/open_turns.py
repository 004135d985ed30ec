"""Open turns of HTTP sessions, in SQL (port: ports.open_turns.OpenTurnStore)."""

from __future__ import annotations

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Owner

_T = tables.OPEN_TURNS.c
_IT = _T.session_id == sa.bindparam("id")
_THEIRS = _IT & (_T.tenant_name == sa.bindparam("tenant")) & (_T.user_name == sa.bindparam("user"))
_FIND = sa.select(_T.turns).where(_THEIRS)
_REMOVE = sa.delete(tables.OPEN_TURNS).where(_THEIRS)
_REMOVE_ALL = sa.delete(tables.OPEN_TURNS).where(_IT)
_INSERT = sa.insert(tables.OPEN_TURNS)


class SqlOpenTurnStore:
    """Open turns, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def put(self, session_id: str, owner: Owner, turns: str) -> None:
        """Keep what an owner has open in a session."""
        row = {"session_id": session_id, "tenant_name": owner.tenant, "user_name": owner.user, "turns": turns}

        def write(connection: sa.Connection) -> None:
            connection.execute(_REMOVE, _key(session_id, owner))
            connection.execute(_INSERT, row)

        await self._database.write(write)

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what an owner has open in a session."""
        values = _key(session_id, owner)
        return await self._database.read(lambda connection: connection.execute(_FIND, values).scalar_one_or_none())

    async def remove(self, session_id: str, owner: Owner | None = None) -> None:
        """Keep none of an owner's any more, or nobody's."""
        statement = _REMOVE_ALL if owner is None else _REMOVE
        values = {"id": session_id} if owner is None else _key(session_id, owner)
        await self._database.write(lambda connection: connection.execute(statement, values))

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _key(session_id: str, owner: Owner) -> dict[str, str]:
    return {"id": session_id, "tenant": owner.tenant, "user": owner.user}
