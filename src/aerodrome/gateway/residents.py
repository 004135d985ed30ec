"""The sessions that client links hold, whether they are in a runtime now or not, and who holds each.

A session may be held by several links, and is in the runtime for all of them or for none: whoever unloads it or brings it back
does so for every holder, under the session's lock. Which runtime it is in is gateway.router; how it leaves and comes back is
gateway.unloading and gateway.reattach.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aerodrome.core.attachment import AttachmentState

if TYPE_CHECKING:
    from aerodrome.gateway.client import Attachment, Client

#: Realm key and session id: ids are unique in a realm only as far as a runtime is concerned.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Holder:
    """One link's hold on a session."""

    client: Client
    held: Attachment


@dataclass(slots=True)
class Resident:
    """A session that at least one link holds. `holders` are in the order in which they opened it."""

    realm: str
    session_id: str
    holders: dict[int, Holder] = field(default_factory=dict)
    #: Held while the session leaves a runtime or comes back to one; requests that need it wait for it. By `alone` only.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: How many hold the lock or wait for it: a lock that was just given back is free, and yet the next one's.
    wanting: int = 0

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Have nobody else move the session for the length of a block."""
        self.wanting += 1
        try:
            async with self.lock:
                yield
        finally:
            self.wanting -= 1

    @property
    def live(self) -> list[Holder]:
        """Return the holders that have it in a runtime."""
        return [holder for holder in self.holders.values() if holder.held.is_live]

    @property
    def absent(self) -> list[Holder]:
        """Return the holders that must have it brought back before they hear of it."""
        gone = (AttachmentState.LOST, AttachmentState.EVICTED)
        return [holder for holder in self.holders.values() if holder.held.state in gone]

    @property
    def is_at_work(self) -> bool:
        """Say whether any link has something under way in it: a turn, a request, an opening, a question unanswered."""
        return any(_is_at_work(holder) for holder in self.holders.values())


class Residents:
    """All held sessions of this gateway."""

    def __init__(
        self,
        note_gone: Callable[[str, str], None] = lambda _realm, _session_id: None,
        note_holders: Callable[[str, str], None] = lambda _realm, _session_id: None,
    ) -> None:
        self._residents: dict[Key, Resident] = {}
        self._note_gone = note_gone
        #: Called when a link came to hold a session that others hold, or let go of one.
        self._note_holders = note_holders
        #: The same by the tenant whose they are, so that counting one's costs nothing for the others.
        self._by_tenant: dict[str, dict[Key, Resident]] = {}

    def __len__(self) -> int:
        return len(self._residents)

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._residents.values()))

    def find(self, realm: str, session_id: str) -> Resident | None:
        """Return the session if any link holds it."""
        return self._residents.get((realm, session_id))

    def of_tenant(self, tenant: str) -> Iterator[Resident]:
        """Yield the held sessions of a tenant."""
        return iter(list(self._by_tenant.get(tenant, {}).values()))

    def hold(self, client: Client, held: Attachment) -> None:
        """Note that a link opened a session; opening it again makes it the latest."""
        key = (client.realm.key, held.session_id)
        resident = self._residents.get(key)
        if resident is None:
            resident = self._residents[key] = Resident(*key)
            self._by_tenant.setdefault(client.owner.tenant, {})[key] = resident
        resident.holders.pop(client.number, None)
        resident.holders[client.number] = Holder(client, held)
        if len(resident.holders) > 1:
            self._note_holders(*key)

    def release(self, client: Client, session_id: str) -> None:
        """Note that a link let go of a session; idempotent."""
        key = (client.realm.key, session_id)
        resident = self._residents.get(key)
        if resident is not None:
            resident.holders.pop(client.number, None)
            if resident.holders:
                self._note_holders(*key)
            else:
                del self._residents[key]
                of_tenant = self._by_tenant[client.owner.tenant]
                del of_tenant[key]
                if not of_tenant:
                    del self._by_tenant[client.owner.tenant]
                # Not at once: a session that goes from one link to another is held by neither for a moment.
                asyncio.get_running_loop().call_soon(self._settle_gone, key)

    def _settle_gone(self, key: Key) -> None:
        if key not in self._residents:
            self._note_gone(*key)


def _is_at_work(holder: Holder) -> bool:
    held = holder.held
    if (
        held.state in (AttachmentState.OPENING, AttachmentState.TURN, AttachmentState.UNLOADING)
        or held.ending is not None
    ):
        return True
    return is_waiting(holder)


def is_waiting(holder: Holder) -> bool:
    """Say whether an answer about the session is owed, by the runtime or by the client."""
    held = holder.held
    if held.upstream is None:
        return False
    if held.upstream.owes(held.session_id):
        return True
    return any(asked.session_id == held.session_id for _, asked in holder.client.asked.items())
