"""The session reaper: deletes sessions that have passed their tenant's limits, in a runtime of their realm, never one at work.

Deliberately decides neither when a session has expired (core.expiry) nor whether one is at work (`Presence`). A session that is
left, for whatever reason, is looked at again in the next pass; nothing about it is remembered in between.

How a session is deleted without any client losing one that it was just given access to is gateway.deletion's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import expiry, placement
from aerodrome.core.expiry import Expiry
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import Policy
from aerodrome.core.session import SessionRecord
from aerodrome.gateway import workplaces
from aerodrome.gateway.deletion import Outcome, Presence, SessionDeletion
from aerodrome.gateway.ownership import Ownership
from aerodrome.ports.fleet import Fleet, RuntimeHandle
from aerodrome.ports.registry import SessionRegistry
from aerodrome.transport.control import ControlLink

_log = structlog.get_logger()

PAGE_RECORDS = 100


@dataclass(frozen=True, slots=True)
class ReaperSettings:
    """How often a pass is made, and whether it deletes."""

    interval_seconds: float = 300.0
    is_dry_run: bool = False
    #: How long a session's requests on their way are waited for before it is left for the next pass.
    settle_seconds: float = 5.0
    #: Told of each session that was deleted, and of the limit that it had passed.
    note_reaped: Callable[[SessionRecord, str], None] = lambda _record, _limit: None


class SessionReaper:
    """Deletes expired sessions of all tenants."""

    def __init__(
        self,
        fleet: Fleet,
        ownership: Ownership,
        list_tenants: Callable[[], Awaitable[Sequence[Tenant]]],
        presence: Presence,
        clock: Clock,
        settings: ReaperSettings,
    ) -> None:
        self._deletion = SessionDeletion(fleet, ownership, presence, settings.settle_seconds)
        self._ownership = ownership
        self._list_tenants = list_tenants
        self._presence = presence
        self._clock = clock
        self._settings = settings

    async def run(self) -> None:
        """Make a pass on schedule until cancelled; a pass that fails is logged, and the next one tries again."""
        while True:
            await asyncio.sleep(self._settings.interval_seconds)
            try:
                await self.run_pass()
            except errors.AerodromeError as error:
                _log.warning("reaper.pass_failed", reason=error.message)
            except Exception:
                _log.exception("reaper.pass_failed")

    async def run_pass(self) -> Counter[Outcome]:
        """Look at every expired session once; return what became of how many.

        Raises:
            errors.StoreUnavailable, errors.ConfigError: the tenants cannot be read, or times of use not be written.
        """
        outcomes: Counter[Outcome] = Counter()
        await self._ownership.flush()
        for tenant in await self._list_tenants():
            try:
                async for page in list_expired(self._ownership.registry, tenant, self._clock.now()):
                    for realm_key, records in itertools.groupby(page, lambda found: found[0].realm):
                        outcomes += await self._reap_realm(realm_key, [record for record, _ in records], tenant)
            except errors.AerodromeError as error:
                _log.warning("reaper.tenant_failed", tenant=tenant.name, reason=error.message)
            except Exception:
                _log.exception("reaper.tenant_failed", tenant=tenant.name)
        counts = {outcome.value: outcomes[outcome] for outcome in Outcome}
        _log.info("reaper.pass_finished", is_dry_run=self._settings.is_dry_run, **counts)
        return outcomes

    async def _reap_realm(self, realm_key: str, records: list[SessionRecord], tenant: Tenant) -> Counter[Outcome]:
        """Handle sessions of one realm on one runtime, which is had only if there is something to delete."""
        free = [record for record in records if not self._presence.is_at_work(realm_key, record.session_id)]
        outcomes = Counter({Outcome.LEFT: len(records) - len(free)})
        if self._settings.is_dry_run:
            for record in free:
                self._note_due(record, tenant.policy_for(record.owner.user))
            outcomes[Outcome.WOULD_BE_REAPED] = len(free)
        elif free:
            try:
                # As the realm's clients would have it: they may be given this very runtime next.
                policy = tenant.policy_for(records[0].owner.user)
                realm = placement.under(placement.realm_of_key(realm_key), policy)
                async with self._deletion.open_runtime(realm) as (handle, link):
                    for record in free:
                        outcomes[await self._reap(record, tenant.policy_for(record.owner.user), handle, link)] += 1
            except errors.AerodromeError as error:
                _log.warning("reaper.realm_failed", realm=realm_key, reason=error.message)
            except Exception:
                _log.exception("reaper.realm_failed", realm=realm_key)
            outcomes[Outcome.FAILED] += len(records) - outcomes.total()
        return outcomes

    async def _reap(self, record: SessionRecord, policy: Policy, handle: RuntimeHandle, link: ControlLink) -> Outcome:
        """Delete one session if it is still expired and not at work (gateway.deletion says what may be raised)."""
        due: Expiry | None = None

        async def is_due() -> bool:
            nonlocal due
            due = await self._due(record, policy)
            return due is not None

        place = workplaces.find(policy, record.owner, handle.work_directory)
        outcome = await self._deletion.delete(record, handle, link, is_due, place)
        if outcome is Outcome.REAPED and due is not None:
            _log.info("session.reaped", session=record.session_id, realm=record.realm, limit=due.limit.value)
            self._settings.note_reaped(record, due.limit.value)
        return outcome

    async def _due(self, record: SessionRecord, policy: Policy) -> Expiry | None:
        """Say whether the session is still the same owner's, in the same realm, and expired."""
        current = await self._ownership.find_record(record.session_id)
        if current is None or (current.owner, current.realm) != (record.owner, record.realm):
            return None
        return expiry.expiry_of(current, policy, self._clock.now())

    def _note_due(self, record: SessionRecord, policy: Policy) -> None:
        due = expiry.expiry_of(record, policy, self._clock.now())
        if due is not None:
            _log.info("session.would_be_reaped", session=record.session_id, realm=record.realm, limit=due.limit.value)


async def list_expired(
    registry: SessionRegistry, tenant: Tenant, now: float, page_records: int = PAGE_RECORDS
) -> AsyncIterator[list[tuple[SessionRecord, Expiry]]]:
    """Yield a tenant's sessions that have expired at `now`, page by page, those of a user together.

    Raises:
        errors.StoreUnavailable: the registry does not answer.
    """
    policies = [tenant.policy, *(tenant.policy_for(user) for user in tenant.users)]
    if not any(expiry.is_limited(policy) for policy in policies):
        return
    horizon, last = expiry.widest([expiry.horizon_of(policy, now) for policy in policies]), None
    while records := await registry.list_stale(tenant.name, horizon, page_records, last):
        last = records[-1]
        found = [(record, expiry.expiry_of(record, tenant.policy_for(record.owner.user), now)) for record in records]
        yield [(record, due) for record, due in found if due is not None]
