"""The keys that prove principals, in SQL (port: ports.registry.KeyStore). Only hashes are stored.

Not the place where a key is proved: core.identity. Neighbours: tables.py (columns), engine.py (transactions).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Key, Owner

_T = tables.KEYS.c
_FIND = sa.select(tables.KEYS).where(_T.key_id == sa.bindparam("id"))
_LIST = sa.select(tables.KEYS).order_by(_T.created_at, _T.key_id)
_LIST_OF = _LIST.where(_T.tenant_name == sa.bindparam("tenant"))
# The first revocation's time stays; a key already revoked still counts as found.
_REVOKED = sa.func.coalesce(_T.revoked_at, sa.bindparam("now"))
_REVOKE = sa.update(tables.KEYS).where(_T.key_id == sa.bindparam("id")).values(revoked_at=_REVOKED)


class SqlKeyStore:
    """Keys, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def add(self, key: Key) -> None:
        """Store a new key.

        Raises:
            errors.AlreadyExists: its id is taken.
        """
        if not await self._database.write(lambda connection: engine.insert_once(connection, tables.KEYS, _row(key))):
            raise errors.AlreadyExists(f"key id {key.key_id} is taken: create another key")

    async def find(self, key_id: str) -> Key | None:
        """Return the key of that id, None if there is none."""
        row = await self._database.read(lambda connection: connection.execute(_FIND, {"id": key_id}).first())
        return None if row is None else _key(row)

    async def list_all(self, tenant: str | None = None) -> Sequence[Key]:
        """Return the keys (of one tenant), oldest first, equals by id."""
        statement, values = (_LIST, {}) if tenant is None else (_LIST_OF, {"tenant": tenant})
        rows = await self._database.read(lambda connection: connection.execute(statement, values).all())
        return [_key(row) for row in rows]

    async def revoke(self, key_id: str, now: float) -> None:
        """Make a key useless; the first revocation's time stays.

        Raises:
            errors.KeyMissing: no key has that id.
        """
        values = {"id": key_id, "now": now}
        if not await self._database.write(lambda connection: connection.execute(_REVOKE, values).rowcount):
            raise errors.KeyMissing(f"no key has id {key_id}: list the keys to see which there are")

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _row(key: Key) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "tenant_name": key.owner.tenant,
        "user_name": key.owner.user,
        "secret_hash": key.secret_hash,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _key(row: sa.Row[*tuple[str, str, str, str, float, float | None, float | None]]) -> Key:
    key_id, tenant, user, secret_hash, created_at, expires_at, revoked_at = row
    return Key(key_id, Owner(tenant, user), secret_hash, created_at, expires_at, revoked_at)
