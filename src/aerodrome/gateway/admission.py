"""Who is calling: a token becomes a principal, or the same refusal for every reason.

Deliberately says nothing about why a token fails, and spends the same work on an unknown key as on a wrong secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Protocol

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import identity
from aerodrome.core.identity import Owner, Principal, Tenant
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.ports.registry import KeyStore, TenantStore


async def list_tenants(configured: Mapping[str, Tenant], stored: TenantStore) -> list[Tenant]:
    """Return every tenant once: those of the configuration go before those of the database."""
    others = [tenant for tenant in await stored.list_all() if tenant.name not in configured]
    return [*configured.values(), *others]


class Admission(Protocol):
    """Turns tokens into principals."""

    @property
    def is_open(self) -> bool:
        """Say whether a link without a token is admitted."""
        ...

    async def authenticate(self, token: str | None) -> Principal:
        """Return whom the token proves. Raises errors.AuthenticationFailed."""
        ...


class KeyAdmission:
    """Admission by stored keys; tenants of the configuration go before those of the database."""

    is_open = False

    def __init__(self, keys: KeyStore, tenants: TenantStore, configured: Mapping[str, Tenant], clock: Clock) -> None:
        self._keys = keys
        self._tenants = tenants
        self._configured = configured
        self._clock = clock

    async def authenticate(self, token: str | None) -> Principal:
        """Return the principal of a key's token."""
        parts = identity.split_token(token or "")
        key = await self._keys.find(parts[0]) if parts else None
        secret = parts[1] if parts else ""
        if not (key or identity.NO_KEY).proves(secret, self._clock.now()) or key is None:
            raise errors.AuthenticationFailed
        tenant = self._configured.get(key.owner.tenant) or await self._tenants.find(key.owner.tenant)
        if tenant is None:
            raise errors.AuthenticationFailed
        return Principal(key.owner, tenant.policy_for(key.owner.user), key.key_id)


class FixedAdmission:
    """Admission by one given token, or by none: the `transparent` policy's single tenant."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        policy = Policy(Isolation.USER, Trust.FULL, ("*",))
        self._principal = Principal(Owner("default", "default"), policy, "given")

    @property
    def is_open(self) -> bool:
        """Say whether no token was given."""
        return self._token is None

    async def authenticate(self, token: str | None) -> Principal:
        """Return the one principal if the token is the given one."""
        self.check(token)
        return self._principal

    def check(self, token: str | None) -> None:
        """Compare a token with the given one.

        Raises:
            errors.AuthenticationFailed: it is another, or none.
        """
        if self._token is not None and not hmac.compare_digest(self._token.encode(), (token or "").encode()):
            raise errors.AuthenticationFailed
