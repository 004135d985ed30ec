"""The keys that prove principals, in SQL (port: ports.registry.KeyStore). Only hashes are stored.

Not the place where a key is proved: core.identity. Neighbours: tables.py (columns), engine.py (transactions).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

import msgspec
import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Key, Owner, Scope

_T = tables.KEYS.c
_FIND = sa.select(tables.KEYS).where(_T.key_id == sa.bindparam("id"))
_LIST = sa.select(tables.KEYS).order_by(_T.created_at, _T.key_id)
_LIST_OF = _LIST.where(_T.tenant_name == sa.bindparam("tenant"))
# The first revocation's time stays; a key already revoked still counts as found.
_REVOKED = sa.func.coalesce(_T.revoked_at, sa.bindparam("now"))
_REVOKE = sa.update(tables.KEYS).where(_T.key_id == sa.bindparam("id")).values(revoked_at=_REVOKED)
_SIGN_OUT = sa.delete(tables.BROWSERS).where(tables.BROWSERS.c.key_id == sa.bindparam("id"))
_LIVE = _T.revoked_at.is_(None) & (_T.expires_at.is_(None) | (_T.expires_at > sa.bindparam("now")))
_EARLIER = sa.case((_T.expires_at < sa.bindparam("until"), _T.expires_at), else_=sa.bindparam("until"))
_RETIRE = (
    sa.update(tables.KEYS).where(_T.key_id == sa.bindparam("id"), _T.revoked_at.is_(None)).values(expires_at=_EARLIER)
)


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

    async def find_dead(self, key_ids: Collection[str], now: float) -> set[str]:
        """Return which of these are revoked, expired, or not there."""
        values = {"ids": msgspec.json.encode(list(key_ids)).decode(), "now": now}
        return await self._database.read(
            lambda connection: set(connection.execute(_find_dead(connection.dialect.name), values).scalars())
        )

    async def rotate(self, key_id: str, successor: Key, until: float) -> None:
        """Store a key's successor and have the key expire at `until` at the latest, in one transaction.

        Raises:
            errors.KeyMissing: no key has that id, or it is revoked. errors.AlreadyExists: the successor's id is taken.
        """
        await self._database.write(lambda connection: _rotate(connection, key_id, successor, until))

    async def revoke(self, key_id: str, now: float) -> None:
        """Make a key useless and sign out the browsers that stand on it; the first revocation's time stays.

        Raises:
            errors.KeyMissing: no key has that id.
        """
        if not await self._database.write(lambda connection: _revoke(connection, key_id, now)):
            raise errors.KeyMissing(f"no key has id {key_id}: list the keys to see which there are")

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


@functools.cache
def _find_dead(dialect: str) -> sa.Select[str]:
    wanted = engine.list_texts(dialect, "ids")
    is_live = sa.exists().where(_T.key_id == wanted.c.value, _LIVE)
    return sa.select(wanted.c.value).where(~is_live)


def _rotate(connection: sa.Connection, key_id: str, successor: Key, until: float) -> None:
    if not connection.execute(_RETIRE, {"id": key_id, "until": until}).rowcount:
        raise errors.KeyMissing(f"no key has id {key_id}, or it is revoked: create a new one")
    if not engine.insert_once(connection, tables.KEYS, _row(successor)):
        raise errors.AlreadyExists(f"key id {successor.key_id} is taken: create another key")


def _revoke(connection: sa.Connection, key_id: str, now: float) -> bool:
    connection.execute(_SIGN_OUT, {"id": key_id})
    return bool(connection.execute(_REVOKE, {"id": key_id, "now": now}).rowcount)


def _row(key: Key) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "tenant_name": key.owner.tenant,
        "user_name": key.owner.user,
        "secret_hash": key.secret_hash,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "scopes": ",".join(sorted(scope.value for scope in key.scopes)),
    }


def _key(row: sa.Row[*tuple[str, str, str, str, float, float | None, float | None, str]]) -> Key:
    key_id, tenant, user, secret_hash, created_at, expires_at, revoked_at, words = row
    return Key(key_id, Owner(tenant, user), secret_hash, created_at, expires_at, revoked_at, _scopes(key_id, words))


def _scopes(key_id: str, words: str) -> frozenset[Scope]:
    try:
        return frozenset(Scope(word) for word in words.split(","))
    except ValueError:
        raise errors.ConfigError(f"key {key_id} has scopes unknown here ({words}): upgrade Aerodrome") from None
