"""Policies that change while links are open: read again on schedule, or when the operator says so, and put in force at once.

Calls are judged by `client.principal.policy`, which is replaced here. Open sessions follow as gateway.tightening says. Where the
change is one of the runtime itself (isolation, trust, host tools), the tenant's links are closed and its runtimes cordoned: who
connects again gets the realm that is right now. What a sandbox lets out changes while it runs. What cannot be read changes
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import structlog

from aerodrome import errors
from aerodrome.core import placement
from aerodrome.core.audit import Outcome
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import ClientLoss, Policy
from aerodrome.gateway import known_tenants, tightening
from aerodrome.gateway.client import Client
from aerodrome.gateway.service import TenantGateway
from aerodrome.ports.fleet import RuntimeHandle
from aerodrome.ports.registry import TenantStore

_log = structlog.get_logger()
REASON = "the tenant's policy has changed"


class PolicyWatch:
    """Keeps the policies of open links current. `configured` is changed in place: whoever looks tenants up shares it."""

    def __init__(
        self,
        gateway: TenantGateway,
        configured: dict[str, Tenant],
        stored: TenantStore,
        list_runtimes: Callable[[], Sequence[RuntimeHandle]],
    ) -> None:
        self._gateway = gateway
        self._configured = configured
        self._stored = stored
        self._list_runtimes = list_runtimes
        self._known: dict[str, Tenant] = dict(configured)
        self._reading = asyncio.Lock()
        self._unreadable: set[str] = set()

    @property
    def configured(self) -> Mapping[str, Tenant]:
        """Return the tenants of the configuration as they are in force, now and later."""
        return self._configured

    async def find_tenant(self, name: str) -> Tenant | None:
        """Return the tenant of that name as it is in force."""
        return await known_tenants.find_tenant(self._configured, self._stored, name)

    async def list_tenants(self) -> list[Tenant]:
        """Return every tenant once."""
        return await known_tenants.list_tenants(self._configured, self._stored)

    async def run(self, interval_seconds: float) -> None:
        """Look now and on schedule, until cancelled."""
        while True:
            try:
                await self.refresh()
            except errors.StoreUnavailable as error:
                _log.warning("policy.unread", reason=error.message)
            except Exception:
                _log.exception("policy.unread")
            await asyncio.sleep(interval_seconds)

    async def replace_configured(self, configured: Mapping[str, Tenant]) -> int:
        """Put other tenants of the configuration in force; return how many open links have another policy now.

        Raises:
            errors.StoreUnavailable: those of the database could not be read; the configured ones are in force all the same.
        """
        self._configured.clear()
        self._configured.update(configured)
        changed = self._apply({**self._known, **configured})
        return changed + await self.refresh()

    async def refresh(self) -> int:
        """Read the tenants of the database again; return how many open links have another policy now.

        Raises:
            errors.StoreUnavailable: they could not be read; nothing has changed.
        """
        async with self._reading:
            stored = await self._read()
            self._note_changes(stored)
            return self._apply({**stored, **self._configured})

    def _note_changes(self, stored: Mapping[str, Tenant]) -> None:
        """Record which tenants of the database are not what they were."""
        for name, tenant in self._known.items():
            if tenant.source == "database" and name not in self._configured and tenant != stored.get(name):
                reason = "changed in the database" if name in stored else "removed from the database"
                self._gateway.services.audit.policy_changed(name, reason)

    async def _read(self) -> dict[str, Tenant]:
        try:
            stored = {tenant.name: tenant for tenant in await self._stored.list_all()}
        except errors.ConfigError:
            # One that cannot be read must not keep the others from changing.
            return await self._read_each()
        self._unreadable.clear()
        return stored

    async def _read_each(self) -> dict[str, Tenant]:
        found = {}
        names = {client.owner.tenant for client in self._clients()} | self._known.keys()
        for name in sorted(names - self._configured.keys()):
            try:
                tenant = await self._stored.find(name)
            except errors.ConfigError as error:
                tenant = self._known.get(name)
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    _log.error("policy.refused", tenant=name, reason=error.message)
                    self._gateway.services.audit.policy_changed(name, error.code, Outcome.FAILED)
            if tenant is not None:
                found[name] = tenant
        return found

    def _apply(self, tenants: dict[str, Tenant]) -> int:
        """Put policies in force; in one step of the event loop."""
        known, self._known = self._known, tenants
        for name, tenant in known.items():
            now = tenants.get(name)
            if now is None or _runtime_of(now.policy) != _runtime_of(tenant.policy) or _runtimes_differ(tenant, now):
                self._cordon(name)
            if now is not None and now != tenant:
                self._let_reach(now)
        return sum(self._follow(client, tenants.get(client.owner.tenant)) for client in self._clients())

    def _follow(self, client: Client, tenant: Tenant | None) -> bool:
        if tenant is None:
            self._close(client, client.principal.policy, "its tenant is removed")
            return True
        policy = tenant.policy_for(client.owner.user)
        was = client.principal.policy
        if policy == was:
            return False
        if _runtime_of(policy) != _runtime_of(was):
            self._close(client, policy, REASON)
        else:
            client.principal = replace(client.principal, policy=policy)
            client.realm = placement.under(client.realm, policy)
            self._gateway.services.fleet.let_reach(client.realm)
            tightening.tell(client)
        return True

    def _close(self, client: Client, policy: Policy, reason: str) -> None:
        """Close a link; a turn of it ends too, whatever client loss says, for it runs where it may not."""
        _log.info("link.closed_by_policy", link=client.number, tenant=client.owner.tenant, reason=reason)
        self._gateway.services.audit.closed(client, reason)
        client.principal = replace(client.principal, policy=replace(policy, client_loss=ClientLoss.CLOSE))
        self._gateway.services.finishing.cut(client)
        client.link.close()

    def _cordon(self, tenant: str) -> None:
        for handle in self._list_runtimes():
            if handle.realm.tenant == tenant:
                self._gateway.services.fleet.cordon(handle, REASON)

    def _let_reach(self, tenant: Tenant) -> None:
        """Put in force what the tenant's sandboxes let out, those without links included."""
        for handle in self._list_runtimes():
            if handle.realm.tenant == tenant.name:
                policy = tenant.policy_for(handle.realm.user) if handle.realm.user is not None else tenant.policy
                self._gateway.services.fleet.let_reach(placement.under(handle.realm, policy))

    def _clients(self) -> Iterator[Client]:
        """Yield the clients that are there, or have left turns; one whose link is closing is followed when it is neither."""
        yield from (client for client in self._gateway.clients if not client.link.is_closing)
        yield from self._gateway.services.finishing.clients


def _runtime_of(policy: Policy) -> tuple[object, ...]:
    """Return what a policy says of the runtimes themselves, and of who shares them."""
    has_host_tools = policy.gives_host_tools
    return policy.isolation, policy.trust, has_host_tools, policy.work_root if has_host_tools else None


def _runtimes_differ(was: Tenant, now: Tenant) -> bool:
    users = was.users.keys() | now.users.keys()
    return any(_runtime_of(was.policy_for(user)) != _runtime_of(now.policy_for(user)) for user in users)
