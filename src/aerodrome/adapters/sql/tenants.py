"""The tenants and their policies, in SQL (port: ports.registry.TenantStore).

A policy is one JSON object, so that it can grow without a column for each rule; its member `users` has what differs for users.
One with a rule this code does not know is refused, never read without it. Not the place of tenants defined in the
configuration: every tenant here has source `database`. Neighbours: tables.py (columns), engine.py (transactions), keys.py
(whose keys a removal revokes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables
from aerodrome.clock import Clock
from aerodrome.core import override, policy_document
from aerodrome.core.identity import Tenant
from aerodrome.core.override import Override
from aerodrome.core.policy import Policy

_T = tables.TENANTS.c
_NAMED = _T.name == sa.bindparam("of_name")
_FIND = sa.select(tables.TENANTS).where(_NAMED)
_LIST = sa.select(tables.TENANTS).order_by(_T.name)
_UPDATE = sa.update(tables.TENANTS).where(_NAMED).values(policy=sa.bindparam("to_policy"))
_REMOVE = sa.delete(tables.TENANTS).where(_NAMED)
_REVOKE = (
    sa.update(tables.KEYS)
    .where(tables.KEYS.c.tenant_name == sa.bindparam("of_name"), tables.KEYS.c.revoked_at.is_(None))
    .values(revoked_at=sa.bindparam("now"))
)
_SIGN_OUT = sa.delete(tables.BROWSERS).where(tables.BROWSERS.c.tenant_name == sa.bindparam("of_name"))
_RULES = {field.name for field in dataclasses.fields(Policy)}


class SqlTenantStore:
    """Tenants, in a table; a removed tenant's keys are revoked at the time `clock` tells."""

    def __init__(self, database: engine.Database, clock: Clock) -> None:
        self._database: engine.Database | engine.Closed = database
        self._clock = clock

    async def add(self, tenant: Tenant) -> None:
        """Store a new tenant.

        Raises:
            errors.AlreadyExists: the name is taken.
        """
        row = {"name": tenant.name, "policy": _encode(tenant)}
        if not await self._database.write(lambda connection: engine.insert_once(connection, tables.TENANTS, row)):
            raise errors.AlreadyExists(f"tenant {tenant.name} is there already: update it or choose another name")

    async def find(self, name: str) -> Tenant | None:
        """Return the tenant of that name, None if there is none.

        Raises:
            errors.ConfigError: its policy was written by a newer Aerodrome.
        """
        row = await self._database.read(lambda connection: connection.execute(_FIND, {"of_name": name}).first())
        return None if row is None else _tenant(row)

    async def list_all(self) -> Sequence[Tenant]:
        """Return all tenants by name.

        Raises:
            errors.ConfigError: a policy was written by a newer Aerodrome.
        """
        rows = await self._database.read(lambda connection: connection.execute(_LIST).all())
        return [_tenant(row) for row in rows]

    async def update(self, tenant: Tenant) -> None:
        """Replace the policy of an existing tenant.

        Raises:
            errors.TenantMissing: no tenant has that name.
        """
        values = {"of_name": tenant.name, "to_policy": _encode(tenant)}
        if not await self._database.write(lambda connection: connection.execute(_UPDATE, values).rowcount):
            raise _missing(tenant.name)

    async def remove(self, name: str) -> None:
        """Remove a tenant, revoke its keys and sign out its browsers, in one transaction.

        Raises:
            errors.TenantMissing: no tenant has that name.
        """
        now = self._clock.now()
        if not await self._database.write(lambda connection: _remove(connection, name, now)):
            raise _missing(name)

    async def aclose(self) -> None:
        """Refuse further calls; the database is closed by whoever opened it. Idempotent."""
        self._database = engine.Closed()


def _remove(connection: sa.Connection, name: str, now: float) -> bool:
    if not connection.execute(_REMOVE, {"of_name": name}).rowcount:
        return False
    connection.execute(_REVOKE, {"of_name": name, "now": now})
    connection.execute(_SIGN_OUT, {"of_name": name})
    return True


def _missing(name: str) -> errors.TenantMissing:
    return errors.TenantMissing(f"no tenant is named {name}: list the tenants to see which there are")


def _encode(tenant: Tenant) -> str:
    document = msgspec.to_builtins(tenant.policy)
    if tenant.users:
        document["users"] = msgspec.to_builtins(tenant.users)
    return msgspec.json.encode(document).decode()


def _tenant(row: sa.Row[*tuple[str, str]]) -> Tenant:
    name, text = row
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
        written = msgspec.convert(document.pop("users", {}), dict[str, dict[str, Any]])
        unknown = {*document} - _RULES
        for rules in written.values():
            unknown |= {*rules} - override.FIELDS
        # Strict: a number in the place of a text was not written by us.
        policy = msgspec.convert(document, Policy)
        users = msgspec.convert(written, dict[str, Override])
    except msgspec.MsgspecError as error:
        raise errors.ConfigError(f"policy of tenant {name} is not readable ({error}): update the tenant") from error
    if unknown:
        raise errors.ConfigError(
            f"policy of tenant {name} has rules unknown here ({sorted(unknown)}): upgrade Aerodrome"
        )
    return policy_document.check_tenant(f"tenant {name}", Tenant(name, policy, users=users))
