"""The audit log of a running gateway or command (port: ports.audit.AuditLog), over segments.py and people.py.

`record` puts an entry into a bounded queue; a task writes what has come together, `sync_seconds` after the first of it, in one
piece with one sync, on a thread. So a crash loses at most what came in that time. What does not fit is counted, and the count
is recorded. While the log cannot be written it is tried again every second, and `check` refuses where the log is required.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from aerodrome import errors
from aerodrome.adapters.audit.people import People
from aerodrome.adapters.audit.segments import Segments
from aerodrome.core import audit
from aerodrome.core.audit import Action, Entry, Record
from aerodrome.core.identity import Owner

_log = structlog.get_logger()
_RETRY_SECONDS = 1.0
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Where and how the log is kept; `keys` seal it, the first of them new records."""

    directory: Path
    keys: Sequence[bytes] = ()
    is_required: bool = True
    has_peers: bool = True
    sync_seconds: float = 0.1
    segment_bytes: int = 16 * 1024 * 1024
    queue: int = 20_000


class FileAuditLog:
    """An audit log in files."""

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings
        self._segments = Segments(settings.directory, settings.keys, settings.segment_bytes)
        self._people = People(settings.directory / "people.db")
        self._waiting: deque[tuple[float, Entry]] = deque()
        self._lost = 0
        self._fault: errors.AerodromeError | None = None
        self._is_closed = False
        self._writing = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None

    def record(self, entry: Entry) -> None:
        """Take an entry."""
        if self._is_closed or len(self._waiting) >= self._settings.queue:
            self._lost += 1
            return
        self._waiting.append((time.time(), entry))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().create_task(self._write_later(), name="audit log")

    def check(self) -> None:
        """Refuse what would go unrecorded."""
        if self._settings.is_required and (self._fault is not None or self._is_full):
            raise errors.StoreUnavailable(
                "the audit log cannot be written, and nothing may begin without it; try again"
            )

    async def open(self) -> None:
        """Make the first write, so that a log that cannot be used is known at the start.

        Raises:
            errors.ConfigError: it is required and cannot be written; says why.
        """
        self.record(Entry(Action.GATEWAY_START, by="gateway"))
        try:
            await self.flush()
        except errors.StoreUnavailable as error:
            if self._settings.is_required:
                raise errors.ConfigError(
                    f"{error.message}; or set audit.required = false to serve without it"
                ) from None

    async def flush(self) -> None:
        """Write all that was taken."""
        while self._waiting or self._lost:
            await self._write()
            if self._fault is not None:
                raise errors.StoreUnavailable(self._fault.message)

    async def list_users(self, tenant: str) -> list[str]:
        """Return the users of a tenant who have a salt, by name."""
        await self.flush()
        found = await asyncio.to_thread(self._people.everyone, tenant)
        return sorted(owner.user for owner in found)

    async def forget(self, owner: Owner) -> str:
        """Drop a user's salt, once all that was said of them is written."""
        await self.flush()
        async with self._writing:
            name = await asyncio.to_thread(self.pseudonym, owner)
            await asyncio.to_thread(self._people.drop, owner)
        return name

    def pseudonym(self, owner: Owner) -> str:
        """Return what stands for a user now; blocking."""
        return audit.pseudonym(self._people.salt(owner), "u", owner.user)

    async def aclose(self) -> None:
        """Write what was taken, as far as that is possible."""
        if self._is_closed:
            return
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            await asyncio.wait((timer,))
        try:
            await self.flush()
        except errors.AerodromeError as error:
            _log.error("audit.lost", count=len(self._waiting) + self._lost, reason=error.message)
        self._is_closed = True

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= self._settings.queue

    async def _write_later(self) -> None:
        """Write until nothing waits; a fault is tried again."""
        while self._waiting or self._lost:
            await asyncio.sleep(self._settings.sync_seconds if self._fault is None else _RETRY_SECONDS)
            await self._write()
        self._timer = None

    async def _write(self) -> None:
        async with self._writing:
            batch = [self._waiting[at] for at in range(min(len(self._waiting), _BATCH))]
            lost, self._lost = self._lost, 0
            if not batch and not lost:
                return
            # A caller who is cancelled must not leave it unknown what was written.
            writing = asyncio.ensure_future(asyncio.to_thread(self._write_batch, batch, lost))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait((writing,))
                self._note(writing, batch, lost)
                raise
            except Exception:
                pass  # read from the task below
            self._note(writing, batch, lost)

    def _note(self, writing: asyncio.Future[None], batch: list[tuple[float, Entry]], lost: int) -> None:
        error = writing.exception()
        if error is None:
            for _ in batch:
                self._waiting.popleft()
            if self._fault is not None:
                _log.info("audit.recovered")
            self._fault = None
            return
        self._lost += lost
        known = (
            error if isinstance(error, errors.AerodromeError) else errors.StoreUnavailable(f"the audit log: {error}")
        )
        if self._fault is None:
            _log.error("audit.failed", reason=known.message, is_required=self._settings.is_required)
        self._fault = known

    def _write_batch(self, batch: list[tuple[float, Entry]], lost: int) -> None:
        records = [self._record_or_loss(at, entry) for at, entry in batch]
        if lost:
            reason = "the queue was full or the log was closed"
            records.append(self._record(time.time(), Entry(Action.LOG_LOSE, by="gateway", reason=reason, count=lost)))
        self._segments.append(records)

    def _record_or_loss(self, at: float, entry: Entry) -> Record:
        """Return an entry's record; one that cannot be made must not keep all behind it from being written."""
        try:
            return self._record(at, entry)
        except ValueError:
            reason = f"a record of {entry.action.value} could not be encoded"
            return self._record(at, Entry(Action.LOG_LOSE, by="gateway", reason=reason))

    def _record(self, at: float, entry: Entry) -> Record:
        owner = entry.owner
        whose = entry.session_owner or owner
        session = None
        if entry.session_id is not None and whose is not None:
            session = audit.pseudonym(self._people.salt(whose), "s", entry.session_id)
        return Record(
            number=0,
            at=round(at, 3),
            action=entry.action.value,
            outcome=entry.outcome.value,
            by=audit.cut(entry.by) or "",
            tenant=owner.tenant if owner is not None else entry.tenant,
            user=self.pseudonym(owner) if owner is not None else None,
            session=session,
            whose=self.pseudonym(entry.whose) if entry.whose is not None else None,
            key_id=audit.cut(entry.key_id),
            peer=audit.cut(entry.peer) if self._settings.has_peers else None,
            method=audit.cut(entry.method),
            reason=audit.cut(entry.reason),
            target=audit.cut(entry.target),
            count=entry.count,
        )


def append_now(settings: AuditSettings, entry: Entry) -> None:
    """Record one entry and see it on disk: for commands, which have no event loop of their own by then. Blocking.

    Raises:
        errors.StoreUnavailable, errors.ConfigError: it cannot be written.
    """
    FileAuditLog(settings)._write_batch([(time.time(), entry)], 0)
