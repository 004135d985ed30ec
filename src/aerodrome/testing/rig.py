"""A whole tenant gateway in this process: memory registry, scripted runtimes, real TCP on loopback.

For tests of gateway/ and fleet/: clients are `peer.Peer`s, runtimes are `ScriptedRuntime`s, everything between is the product's.
`baseline` says what a test must find unchanged when its clients have gone.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aerodrome.adapters.memory.audit import MemoryAuditLog
from aerodrome.adapters.memory.coordination import MemoryTurnCoordinator
from aerodrome.adapters.memory.erasures import MemoryErasureStore
from aerodrome.adapters.memory.members import MemoryMemberStore
from aerodrome.adapters.memory.registry import MemoryKeyStore, MemorySessionRegistry, MemoryTenantStore
from aerodrome.adapters.memory.usage import MemoryUsageStore
from aerodrome.clock import SystemClock
from aerodrome.core import connection_token, identity, placement
from aerodrome.core.backoff import Backoff
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms
from aerodrome.core.policy import ClientLoss, GitHubAccess, HostTools, Isolation, Policy, Trust
from aerodrome.fleet.pool import RuntimePool
from aerodrome.fleet.spec import FleetSettings
from aerodrome.gateway import audit, known_tenants
from aerodrome.gateway.admission import TenantAdmission, Verifiers
from aerodrome.gateway.caretaker import Caretaker
from aerodrome.gateway.client import Services
from aerodrome.gateway.deletion import Presence
from aerodrome.gateway.listener import Listener
from aerodrome.gateway.minting import Minter
from aerodrome.gateway.ownership import Ownership
from aerodrome.gateway.policy_watch import PolicyWatch
from aerodrome.gateway.presence import ResidentPresence
from aerodrome.gateway.principal_watch import PrincipalWatch
from aerodrome.gateway.reaper import ReaperSettings, SessionReaper
from aerodrome.gateway.router import Router
from aerodrome.gateway.service import TenantGateway
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.gateway.sharing import SharedSessions, SharingStores
from aerodrome.gateway.supplying import Supplier
from aerodrome.gateway.turn_queue import TurnQueue, TurnSettings
from aerodrome.gateway.usage import UsageLedger
from aerodrome.gateway.verifiers import ConnectionTokenVerifier, IssuerVerifier, KeyVerifier
from aerodrome.ports.host import RuntimeHost
from aerodrome.ports.issuers import IssuerKeys
from aerodrome.testing import peer
from aerodrome.testing.peer import Peer
from aerodrome.testing.scripted_host import ScriptedHost

#: Tenants of every rig: the name says how their sessions are isolated; `other` shares the runtimes of `shared`.
#: Turns of the patient ones outlive their clients.
TENANTS = {
    "alone": Policy(Isolation.USER, Trust.FULL, ("*",)),
    "guarded": Policy(Isolation.USER),
    "team": Policy(Isolation.TENANT),
    "shared": Policy(Isolation.SHARED),
    "other": Policy(Isolation.SHARED),
    "supplied": Policy(Isolation.USER, Trust.FULL, ("*",), provider="house", provider_names=("other",)),
    "supplied-shared": Policy(Isolation.SHARED, provider="house", provider_names=("other",)),
    "supplied-patient": Policy(Isolation.USER, Trust.FULL, client_loss=ClientLoss.FINISH, provider="house"),
    "signed-in": Policy(Isolation.USER, Trust.FULL, github=GitHubAccess.STORED),
    "patient": Policy(Isolation.USER, Trust.FULL, ("*",), client_loss=ClientLoss.FINISH),
    "patient-shared": Policy(Isolation.SHARED, client_loss=ClientLoss.FINISH),
}


#: The master key of every rig, and what it says of connection tokens.
MASTER_KEY = b"a master key for tests, 32 or more"
TERMS = Terms(connection_token.AUDIENCE, skew_seconds=0.0, max_seconds=3600.0)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an idle gateway holds."""

    tasks: int
    descriptors: int
    routes: int
    links: int


class Rig:
    """A gateway that listens; see `open_rig`."""

    def __init__(
        self,
        host: RuntimeHost,
        fleet_settings: FleetSettings,
        settings: GatewaySettings,
        supplier: Supplier | None = None,
        turn_settings: TurnSettings | None = None,
    ) -> None:
        self.clock = SystemClock()
        self.host = host
        self.pool = RuntimePool(host, fleet_settings)
        self.pool.start()
        self.registry = MemorySessionRegistry()
        self.keys = MemoryKeyStore()
        self.ownership = Ownership(self.registry, self.clock, settings.ownership_cache_seconds)
        self.router = Router()
        tenants = self.configured = {name: Tenant(name, policy, "config") for name, policy in TENANTS.items()}
        self.tenants = MemoryTenantStore(self.keys, self.clock)
        find_tenant = functools.partial(known_tenants.find_tenant, tenants, self.tenants)
        #: A test may add to it, before its clients come.
        self.issuers: list[tuple[Issuer, IssuerKeys]] = []
        verifiers = Verifiers(
            KeyVerifier(self.keys),
            ConnectionTokenVerifier(self.keys, MASTER_KEY, TERMS),
            IssuerVerifier(self.issuers),
        )
        self.audit_log = MemoryAuditLog()
        auditor = audit.Auditor(self.audit_log)
        self.sharing = _open_sharing(find_tenant, self.clock)
        self.turns = TurnQueue(self.sharing, turn_settings or TurnSettings())
        parts = (self.pool, self.ownership, self.router, settings, supplier or Supplier(), self.sharing, self.turns)
        self.usage = MemoryUsageStore()
        services = Services(*parts, audit=auditor, usage=UsageLedger(self.usage, self.clock))
        self.find_tenant = find_tenant
        self.erasures = MemoryErasureStore()
        self.gateway = TenantGateway(services, TenantAdmission(verifiers, find_tenant, self.clock, self.erasures))
        self.policies = PolicyWatch(self.gateway, self.configured, self.tenants, self.pool.handles)
        self.services = services
        self.minter = Minter(self.keys, find_tenant, MASTER_KEY, 3600.0, self.clock)
        self.watch = PrincipalWatch(self.gateway, self.keys, find_tenant, self.clock, settings.principals_seconds)
        self._watching: asyncio.Task[None] | None = None
        self.caretaker = Caretaker(services)
        self.listener = Listener(self.gateway.serve, settings)
        #: Set when an operator asks for a drain.
        self.drains = asyncio.Event()
        self.address = ("127.0.0.1", 0)
        self._clients: list[Peer] = []
        self._tokens: dict[Owner, str] = {}

    @property
    def scripted(self) -> ScriptedHost:
        """Return the host, where it is the scripted one."""
        assert isinstance(self.host, ScriptedHost)
        return self.host

    def reaper(
        self, policies: Mapping[str, Policy], presence: Presence | None = None, settings: ReaperSettings | None = None
    ) -> SessionReaper:
        """Return a reaper under which tenants of the rig have these policies; the test makes its passes."""

        async def list_tenants() -> list[Tenant]:
            return [Tenant(name, policy, "config") for name, policy in policies.items()]

        presence = presence or ResidentPresence(self.services)
        return SessionReaper(
            self.pool, self.ownership, list_tenants, presence, self.clock, settings or ReaperSettings()
        )

    async def token(self, tenant: str, user: str) -> str:
        """Return a user's token."""
        owner = Owner(tenant, user)
        if owner not in self._tokens:
            key, self._tokens[owner] = identity.create_key(owner, time.time())
            await self.keys.add(key)
        return self._tokens[owner]

    async def client(self, tenant: str, user: str = "user", **introduction: Any) -> Peer:
        """Connect a user; the rig closes what the test leaves open."""
        client = await peer.open_client(*self.address, await self.token(tenant, user), **introduction)
        self._clients.append(client)
        return client

    async def stranger(self) -> Peer:
        """Connect without proving anything."""
        client = await peer.open_peer(*self.address)
        self._clients.append(client)
        return client

    def realm(self, tenant: str, user: str = "user") -> str:
        """Return the key of a user's realm."""
        return placement.realm_of(Owner(tenant, user), TENANTS[tenant]).key

    def links(self) -> int:
        """Return how many links the pool counts on its ready runtimes."""
        return sum(placed.handle.links for realm in self.pool._realms.values() for placed in realm.ready.values())

    def upstreams(self) -> int:
        """Return how many upstream links all clients hold."""
        return sum(len(client.upstreams) for clients in self.gateway._clients.values() for client in clients)

    def start(self) -> None:
        """Begin what looks after runtimes and principals."""
        self.caretaker.start()
        self._watching = asyncio.get_running_loop().create_task(self.watch.run(), name="principal watch")

    def baseline(self) -> Baseline:
        """Return what is held now."""
        descriptors = len(os.listdir("/proc/self/fd"))
        return Baseline(len(asyncio.all_tasks()), descriptors, len(self.router), self.links())

    async def settled(self, condition: Callable[[], Any], seconds: float = peer.WAIT_SECONDS) -> Any:
        """Wait until a condition about the gateway's own state holds; return its value. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):  # noqa: ASYNC110  the product has no events for tests to wait on
                await asyncio.sleep(0.002)
        return found

    async def aclose(self) -> None:
        """Close clients, gateway, runtimes, in that order."""
        for client in self._clients:
            await client.aclose()
        await self.listener.aclose()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        await self.caretaker.aclose()
        await self.turns.aclose()
        await self.sharing.aclose()
        self.services.audit.close()
        await self.pool.aclose()


def _open_sharing(find_tenant: Callable[[str], Awaitable[Tenant | None]], clock: SystemClock) -> SharedSessions:
    members, coordinator = MemoryMemberStore(), MemoryTurnCoordinator(clock)
    return SharedSessions(SharingStores(members, members, coordinator, coordinator), find_tenant, clock, 0.2)


def fleet_settings(state_directory: Path, **changes: Any) -> FleetSettings:
    """Return settings that fail fast."""
    settings = FleetSettings(
        entry=Path("scripted"),
        is_native=True,
        version="scripted",
        state_directory=state_directory,
        host_tools=HostTools.UNSANDBOXED,
        ready_seconds=30.0,
        stop_grace_seconds=0.2,
        backoff=Backoff(first_seconds=0.01, limit_seconds=0.02, attempts=3),
    )
    return replace(settings, **changes)


@asynccontextmanager
async def open_rig(
    host: RuntimeHost,
    fleet: FleetSettings,
    settings: GatewaySettings | None = None,
    supplier: Supplier | None = None,
) -> AsyncIterator[Rig]:
    """Run a gateway over a host for the length of a block."""
    rig = Rig(
        host, fleet, settings or GatewaySettings(listen_port=0, handshake_seconds=30.0, stall_seconds=30.0), supplier
    )
    try:
        rig.address = await rig.listener.start()
        rig.start()
        yield rig
    finally:
        await rig.aclose()
