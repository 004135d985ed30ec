"""Requests under their keys, in SQL (port: ports.idempotency.IdempotencyStore)."""

from __future__ import annotations

import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables
from aerodrome.core.idempotency import Answer, KeyedRequest
from aerodrome.core.identity import Owner

_T = tables.IDEMPOTENCY_KEYS.c
_OWNED = (_T.tenant_name == sa.bindparam("tenant")) & (_T.user_name == sa.bindparam("user"))
_ONE = _OWNED & (_T.idempotency_key == sa.bindparam("named"))
_FIND = sa.select(tables.IDEMPOTENCY_KEYS).where(_ONE)
_COUNT = sa.select(sa.func.count()).select_from(tables.IDEMPOTENCY_KEYS).where(_OWNED)
_REMOVE = sa.delete(tables.IDEMPOTENCY_KEYS).where(_ONE)
_NOTE = sa.update(tables.IDEMPOTENCY_KEYS).where(_ONE).values(resource=sa.bindparam("made"))
_FINISH = (
    sa.update(tables.IDEMPOTENCY_KEYS)
    .where(_ONE)
    .values(status=sa.bindparam("code"), headers=sa.bindparam("heads"), body=sa.bindparam("said"))
)
_PURGE = sa.delete(tables.IDEMPOTENCY_KEYS).where(_T.created_at < sa.bindparam("before"))


class SqlIdempotencyStore:
    """Keyed requests, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def begin(self, wanted: KeyedRequest, expired_before: float, limit: int) -> KeyedRequest:
        """Record a request unless its key is taken; return the one that holds."""
        return await self._database.write(lambda connection: _begin(connection, wanted, expired_before, limit))

    async def note(self, owner: Owner, key: str, resource: str) -> None:
        """Note what a request has made so far."""
        values = {**_key(owner, key), "made": resource}
        await self._database.write(lambda connection: connection.execute(_NOTE, values))

    async def finish(self, owner: Owner, key: str, answer: Answer) -> None:
        """Keep the answer of a request."""
        values = {**_key(owner, key), "code": answer.status, "heads": answer.headers, "said": answer.body}
        await self._database.write(lambda connection: connection.execute(_FINISH, values))

    async def release(self, owner: Owner, key: str) -> None:
        """Forget a request."""
        await self._database.write(lambda connection: connection.execute(_REMOVE, _key(owner, key)))

    async def purge(self, created_before: float) -> int:
        """Forget what was made before."""
        values = {"before": created_before}
        return await self._database.write(lambda connection: connection.execute(_PURGE, values).rowcount)

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _begin(connection: sa.Connection, wanted: KeyedRequest, expired_before: float, limit: int) -> KeyedRequest:
    values = _key(wanted.owner, wanted.key)
    row = connection.execute(_FIND, values).first()
    if row is not None:
        if row.created_at >= expired_before:
            return _request(row)
        connection.execute(_REMOVE, values)
    elif connection.execute(_COUNT, values).scalar_one() >= limit:
        raise errors.OverCapacity(f"{limit} idempotency keys are kept already; wait until some have expired")
    # Another's insert is before all of this or after it (SQLite has one writer); elsewhere the row that won is read.
    if engine.insert_once(connection, tables.IDEMPOTENCY_KEYS, _row(wanted)):
        return wanted
    return _request(connection.execute(_FIND, values).one())


def _key(owner: Owner, key: str) -> dict[str, str]:
    return {"tenant": owner.tenant, "user": owner.user, "named": key}


def _row(request: KeyedRequest) -> dict[str, object]:
    return {
        "tenant_name": request.owner.tenant,
        "user_name": request.owner.user,
        "idempotency_key": request.key,
        "fingerprint": request.fingerprint,
        "holder": request.holder,
        "created_at": request.created_at,
        "resource": request.resource,
    }


def _request(row: sa.Row[tuple[object, ...]]) -> KeyedRequest:
    answer = Answer(row.status, row.headers, row.body) if row.status is not None else None
    owner = Owner(row.tenant_name, row.user_name)
    return KeyedRequest(owner, row.idempotency_key, row.fingerprint, row.holder, row.created_at, row.resource, answer)
