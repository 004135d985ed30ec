"""Principals that end while their links are open: expired, revoked, or of a tenant that was removed. Their links are closed.

A loop looks at all of them, with one query for the keys they stand on, so that it costs the same however many links a key has.
While the store does not answer nobody can be revoked either: links stay open then, apart from those whose time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Principal, Tenant
from aerodrome.gateway.client import Client
from aerodrome.gateway.service import TenantGateway
from aerodrome.ports.registry import KeyStore

_log = structlog.get_logger()


class PrincipalWatch:
    """Closes links whose principal has ended, within `interval_seconds` and a moment."""

    def __init__(
        self,
        gateway: TenantGateway,
        keys: KeyStore,
        find_tenant: Callable[[str], Awaitable[Tenant | None]],
        clock: Clock,
        interval_seconds: float,
    ) -> None:
        self._gateway = gateway
        self._keys = keys
        self._find_tenant = find_tenant
        self._clock = clock
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Look on schedule, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.look()
            except (errors.StoreUnavailable, errors.ConfigError) as error:
                _log.warning("principals.check_failed", reason=error.message)

    async def look(self) -> None:
        """Close every link whose principal has ended.

        Raises:
            errors.StoreUnavailable: keys and tenants could not be looked up; links that have expired are closed.
        """
        now = self._clock.now()
        self._dismiss("expired", lambda principal: principal.expires_at is not None and now >= principal.expires_at)
        principals = [client.principal for client in self._clients] + [
            guest.principal for guest in self._gateway.guests
        ]
        dead = await self._find_dead({principal.key_id for principal in principals}, now)
        self._dismiss("its key is revoked or expired", lambda principal: principal.key_id in dead)
        # A tenant's removal revokes its keys; only those whom an issuer vouches for have none.
        tenants = {principal.owner.tenant for principal in principals if not principal.key_id}
        gone = {name for name in tenants if await self._find_tenant(name) is None}
        self._dismiss("its tenant is removed", lambda principal: principal.owner.tenant in gone)

    @property
    def _clients(self) -> Iterable[Client]:
        return [*self._gateway.clients, *self._gateway.services.finishing.clients]

    async def _find_dead(self, key_ids: set[str], now: float) -> set[str]:
        key_ids = key_ids - {""}
        return await self._keys.find_dead(key_ids, now) if key_ids else set()

    def _dismiss(self, reason: str, has_ended: Callable[[Principal], bool]) -> None:
        for client in self._clients:
            if has_ended(client.principal):
                self._gateway.dismiss(client, reason)
        for guest in list(self._gateway.guests):
            if has_ended(guest.principal):
                guest.dismiss()
