"""Shared sessions of this gateway: who is a member, who is here, and what members are told.

The rule is checked on every message; memory is a cache with a deadline, changed at once where the change is made here. Members
are of the owner's tenant. Neighbours: seats (a member's link), turn_queue (whose turn it is), sharing_calls (what members ask).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core.identity import Owner, Principal
from aerodrome.core.membership import Member, Right, Sharing
from aerodrome.core.placement import realm_of
from aerodrome.gateway.audience import Audiences
from aerodrome.gateway.known_tenants import FindTenant
from aerodrome.gateway.ownership import Ownership
from aerodrome.ports.coordination import TurnCoordinator, TurnFence
from aerodrome.ports.members import MemberStore, SharingStore
from aerodrome.protocol import reopening
from aerodrome.transport.link import Link

if TYPE_CHECKING:
    from aerodrome.gateway.client import Client, Services
    from aerodrome.gateway.residents import Resident

_log = structlog.get_logger()
_CACHE_ENTRIES = 20_000
#: How long until a store that did not answer is asked again.
_RETRY_SECONDS = 0.2
_NOBODY: frozenset[Right] = frozenset()
FindRecipe = Callable[[str, Owner], Awaitable[dict[str, Any] | None]]
#: Serves a link of this process for a principal, on behalf of somebody.
ServeFor = Callable[[Link, Principal, Owner, "NoteClient"], Awaitable[None]]
#: Hears of the client that serves such a link.
NoteClient = Callable[["Client"], None]


@dataclass(frozen=True, slots=True)
class SharingStores:
    """Where shared sessions are kept, and where turns are agreed."""

    members: MemberStore
    sharings: SharingStore
    coordinator: TurnCoordinator
    fence: TurnFence


class SharedSessions:
    """The shared sessions. `cache_seconds`: how long a look into the store is believed."""

    def __init__(
        self, stores: SharingStores, find_tenant: FindTenant, clock: Clock, cache_seconds: float = 5.0
    ) -> None:
        self.stores = stores
        self.clock = clock
        self.audiences = Audiences()
        self.serve_for: ServeFor | None = None
        #: Says with what parameters a session of an owner is opened, where an edge keeps them (http.users).
        self.find_recipe: FindRecipe | None = None
        #: Takes back the turns of somebody who may not send any more (gateway.turn_queue).
        self.dismiss: Callable[[str, Owner], Awaitable[object]] | None = None
        self._find_tenant = find_tenant
        self._cache_seconds = cache_seconds
        self._members: dict[tuple[str, Owner], tuple[Member | None, float]] = {}
        self._sharings: dict[str, tuple[Sharing | None, float]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._watchers: set[Callable[[str, Owner | None], None]] = set()
        self._telling: dict[tuple[str, str], asyncio.Task[None]] = {}
        #: How often anything changed here: what was read before a change is not remembered after it.
        self._changes = 0

    # -- who may ------------------------------------------------------------------------------------------------------------

    async def rights(self, session_id: str, person: Owner, owner: Owner | None) -> frozenset[Right]:
        """Return what somebody may do in a session of this owner; nothing across tenants."""
        if owner is None or owner.tenant != person.tenant:
            return _NOBODY
        if owner == person:
            return frozenset(Right)
        member = await self.member(session_id, person)
        return _NOBODY if member is None else member.rights

    async def settled_rights(self, session_id: str, person: Owner, owner: Owner) -> frozenset[Right]:
        """Return the same, as soon as the store says so: for what passes nothing until then."""
        while True:
            try:
                return await self.rights(session_id, person, owner)
            except errors.StoreUnavailable as error:
                _log.warning("seat.failed", reason=error.message)
            await asyncio.sleep(_RETRY_SECONDS)

    async def member(self, session_id: str, person: Owner) -> Member | None:
        """Return what somebody is in a session."""
        found = self._members.get((session_id, person))
        if found is not None and self.clock.monotonic() < found[1]:
            return found[0]
        changes = self._changes
        member = await self.stores.members.find(session_id, person)
        self._remember(self._members, (session_id, person), member, changes)
        return member

    async def sharing(self, session_id: str) -> Sharing | None:
        """Return how a session is shared; None for one that is its owner's alone."""
        found = self._sharings.get(session_id)
        if found is not None and self.clock.monotonic() < found[1]:
            return found[0]
        changes = self._changes
        sharing = await self.stores.sharings.find_sharing(session_id)
        self._remember(self._sharings, session_id, sharing, changes)
        return sharing

    def is_known_unshared(self, session_id: str) -> bool:
        """Say, without waiting, whether a session is known to be its owner's alone."""
        found = self._sharings.get(session_id)
        return found is not None and found[0] is None and self.clock.monotonic() < found[1]

    def forget(self, session_id: str, person: Owner | None = None) -> None:
        """Believe nothing about a session (and a person) any more; whoever sits in it looks again."""
        self._changes += 1
        self._sharings.pop(session_id, None)
        for key in [key for key in self._members if key[0] == session_id and person in (None, key[1])]:
            del self._members[key]
        for watcher in list(self._watchers):
            watcher(session_id, person)

    async def end(self, session_id: str, _owner: Owner) -> None:
        """Keep nothing of a session that is gone."""
        async with self._alone(session_id):
            await self.stores.members.remove(session_id)
            await self.stores.coordinator.forget(session_id)
        self.forget(session_id)

    @asynccontextmanager
    async def changing(self, ownership: Ownership, session_id: str, owner: Owner) -> AsyncIterator[None]:
        """Change what is kept of how an owner's session is shared, in a block: its end waits for that, or came before.

        Raises:
            errors.SessionMissing: it is gone: what is kept from now on would be of whoever has its id next.
        """
        async with self._alone(session_id):
            if not await ownership.is_still_owned(session_id, owner):
                raise errors.SessionMissing("no such session")
            yield

    @asynccontextmanager
    async def _alone(self, session_id: str) -> AsyncIterator[None]:
        lock = self._locks.get(session_id)
        if lock is None:
            lock = self._locks[session_id] = asyncio.Lock()  # for as long as anybody has it
        async with lock:
            yield

    async def leave_everything(self, person: Owner) -> int:
        """Take somebody out of every session of others (an erasure); return out of how many."""
        members = await self.stores.members.list_for(person)
        for member in members:
            await self.stores.members.remove(member.session_id, person)
            self.forget(member.session_id, person)
            if self.dismiss is not None:
                await self.dismiss(member.session_id, person)
        return len(members)

    def watch(self, watcher: Callable[[str, Owner | None], None]) -> Callable[[], None]:
        """Call back when members of a session change (None: any of them); return what ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    async def principal_for(self, owner: Owner, guest: Principal) -> Principal:
        """Return the principal under which a guest's link serves in sessions of an owner: the owner's policy, the guest's key.

        Raises:
            errors.SessionMissing: the tenant is gone.
        """
        tenant = await self._find_tenant(owner.tenant)
        if tenant is None:
            raise errors.SessionMissing("no such session")
        return Principal(owner, tenant.policy_for(owner.user), guest.key_id, guest.expires_at)

    # -- what members are told ----------------------------------------------------------------------------------------------

    async def realm_key(self, owner: Owner) -> str:
        """Return the key of the realm in which an owner's sessions live."""
        tenant = await self._find_tenant(owner.tenant)
        if tenant is None:
            raise errors.SessionMissing("no such session")
        return realm_of(owner, tenant.policy_for(owner.user)).key

    def tell(self, services: Services, realm: str, session_id: str, kind: str, data: dict[str, Any]) -> None:
        """Tell every link that holds a session; it passes, and is kept nowhere."""
        resident = services.residents.find(realm, session_id)
        if resident is None:
            return
        body = reopening.event(session_id, kind, data)
        for holder in list(resident.holders.values()):
            holder.client.deliver(session_id, kind, body)
            holder.client.link.flush()
        self.overhear(realm, session_id, body)

    def overhear(self, realm: str, session_id: str, body: bytes) -> None:
        """Tell those who only read a session what a holder's link hears; each event once."""
        audience = self.audiences.find(realm, session_id)
        if audience is not None:
            audience.tell(body)

    def note_holders(self, services: Services, realm: str, session_id: str) -> None:
        """Tell the members of a shared session who is here now, soon: many may come at once."""
        key = (realm, session_id)
        if self.is_known_unshared(session_id) or key in self._telling:
            return
        work = self._tell_presence(services, key)
        self._telling[key] = asyncio.get_running_loop().create_task(work, name=f"presence in {session_id}")

    async def aclose(self) -> None:
        """End what is being told. Idempotent."""
        for task in list(self._telling.values()):
            task.cancel()
        if self._telling:
            await asyncio.wait(list(self._telling.values()))

    async def _tell_presence(self, services: Services, key: tuple[str, str]) -> None:
        try:
            if await self.sharing(key[1]) is None:
                return
        except errors.StoreUnavailable:
            return  # a hint: the next change says it again
        finally:
            del self._telling[key]
        resident = services.residents.find(*key)
        if resident is not None:
            self.tell(services, *key, "aerodrome.presence", {"here": who_is_here(resident, self.audiences.users(*key))})

    def _remember(self, cache: dict[Any, tuple[Any, float]], key: Any, value: Any, changes: int) -> None:
        if changes != self._changes:
            return
        if len(cache) >= _CACHE_ENTRIES:
            cache.clear()
        cache[key] = (value, self.clock.monotonic() + self._cache_seconds)


def who_is_here(resident: Resident | None, readers: Sequence[Owner] = ()) -> list[dict[str, Any]]:
    """Return the people whose links hold a session or read it, and how many links each has."""
    holders = [holder.client.actor for holder in resident.holders.values()] if resident is not None else []
    links: dict[str, int] = {}
    for person in (*holders, *readers):
        links[person.user] = links.get(person.user, 0) + 1
    return [{"user": user, "links": count} for user, count in sorted(links.items())]
