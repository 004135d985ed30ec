"""The registry in this process's memory: for tests, for one-process trials, and as the reference of the contract suite.

Not a cache and not shared: another process sees nothing of it and it dies with this one (adapters.sql is the store that
lasts). No method awaits anything, so each is one step of the event loop: atomic, and never half done when cancelled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import quota as quotas
from aerodrome.core.expiry import Horizon
from aerodrome.core.identity import Key, Owner, Tenant
from aerodrome.core.quota import NO_QUOTA, Quota
from aerodrome.core.session import Claim, SessionRecord


class _Door:
    """Refuses every call once closed, so that a use after `aclose` shows in tests as it does in production."""

    def __init__(self) -> None:
        self._open = True

    def check(self) -> None:
        if not self._open:
            raise errors.StoreUnavailable("expected an open store, found a closed one: open it again")

    def close(self) -> None:
        self._open = False


class MemorySessionRegistry:
    """Who owns which session, in a dict."""

    def __init__(self) -> None:
        self._door = _Door()
        self._records: dict[str, SessionRecord] = {}

    async def claim(self, record: SessionRecord, quota: Quota = NO_QUOTA) -> Claim:
        """Record the owner of an id, once and within a quota; return the record that holds.

        Raises:
            errors.PolicyRejected: the quota leaves no room for a new one.
        """
        self._door.check()
        if quota.is_set and record.session_id not in self._records:
            of_tenant = [held.owner for held in self._records.values() if held.owner.tenant == record.owner.tenant]
            quotas.check_sessions(quota, of_tenant.count(record.owner), len(of_tenant))
        held = self._records.setdefault(record.session_id, record)
        return Claim(held, created=held is record)

    async def find(self, session_id: str) -> SessionRecord | None:
        """Return the record of an id, None if there is none."""
        self._door.check()
        return self._records.get(session_id)

    async def list_owned(self, owner: Owner) -> Sequence[SessionRecord]:
        """Return the owner's sessions, the most recently used first, equals by id."""
        self._door.check()
        owned = [record for record in self._records.values() if record.owner == owner]
        return sorted(owned, key=lambda record: (-record.used_at, record.session_id))

    async def list_stale(
        self, tenant: str, horizon: Horizon, limit: int, after: SessionRecord | None = None
    ) -> Sequence[SessionRecord]:
        """Return a page of a tenant's sessions used or created at or before the horizon's times, by user and id."""
        self._door.check()
        stale = [
            record
            for record in self._records.values()
            if record.owner.tenant == tenant
            and (record.used_at <= horizon.used_before or record.created_at <= horizon.created_before)
            and (after is None or _place(record) > _place(after))
        ]
        return sorted(stale, key=_place)[:limit]

    async def touch(self, session_id: str, used_at: float) -> None:
        """Move the time of last use forward, never back."""
        self._door.check()
        record = self._records.get(session_id)
        if record is not None and record.used_at < used_at:
            self._records[session_id] = replace(record, used_at=used_at)

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Remove the record if `owner` owns it; say whether there was one."""
        self._door.check()
        record = self._records.get(session_id)
        if record is None or record.owner != owner:
            return False
        del self._records[session_id]
        return True

    async def aclose(self) -> None:
        """Refuse further calls; idempotent."""
        self._door.close()


def _place(record: SessionRecord) -> tuple[str, str]:
    return record.owner.user, record.session_id


class MemoryKeyStore:
    """Keys, in a dict."""

    def __init__(self) -> None:
        self._door = _Door()
        self._keys: dict[str, Key] = {}

    async def add(self, key: Key) -> None:
        """Store a new key.

        Raises:
            errors.AlreadyExists: its id is taken.
        """
        self._door.check()
        if key.key_id in self._keys:
            raise errors.AlreadyExists(f"key id {key.key_id} is taken: create another key")
        self._keys[key.key_id] = key

    async def find(self, key_id: str) -> Key | None:
        """Return the key of that id, None if there is none."""
        self._door.check()
        return self._keys.get(key_id)

    async def list_all(self, tenant: str | None = None) -> Sequence[Key]:
        """Return the keys (of one tenant), oldest first, equals by id."""
        self._door.check()
        keys = [key for key in self._keys.values() if tenant is None or key.owner.tenant == tenant]
        return sorted(keys, key=lambda key: (key.created_at, key.key_id))

    async def find_dead(self, key_ids: Collection[str], now: float) -> set[str]:
        """Return which of these are revoked, expired, or not there."""
        self._door.check()
        return {key_id for key_id in key_ids if key_id not in self._keys or not self._keys[key_id].is_live(now)}

    async def rotate(self, key_id: str, successor: Key, until: float) -> None:
        """Store a key's successor and have the key expire at `until` at the latest.

        Raises:
            errors.KeyMissing: no key has that id, or it is revoked. errors.AlreadyExists: the successor's id is taken.
        """
        self._door.check()
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            raise errors.KeyMissing(f"no key has id {key_id}, or it is revoked: create a new one")
        await self.add(successor)
        expires_at = until if key.expires_at is None else min(key.expires_at, until)
        self._keys[key_id] = replace(key, expires_at=expires_at)

    async def revoke(self, key_id: str, now: float) -> None:
        """Make a key useless; the first revocation's time stays.

        Raises:
            errors.KeyMissing: no key has that id.
        """
        self._door.check()
        if key_id not in self._keys:
            raise errors.KeyMissing(f"no key has id {key_id}: list the keys to see which there are")
        self._revoke(self._keys[key_id], now)

    def revoke_tenant(self, tenant: str, now: float) -> None:
        """Revoke every key of a tenant at once: the half of a tenant's removal that is this store's.

        Raises:
            errors.StoreUnavailable: this store is closed; nothing was revoked.
        """
        self._door.check()
        for key in [key for key in self._keys.values() if key.owner.tenant == tenant]:
            self._revoke(key, now)

    def _revoke(self, key: Key, now: float) -> None:
        if key.revoked_at is None:
            self._keys[key.key_id] = replace(key, revoked_at=now)

    async def aclose(self) -> None:
        """Refuse further calls; idempotent."""
        self._door.close()


class MemoryTenantStore:
    """Tenants, in a dict; revokes a removed tenant's keys in `keys`, by `clock`."""

    def __init__(self, keys: MemoryKeyStore, clock: Clock) -> None:
        self._door = _Door()
        self._keys = keys
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}

    async def add(self, tenant: Tenant) -> None:
        """Store a new tenant.

        Raises:
            errors.AlreadyExists: the name is taken.
        """
        self._door.check()
        if tenant.name in self._tenants:
            raise errors.AlreadyExists(f"tenant {tenant.name} is there already: update it or choose another name")
        self._tenants[tenant.name] = tenant

    async def find(self, name: str) -> Tenant | None:
        """Return the tenant of that name, None if there is none."""
        self._door.check()
        return self._tenants.get(name)

    async def list_all(self) -> Sequence[Tenant]:
        """Return all tenants by name."""
        self._door.check()
        return sorted(self._tenants.values(), key=lambda tenant: tenant.name)

    async def update(self, tenant: Tenant) -> None:
        """Replace the policy of an existing tenant.

        Raises:
            errors.TenantMissing: no tenant has that name.
        """
        self._check_there(tenant.name)
        self._tenants[tenant.name] = tenant

    async def remove(self, name: str) -> None:
        """Remove a tenant and revoke its keys in one step.

        Raises:
            errors.TenantMissing: no tenant has that name.
        """
        self._check_there(name)
        self._keys.revoke_tenant(name, self._clock.now())
        del self._tenants[name]

    def _check_there(self, name: str) -> None:
        self._door.check()
        if name not in self._tenants:
            raise errors.TenantMissing(f"no tenant is named {name}: list the tenants to see which there are")

    async def aclose(self) -> None:
        """Refuse further calls; idempotent."""
        self._door.close()
