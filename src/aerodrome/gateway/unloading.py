"""Sessions leave a runtime by policy: one at a time, never at work, unseen by those who hold them.

A runtime costs memory for every live session, and some cost time (protocol facts 2.2): so each has a cap (core.live_cap); past it
the session that was used longest ago is evicted. `unload` is also how a runtime is emptied before it hibernates or is replaced.
The session's next call brings it back (gateway.reattach).

What a session is at work with is known from what its links wait for; what they cannot see (a shell in the background, a
compaction) the runtime is asked for, last, when no request can come between any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec import UNSET

from aerodrome import errors
from aerodrome.core import live_cap
from aerodrome.core.attachment import AttachmentState
from aerodrome.core.live_cap import Measured
from aerodrome.gateway.residents import Holder, Resident
from aerodrome.gateway.upstream import Upstream

if TYPE_CHECKING:
    from aerodrome.gateway.client import Services

_log = structlog.get_logger()
_ANSWER_SECONDS = 10.0


class _Activity(msgspec.Struct):
    hasActiveWork: bool = True


async def unload(services: Services, resident: Resident, reason: str) -> bool:
    """Unload a session for every link that holds it; say whether none has it in a runtime any more.

    False: it is at work, or its runtime did not say that it is not; nothing has changed then.
    """
    async with resident.alone():
        holders = resident.live
        if resident.is_at_work:
            return False
        for holder in holders:
            # From here on every request about it waits for the lock.
            holder.held.move(AttachmentState.UNLOADING)
        try:
            return await _unload_idle(services, resident, holders, reason)
        finally:
            _restore(holders)


async def _unload_idle(services: Services, resident: Resident, holders: list[Holder], reason: str) -> bool:
    for holder in holders:
        upstream = holder.held.upstream
        if upstream is not None and await is_active(upstream, resident.session_id):
            return False
    for holder in holders:
        upstream = holder.held.upstream
        if holder.held.state is not AttachmentState.UNLOADING or upstream is None:
            continue  # its client has let go of it
        if not await _detach(upstream, resident.session_id):
            continue
        if holder.held.state is AttachmentState.UNLOADING:
            holder.held.move(AttachmentState.EVICTED)
            holder.held.upstream = None
            services.router.detach(resident.realm, resident.session_id, holder.client.number, f"evicted: {reason}")
    if holders and not resident.live:
        _log.info("session.evicted", session=resident.session_id, reason=reason)
    return not any(holder.held.state is AttachmentState.UNLOADING for holder in holders)


def _restore(holders: list[Holder]) -> None:
    for holder in holders:
        if holder.held.state is AttachmentState.UNLOADING:
            holder.held.move(AttachmentState.IDLE)


async def is_active(upstream: Upstream, session_id: str) -> bool:
    """Ask the runtime; one that does not say no counts as yes (a session it does not have any more is not at work)."""
    try:
        answer = await upstream.call("session.metadata.activity", {"sessionId": session_id}, _ANSWER_SECONDS)
    except errors.RuntimeLost:
        return True
    if answer.error is not UNSET:
        return b"not found" not in bytes(answer.error).lower()
    try:
        result = answer.result if isinstance(answer.result, msgspec.Raw) else b"{}"
        return msgspec.json.decode(result, type=_Activity).hasActiveWork
    except msgspec.DecodeError:
        return True


async def _detach(upstream: Upstream, session_id: str) -> bool:
    try:
        answer = await upstream.call("session.detach", {"sessionId": session_id}, _ANSWER_SECONDS)
    except errors.RuntimeLost:
        return False
    return answer.error is UNSET


class Evictor:
    """Holds every runtime to its cap of live sessions; one task at most for each runtime, none while all is well."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._measured: dict[str, tuple[float, Measured]] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[bool]] = set()

    def note(self, runtime_id: str) -> None:
        """Evict in the background if a runtime has more live sessions than its cap; call when one opens or falls idle."""
        cap = self._cap(runtime_id)
        if cap and runtime_id not in self._working and self._services.router.count_live(runtime_id) > cap:
            task = asyncio.get_running_loop().create_task(self._evict(runtime_id), name=f"eviction in {runtime_id}")
            self._working[runtime_id] = task
            task.add_done_callback(lambda _: self._working.pop(runtime_id, None))

    def note_idle(self, runtime_id: str, realm: str, session_id: str) -> None:
        """Note that a session fell idle: it leaves a cordoned runtime now, or else a client that never pauses would keep it."""
        occupied = self._services.occupancy.find(runtime_id)
        resident = self._services.residents.find(realm, session_id)
        if occupied is None or not occupied.handle.cordoned.done() or resident is None:
            self.note(runtime_id)
            return
        task = asyncio.get_running_loop().create_task(
            unload(self._services, resident, "cordon"), name=f"unloading from {runtime_id}"
        )
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def make_room(self, runtime_id: str) -> None:
        """Wait while a runtime is far over its cap, so that openings cannot outrun evictions.

        Raises:
            errors.OverCapacity: about twice its cap are at work at once.
        """
        count = self._services.router.count_live
        cap = self._cap(runtime_id)
        soft = cap + max(2, cap // 10)
        while cap and (before := count(runtime_id)) >= soft:
            self.note(runtime_id)
            evicting = self._working.get(runtime_id)
            if evicting is not None:
                await asyncio.wait((evicting,))
            if count(runtime_id) >= before:
                break
        if cap and count(runtime_id) >= max(soft, 2 * cap):
            raise errors.OverCapacity(
                f"{count(runtime_id)} sessions are at work in this runtime at once, its cap of live sessions is {cap}; "
                "try later"
            )

    def _cap(self, runtime_id: str) -> int:
        """Return how many sessions may be live in a runtime now, 0 for any number."""
        settings = self._services.settings
        if not settings.live_memory_bytes:
            return settings.live_sessions
        occupied = self._services.occupancy.find(runtime_id)
        measured_at = occupied.handle.measured_at if occupied is not None else 0.0
        known_at, measured = self._measured.get(runtime_id, (0.0, Measured()))
        if occupied is not None and measured_at != known_at:
            # Asked at every opening, so that hardly any has come between the measurement and now.
            measured = Measured(occupied.handle.memory_bytes, self._services.router.count_live(runtime_id))
            if runtime_id not in self._measured:
                occupied.handle.lost.add_done_callback(lambda _: self._measured.pop(runtime_id, None))
            self._measured[runtime_id] = measured_at, measured
        return live_cap.live_cap(settings.live_sessions, settings.live_memory_bytes, measured)

    async def aclose(self) -> None:
        """End every eviction."""
        tasks = [*self._working.values(), *self._leaving]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _evict(self, runtime_id: str) -> None:
        router = self._services.router
        while (excess := router.count_live(runtime_id) - self._cap(runtime_id)) > 0:
            for realm, session_id in router.live_in(runtime_id):
                resident = self._services.residents.find(realm, session_id)
                # One that is on its way may be waiting for this very eviction, to have room (`make_room`).
                if resident is not None and not resident.is_at_work and not resident.wanting:
                    excess -= await unload(self._services, resident, "cap")
                if excess <= 0:
                    break
            else:
                return  # all that are left are at work; the next one to fall idle calls again
