"""Settings cut to what each part takes: the one place where a setting becomes a part's own value.

Pure. Which parts there are is for app.py.
"""

from __future__ import annotations

from aerodrome import settings as settings_module
from aerodrome.adapters.distribution import release
from aerodrome.adapters.sandbox.bubblewrap import Network
from aerodrome.adapters.sandbox.choice import Wishes
from aerodrome.admin.views import Facts
from aerodrome.core.backoff import Backoff
from aerodrome.core.vitals import DriftLimits
from aerodrome.fleet.spec import FleetSettings, HealthSettings
from aerodrome.gateway.audit import Auditor
from aerodrome.gateway.reaper import ReaperSettings
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.http.browsers import BrowserSettings
from aerodrome.http.idempotency import IdempotencySettings
from aerodrome.http.site import HttpSettings
from aerodrome.http.sse import StreamSettings
from aerodrome.ports.host import ResourceLimits
from aerodrome.settings import RuntimeSection, Settings


def _near_directly(environment: dict[str, str]) -> dict[str, str]:
    """Have a runtime that is to use a proxy reach this machine without it: the forwarder of its model calls is here."""
    if not any(name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in environment):
        return environment
    near = ",".join(filter(None, (environment.get("NO_PROXY") or environment.get("no_proxy"), "127.0.0.1")))
    return {**environment, "NO_PROXY": near, "no_proxy": near}


def fleet_settings(settings: Settings, found: release.RuntimeRelease) -> FleetSettings:
    """Return how runtimes of a release are spawned."""
    section = settings.runtime
    environment = dict(section.environment)
    if found.kind == "node":
        # Without this, the single executable unpacks 235 MB into every fresh home.
        environment.setdefault("COPILOT_CLI_DIST_DIR", str(found.package_dir))
    return FleetSettings(
        entry=found.entry,
        is_native=found.kind == "native",
        version=found.version,
        compile_cache=found.compile_cache,
        state_directory=settings.state_directory.absolute(),
        egress=tuple(target.lower() for target in settings.sandbox.egress),
        environment=_near_directly(environment) if settings.providers else environment,
        ready_seconds=section.ready_seconds,
        stop_grace_seconds=section.stop_grace_seconds,
        idle_seconds=section.idle_seconds,
        links_per_runtime=section.links_per_runtime,
        shared_runtimes=section.shared_runtimes,
        spawns_at_once=section.spawns_at_once,
        limits=ResourceLimits(section.max_open_files, section.memory_bytes, section.processes, section.cpu_cores),
        spawn_queue=section.spawn_queue,
        max_runtimes=section.max_runtimes,
        # The transparent policy has one realm, whose clients may rely on all that a runtime is started with.
        warm_runtimes=0 if settings.policy == "transparent" else section.warm_runtimes,
        warm_runtimes_max=section.warm_runtimes_max,
        backoff=Backoff(attempts=section.spawn_attempts),
        health=HealthSettings(
            section.health_interval_seconds, section.health_deadline_seconds, section.health_failures
        ),
        drift=_drift_limits(section),
    )


def sandbox_wishes(settings: Settings, found: release.RuntimeRelease | None = None) -> Wishes:
    """Return what the settings ask for, with what of a release every sandbox shows."""
    section = settings.sandbox
    release_paths = () if found is None else (found.package_dir, found.entry)
    return Wishes(
        mode=section.mode,
        is_waived=bool(section.unsandboxed),
        program=section.bubblewrap,
        network=Network(section.network),
        read_only=(*release_paths, *section.read_only),
        compile_cache=None if found is None else found.compile_cache,
        first_uid=section.first_uid,
        uids=section.uids,
    )


def _drift_limits(section: RuntimeSection) -> DriftLimits:
    return DriftLimits(
        memory_bytes=section.recycle_memory_bytes,
        threads=section.recycle_threads,
        processes=section.recycle_processes,
        age_seconds=section.recycle_age_seconds,
        sessions=section.recycle_sessions,
        ping_factor=section.recycle_ping_factor,
        ping_floor_seconds=section.recycle_ping_floor_seconds,
    )


def gateway_settings(settings: Settings, found: release.RuntimeRelease | None) -> GatewaySettings:
    """Return the gateway's own limits, for runtimes of a release (None: given ones)."""
    host, port = settings_module.split_address("listen", settings.listen)
    # The Node entry point grows slow with live sessions, however little memory they take (core.live_cap).
    has_cheap_sessions = found is not None and found.kind == "native"
    limits = settings.limits
    return GatewaySettings(
        listen_host=host,
        listen_port=port,
        max_links=limits.max_links,
        links_per_user=limits.links_per_user,
        handshake_frame_bytes=limits.handshake_frame_bytes,
        handshake_seconds=limits.handshake_seconds,
        failed_tokens=limits.failed_tokens,
        max_frame_bytes=limits.max_frame_bytes,
        max_requests_in_flight=limits.max_requests_in_flight,
        stall_seconds=limits.stall_seconds,
        client_names_tenant=settings.tls.client_names_tenant,
        live_sessions=settings.runtime.live_sessions,
        live_memory_bytes=settings.runtime.live_memory_bytes if has_cheap_sessions else 0,
        freeze_seconds=settings.runtime.freeze_seconds,
        hibernate_seconds=settings.runtime.idle_seconds,
    )


def reaper_settings(settings: Settings, auditor: Auditor) -> ReaperSettings:
    """Return how expired sessions are deleted, and who hears of it."""
    section = settings.sessions
    return ReaperSettings(
        interval_seconds=section.reap_interval_seconds,
        is_dry_run=section.reap_dry_run,
        note_reaped=auditor.expired,
    )


def facts(settings: Settings, address: str) -> Facts:
    """Return what operators are shown of the settings."""
    section = settings.runtime
    return Facts(
        policy=settings.policy,
        address=address,
        state_directory=str(settings.state_directory.absolute()),
        live_sessions=section.live_sessions,
        links_per_runtime=section.links_per_runtime,
        freeze_seconds=section.freeze_seconds,
        idle_seconds=section.idle_seconds,
        drain_seconds=settings.drain_seconds,
    )


def http_settings(settings: Settings) -> HttpSettings:
    """Return the limits of the HTTP edge, which has an address."""
    section = settings.http
    assert section.listen is not None
    host, port = settings_module.split_address("http.listen", section.listen)
    return HttpSettings(
        host=host,
        port=port,
        max_connections=section.max_connections,
        trusted_proxies=tuple(map(str, section.trusted_proxies)),
        max_body_bytes=section.max_body_bytes,
        cors_origins=section.cors_origins,
        requests_per_minute=section.requests_per_minute,
        open_requests_per_user=section.open_requests_per_user,
        idempotency=IdempotencySettings(section.idempotency_seconds),
        ask_seconds=section.ask_seconds,
        team_chat=section.team_chat,
        idle_seconds=section.idle_seconds,
        masters=settings.read_master_keys(),
        stream=StreamSettings(section.keep_alive_seconds, section.stall_seconds),
        public_url=section.public_url,
        has_open_metrics=section.metrics == "open",
        browsers=BrowserSettings(section.signed_in_seconds, section.signed_in_idle_seconds),
    )
