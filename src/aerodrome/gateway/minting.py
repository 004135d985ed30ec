"""Minting connection tokens here, for whoever may ask: the operator by the admin socket, later a backend over HTTP.

The gateway signs with a signing key of its own for each tenant, made when it is first wanted: revoking that ends what was minted
here, and nothing of what the tenant's backend signs by itself. Deliberately no check of who asks: that is for the edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import connection_token, identity
from aerodrome.core.identity import Key, Owner, Scope, Tenant
from aerodrome.gateway.admission import Admission
from aerodrome.ports.registry import KeyStore

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Minted:
    """A new connection token, the key that signed it, and when it expires (Unix time)."""

    token: str
    key_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Minting:
    """Who makes connection tokens, and who lets in those who may ask for them (keys with the scope `mint`)."""

    minter: Minter
    admission: Admission


class Minter:
    """Mints connection tokens for users of tenants. Lifetimes are in seconds."""

    def __init__(
        self,
        keys: KeyStore,
        find_tenant: Callable[[str], Awaitable[Tenant | None]],
        master: bytes | None,
        max_seconds: float,
        clock: Clock,
    ) -> None:
        self._keys = keys
        self._find_tenant = find_tenant
        self._master = master
        self._max_seconds = max_seconds
        self._clock = clock
        self._making = asyncio.Lock()

    async def mint(self, owner: Owner, seconds: float) -> Minted:
        """Return a new token for a user.

        Raises:
            errors.ConfigError: no master key is set, or no user can have that name.
            errors.InvalidParams: it would live too long. errors.TenantMissing: there is no such tenant.
        """
        if self._master is None:
            raise errors.ConfigError("connection tokens need a master key: start the gateway with AERODROME_MASTER_KEY")
        identity.check_name("user", owner.user)
        if not 1 <= seconds <= self._max_seconds:
            raise errors.InvalidParams(f"expected a lifetime of 1 to {self._max_seconds:g} seconds, found {seconds:g}")
        if await self._find_tenant(owner.tenant) is None:
            raise errors.TenantMissing(f"no tenant is named {owner.tenant}: list the tenants to see which there are")
        now = self._clock.now()
        key_id, secret = await self._signing_key(self._master, owner.tenant, now)
        token = connection_token.sign(key_id, secret, owner.user, now, now + seconds)
        _log.info("token.minted", tenant=owner.tenant, user=owner.user, key_id=key_id, seconds=seconds)
        return Minted(token, key_id, float(int(now + seconds)))

    async def _signing_key(self, master: bytes, tenant: str, now: float) -> tuple[str, str]:
        async with self._making:
            for key in reversed(await self._keys.list_all(tenant)):
                if _is_ours(key) and key.proves(secret := connection_token.derive_secret(master, key.key_id), now):
                    return key.key_id, secret
            made, secret = connection_token.create_signing_key(master, Owner(tenant, connection_token.GATEWAY), now)
            await self._keys.add(made)
            return made.key_id, secret


def _is_ours(key: Key) -> bool:
    return Scope.SIGN in key.scopes and key.owner.user == connection_token.GATEWAY
