"""Signed-in browsers, in SQL (port: ports.browsers.BrowserStore). Only hashes of their tokens are stored.

Those that stand on a key go with it, in the transaction that revokes it: keys.py, tenants.py.
"""

from __future__ import annotations

import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables
from aerodrome.core.browser import Browser
from aerodrome.core.identity import Owner, Principal, Role, Scope
from aerodrome.core.policy import Policy

_T = tables.BROWSERS.c
_ONE = _T.token_hash == sa.bindparam("hash")
_FIND = sa.select(tables.BROWSERS).where(_ONE)
_REMOVE = sa.delete(tables.BROWSERS).where(_ONE)
_TOUCH = sa.update(tables.BROWSERS).where(_ONE, _T.used_at < sa.bindparam("used")).values(used_at=sa.bindparam("used"))
_OLDEST = (
    sa.select(_T.token_hash)
    .where(_T.tenant_name == sa.bindparam("tenant"), _T.user_name == sa.bindparam("user"))
    .order_by(_T.used_at.desc(), _T.token_hash)
    .offset(sa.bindparam("kept"))
)
_MAKE_ROOM = sa.delete(tables.BROWSERS).where(_T.token_hash.in_(_OLDEST))
_IS_OVER = (_T.ends_at <= sa.bindparam("now")) | (_T.used_at <= sa.bindparam("before"))
_PURGE = sa.delete(tables.BROWSERS).where(_IS_OVER)
_COUNT = sa.select(sa.func.count()).select_from(tables.BROWSERS).where(~_IS_OVER)


class SqlBrowserStore:
    """Signed-in browsers, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def add(self, browser: Browser, limit: int) -> None:
        """Keep a new one, and make room for it, in one transaction."""
        owner = browser.principal.owner
        room = {"tenant": owner.tenant, "user": owner.user, "kept": limit}

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.insert(tables.BROWSERS), _row(browser))
            connection.execute(_MAKE_ROOM, room)

        await self._database.write(write)

    async def find(self, token_hash: str) -> Browser | None:
        """Return one.

        Raises:
            errors.ConfigError: a newer Aerodrome wrote it.
        """
        values = {"hash": token_hash}
        row = await self._database.read(lambda connection: connection.execute(_FIND, values).first())
        return None if row is None else _browser(row)

    async def touch(self, token_hash: str, used_at: float) -> None:
        """Note a use."""
        values = {"hash": token_hash, "used": used_at}
        await self._database.write(lambda connection: connection.execute(_TOUCH, values))

    async def remove(self, token_hash: str) -> None:
        """Forget one."""
        await self._database.write(lambda connection: connection.execute(_REMOVE, {"hash": token_hash}))

    async def purge(self, now: float, used_before: float) -> int:
        """Forget those that are over."""
        values = {"now": now, "before": used_before}
        return await self._database.write(lambda connection: connection.execute(_PURGE, values).rowcount)

    async def count(self, now: float, used_before: float) -> int:
        """Return how many are not over."""
        values = {"now": now, "before": used_before}
        return await self._database.read(lambda connection: connection.execute(_COUNT, values).scalar_one())

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _row(browser: Browser) -> dict[str, object]:
    principal = browser.principal
    return {
        "token_hash": browser.token_hash,
        "tenant_name": principal.owner.tenant,
        "user_name": principal.owner.user,
        "key_id": principal.key_id,
        "scopes": ",".join(sorted(scope.value for scope in principal.scopes)),
        "role": principal.role.value,
        "proved_until": principal.expires_at,
        "began_at": browser.began_at,
        "used_at": browser.used_at,
        "ends_at": browser.ends_at,
    }


def _browser(row: sa.Row[tuple[object, ...]]) -> Browser:
    try:
        scopes, role = frozenset(Scope(word) for word in row.scopes.split(",")), Role(row.role)
    except ValueError:
        raise errors.ConfigError(
            f"a browser has scopes or a role unknown here ({row.scopes}; {row.role}): upgrade Aerodrome"
        ) from None
    owner = Owner(row.tenant_name, row.user_name)
    principal = Principal(owner, Policy(), row.key_id, row.proved_until, scopes, role)
    return Browser(row.token_hash, principal, row.began_at, row.used_at, row.ends_at)
