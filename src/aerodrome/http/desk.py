"""What admins and operators do over HTTP, for /v1/admin and the pages alike: the operator's verbs, keys, users, figures.

A tenant's admin is held to that tenant in every one of them; what is another's answers as if it were not there. The verbs are
admin.operations', with its audit records; who asked is named by role and key, never by a name that an erasure would have to find.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from aerodrome import errors
from aerodrome.admin import views
from aerodrome.admin.operations import Operations
from aerodrome.core import identity
from aerodrome.core.audit import Action, Entry
from aerodrome.core.flights import SessionFlight, Totals
from aerodrome.core.identity import Key, Owner, Role, Scope, Tenant
from aerodrome.core.session import SessionRecord
from aerodrome.gateway import residents
from aerodrome.http.callers import Caller

MOST_AUDIT_RECORDS = 500
MOST_OVERLAP_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user of a tenant: what they have, and what they took since the gateway started."""

    tenant: str
    user: str
    live_keys: int
    held_sessions: int
    totals: Totals


@dataclass(frozen=True, slots=True)
class Flight:
    """What is known of a session of a tenant's: whose it is, and what it did of late."""

    session_id: str
    owner: Owner
    record: SessionRecord | None
    resident: residents.Resident | None
    flight: SessionFlight


@dataclass(frozen=True, slots=True)
class NewKey:
    """Which key is wanted; `tenant` is empty for an operator's."""

    tenant: str
    user: str
    scopes: frozenset[Scope]
    expires_seconds: float | None = None


class Desk:
    """The verbs, for one caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._site = caller.site
        self._office = caller.site.office

    @property
    def role(self) -> Role:
        """Return the caller's role."""
        return self._caller.principal.role

    @property
    def who(self) -> str:
        """Return who asks, as records name it."""
        principal = self._caller.principal
        return f"{self.role.value}, {f'key {principal.key_id}' if principal.key_id else 'signed in by their provider'}"

    def tenant_of(self, wanted: str | None) -> str | None:
        """Return the tenant that may be looked at when one (None: every one) is asked for.

        Raises:
            errors.PolicyRejected: the caller has no such role. errors.TenantMissing: it is another's.
        """
        if self.role is Role.OPERATOR:
            return wanted
        if self.role is Role.USER:
            raise errors.PolicyRejected("expected a tenant's admin or an operator")
        own = self._caller.owner.tenant
        if wanted not in (None, own):
            raise errors.TenantMissing(f"no tenant {wanted}")
        return own

    def check_operator(self) -> None:
        """Raise errors.PolicyRejected unless an operator asks."""
        if self.role is not Role.OPERATOR:
            raise errors.PolicyRejected("expected an operator")

    # -- the operator's verbs ---------------------------------------------------------------------------------------------

    async def operate(self, verb: str, **params: Any) -> Any:
        """Do one of the verbs that concern the whole gateway; an operator's."""
        self.check_operator()
        return await self._call(verb, params)

    async def list_sessions(self, tenant: str | None, after: tuple[str, str] | None, limit: int) -> views.SessionPage:
        """Return the sessions that links hold."""
        page = await self._call("show.sessions", {"tenant": self.tenant_of(tenant), "after": after, "limit": limit})
        assert isinstance(page, views.SessionPage)
        return page

    async def list_links(self, tenant: str | None, after: int | None, limit: int) -> views.LinkPage:
        """Return the client links."""
        page = await self._call("show.links", {"tenant": self.tenant_of(tenant), "after": after, "limit": limit})
        assert isinstance(page, views.LinkPage)
        return page

    async def evict(self, session_id: str, tenant: str | None) -> str:
        """Unload a session; return what became of it."""
        return str((await self._call_about(session_id, tenant, "evict", {}))["outcome"])

    async def migrate(self, session_id: str, tenant: str | None, to_runtime_id: str | None) -> dict[str, Any]:
        """Move a session to another runtime; return what became of it."""
        done = await self._call_about(session_id, tenant, "migrate", {"to_runtime_id": to_runtime_id})
        return dict(done)

    async def _call_about(self, session_id: str, tenant: str | None, verb: str, params: dict[str, Any]) -> Any:
        held_to = self.tenant_of(tenant)
        try:
            return await self._call(verb, {"session_id": session_id, "tenant": held_to, **params})
        except errors.SessionMissing:
            # The words for operators on the machine say how much else there is.
            raise errors.SessionMissing("no link holds such a session") from None

    async def _call(self, verb: str, params: dict[str, Any]) -> Any:
        if self._office.operations is None:
            raise errors.PolicyRejected("this gateway's runtimes are not its own: there is nothing to operate")
        operations: Operations = self._office.operations
        try:
            return await operations.call(verb, params, lambda _method, _params: None, self.who)
        except errors.ConfigError as error:
            raise errors.InvalidParams(f"the configuration is wrong, nothing has changed: {error.message}") from None

    # -- tenants and users ------------------------------------------------------------------------------------------------

    async def list_tenants(self) -> list[Tenant]:
        """Return the tenants that the caller may see, by name."""
        held_to = self.tenant_of(None)
        tenants = await self._office.list_tenants()
        return sorted((one for one in tenants if held_to in (None, one.name)), key=lambda one: one.name)

    async def find_tenant(self, name: str) -> Tenant:
        """Return a tenant. Raises errors.TenantMissing."""
        self.tenant_of(name)
        found = await self._office.find_tenant(name)
        if found is None:
            raise errors.TenantMissing(f"no tenant {name}")
        return found

    async def list_users(self, tenant: str) -> list[UserRow]:
        """Return the users of a tenant of whom anything is known."""
        await self.find_tenant(tenant)
        # Keys are read once, and last: who has a key since the people were read is none of them yet.
        people = await self._office.people.list_users(tenant)
        every_key = await self._office.keys.list_all(tenant)
        now = self._site.clock.now()
        totals = self._site.services.recorder.totals(tenant)
        keys = [key for key in every_key if Scope.SIGN not in key.scopes]
        live = Counter(key.owner for key in keys if key.is_live(now))
        held = Counter(views.owner_of(one) for one in self._site.services.residents.of_tenant(tenant))
        active = {owner.user for owner in (*totals, *held)}
        signing = {key.owner.user for key in every_key} - {key.owner.user for key in keys}
        owners = [Owner(tenant, user) for user in sorted({*people, *active} - (signing - active))]
        return [UserRow(tenant, one.user, live[one], held[one], totals.get(one, Totals())) for one in owners]

    # -- keys -------------------------------------------------------------------------------------------------------------

    async def list_keys(self, tenant: str | None) -> list[Key]:
        """Return keys, the newest first: of a tenant or all; a user's own for a user."""
        if self.role is Role.USER:
            own = self._caller.owner
            return [key for key in reversed(await self._office.keys.list_all(own.tenant)) if key.owner == own]
        return list(reversed(await self._office.keys.list_all(self.tenant_of(tenant))))

    async def create_key(self, wanted: NewKey) -> tuple[Key, str]:
        """Make a key; return it and its token, which cannot be had again.

        Raises:
            errors.InvalidParams: it cannot be of that form. errors.TenantMissing, errors.PolicyRejected: not by this caller.
        """
        owner = await self._owner_of_new(wanted)
        now = self._site.clock.now()
        ends_at = None if wanted.expires_seconds is None else now + wanted.expires_seconds
        key, token = identity.create_key(owner, now, ends_at, wanted.scopes)
        self._record(Action.KEY_CREATE, key)
        await self._office.keys.add(key)
        return key, token

    async def _owner_of_new(self, wanted: NewKey) -> Owner:
        try:
            user = identity.check_name("user", wanted.user)
        except errors.ConfigError as error:
            raise errors.InvalidParams(error.message) from None
        if wanted.scopes == identity.OPERATOR_SCOPES:
            self.check_operator()
            if wanted.tenant != identity.NO_TENANT:
                raise errors.InvalidParams("an operator's key belongs to no tenant; leave the tenant out")
            return Owner(identity.NO_TENANT, user)
        if not wanted.scopes or wanted.scopes & {Scope.SIGN, Scope.OPERATE}:
            raise errors.InvalidParams("scopes: expected some of connect, mint, admin; or operate alone")
        if self.role is Role.TENANT_ADMIN and wanted.tenant == identity.NO_TENANT:
            return Owner(self._caller.owner.tenant, user)
        return Owner((await self.find_tenant(wanted.tenant)).name, user)

    async def revoke_key(self, key_id: str) -> Key:
        """Make a key useless; browsers and links that stand on it end within a second or so."""
        key = await self._find_key(key_id)
        await self._office.keys.revoke(key.key_id, self._site.clock.now())
        self._record(Action.KEY_REVOKE, key)
        return key

    async def rotate_key(self, key_id: str, overlap_seconds: float) -> tuple[Key, str]:
        """Make a key's successor, with the same user and scopes; the old one expires after the overlap.

        A user's own ends when the old one would have: how long they are let in is for others to say.
        """
        old, now = await self._find_key(key_id), self._site.clock.now()
        if Scope.SIGN in old.scopes:
            raise errors.PolicyRejected("a signing key is rotated on the gateway's machine: aerodrome key rotate")
        if not old.is_live(now):
            raise errors.KeyMissing(f"key {key_id} is of no use any more: create a new one")
        ends_at = old.expires_at if self.role is Role.USER else None
        key, token = identity.create_key(old.owner, now, ends_at, old.scopes)
        self._record(Action.KEY_ROTATE, old, target=key.key_id)
        await self._office.keys.rotate(old.key_id, key, now + min(overlap_seconds, MOST_OVERLAP_SECONDS))
        return key, token

    async def _find_key(self, key_id: str) -> Key:
        """Return a key that the caller may manage: an admin one of the tenant, a user one of their own."""
        key = await self._office.keys.find(key_id) if identity.is_id(key_id) else None
        own = self._caller.owner
        may_manage = key is not None and (
            self.role is Role.OPERATOR
            or (self.role is Role.TENANT_ADMIN and key.owner.tenant == own.tenant)
            or key.owner == own
        )
        if key is None or not may_manage:
            raise errors.KeyMissing(f"no key has id {key_id}")
        return key

    def _record(self, action: Action, key: Key, target: str | None = None) -> None:
        entry = Entry(action, by=self.who, owner=key.owner, key_id=key.key_id, target=target)
        self._site.services.audit.check()
        self._site.services.audit.note(entry)

    # -- looking back -----------------------------------------------------------------------------------------------------

    async def read_audit(self, limit: int, tenant: str | None) -> list[dict[str, Any]]:
        """Return the last records of the audit log, the newest first.

        Raises:
            errors.PolicyRejected: none is kept, or not for this caller.
        """
        held_to = self.tenant_of(tenant)
        if self._office.read_audit is None:
            raise errors.PolicyRejected("this gateway keeps no audit log ([audit] enabled)")
        return list(await self._office.read_audit(min(limit, MOST_AUDIT_RECORDS), held_to))

    async def find_flight(self, session_id: str, tenant: str | None = None) -> Flight:
        """Return what is kept of a session: one of a tenant's for its admin, one of their own for a user.

        Raises:
            errors.SessionMissing: there is none, or it is another's.
        """
        services = self._site.services
        held_to = None if self.role is Role.OPERATOR else self._caller.owner.tenant
        found = [one for one in services.residents if one.session_id == session_id]
        found = [one for one in found if {tenant, held_to} - {None, views.owner_of(one).tenant} == set()]
        resident = found[0] if found else None
        record = await services.ownership.find_record(session_id)
        owner = _owner_of(resident, record)
        is_own = owner == self._caller.owner
        if owner is None or (held_to is not None and owner.tenant != held_to) or not (is_own or self._sees_others):
            raise errors.SessionMissing("no such session")
        realm = resident.realm if resident is not None else record.realm if record is not None else ""
        if record is not None and record.owner != owner:
            record = None
        flight = services.recorder.find(realm, session_id) or SessionFlight()
        return Flight(session_id, owner, record, resident, flight)

    @property
    def _sees_others(self) -> bool:
        return self.role is not Role.USER


def _owner_of(resident: residents.Resident | None, record: SessionRecord | None) -> Owner | None:
    """Return whose a session is: the registry's word, where that is about the one that is held; members hold it too."""
    if record is not None and (resident is None or resident.realm == record.realm):
        return record.owner
    return views.owner_of(resident) if resident is not None else None
