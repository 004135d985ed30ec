"""The configuration read again while the gateway runs: its tenants are put in force, whole or not at all.

Everything else of the configuration is read at the start only; a reload says which of it has changed. A wrong file changes
nothing. When policies take effect is gateway.policy_watch's affair; SIGHUP and the admin socket both come here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from aerodrome import errors
from aerodrome.core.audit import Outcome
from aerodrome.gateway.audit import UNAUDITED, Auditor
from aerodrome.gateway.policy_watch import PolicyWatch
from aerodrome.settings import Settings

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did: tenants of the configuration, open links whose policy changed, changes that need a restart."""

    tenants: int
    links: int
    needs_restart: list[str]


class Reloader:
    """Reads the configuration again. `load` does what the start did."""

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], watch: PolicyWatch, auditor: Auditor = UNAUDITED
    ) -> None:
        self._settings = settings
        self._load = load
        self._watch = watch
        self._audit = auditor

    async def reload(self, by: str) -> Reloaded:
        """Read the configuration and put its tenants in force; `by` says in the audit log who asked.

        Raises:
            errors.ConfigError: it is wrong; everything stays as it was.
        """
        try:
            # Not in a thread: it is a small file, and reading it is not made for two at once.
            fresh = self._load()
            tenants = fresh.configured_tenants()
        except errors.ConfigError as error:
            _log.error("policy.reload_failed", reason=error.message)
            self._audit.reloaded(by, error.code, Outcome.REFUSED)
            raise
        try:
            links = await self._watch.replace_configured(tenants)
        except errors.StoreUnavailable as error:
            _log.warning("policy.unread", reason=error.message)
            links = 0
        done = Reloaded(len(tenants), links, self._name_differences(fresh))
        self._audit.reloaded(by, f"{done.tenants} tenants, {links} links have another policy")
        _log.info("policy.reloaded", tenants=done.tenants, links=links, needs_restart=done.needs_restart)
        return done

    async def reload_by_signal(self) -> None:
        """Reload for one who hears no answer: the log has it."""
        try:
            await self.reload("signal")
        except errors.ConfigError:
            pass  # logged
        except Exception:
            _log.exception("policy.reload_failed")

    def _name_differences(self, fresh: Settings) -> list[str]:
        """Return the sections outside the tenants that are not what they were at the start."""
        names = [name for name in type(fresh).model_fields if name != "tenants"]
        return [name for name in names if getattr(fresh, name) != getattr(self._settings, name)]
