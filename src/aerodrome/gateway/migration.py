"""One idle session moved to another runtime, under the links that hold it: unloaded here, opened there, no runtime cordoned.

Unloading and bringing back are gateway.unloading's and gateway.reattach's, and as unseen by clients as there. A call that comes
in between waits, or brings the session back itself: where it goes is set before it leaves. If the other runtime cannot have it,
the session is in none, and its next call brings it back wherever there is room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aerodrome import errors
from aerodrome.core.placement import Realm
from aerodrome.gateway import reattach, unloading
from aerodrome.gateway.residents import Resident
from aerodrome.ports.fleet import RuntimeHandle

if TYPE_CHECKING:
    from aerodrome.gateway.client import Services


class Neighbours(Protocol):
    """Finds another runtime of a realm (fleet.pool)."""

    async def acquire_other(self, realm: Realm, runtime_id: str, target: str | None = None) -> RuntimeHandle:
        """Return a ready runtime beside that one, with a link counted."""
        ...

    def release(self, handle: RuntimeHandle) -> None:
        """Give the link back."""
        ...


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of it: `migrated`, `at_work` (nothing has changed), or `absent` (it was in no runtime); and where it is."""

    outcome: str
    runtime_id: str | None = None


async def migrate(services: Services, neighbours: Neighbours, resident: Resident, target: str | None = None) -> Moved:
    """Move a session to another runtime of its realm, a certain one or any.

    Raises:
        errors.PolicyRejected: its runtime serves its client alone. errors.InvalidParams: the target is none.
        errors.RuntimeUnavailable, errors.OverCapacity: there is no other runtime to be had, or it does not take the session.
    """
    realm_key, session_id = resident.realm, resident.session_id
    source = services.router.find(realm_key, session_id)
    if source is None:
        return Moved("absent")
    occupied = services.occupancy.find(source)
    if occupied is not None and occupied.serves_a_provider:
        raise errors.PolicyRejected(
            "a client is this runtime's file system or model: its sessions live and die with it"
        )
    if resident.is_at_work:
        return Moved("at_work", source)
    realm = next(iter(resident.holders.values())).client.realm
    # Its link is counted until the session is there: it must not be stopped for having none.
    handle = await neighbours.acquire_other(realm, source, target)
    try:
        with services.router.directed(realm_key, session_id, handle.runtime_id):
            if not await unloading.unload(services, resident, "migration"):
                return Moved("at_work", source)
            for holder in list(resident.holders.values())[:1]:
                await reattach.bring_back(holder.client, session_id)
    finally:
        neighbours.release(handle)
    return Moved("migrated", services.router.find(realm_key, session_id))
