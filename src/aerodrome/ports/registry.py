"""What the gateway needs remembered: who owns a session, which tenants and keys exist.

Implemented by adapters.memory and adapters.sql; one contract suite runs over both. All methods are safe to cancel: a write
either happened or did not. All raise errors.StoreUnavailable when the store does not answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from aerodrome.core.expiry import Horizon
from aerodrome.core.identity import Key, Owner, Tenant
from aerodrome.core.quota import NO_QUOTA, Quota
from aerodrome.core.session import Claim, SessionRecord


class SessionRegistry(Protocol):
    """Who owns which session."""

    async def claim(self, record: SessionRecord, quota: Quota = NO_QUOTA) -> Claim:
        """Record the owner of an id, atomically and once, within a quota of sessions owned.

        Returns the new record with `created`, or the record that is already there (whoever owns it). Idempotent for one owner.
        Counting and recording are one step: concurrent claims never pass the quota together.

        Raises:
            errors.PolicyRejected: it would be a new record, and the quota leaves no room for it.
        """
        ...

    async def find(self, session_id: str) -> SessionRecord | None:
        """Return the record of an id, None if there is none."""
        ...

    async def list_owned(self, owner: Owner) -> Sequence[SessionRecord]:
        """Return the owner's sessions, the most recently used first."""
        ...

    async def list_stale(
        self, tenant: str, horizon: Horizon, limit: int, after: SessionRecord | None = None
    ) -> Sequence[SessionRecord]:
        """Return up to `limit` of a tenant's sessions that were last used, or created, at or before the horizon's times.

        By user, then id; `after` is the last record of the page before. A page is a snapshot, the whole walk is not one.
        """
        ...

    async def touch(self, session_id: str, used_at: float) -> None:
        """Move the time of last use forward; does nothing for an unknown id or an older time."""
        ...

    async def forget(self, session_id: str, owner: Owner) -> bool:
        """Remove the record if `owner` owns it; say whether there was one. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...


class TenantStore(Protocol):
    """The tenants and their policies."""

    async def add(self, tenant: Tenant) -> None:
        """Store a new tenant. Raises errors.AlreadyExists if the name is taken."""
        ...

    async def find(self, name: str) -> Tenant | None:
        """Return the tenant of that name, None if there is none."""
        ...

    async def list_all(self) -> Sequence[Tenant]:
        """Return all tenants by name."""
        ...

    async def update(self, tenant: Tenant) -> None:
        """Replace the policy of an existing tenant. Raises errors.TenantMissing."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a tenant and revoke its keys in one step. Raises errors.TenantMissing."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...


class KeyStore(Protocol):
    """The keys that prove principals. Only hashes are stored."""

    async def add(self, key: Key) -> None:
        """Store a new key. Raises errors.AlreadyExists if its id is taken."""
        ...

    async def find(self, key_id: str) -> Key | None:
        """Return the key of that id, None if there is none."""
        ...

    async def find_dead(self, key_ids: Collection[str], now: float) -> set[str]:
        """Return which of these prove nothing at `now`: revoked, expired, or not there. A snapshot, in one query."""
        ...

    async def list_all(self, tenant: str | None = None) -> Sequence[Key]:
        """Return the keys (of one tenant), oldest first."""
        ...

    async def rotate(self, key_id: str, successor: Key, until: float) -> None:
        """Store a key's successor and have the key expire at `until` at the latest, in one step.

        Raises errors.KeyMissing if there is no such key or it is revoked, errors.AlreadyExists if the successor's id is taken.
        """
        ...

    async def revoke(self, key_id: str, now: float) -> None:
        """Make a key useless from now on; idempotent. Raises errors.KeyMissing."""
        ...

    async def aclose(self) -> None:
        """Release the store."""
        ...
