"""Who owns which session: the registry, with a cache in front that has a deadline.

Every message that names a session is checked here before it goes anywhere. Storage is the truth; an entry of the cache is
believed for `ownership_cache_seconds`. Forgotten sessions are remembered a little longer, so that the last events about them
still reach their owner.

While a session is withdrawn, nobody is told who owns it: they wait. Who was told before is known until the task that asked
has ended, so that whoever withdraws a session can wait until none of them is still on the way to a runtime with the answer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner
from aerodrome.core.quota import NO_QUOTA, Quota
from aerodrome.core.session import Claim, SessionRecord
from aerodrome.gateway import flushing
from aerodrome.ports.registry import SessionRegistry

_CACHE_ENTRIES = 100_000


@dataclass(slots=True)
class _Read:
    """The reads of one id that are under way, and how often its owner changed since the first began."""

    readers: int = 0
    changes: int = 0


@dataclass(slots=True)
class _Withdrawal:
    """A session that is withdrawn, by several at once perhaps: a pass of the reaper and an erasure."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0


class Ownership:
    """The ownership rule over a registry."""

    def __init__(self, registry: SessionRegistry, clock: Clock, cache_seconds: float) -> None:
        self._registry = registry
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._cache: OrderedDict[str, tuple[Owner, float]] = OrderedDict()
        self._forgotten: OrderedDict[str, tuple[Owner, float]] = OrderedDict()
        self._used: dict[str, float] = {}
        #: What a flush has taken from there and not written yet; one flush at a time, so that each ends with all of it written.
        self._writing: dict[str, float] = {}
        self._flushing = asyncio.Lock()
        self._reads: dict[str, _Read] = {}
        #: By id, how many withdraw it, and what tells those who wait that the last of them is done.
        self._withdrawn: dict[str, _Withdrawal] = {}
        #: Sessions whose ids are being freed: what was kept of them goes, and nothing new may be.
        self._freeing: set[str] = set()
        #: Hears of each id that is free again.
        self.note_freed: Callable[[str], None] = lambda _: None
        #: Tasks that asked about sessions, until they end, with the ids they asked about.
        self._asked: dict[asyncio.Task[Any], set[str]] = {}
        #: What else is kept of a session of an owner, by others, and goes with it, whatever it is that deletes it.
        self.keepers: list[Callable[[str, Owner], Awaitable[object]]] = []

    @property
    def registry(self) -> SessionRegistry:
        """Return the store behind; the times of use in it are as old as the last flush."""
        return self._registry

    async def claim(self, session_id: str, owner: Owner, realm: str, quota: Quota = NO_QUOTA) -> Claim:
        """Record the owner of a new id, or confirm it.

        Raises:
            errors.AlreadyExists: someone else owns it, or it is withdrawn.
            errors.PolicyRejected: it is new, and the quota leaves no room for it.
        """
        self._check_free(session_id)
        self._note_asked(session_id)
        now = self._clock.now()
        claim = await self._registry.claim(SessionRecord(session_id, owner, realm, now, now), quota)
        self._overtake(session_id)
        self._check_free(session_id)
        if claim.record.owner != owner:
            raise errors.AlreadyExists(f"session id {session_id} is not available; choose another")
        self._remember(session_id, owner)
        if not claim.created:
            self.touch(session_id)
        return claim

    def is_known_to_be(self, session_id: str, owner: Owner) -> bool:
        """Say whether the cache, fresh, names this owner. False means: ask `is_owned`."""
        entry = self._cache.get(session_id)
        return entry is not None and entry[0] == owner and self._clock.monotonic() < entry[1]

    async def find_owner(self, session_id: str) -> Owner | None:
        """Return who owns the session, None for a session nobody has claimed; waits while it is withdrawn."""
        while (withdrawal := self._withdrawn.get(session_id)) is not None:
            await withdrawal.over.wait()
        self._note_asked(session_id)
        entry = self._cache.get(session_id)
        if entry is not None and self._clock.monotonic() < entry[1]:
            return entry[0]
        record = await self._read(session_id)
        if record is None:
            self._cache.pop(session_id, None)
            return None
        self._remember(session_id, record.owner)
        return record.owner

    async def _read(self, session_id: str) -> SessionRecord | None:
        """Read the record of an id, again if it was claimed or freed meanwhile: an old owner must not be remembered."""
        read = self._reads.setdefault(session_id, _Read())
        read.readers += 1
        try:
            while True:
                changes = read.changes
                record = await self._registry.find(session_id)
                if read.changes == changes:
                    return record
        finally:
            read.readers -= 1
            if not read.readers:
                del self._reads[session_id]

    async def find_record(self, session_id: str) -> SessionRecord | None:
        """Return the record from the store, with a use that is noted but not written yet."""
        record = await self._registry.find(session_id)
        return None if record is None else self._with_use(record)

    async def list_records(self, owner: Owner) -> list[SessionRecord]:
        """Return the owner's sessions as `find_record` does, the most recently used first."""
        records = [self._with_use(record) for record in await self._registry.list_owned(owner)]
        return sorted(records, key=lambda record: record.used_at, reverse=True)

    def _with_use(self, record: SessionRecord) -> SessionRecord:
        noted = max(known.get(record.session_id, 0.0) for known in (self._used, self._writing))
        return replace(record, used_at=noted) if noted > record.used_at else record

    @contextmanager
    def withdrawn(self, session_id: str) -> Iterator[None]:
        """Withdraw a session for the length of a block: who asks for its owner waits for the end, claims are refused."""
        withdrawal = self._withdrawn.setdefault(session_id, _Withdrawal())
        withdrawal.count += 1
        try:
            yield
        finally:
            withdrawal.count -= 1
            if not withdrawal.count:
                del self._withdrawn[session_id]
                withdrawal.over.set()

    async def wait_unasked(self, session_id: str, seconds: float) -> bool:
        """Wait until all who were told about a session before it was withdrawn have done what they asked for.

        Says whether they have, within so many seconds: such a request may be waiting for a runtime to be spawned.
        """
        here = asyncio.current_task()
        asking = [task for task, ids in self._asked.items() if session_id in ids and task is not here]
        return not asking or not (await asyncio.wait(asking, timeout=seconds))[1]

    def _note_asked(self, session_id: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        ids = self._asked.get(task)
        if ids is None:
            ids = self._asked[task] = set()
            task.add_done_callback(self._forget_asked)
        ids.add(session_id)

    def _forget_asked(self, task: asyncio.Task[Any]) -> None:
        del self._asked[task]

    def _check_free(self, session_id: str) -> None:
        if session_id in self._withdrawn:
            raise errors.AlreadyExists(f"session id {session_id} is being freed; try again, or choose another")

    def _overtake(self, session_id: str) -> None:
        read = self._reads.get(session_id)
        if read is not None:
            read.changes += 1

    async def is_owned(self, session_id: str, owner: Owner) -> bool:
        """Say whether this owner owns the session."""
        return await self.find_owner(session_id) == owner

    async def is_still_owned(self, session_id: str, owner: Owner) -> bool:
        """Say the same as the store has it, without waiting for a withdrawal; a session that is being forgotten is nobody's."""
        record = await self._registry.find(session_id)
        return record is not None and record.owner == owner and session_id not in self._freeing

    def may_see(self, session_id: str, owner: Owner) -> bool:
        """Say, without waiting, whether an event about a session is for this owner.

        Entries past their deadline count here: an event comes from a runtime where the session was claimed through us.
        """
        entry = self._cache.get(session_id) or self._forgotten.get(session_id)
        return entry is not None and entry[0] == owner

    async def list_ids(self, owner: Owner) -> list[str]:
        """Return the owner's session ids, the most recently used first."""
        return [record.session_id for record in await self.list_records(owner)]

    async def forget(self, session_id: str, owner: Owner) -> None:
        """Free the id of a deleted session; does nothing where someone else owns it."""
        record = await self._registry.find(session_id)
        if record is None or record.owner != owner:
            self._overtake(session_id)
            return
        # The record goes last: whoever has the id next must find nothing of what was kept under it, members above all.
        self._freeing.add(session_id)
        try:
            for forget in self.keepers:
                await forget(session_id, owner)
            was_theirs = await self._registry.forget(session_id, owner)
        finally:
            self._freeing.discard(session_id)
        self._overtake(session_id)
        if not was_theirs:
            return
        self.note_freed(session_id)
        entry = self._cache.pop(session_id, None)
        self._used.pop(session_id, None)
        if entry is not None:
            self._forgotten[session_id] = entry
            if len(self._forgotten) > _CACHE_ENTRIES // 10:
                self._forgotten.popitem(last=False)

    def touch(self, session_id: str) -> None:
        """Note that a session is in use; written by `flush`, not now."""
        self._used[session_id] = self._clock.now()

    async def flush(self) -> None:
        """Write the times of use noted since the last flush; those that cannot be written wait for the next one.

        Raises:
            errors.StoreUnavailable: the store does not answer.
        """
        async with self._flushing:
            used, self._used = self._used, {}
            self._writing = used
            try:
                while used:
                    session_id, at = next(iter(used.items()))
                    await self._registry.touch(session_id, at)
                    del used[session_id]
            finally:
                self._used = {**used, **self._used}
                self._writing = {}

    async def flush_every(self, seconds: float, failed: Callable[[errors.StoreUnavailable], None]) -> None:
        """Flush on schedule until cancelled, and once more then; `failed` hears of every flush that did not succeed."""
        await flushing.flush_every(self.flush, seconds, failed)

    def _remember(self, session_id: str, owner: Owner) -> None:
        self._forgotten.pop(session_id, None)
        self._cache[session_id] = (owner, self._clock.monotonic() + self._cache_seconds)
        self._cache.move_to_end(session_id)
        if len(self._cache) > _CACHE_ENTRIES:
            self._cache.popitem(last=False)
