"""Who owns which session, in SQL (port: ports.registry.SessionRegistry).

Not a store of session state, which the runtimes keep. Neighbours: tables.py (columns), engine.py (transactions).
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core import quota as quotas
from aerodrome.core.expiry import Horizon
from aerodrome.core.identity import Owner
from aerodrome.core.quota import NO_QUOTA, Quota
from aerodrome.core.session import Claim, SessionRecord

_T = tables.SESSIONS.c
_OWNED = (_T.tenant_name == sa.bindparam("tenant"), _T.user_name == sa.bindparam("user"))
_COUNT = sa.select(sa.func.count()).select_from(tables.SESSIONS)
_FIND = sa.select(tables.SESSIONS).where(_T.session_id == sa.bindparam("id"))
_LIST = sa.select(tables.SESSIONS).where(*_OWNED).order_by(_T.used_at.desc(), _T.session_id)
# Walks the index on (tenant_name, user_name): one tenant's rows, once a pass. An index on the times would have to be rewritten
# at every touch, for a read that happens every few minutes.
_AFTER = sa.tuple_(sa.bindparam("user", type_=sa.Text), sa.bindparam("id", type_=sa.Text))
_STALE = (
    sa.select(tables.SESSIONS)
    .where(_T.tenant_name == sa.bindparam("tenant"))
    .where(sa.or_(_T.used_at <= sa.bindparam("used_before"), _T.created_at <= sa.bindparam("created_before")))
    .where(sa.tuple_(_T.user_name, _T.session_id) > _AFTER)
    .order_by(_T.user_name, _T.session_id)
    .limit(sa.bindparam("limit"))
)
_TOUCH = (
    sa.update(tables.SESSIONS)
    .where(_T.session_id == sa.bindparam("id"), _T.used_at < sa.bindparam("at"))
    .values(used_at=sa.bindparam("at"))
)
_FORGET = sa.delete(tables.SESSIONS).where(_T.session_id == sa.bindparam("id"), *_OWNED)


class SqlSessionRegistry:
    """Who owns which session, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def claim(self, record: SessionRecord, quota: Quota = NO_QUOTA) -> Claim:
        """Record the owner of an id, once and within a quota; return the record that holds.

        Raises:
            errors.PolicyRejected: the quota leaves no room for a new one.
        """
        return await self._database.write(lambda connection: _claim(connection, record, quota))

    async def find(self, session_id: str) -> SessionRecord | None:
        """Return the record of an id, None if there is none."""
        return await self._database.read(lambda connection: _find(connection, session_id))

    async def list_owned(self, owner: Owner) -> Sequence[SessionRecord]:
        """Return the owner's sessions, the most recently used first, equals by id."""
        values = {"tenant": owner.tenant, "user": owner.user}
        return await self._database.read(lambda connection: [_record(row) for row in connection.execute(_LIST, values)])

    async def list_stale(
        self, tenant: str, horizon: Horizon, limit: int, after: SessionRecord | None = None
    ) -> Sequence[SessionRecord]:
        """Return a page of a tenant's sessions used or created at or before the horizon's times, by user and id."""
        user, session_id = (after.owner.user, after.session_id) if after is not None else ("", "")
        values = {
            "tenant": tenant,
            "used_before": horizon.used_before,
            "created_before": horizon.created_before,
            "user": user,
            "id": session_id,
            "limit": limit,
        }
        return await self._database.read(lambda connection: [_record(r) for r in connection.execute(_STALE, values)])

    async def touch(self, session_id: str, used_at: float) -> None:
        """Move the time of last use forward, never back."""
        await self._database.write(lambda connection: connection.execute(_TOUCH, {"id": session_id, "at": used_at}))

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Remove the record if `owner` owns it; say whether there was one."""
        values = {"id": session_id, "tenant": owner.tenant, "user": owner.user}
        return await self._database.write(lambda connection: connection.execute(_FORGET, values).rowcount == 1)

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _claim(connection: sa.Connection, record: SessionRecord, quota: Quota) -> Claim:
    if quota.is_set:
        # Within the transaction that inserts: another's claim is before all of this or after it (SQLite has one writer).
        if held := _find(connection, record.session_id):
            return Claim(held, created=False)
        _check_quota(connection, record.owner, quota)
    # Turns more than once only where another transaction can forget the row between the two statements (not in SQLite).
    while True:
        if engine.insert_once(connection, tables.SESSIONS, _row(record)):
            return Claim(record, created=True)
        if held := _find(connection, record.session_id):
            return Claim(held, created=False)


def _check_quota(connection: sa.Connection, owner: Owner, quota: Quota) -> None:
    values = {"tenant": owner.tenant, "user": owner.user}
    of_user = connection.execute(_COUNT.where(*_OWNED), values).scalar_one() if quota.per_user else 0
    of_tenant = connection.execute(_COUNT.where(_OWNED[0]), values).scalar_one() if quota.per_tenant else 0
    quotas.check_sessions(quota, of_user, of_tenant)


def _find(connection: sa.Connection, session_id: str) -> SessionRecord | None:
    row = connection.execute(_FIND, {"id": session_id}).first()
    return None if row is None else _record(row)


def _row(record: SessionRecord) -> dict[str, object]:
    return {
        "session_id": record.session_id,
        "tenant_name": record.owner.tenant,
        "user_name": record.owner.user,
        "realm": record.realm,
        "created_at": record.created_at,
        "used_at": record.used_at,
    }


def _record(row: sa.Row[*tuple[str, str, str, str, float, float]]) -> SessionRecord:
    session_id, tenant, user, realm, created_at, used_at = row
    return SessionRecord(session_id, Owner(tenant, user), realm, created_at, used_at)
