"""What HTTP sessions are opened with, in SQL (port: ports.conversations.ConversationStore)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Owner

_T = tables.HTTP_SESSIONS.c
_OWNED = (_T.tenant_name == sa.bindparam("tenant")) & (_T.user_name == sa.bindparam("user"))
_FIND = sa.select(_T.options).where(_T.session_id == sa.bindparam("id"), _OWNED)
_FIND_ALL = sa.select(_T.session_id, _T.options).where(_T.session_id.in_(sa.bindparam("ids", expanding=True)), _OWNED)
_EPHEMERAL = sa.select(_T.session_id, _T.tenant_name, _T.user_name).where(_T.is_ephemeral != 0).order_by(_T.session_id)
#: Whoever it was of: the registry says who owns the id now.
_REMOVE_ANY = sa.delete(tables.HTTP_SESSIONS).where(_T.session_id == sa.bindparam("id"))
_REMOVE = sa.delete(tables.HTTP_SESSIONS).where(_T.session_id == sa.bindparam("id"), _OWNED)
_INSERT = sa.insert(tables.HTTP_SESSIONS)


class SqlConversationStore:
    """Options, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def save(self, session_id: str, owner: Owner, options: str, is_ephemeral: bool = False) -> None:
        """Keep what a session is opened with, in place of what was kept."""
        row = {
            "session_id": session_id,
            "tenant_name": owner.tenant,
            "user_name": owner.user,
            "options": options,
            "is_ephemeral": int(is_ephemeral),
        }

        def write(connection: sa.Connection) -> None:
            connection.execute(_REMOVE_ANY, {"id": session_id})
            connection.execute(_INSERT, row)

        await self._database.write(write)

    async def find(self, session_id: str, owner: Owner) -> str | None:
        """Return what this owner's session is opened with."""
        values = {"id": session_id, **_key(owner)}
        return await self._database.read(lambda connection: connection.execute(_FIND, values).scalar_one_or_none())

    async def find_all(self, session_ids: Sequence[str], owner: Owner) -> Mapping[str, str]:
        """Return the same for several sessions."""
        values = {"ids": list(session_ids), **_key(owner)}
        return await self._database.read(
            lambda connection: {row.session_id: row.options for row in connection.execute(_FIND_ALL, values)}
        )

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Keep nothing of a session any more."""
        values = {"id": session_id, **_key(owner)}
        return await self._database.write(lambda connection: connection.execute(_REMOVE, values).rowcount == 1)

    async def list_ephemeral(self) -> Sequence[tuple[str, Owner]]:
        """Return all sessions that are to be deleted when they are over."""
        return await self._database.read(
            lambda connection: [(row[0], Owner(row[1], row[2])) for row in connection.execute(_EPHEMERAL)]
        )

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _key(owner: Owner) -> dict[str, str]:
    return {"tenant": owner.tenant, "user": owner.user}
