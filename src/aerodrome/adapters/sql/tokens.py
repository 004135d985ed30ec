"""Sealed GitHub tokens, in SQL (port: ports.tokens.TokenStore).

The database never sees a token in clear, nor a key: core.envelope. Neighbours: tables.py (columns), engine.py (transactions).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core.github import StoredToken
from aerodrome.core.identity import Owner

_T = tables.GITHUB_TOKENS.c
_OF = (_T.tenant_name == sa.bindparam("tenant")) & (_T.user_name == sa.bindparam("user"))
_FIND = sa.select(tables.GITHUB_TOKENS).where(_OF)
_LIST = sa.select(tables.GITHUB_TOKENS).order_by(_T.tenant_name, _T.user_name)
_LIST_OF = _LIST.where(_T.tenant_name == sa.bindparam("tenant"))
_REMOVE = sa.delete(tables.GITHUB_TOKENS).where(_OF)
_INSERT = sa.insert(tables.GITHUB_TOKENS)
_REPLACE = (
    sa.update(tables.GITHUB_TOKENS)
    .where(_OF, _T.sealed == sa.bindparam("before"))
    .values(
        sealed=sa.bindparam("to_sealed"),
        expires_at=sa.bindparam("to_expires"),
        updated_at=sa.bindparam("to_updated"),
        can_refresh=sa.bindparam("to_refresh"),
    )
)


class SqlTokenStore:
    """Tokens, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def put(self, token: StoredToken) -> None:
        """Store an owner's token in place of the one before."""

        def write(connection: sa.Connection) -> None:
            connection.execute(_REMOVE, _key(token.owner))
            connection.execute(_INSERT, _row(token))

        await self._database.write(write)

    async def replace(self, token: StoredToken, before: StoredToken) -> bool:
        """Store a token if the owner's is still `before`."""
        values = {
            **_key(before.owner),
            "before": before.sealed,
            "to_sealed": token.sealed,
            "to_expires": token.expires_at,
            "to_updated": token.updated_at,
            "to_refresh": int(token.can_refresh),
        }
        return bool(await self._database.write(lambda connection: connection.execute(_REPLACE, values).rowcount))

    async def find(self, owner: Owner) -> StoredToken | None:
        """Return an owner's token, None if there is none."""
        row = await self._database.read(lambda connection: connection.execute(_FIND, _key(owner)).first())
        return None if row is None else _token(row)

    async def list_all(self, tenant: str | None = None) -> Sequence[StoredToken]:
        """Return the tokens (of one tenant), by tenant and user."""
        statement, values = (_LIST, {}) if tenant is None else (_LIST_OF, {"tenant": tenant})
        rows = await self._database.read(lambda connection: connection.execute(statement, values).all())
        return [_token(row) for row in rows]

    async def remove(self, owner: Owner) -> bool:
        """Remove an owner's token; say whether there was one."""
        return bool(await self._database.write(lambda connection: connection.execute(_REMOVE, _key(owner)).rowcount))

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _key(owner: Owner) -> dict[str, object]:
    return {"tenant": owner.tenant, "user": owner.user}


def _row(token: StoredToken) -> dict[str, object]:
    return {
        "tenant_name": token.owner.tenant,
        "user_name": token.owner.user,
        "sealed": token.sealed,
        "expires_at": token.expires_at,
        "updated_at": token.updated_at,
        "can_refresh": int(token.can_refresh),
    }


def _token(row: sa.Row[*tuple[str, str, str, float | None, float, int]]) -> StoredToken:
    tenant, user, sealed, expires_at, updated_at, can_refresh = row
    return StoredToken(Owner(tenant, user), sealed, expires_at, updated_at, bool(can_refresh))
