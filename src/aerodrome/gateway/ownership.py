"""Who owns which session: the registry, with a cache in front that has a deadline.

Every message that names a session is checked here before it goes anywhere. Storage is the truth; an entry of the cache is
believed for `ownership_cache_seconds`. Forgotten sessions are remembered a little longer, so that the last events about them
still reach their owner.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner
from aerodrome.core.session import Claim, SessionRecord
from aerodrome.ports.registry import SessionRegistry

_CACHE_ENTRIES = 100_000


@dataclass(slots=True)
class _Read:
    """The reads of one id that are under way, and how often its owner changed since the first began."""

    readers: int = 0
    changes: int = 0


class Ownership:
    """The ownership rule over a registry."""

    def __init__(self, registry: SessionRegistry, clock: Clock, cache_seconds: float) -> None:
        self._registry = registry
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._cache: OrderedDict[str, tuple[Owner, float]] = OrderedDict()
        self._forgotten: OrderedDict[str, tuple[Owner, float]] = OrderedDict()
        self._used: dict[str, float] = {}
        self._reads: dict[str, _Read] = {}

    async def claim(self, session_id: str, owner: Owner, realm: str) -> Claim:
        """Record the owner of a new id, or confirm it.

        Raises:
            errors.AlreadyExists: someone else owns it.
        """
        now = self._clock.now()
        claim = await self._registry.claim(SessionRecord(session_id, owner, realm, now, now))
        self._overtake(session_id)
        if claim.record.owner != owner:
            raise errors.AlreadyExists(f"session id {session_id} is not available; choose another")
        self._remember(session_id, owner)
        return claim

    def is_known_to_be(self, session_id: str, owner: Owner) -> bool:
        """Say whether the cache, fresh, names this owner. False means: ask `is_owned`."""
        entry = self._cache.get(session_id)
        return entry is not None and entry[0] == owner and self._clock.monotonic() < entry[1]

    async def find_owner(self, session_id: str) -> Owner | None:
        """Return who owns the session, None for a session nobody has claimed."""
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

    def _overtake(self, session_id: str) -> None:
        read = self._reads.get(session_id)
        if read is not None:
            read.changes += 1

    async def is_owned(self, session_id: str, owner: Owner) -> bool:
        """Say whether this owner owns the session."""
        return await self.find_owner(session_id) == owner

    def may_see(self, session_id: str, owner: Owner) -> bool:
        """Say, without waiting, whether an event about a session is for this owner.

        Entries past their deadline count here: an event comes from a runtime where the session was claimed through us.
        """
        entry = self._cache.get(session_id) or self._forgotten.get(session_id)
        return entry is not None and entry[0] == owner

    async def list_ids(self, owner: Owner) -> list[str]:
        """Return the owner's session ids, the most recently used first."""
        pending = {sid: at for sid, at in self._used.items() if self.is_known_to_be(sid, owner)}
        records = await self._registry.list_owned(owner)
        ordered = sorted(records, key=lambda r: max(r.used_at, pending.get(r.session_id, 0.0)), reverse=True)
        return [record.session_id for record in ordered]

    async def forget(self, session_id: str, owner: Owner) -> None:
        """Free the id of a deleted session; does nothing where someone else owns it."""
        was_theirs = await self._registry.forget(session_id, owner)
        self._overtake(session_id)
        if not was_theirs:
            return
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
        used, self._used = self._used, {}
        try:
            while used:
                session_id, at = next(iter(used.items()))
                await self._registry.touch(session_id, at)
                del used[session_id]
        finally:
            self._used = {**used, **self._used}

    async def flush_every(self, seconds: float, failed: Callable[[errors.StoreUnavailable], None]) -> None:
        """Flush on schedule until cancelled, and once more then; `failed` hears of every flush that did not succeed."""
        try:
            while True:
                await asyncio.sleep(seconds)
                await self._try_flush(failed)
        finally:
            await self._try_flush(failed)

    async def _try_flush(self, failed: Callable[[errors.StoreUnavailable], None]) -> None:
        try:
            await self.flush()
        except errors.StoreUnavailable as error:
            failed(error)

    def _remember(self, session_id: str, owner: Owner) -> None:
        self._forgotten.pop(session_id, None)
        self._cache[session_id] = (owner, self._clock.monotonic() + self._cache_seconds)
        self._cache.move_to_end(session_id)
        if len(self._cache) > _CACHE_ENTRIES:
            self._cache.popitem(last=False)
