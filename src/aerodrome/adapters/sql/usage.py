"""What model calls took, in SQL (port: ports.usage.UsageStore)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from aerodrome.adapters.sql import engine, tables
from aerodrome.core.identity import Owner
from aerodrome.core.usage import DayUsage, Usage

_T = tables.USAGE_DAYS.c
_FIGURES = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost", "model_calls")
_GROW = (
    sa.update(tables.USAGE_DAYS)
    .where(
        _T.tenant_name == sa.bindparam("tenant"),
        _T.user_name == sa.bindparam("user"),
        _T.day == sa.bindparam("on"),
        _T.model == sa.bindparam("of"),
    )
    .values({name: _T[name] + sa.bindparam(f"more_{name}") for name in _FIGURES})
)
_LIST = (
    sa.select(_T.day, _T.model, *(_T[name] for name in _FIGURES))
    .where(
        _T.tenant_name == sa.bindparam("tenant"),
        _T.user_name == sa.bindparam("user"),
        _T.day.between(sa.bindparam("first"), sa.bindparam("last")),
    )
    .order_by(_T.day.desc(), _T.model)
)


class SqlUsageStore:
    """Figures, in a table."""

    def __init__(self, database: engine.Database) -> None:
        self._database: engine.Database | engine.Closed = database

    async def add(self, counted: Sequence[DayUsage]) -> None:
        """Add figures, in one transaction."""
        rows = [(_key(one), {name: getattr(one.usage, name) for name in _FIGURES}) for one in counted]

        def write(connection: sa.Connection) -> None:
            for key, figures in rows:
                if not engine.insert_once(connection, tables.USAGE_DAYS, {**key, **figures}):
                    more = {f"more_{name}": value for name, value in figures.items()}
                    connection.execute(_GROW, {**_grown(key), **more})

        if rows:
            await self._database.write(write)

    async def list_days(self, owner: Owner, first: str, last: str) -> Sequence[DayUsage]:
        """Return a user's figures of some days."""
        values = {"tenant": owner.tenant, "user": owner.user, "first": first, "last": last}
        return await self._database.read(
            lambda connection: [
                DayUsage(owner, day, model, Usage(*figures))
                for day, model, *figures in connection.execute(_LIST, values)
            ]
        )

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _key(one: DayUsage) -> dict[str, Any]:
    return {"tenant_name": one.owner.tenant, "user_name": one.owner.user, "day": one.day, "model": one.model}


def _grown(key: dict[str, Any]) -> dict[str, Any]:
    return {"tenant": key["tenant_name"], "user": key["user_name"], "on": key["day"], "of": key["model"]}
