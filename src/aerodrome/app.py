"""The composition root: the only file that names concrete adapters, beside signing_in, which is imported where it is wanted.

`open_application` builds everything from settings; `run` serves until a signal; closing goes backwards through the same list.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import structlog

from aerodrome import errors, registry_root, tailoring
from aerodrome import settings as settings_module
from aerodrome.adapters.audit.log import FileAuditLog
from aerodrome.adapters.distribution import install, release
from aerodrome.adapters.github.oauth import GitHubIssuer
from aerodrome.adapters.jwks.keys import JwksKeys
from aerodrome.adapters.memory.coordination import MemoryTurnCoordinator
from aerodrome.adapters.process import orphans
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.adapters.sandbox import choice
from aerodrome.adapters.secrets.cached import CachedSecrets
from aerodrome.adapters.secrets.command import CommandSource
from aerodrome.adapters.secrets.local import EnvironmentSource, FileSource
from aerodrome.adapters.secrets.vault import VaultSource
from aerodrome.adapters.sql import stores as sql_stores
from aerodrome.admin import erasure
from aerodrome.admin.erasure import Eraser
from aerodrome.admin.operations import Operations
from aerodrome.admin.server import AdminServer
from aerodrome.clock import Clock, SystemClock
from aerodrome.core import connection_token, secret
from aerodrome.core.audit import Action, Entry
from aerodrome.core.identity import Tenant
from aerodrome.core.jwt import Terms
from aerodrome.core.policy import HostTools
from aerodrome.fleet.given import GivenUpstream
from aerodrome.fleet.pool import RuntimePool
from aerodrome.gateway import known_tenants
from aerodrome.gateway.admission import FixedAdmission, TenantAdmission, Verifiers
from aerodrome.gateway.audit import UNAUDITED, Auditor
from aerodrome.gateway.caretaker import Caretaker
from aerodrome.gateway.client import Services
from aerodrome.gateway.forwarder import Forwarder
from aerodrome.gateway.github_tokens import GitHubTokens, TokenCourier
from aerodrome.gateway.known_tenants import FindTenant
from aerodrome.gateway.listener import Listener, Serve
from aerodrome.gateway.minting import Minter
from aerodrome.gateway.ownership import Ownership
from aerodrome.gateway.policy_watch import PolicyWatch
from aerodrome.gateway.presence import ResidentPresence
from aerodrome.gateway.principal_watch import PrincipalWatch
from aerodrome.gateway.reaper import SessionReaper
from aerodrome.gateway.router import Router
from aerodrome.gateway.service import TenantGateway
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.gateway.sharing import SharedSessions, SharingStores
from aerodrome.gateway.supplying import Supplier
from aerodrome.gateway.transparent import TransparentRelay
from aerodrome.gateway.turn_queue import TurnQueue, TurnSettings
from aerodrome.gateway.usage import UsageLedger
from aerodrome.gateway.verifiers import ConnectionTokenVerifier, IssuerVerifier, KeyVerifier
from aerodrome.ports.fleet import Fleet
from aerodrome.ports.host import RuntimeHost
from aerodrome.ports.secrets import SecretSource
from aerodrome.ports.tokens import TokenStore
from aerodrome.reloading import Reloader
from aerodrome.settings import Settings
from aerodrome.transport.asgi import AsgiServer
from aerodrome.transport.tls import ServerCertificate, TlsFiles

if TYPE_CHECKING:
    from aerodrome.http.edge import HttpEdge
    from aerodrome.http.site import SignInDoor

_log = structlog.get_logger()

Stores: TypeAlias = sql_stores.Stores
open_stores = registry_root.open_stores

#: Model calls under way; runtimes try a refused one again.
FORWARDED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Application:
    """A gateway that listens. `stores` is None under the transparent policy, which remembers nothing."""

    host: str
    port: int
    listener: Listener
    fleet: Fleet
    stores: Stores | None
    runtime_path: str | None
    services: Services | None
    policies: PolicyWatch | None = None
    reloader: Reloader | None = None
    #: What serves HTTP; None where nothing does.
    edge: HttpEdge | None = None

    @property
    def http(self) -> tuple[str, int] | None:
        """Return where the HTTP API is; None where there is none."""
        return self.edge.address if self.edge is not None else None


@asynccontextmanager
async def open_application(
    settings: Settings,
    ask_to_drain: Callable[[], None] | None = None,
    load: Callable[[], Settings] | None = None,
) -> AsyncIterator[Application]:
    """Build and start everything; stop it in the opposite order. `ask_to_drain` does what a signal does, for operators.

    `load` reads the settings again, for reloads; without it there are none.
    """
    _raise_file_limit()
    async with AsyncExitStack() as stack:
        admin = AdminServer(settings.state_directory)
        if settings.upstream is None:
            stack.enter_context(orphans.sole_use(settings.state_directory))
            await _collect_orphans(settings.state_directory)
        # Closed after all below: an operator who watches a drain hears of its end.
        stack.push_async_callback(admin.aclose)
        fleet, found = await _open_fleet(settings)
        stack.push_async_callback(fleet.aclose)
        gateway_settings = tailoring.gateway_settings(settings, found)
        stores: Stores | None = None
        gateway: TenantGateway | None = None
        minter: Minter | None = None
        policies: PolicyWatch | None = None
        if settings.policy == "transparent":
            serve = _transparent(settings, fleet, gateway_settings)
        else:
            stores = await stack.enter_async_context(open_stores(settings))
            gateway, policies, minter = await _for_tenants(settings, gateway_settings, fleet, stores, stack)
            serve = gateway.serve
        certificate = _certificate(settings)
        listener = Listener(serve, gateway_settings, certificate)
        if gateway is not None:
            listener.note_rejected = functools.partial(gateway.services.recorder.reject, "capacity")
        # Pushed last, closed first: links end while runtimes and stores still answer.
        stack.push_async_callback(listener.aclose)
        host, port = await listener.start()
        reloader = _reloader(settings, load, policies, gateway)
        operations: Operations | None = None
        if isinstance(fleet, RuntimePool):
            facts = tailoring.facts(settings, f"{host}:{port}")
            eraser = _eraser(settings, fleet, gateway, stores, policies)
            operations = Operations(fleet, facts, gateway, ask_to_drain, minter, eraser)
            operations.reload = reloader.reload if reloader is not None else None
        edge: HttpEdge | None = None
        if gateway is not None and stores is not None and policies is not None:
            edge = await _open_edge(settings, (gateway, stores, policies, minter), operations, certificate, stack)
        if operations is not None:
            await admin.start(operations)
        _log.info("gateway.started", host=host, port=port, policy=settings.policy)
        services = gateway.services if gateway is not None else None
        path = str(found.entry) if found else None
        yield Application(host, port, listener, fleet, stores, path, services, policies, reloader, edge)
        _log.info("gateway.stopping", links=listener.links)
    _log.info("gateway.stopped")


def _reloader(
    settings: Settings,
    load: Callable[[], Settings] | None,
    policies: PolicyWatch | None,
    gateway: TenantGateway | None,
) -> Reloader | None:
    if load is None or policies is None or gateway is None:
        return None
    return Reloader(settings, load, policies, gateway.services.audit)


async def _open_edge(
    settings: Settings,
    inside: tuple[TenantGateway, Stores, PolicyWatch, Minter | None],
    operations: Operations | None,
    certificate: ServerCertificate | None,
    stack: AsyncExitStack,
) -> HttpEdge | None:
    """Serve HTTP, where it is asked for."""
    if settings.http.listen is None:
        return None
    # Here, because its libraries would be a third of the start of every command and of a gateway without HTTP.
    from aerodrome import http_root  # noqa: PLC0415

    gateway, stores, policies, minter = inside
    office = http_root.office(settings, stores, policies, operations, registry_root.audit_trail(settings))
    office = replace(office, sign_in=_open_sign_in(settings, stack), minter=minter)
    return await http_root.open_edge(settings, gateway, stores, office, certificate, stack)


def _open_sign_in(settings: Settings, stack: AsyncExitStack) -> SignInDoor | None:
    """Return how browsers sign in at an identity provider, where that is configured."""
    if settings.sign_in is None:
        return None
    from aerodrome import signing_in  # noqa: PLC0415  its libraries are slow to import
    from aerodrome.http.site import SignInDoor  # noqa: PLC0415

    clock = SystemClock()
    secrets = open_secrets(settings, clock)
    stack.push_async_callback(secrets.aclose)
    opened = signing_in.open_browser_sign_in(settings, secrets, clock)
    assert opened is not None
    stack.push_async_callback(opened.provider.aclose)
    label = "GitHub" if settings.sign_in.provider == "github" else urlsplit(settings.sign_in.issuer or "").hostname
    return SignInDoor(label or "your identity provider", opened.provider, opened.rules)


def _eraser(
    settings: Settings,
    fleet: RuntimePool,
    gateway: TenantGateway | None,
    stores: Stores | None,
    policies: PolicyWatch | None,
) -> Eraser | None:
    if gateway is None or stores is None or policies is None:
        return None
    find_tenant = functools.partial(known_tenants.find_tenant, policies.configured, stores.tenants)
    state, outstanding = settings.state_directory.absolute(), _outstanding(settings, stores)
    return Eraser(erasure.Site(state, fleet, gateway.services, stores.people, outstanding, find_tenant, gateway))


def _outstanding(settings: Settings, stores: Stores) -> erasure.Outstanding:
    tokens = settings.tokens
    skew_seconds = max((tokens.skew_seconds, *(section.skew_seconds for section in settings.issuers)))
    # A note must outlast every connection token, whatever is configured for others.
    keep_seconds = max(tokens.erased_seconds, tokens.max_seconds + 2 * skew_seconds)
    return erasure.Outstanding(stores.erasures, SystemClock(), skew_seconds, keep_seconds)


@asynccontextmanager
async def open_eraser(settings: Settings) -> AsyncIterator[Eraser]:
    """Open what an erasure needs where no gateway runs: the state directory, held alone, and runtimes as they are wanted.

    Raises:
        errors.ConfigError: a gateway runs over it. errors.RuntimeMissing: there is no Copilot runtime.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(orphans.sole_use(settings.state_directory))
        await _collect_orphans(settings.state_directory)
        log = FileAuditLog(registry_root.audit_settings(settings)) if settings.audit.enabled else None
        if log is not None:
            stack.push_async_callback(log.aclose)
        found = await asyncio.to_thread(install.install, settings.runtime.path)
        pool = await _open_pool(settings, found, keeps_warm=False)
        stack.push_async_callback(pool.aclose)
        stores = await stack.enter_async_context(open_stores(settings))
        gateway_settings = tailoring.gateway_settings(settings, found)
        ownership = Ownership(stores.sessions, SystemClock(), gateway_settings.ownership_cache_seconds)
        services = Services(pool, ownership, Router(), gateway_settings, audit=Auditor(log))
        stack.push_async_callback(services.aclose)
        find_tenant = functools.partial(known_tenants.find_tenant, settings.configured_tenants(), stores.tenants)
        state, outstanding = settings.state_directory.absolute(), _outstanding(settings, stores)
        yield Eraser(erasure.Site(state, pool, services, stores.people, outstanding, find_tenant))


async def run(
    settings: Settings,
    ready: Callable[[Application], Awaitable[None]],
    load: Callable[[], Settings] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once. `ready` is called once links are accepted.

    SIGHUP reads the settings again with `load`.
    """
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with open_application(settings, lambda: signals.put_nowait(signal.SIGTERM), load) as application:
        reloads = _listen_for_reloads(application.reloader)
        await ready(application)
        await signals.get()
        await _drain(application, settings.drain_seconds, signals)
        for task in list(reloads):
            await _end_task(task)


def _listen_for_reloads(reloader: Reloader | None) -> set[asyncio.Task[None]]:
    """Reload at SIGHUP; where there is nothing to reload it ends the process as ever. Return the reloads under way."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    if reloader is None:
        return tasks

    def reload() -> None:
        task = loop.create_task(reloader.reload_by_signal(), name="reload")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    return tasks


async def _drain(application: Application, seconds: float, signals: asyncio.Queue[int]) -> None:
    """Let what runs finish, until the deadline or the next signal."""
    application.listener.stop_accepting()
    if application.services is None or not seconds:
        return
    draining = asyncio.ensure_future(application.services.drainer.drain(seconds, _note_progress))
    forcing = asyncio.ensure_future(signals.get())
    await asyncio.wait((draining, forcing), return_when=asyncio.FIRST_COMPLETED)
    _log.info("gateway.drained", left=application.services.drainer.at_work, forced=not draining.done())
    for task in (draining, forcing):
        task.cancel()
    await asyncio.wait((draining, forcing))


def _note_progress(at_work: int) -> None:
    _log.info("gateway.draining", at_work=at_work)


def run_loop(work: Awaitable[None]) -> None:
    """Run the event loop, on uvloop where it is installed. A TERM or INT that comes before `run` listens undoes what was done."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        # INT too: a shell has what it starts in the background ignore it, and `run` will listen to it all the same.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await work

    factory = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415  optional

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(main())
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)


async def _for_tenants(
    settings: Settings, gateway_settings: GatewaySettings, fleet: Fleet, stores: Stores, stack: AsyncExitStack
) -> tuple[TenantGateway, PolicyWatch, Minter]:
    clock = SystemClock()
    auditor = await _open_auditor(settings, stack)
    ownership = Ownership(stores.sessions, clock, gateway_settings.ownership_cache_seconds)
    flushing = asyncio.create_task(
        ownership.flush_every(gateway_settings.touch_seconds, _note_flush_failure), name="registry flush"
    )
    stack.push_async_callback(_end_task, flushing)
    configured = settings.configured_tenants()
    supplier = await _open_supplier(settings, clock, stack, stores.tokens)
    if isinstance(fleet, RuntimePool) and supplier.forwarder_url:
        fleet.let_all_reach(supplier.forwarder_url.removeprefix("http://"))
    ownership.keepers.append(stores.conversations.forget)
    usage = _open_usage(gateway_settings, stores, clock, stack)
    find_tenant = functools.partial(known_tenants.find_tenant, configured, stores.tenants)
    sharing = _open_sharing(stores, find_tenant, clock)
    turns = TurnQueue(sharing, TurnSettings(settings.turns.lease_seconds))
    services = Services(
        fleet, ownership, Router(), gateway_settings, supplier, sharing, turns, audit=auditor, usage=usage
    )
    caretaker = Caretaker(services)
    stack.push_async_callback(caretaker.aclose)
    caretaker.start()
    if supplier.tokens is not None:
        courier = TokenCourier(supplier, services.residents, settings.github.host, settings.github.check_seconds)
        stack.push_async_callback(_end_task, asyncio.create_task(courier.run(), name="token courier"))
    if settings.sessions.reap_interval_seconds:
        list_tenants = functools.partial(known_tenants.list_tenants, configured, stores.tenants)
        presence = ResidentPresence(services)
        reaper = SessionReaper(
            fleet, ownership, list_tenants, presence, clock, tailoring.reaper_settings(settings, auditor)
        )
        reaping = asyncio.create_task(reaper.run(), name="session reaper")
        stack.push_async_callback(_end_task, reaping)
    verifiers = _verifiers(settings, stores, clock, stack)
    gateway = TenantGateway(services, TenantAdmission(verifiers, find_tenant, clock, stores.erasures))
    watch = PrincipalWatch(gateway, stores.keys, find_tenant, clock, gateway_settings.principals_seconds)
    watching = asyncio.create_task(watch.run(), name="principal watch")
    stack.push_async_callback(_end_task, watching)
    minter = Minter(stores.keys, find_tenant, settings.read_master_key(), settings.tokens.max_seconds, clock)
    return gateway, _watch_policies(gateway, configured, stores, stack), minter


def _open_usage(settings: GatewaySettings, stores: Stores, clock: Clock, stack: AsyncExitStack) -> UsageLedger:
    """Begin to count what model calls take."""
    usage = UsageLedger(stores.usage, clock)
    counting = asyncio.create_task(usage.flush_every(settings.touch_seconds, _note_flush_failure), name="usage flush")
    stack.push_async_callback(_end_task, counting)
    return usage


def _open_sharing(stores: Stores, find_tenant: FindTenant, clock: Clock) -> SharedSessions:
    """Return what makes sessions shared; turns are agreed within this process."""
    coordinator = MemoryTurnCoordinator(clock)
    return SharedSessions(SharingStores(stores.members, stores.members, coordinator, coordinator), find_tenant, clock)


def _watch_policies(
    gateway: TenantGateway, configured: dict[str, Tenant], stores: Stores, stack: AsyncExitStack
) -> PolicyWatch:
    """Keep policies current; `configured` is the mapping in which everyone looks tenants up, changed in place."""
    fleet = gateway.services.fleet
    watch = PolicyWatch(gateway, configured, stores.tenants, fleet.handles if isinstance(fleet, RuntimePool) else list)
    watching = asyncio.create_task(watch.run(gateway.services.settings.policy_seconds), name="policy watch")
    stack.push_async_callback(_end_task, watching)
    return watch


def _verifiers(settings: Settings, stores: Stores, clock: Clock, stack: AsyncExitStack) -> Verifiers:
    issuers = [(issuer, JwksKeys(issuer, clock)) for issuer in settings.configured_issuers()]
    for _, keys in issuers:
        stack.push_async_callback(keys.aclose)
    tokens = settings.tokens
    terms = Terms(connection_token.AUDIENCE, tokens.skew_seconds, tokens.max_seconds)
    connection_tokens = ConnectionTokenVerifier(stores.keys, settings.read_master_key(), terms)
    return Verifiers(KeyVerifier(stores.keys), connection_tokens, IssuerVerifier(issuers))


async def _open_supplier(settings: Settings, clock: SystemClock, stack: AsyncExitStack, tokens: TokenStore) -> Supplier:
    """Open what gives sessions the gateway's own credentials: closed after the links that use it."""
    providers = settings.configured_providers()
    supplier = Supplier(providers)
    secrets = open_secrets(settings, clock)
    stack.push_async_callback(secrets.aclose)
    envelopes = settings.envelopes()
    if envelopes is not None:
        issuer = _open_issuer(settings, secrets, clock, stack)
        supplier.tokens = GitHubTokens(tokens, envelopes, issuer, clock, settings.github.refresh_before_seconds)
    if providers:
        forwarder = Forwarder(supplier, secrets, settings.limits.max_frame_bytes)
        stack.push_async_callback(forwarder.aclose)
        server = AsgiServer(forwarder, FORWARDED_AT_ONCE)
        stack.push_async_callback(server.aclose)
        supplier.forwarder_url = f"http://127.0.0.1:{await server.start()}"
    return supplier


def _certificate(settings: Settings) -> ServerCertificate | None:
    """Load the listener's certificate; warn where tokens would cross a network in clear."""
    tls = settings.tls
    if tls.certificate is not None and tls.key is not None:
        return ServerCertificate(TlsFiles(tls.certificate, tls.key, tls.client_ca))
    if not settings_module.is_loopback(settings_module.split_address("listen", settings.listen)[0]):
        fix = "set tls.certificate and tls.key (docs/connect.md)"
        _log.warning("gateway.unencrypted", listen=settings.listen, reason="tokens and prompts cross in clear", fix=fix)
    return None


def _transparent(settings: Settings, fleet: Fleet, gateway_settings: GatewaySettings) -> Serve:
    token = settings.client_token.get_secret_value() if settings.client_token else None
    return TransparentRelay(fleet, FixedAdmission(token), gateway_settings).serve


async def _open_auditor(settings: Settings, stack: AsyncExitStack) -> Auditor:
    """Open the audit log, if one is to be kept."""
    if not settings.audit.enabled:
        return UNAUDITED
    log = FileAuditLog(registry_root.audit_settings(settings))
    stack.push_async_callback(log.aclose)
    await log.open()
    auditor = Auditor(log)
    stack.callback(auditor.note, Entry(Action.GATEWAY_STOP, by="gateway"))
    stack.callback(auditor.close)
    return auditor


async def _open_fleet(settings: Settings) -> tuple[Fleet, release.RuntimeRelease | None]:
    if settings.upstream is not None:
        host, port = settings_module.split_address("upstream", settings.upstream)
        token = settings.upstream_token.get_secret_value() if settings.upstream_token else None
        return GivenUpstream(host, port, token), None
    found = await asyncio.to_thread(install.install, settings.runtime.path, release.Wanted(settings.runtime.entry))
    if found.warning is not None:
        _log.warning("runtime.release_differs", reason=found.warning)
    return await _open_pool(settings, found), found


async def _open_pool(settings: Settings, found: release.RuntimeRelease, keeps_warm: bool = True) -> RuntimePool:
    """Begin to keep runtimes, those with host tools sandboxed as the settings have it."""
    runtimes, host_tools = await _open_host(settings, found)
    chosen = replace(tailoring.fleet_settings(settings, found), host_tools=host_tools)
    pool = RuntimePool(runtimes, chosen if keeps_warm else replace(chosen, warm_runtimes=0))
    pool.start()
    return pool


async def _open_host(settings: Settings, found: release.RuntimeRelease) -> tuple[RuntimeHost, HostTools]:
    """Return where runtimes are started, and what becomes of those with host tools."""
    if settings.policy == "transparent":
        return ProcessHost(), HostTools.UNSANDBOXED  # the operator's own program, which is to notice nothing
    wishes = tailoring.sandbox_wishes(settings, found)
    return choice.open_host(ProcessHost(), await asyncio.to_thread(choice.choose, wishes), wishes)


def _open_issuer(
    settings: Settings, secrets: CachedSecrets, clock: SystemClock, stack: AsyncExitStack
) -> GitHubIssuer | None:
    """Return who renews GitHub tokens, None where no app is configured."""
    section = settings.github
    if section.client_id is None:
        return None
    text = section.client_secret
    reference = None if text is None else secret.parse("github.client_secret", text)
    issuer = GitHubIssuer(section.host, section.client_id, reference, secrets, clock)
    stack.push_async_callback(issuer.aclose)
    return issuer


def open_secrets(settings: Settings, clock: SystemClock) -> CachedSecrets:
    """Return all configured sources of secrets behind one door."""
    section = settings.secrets
    sources: dict[str, SecretSource] = {
        "env": EnvironmentSource(os.environ),
        "file": FileSource(checks_mode=True),
        "k8s": FileSource(checks_mode=False),
        "exec": CommandSource(section.command_seconds),
    }
    vault_settings = settings.vault_settings()
    if vault_settings is not None:
        sources["vault"] = VaultSource(vault_settings, dict(sources), clock)
    return CachedSecrets(sources, clock, section.cache_seconds, section.grace_seconds)


async def _collect_orphans(directory: Path) -> None:
    """Kill what earlier gateways over this directory left behind; it must be held alone."""
    killed = await asyncio.to_thread(orphans.collect, directory)
    if killed:
        _log.warning("orphans.collected", count=len(killed))


def _note_flush_failure(error: errors.StoreUnavailable) -> None:
    _log.warning("registry.flush_failed", reason=error.message)


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _raise_file_limit() -> None:
    """Use all the file descriptors the system grants: a link costs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
