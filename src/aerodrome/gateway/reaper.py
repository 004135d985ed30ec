"""The session reaper: deletes sessions that have passed their tenant's limits, in a runtime of their realm, never one at work.

Deliberately decides neither when a session has expired (core.expiry) nor whether one is at work (`Presence`). A session that is
left, for whatever reason, is looked at again in the next pass; nothing about it is remembered in between.

The order of a deletion, and why no client can lose a session that it was just given access to:

1. The session is withdrawn (gateway.ownership): whoever asks for its owner from now on waits, whoever claims its id is refused.
   Its record stays. Were the record removed first, its id would be free while the runtime still has the session: the next
   `session.create` with that id would join it; and where a user is alone with a runtime, an unclaimed id passes unchecked.
   A crash then would leave a session on disk that nobody owns and no pass finds.
2. Those who were told before the withdrawal are waited for. Each has attached by then, or has failed. Without this, a resume on
   its way could reach the runtime just before the deletion: on another connection, in whatever order the runtime likes.
3. Whether it has expired and is at work is asked again, and the deletion is sent in the same step of the event loop. An
   attachment is noted in the step that sends its resume, so one that is not seen here is not on its way either.
4. The record is removed when the runtime has answered; then the withdrawal ends. Those who waited find the session missing if it
   is, and theirs if it was left. If the runtime's answer does not come, the record stays and the next pass tries again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import expiry, placement
from aerodrome.core import session as sessions
from aerodrome.core.expiry import Expiry
from aerodrome.core.identity import Tenant
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Access, Policy
from aerodrome.core.session import SessionRecord
from aerodrome.gateway import calls
from aerodrome.gateway.ownership import Ownership
from aerodrome.ports.fleet import Fleet, RuntimeHandle
from aerodrome.ports.registry import SessionRegistry
from aerodrome.protocol import hardening
from aerodrome.transport import control
from aerodrome.transport.control import ControlLink

_log = structlog.get_logger()

PAGE_RECORDS = 100
#: A runtime that does not answer a deletion this long answers nobody: it is retired, so that the deletion cannot come later.
_DELETE_SECONDS = 120.0


class Presence(Protocol):
    """What of a session is in use through this gateway."""

    def is_at_work(self, realm_key: str, session_id: str) -> bool:
        """Say, without waiting, whether a runtime holds the session and it must not be deleted now."""
        ...

    async def unload(self, realm_key: str, session_id: str) -> bool:
        """Have its runtime unload the session, for every client that holds it, if it is idle; its clients can wake it.

        Says whether it is unloaded now (or was); False: it is at work. When it returns True, `is_at_work` is False until the
        next turn of the event loop.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReaperSettings:
    """How often a pass is made, and whether it deletes."""

    interval_seconds: float = 300.0
    is_dry_run: bool = False
    #: How long a session's requests on their way are waited for before it is left for the next pass.
    settle_seconds: float = 5.0


class Outcome(Enum):
    """What a pass did with an expired session."""

    REAPED = "reaped"
    LEFT = "left"
    FAILED = "failed"
    WOULD_BE_REAPED = "would_be_reaped"


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
        self._fleet = fleet
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
                realm = replace(placement.realm_of_key(realm_key), is_open=tenant.policy.access is Access.OPEN)
                async with self._open_runtime(realm) as (handle, link):
                    for record in free:
                        outcomes[await self._reap(record, tenant.policy_for(record.owner.user), handle, link)] += 1
            except errors.AerodromeError as error:
                _log.warning("reaper.realm_failed", realm=realm_key, reason=error.message)
            except Exception:
                _log.exception("reaper.realm_failed", realm=realm_key)
            outcomes[Outcome.FAILED] += len(records) - outcomes.total()
        return outcomes

    @asynccontextmanager
    async def _open_runtime(self, realm: Realm) -> AsyncIterator[tuple[RuntimeHandle, ControlLink]]:
        """Lend a runtime of the realm and a link to it."""
        handle = await self._fleet.acquire(realm)
        try:
            handle.thaw()
            link, _ = await control.open_control(handle.host, handle.port, handle.token)
            try:
                yield handle, link
            finally:
                await link.aclose()
        finally:
            self._fleet.release(handle)
            if handle.links == 0 and handle.opened == 0:
                # It came for this: a pass over a thousand users' realms must not leave a thousand idle runtimes behind.
                self._fleet.retire(handle, "expired sessions are deleted")

    async def _reap(self, record: SessionRecord, policy: Policy, handle: RuntimeHandle, link: ControlLink) -> Outcome:
        """Delete one session if it is still expired and not at work; see this module's docstring for the order.

        Raises:
            errors.RuntimeLost: the runtime did not answer; whether it has deleted the session is not known.
            errors.StoreUnavailable: the registry does not answer.
        """
        session_id, ownership = record.session_id, self._ownership
        if await self._due(record, policy) is None or not await self._presence.unload(record.realm, session_id):
            return Outcome.LEFT
        with ownership.withdrawn(session_id):
            if not await ownership.wait_unasked(session_id, self._settings.settle_seconds):
                return Outcome.LEFT
            try:
                may_have = await _may_have(session_id, link)
                due = await self._due(record, policy)
                # From here to the sending of the deletion nothing waits.
                if due is None or self._presence.is_at_work(record.realm, session_id):
                    return Outcome.LEFT
                refusal = await _delete(session_id, link) if may_have else None
            except errors.RuntimeLost as error:
                self._fleet.retire(handle, error.message)
                raise
            if refusal is not None and "in use" in refusal:
                return Outcome.LEFT  # another process has it open: at work, though not through us
            if refusal is not None:
                _log.warning("session.reap_failed", session=session_id, realm=record.realm, reason=refusal)
                return Outcome.FAILED
            directory = calls.work_directory(policy, record.owner, handle.work_directory)
            if directory is not None and sessions.is_valid_id(session_id):
                await self._remove_directory(directory, session_id)
            await ownership.forget(session_id, record.owner)
        _log.info("session.reaped", session=session_id, realm=record.realm, limit=due.limit.value)
        return Outcome.REAPED

    async def _due(self, record: SessionRecord, policy: Policy) -> Expiry | None:
        """Say whether the session is still the same owner's, in the same realm, and expired."""
        current = await self._ownership.find_record(record.session_id)
        if current is None or (current.owner, current.realm) != (record.owner, record.realm):
            return None
        return expiry.expiry_of(current, policy, self._clock.now())

    async def _remove_directory(self, work_directory: Path, session_id: str) -> None:
        try:
            await asyncio.to_thread(remove_directory, work_directory, session_id)
        except OSError as error:
            # The session is gone all the same; a record without one would only fail again in every pass.
            _log.warning("session.directory_kept", session=session_id, reason=error.strerror)

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


async def _delete(session_id: str, link: ControlLink) -> str | None:
    """Have a runtime delete a session; return why it did not, None once it is gone (or never was on its disk)."""
    try:
        answer = await link.call("session.delete", {"sessionId": session_id}, _DELETE_SECONDS)
    except control.RemoteError as error:
        return error.message
    if isinstance(answer, dict) and answer.get("success") is True:
        return None
    refusal = str(answer.get("error") if isinstance(answer, dict) else answer)
    return None if "not found" in refusal.lower() else refusal


async def _may_have(session_id: str, link: ControlLink) -> bool:
    """Say whether a runtime must be asked to delete an id, and would not take it for the beginning of another session's.

    Where it has none of that name, it deletes the one that begins so (protocol.hardening): then it must be known to have it.
    """
    if not hardening.is_abbreviation(session_id):
        return sessions.is_valid_id(session_id)  # the runtime has none by any other id
    listed = await link.call("session.list")
    return any(found.get("sessionId") == session_id for found in listed["sessions"])


def remove_directory(parent: Path, name: str) -> None:
    """Remove a directory and all in it, if it is there and really below `parent`: no link is followed.

    `name` must be a plain one: what climbs out of `parent` is for the caller to refuse. The agents whose directory it is may
    write to `parent`, so it is opened once and everything is named from there.

    Raises:
        OSError: it, or something in it, cannot be removed; a link of that name is left alone.
    """
    try:
        below = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        shutil.rmtree(name, dir_fd=below)
    except FileNotFoundError:
        return
    finally:
        os.close(below)
