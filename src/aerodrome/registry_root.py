"""The composition root's part for commands that work on the registry and run no gateway: its stores, and the audit log.

Beside app, which names all that a gateway is made of and takes a second to load. An adapter is imported when it is used: a
command that only says what it is for opens no database.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

from aerodrome import errors
from aerodrome.clock import SystemClock
from aerodrome.core.audit import Entry
from aerodrome.settings import Settings

if TYPE_CHECKING:
    from aerodrome.adapters.audit.log import AuditSettings
    from aerodrome.adapters.audit.trail import AuditTrail
    from aerodrome.adapters.sql import stores as sql_stores

    Stores: TypeAlias = sql_stores.Stores


def open_stores(settings: Settings) -> AbstractAsyncContextManager[Stores]:
    """Open the registry's database, made or brought up to date first.

    Raises:
        errors.ConfigError: it is newer than this code. errors.StoreUnavailable: it cannot be opened.
    """
    from aerodrome.adapters.sql import stores  # noqa: PLC0415  half of what a command takes

    return stores.open_stores(settings.database_url, SystemClock())


def audit_settings(settings: Settings) -> AuditSettings:
    """Return where and how the audit log is kept."""
    from aerodrome.adapters.audit.log import AuditSettings  # noqa: PLC0415

    section = settings.audit
    return AuditSettings(
        directory=settings.state_directory / "audit",
        keys=settings.audit_keys(),
        is_required=section.required,
        has_peers=section.peers,
        sync_seconds=section.sync_seconds,
        segment_bytes=section.segment_bytes,
    )


def audit_trail(settings: Settings) -> AuditTrail:
    """Return the audit log of a state directory, for reading."""
    from aerodrome.adapters.audit.trail import AuditTrail  # noqa: PLC0415

    return AuditTrail(settings.state_directory / "audit", settings.audit_keys())


def record(settings: Settings, entry: Entry) -> None:
    """Record what a command does, from its own process; nothing if no log is kept. Blocking.

    Raises:
        errors.StoreUnavailable, errors.ConfigError: it cannot be recorded, and must be.
    """
    if not settings.audit.enabled:
        return
    import structlog  # noqa: PLC0415

    from aerodrome.adapters.audit import log  # noqa: PLC0415

    try:
        log.append_now(audit_settings(settings), entry)
    except errors.StoreUnavailable as error:
        if settings.audit.required:
            raise
        structlog.get_logger().warning("audit.failed", reason=error.message, is_required=False)
