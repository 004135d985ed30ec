"""Erases a user: links, sessions in the runtimes, directories, rows, the salt of their audit records; then looks for traces.

The order: it is noted that tokens made until now prove nobody (core.erasure); keys go, so that nobody comes in again; then links,
so that nothing is at work; then sessions, each through a runtime of its realm where others share that (gateway.deletion), by
removing the whole realm where it is the user's alone; then rows and salt. It may be run again: what is gone already is no error.
Others' sessions and realms are not touched. Below a policy's `work_root`, outside the state directory, only directories of
sessions in the registry are removed, and the user's own if nothing else is in it (gateway.workplaces); the rest is named as left.
What it proves is what admin.traces and the registry do not find; what others wrote of the user in sessions of their own stays
theirs. The ids of keys stay in audit records: without the registry's row they lead to nobody.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aerodrome import errors
from aerodrome.admin import traces, views
from aerodrome.clock import Clock
from aerodrome.core import erasure as erasures
from aerodrome.core import placement
from aerodrome.core import session as sessions
from aerodrome.core.audit import Action, Entry, Outcome
from aerodrome.core.erasure import Erasure
from aerodrome.core.identity import Owner
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Isolation
from aerodrome.core.session import SessionRecord
from aerodrome.fleet import spec
from aerodrome.fleet.pool import RuntimePool
from aerodrome.gateway import deletion, workplaces
from aerodrome.gateway.client import Client, Services
from aerodrome.gateway.deletion import SessionDeletion
from aerodrome.gateway.known_tenants import FindTenant
from aerodrome.gateway.presence import ResidentPresence
from aerodrome.gateway.service import TenantGateway
from aerodrome.gateway.workplaces import Workplace
from aerodrome.ports.people import ErasureStore, PersonStore

_LEAVE_SECONDS = 15.0
_SETTLE_SECONDS = 5.0
_NAMED_AT_MOST = 50


class Report(msgspec.Struct):
    """What an erasure removed, and what a search for the rest found. `left` says what is still there and why."""

    tenant: str
    user: str
    links: int = 0
    sessions: int = 0
    directories: int = 0
    rows: dict[str, int] = {}
    pseudonym: str | None = None
    searched_files: int = 0
    searched_bytes: int = 0
    left: list[str] = []

    @property
    def is_clean(self) -> bool:
        """Say whether nothing is left."""
        return not self.left


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Where erasures are noted against tokens that are still out: how far clocks may be apart, how long a note is kept."""

    store: ErasureStore
    clock: Clock
    skew_seconds: float
    keep_seconds: float

    async def void(self, owner: Owner) -> None:
        """Have all tokens made for an owner until now prove nobody."""
        now = self.clock.now()
        erasure = Erasure(erasures.digest(owner), now + self.skew_seconds, now + self.keep_seconds)
        await self.store.note(erasure, now)


@dataclass(frozen=True, slots=True)
class Site:
    """Where is erased: `gateway` is None where none runs, and no link can be open."""

    state_directory: Path
    pool: RuntimePool
    services: Services
    people: PersonStore
    outstanding: Outstanding
    find_tenant: FindTenant
    gateway: TenantGateway | None = None


class Eraser:
    """Erases users, one at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        services = site.services
        self._deletion = SessionDeletion(site.pool, services.ownership, ResidentPresence(services), _SETTLE_SECONDS)
        self._one_at_a_time = asyncio.Lock()

    async def erase(self, tenant: str, user: str | None, caller: str) -> list[Report]:
        """Erase a user, or every user of a tenant and what they share; return a report of each.

        Raises:
            errors.StoreUnavailable: the registry or the audit log does not answer; what was not done yet is not done.
        """
        async with self._one_at_a_time:
            if user is None:
                await self._site.outstanding.void(Owner(tenant, erasures.EVERYONE))
            users = [user] if user is not None else await self._list_users(tenant)
            reports = [await self._erase(Owner(tenant, name), caller) for name in users]
            if user is None:
                reports.append(await self._erase_shared(tenant, caller))
            return reports

    async def _list_users(self, tenant: str) -> list[str]:
        """Return whoever of a tenant the registry or the audit log knows."""
        users = set(await self._site.people.list_users(tenant))
        log = self._site.services.audit.log
        return sorted(users | (set(await log.list_users(tenant)) if log is not None else set()))

    async def _erase(self, owner: Owner, caller: str) -> Report:
        audit = self._site.services.audit
        report = Report(owner.tenant, owner.user, rows={}, left=[])
        audit.note(Entry(Action.ERASE_BEGIN, by=caller, owner=owner))
        await self._site.outstanding.void(owner)
        places = await self._find_workplaces(owner)
        rows = Counter(await self._site.people.erase(owner, keep_sessions=True))
        report.links = await self._close_links(owner, report)
        # Only now: a session may have been created while links were open.
        records = list(await self._site.services.ownership.registry.list_owned(owner))
        await self._delete_sessions(owner, records, report)
        await self._site.services.usage.forget(owner)
        if self._site.services.sharing is not None:
            await self._site.services.sharing.leave_everything(owner)
        for place in places:
            await self._remove_work(place, records, report)
        if not report.left:
            rows.update(await self._site.people.erase(owner))
        report.rows = dict(rows)
        self._site.services.recorder.forget(owner)
        await self._forget(owner, report)
        needles = [*(record.session_id for record in records), f"{owner.tenant}/{owner.user}"]
        await self._look_for_traces(owner, needles, report)
        self._note_end(report, caller)
        return report

    async def _erase_shared(self, tenant: str, caller: str) -> Report:
        """Remove what the users of a tenant had in common: the directories of the tenant's own realm."""
        report = Report(tenant, "(all)", rows={}, left=[])
        await self._remove_realm(Realm(f"tenant:{tenant}", Isolation.TENANT), report)
        self._note_end(report, caller)
        return report

    # -- links ------------------------------------------------------------------------------------------------------------

    async def _close_links(self, owner: Owner, report: Report) -> int:
        """Cut the user's links, end the turns that earlier ones left, and wait until nothing of theirs is held."""
        cut: set[Client] = set()
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                self._end_streams(owner)
                # Again: one may have been on its way in with a key that was just erased.
                while clients := self._clients(owner):
                    for client in clients:
                        client.link.abort()
                    cut.update(clients)
                    await asyncio.sleep(0.01)
                for forget in self._site.gateway.forgetters if self._site.gateway is not None else ():
                    await forget(owner)
                await self._site.services.finishing.end(owner)
                while any(views.owner_of(resident) == owner for resident in self._site.services.residents):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            report.left.append(f"a link of theirs did not end within {_LEAVE_SECONDS:g} s")
        return len(cut)

    def _end_streams(self, owner: Owner) -> None:
        """End the event streams of the HTTP edge; its link of the user is one of those that are cut."""
        for guest in list(self._site.gateway.guests) if self._site.gateway is not None else ():
            if guest.principal.owner == owner:
                guest.dismiss()

    def _clients(self, owner: Owner) -> list[Client]:
        gateway = self._site.gateway
        return [client for client in gateway.clients if client.owner == owner] if gateway is not None else []

    # -- sessions ---------------------------------------------------------------------------------------------------------

    async def _delete_sessions(self, owner: Owner, records: list[SessionRecord], report: Report) -> None:
        own = placement.Realm(f"user:{owner.tenant}/{owner.user}", Isolation.USER)
        await self._remove_realm(own, report)
        for realm_key, group in itertools.groupby(sorted(records, key=lambda r: r.realm), lambda r: r.realm):
            if realm_key == own.key:
                for record in group:
                    await self._site.services.ownership.forget(record.session_id, owner)
                    report.sessions += 1
                continue
            try:
                await self._delete_in_realm(realm_key, list(group), report)
            except errors.AerodromeError as error:
                report.left.append(f"sessions in realm {realm_key}: {error.message}")

    async def _delete_in_realm(self, realm_key: str, records: list[SessionRecord], report: Report) -> None:
        async with self._deletion.open_runtime(placement.realm_of_key(realm_key)) as (handle, link):
            for record in records:

                async def is_theirs(record: SessionRecord = record) -> bool:
                    found = await self._site.services.ownership.find_record(record.session_id)
                    return found is not None and found.owner == record.owner

                place = Workplace(handle.work_directory) if handle.work_directory is not None else None
                outcome = await self._deletion.delete(record, handle, link, is_theirs, place)
                if outcome is deletion.Outcome.REAPED:
                    report.sessions += 1
                else:
                    report.left.append(f"session {record.session_id} in realm {realm_key}: {outcome.value}")

    async def _remove_realm(self, realm: Realm, report: Report) -> None:
        """End a realm's runtimes and remove its directories."""
        await self._site.pool.end_realm(realm.key, "its user is erased")
        root = spec.directories_of(realm, self._site.state_directory).root
        if not root.exists():
            return
        try:
            await asyncio.to_thread(deletion.remove_directory, root.parent, root.name)
            report.directories += 1
        except OSError as error:
            report.left.append(f"{root.name}: {error.strerror}")

    async def _find_workplaces(self, owner: Owner) -> list[Workplace]:
        """Return where the user's sessions may have worked outside the state directory, by the policy that holds now."""
        try:
            tenant = await self._site.find_tenant(owner.tenant)
        except errors.ConfigError:
            return []  # its policy cannot be read, so that no session was begun under it
        policies = [tenant.policy, tenant.policy_for(owner.user)] if tenant is not None else []
        roots = {policy.work_root for policy in policies if policy.work_root is not None}
        return [workplaces.below_root(root, owner) for root in sorted(roots)]

    async def _remove_work(self, place: Workplace, records: list[SessionRecord], report: Report) -> None:
        """Remove the directories of the user's sessions below a work root, and say what else is in theirs."""
        where = f"{place.root}/{'/'.join(place.below)}"
        try:
            for record in records:
                if sessions.is_valid_id(record.session_id):
                    report.directories += await asyncio.to_thread(place.remove, record.session_id)
            left = await asyncio.to_thread(place.close)
        except OSError as error:
            report.left.append(f"{where}: {error.strerror or error}")
            return
        if left:
            report.left.append(f"{where}: {left} entries that are no session's directory")

    # -- proof ------------------------------------------------------------------------------------------------------------

    async def _forget(self, owner: Owner, report: Report) -> None:
        """Drop the salt of the user's audit records, and overwrite what the registry's file keeps of removed rows."""
        try:
            await self._site.people.purge()
            if self._site.services.audit.log is not None:
                report.pseudonym = await self._site.services.audit.log.forget(owner)
        except errors.StoreUnavailable as error:
            report.left.append(error.message)

    async def _look_for_traces(self, owner: Owner, needles: list[str], report: Report) -> None:
        rows = await self._site.people.count(owner)
        report.left.extend(f"{count} rows of {table}" for table, count in rows.items())
        root = spec.directories_of(
            Realm(f"user:{owner.tenant}/{owner.user}", Isolation.USER), self._site.state_directory
        )
        found = await asyncio.to_thread(traces.search, self._site.state_directory, [*needles, root.root.name])
        report.searched_files, report.searched_bytes = found.files, found.content_bytes
        report.left.extend(found.found[:_NAMED_AT_MOST])
        if len(found.found) > _NAMED_AT_MOST:
            report.left.append(f"{len(found.found) - _NAMED_AT_MOST} more files")
        if not found.is_complete:
            report.left.append("not all files could be read: what is in the others is not known")

    def _note_end(self, report: Report, caller: str) -> None:
        outcome = Outcome.DONE if report.is_clean else Outcome.FAILED
        removed = f"{report.sessions} sessions, {report.links} links, {sum(report.rows.values())} rows"
        entry = Entry(
            Action.ERASE_FINISH,
            outcome,
            by=caller,
            tenant=report.tenant,
            target=report.pseudonym,
            reason=f"{removed}, {report.directories} directories; {len(report.left)} left",
        )
        self._site.services.audit.note(entry)
