"""Runtimes with nothing at work: frozen, then hibernated; and those that are cordoned: emptied, then retired.

One loop looks at the runtimes in use (gateway.occupancy); what it finds to do for one of them runs as a task of its own, so that
a runtime that hangs holds up none of the others. Clients stay connected throughout and notice nothing: a frozen runtime is
thawed by the first message to it (gateway.upstream), a hibernated one's sessions come back at their next call
(gateway.reattach). A runtime whose file system or model is one of its clients lives as long as that client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from aerodrome.core.attachment import AttachmentState
from aerodrome.core.flights import TurnEnd
from aerodrome.gateway import reattach, residents, unloading
from aerodrome.gateway.occupancy import Occupied

if TYPE_CHECKING:
    from aerodrome.gateway.client import Services

_log = structlog.get_logger()
_SLOWEST_TICK_SECONDS = 1.0
_FASTEST_TICK_SECONDS = 0.02


class Caretaker:
    """Looks after the runtimes in use until closed."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._freeze_seconds = services.settings.freeze_seconds
        self._hibernate_seconds = services.settings.hibernate_seconds
        self._working: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on schedule."""
        self._looking = asyncio.get_running_loop().create_task(self._look_on_schedule(), name="caretaker")

    async def aclose(self) -> None:
        """Stop looking and end what is under way."""
        tasks = [task for task in (self._looking, *self._working.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._services.aclose()

    async def _look_on_schedule(self) -> None:
        times = [seconds for seconds in (self._freeze_seconds, self._hibernate_seconds) if seconds]
        tick = max(_FASTEST_TICK_SECONDS, min([_SLOWEST_TICK_SECONDS, *(seconds / 8 for seconds in times)]))
        while True:
            await asyncio.sleep(tick)
            for occupied in self._services.occupancy:
                work = self._find_work(occupied)
                runtime_id = occupied.handle.runtime_id
                if work is not None:
                    task = asyncio.get_running_loop().create_task(work, name=f"care of {runtime_id}")
                    self._working[runtime_id] = task
                    task.add_done_callback(lambda done, rt=runtime_id: self._note_done(rt, done))  # type: ignore[misc]

    def _note_done(self, runtime_id: str, task: asyncio.Task[None]) -> None:
        del self._working[runtime_id]
        if not task.cancelled() and task.exception() is not None:
            _log.error("care.failed", runtime=runtime_id, exc_info=task.exception())

    def _find_work(self, occupied: Occupied) -> Coroutine[Any, Any, None] | None:
        handle = occupied.handle
        if handle.lost.done() or handle.runtime_id in self._working:
            return None
        idle_seconds = asyncio.get_running_loop().time() - occupied.used_at
        if occupied.is_at_work and idle_seconds >= self._services.settings.doubt_seconds:
            return self._doubt_turns(occupied)
        if handle.cordoned.done():
            return self._empty(occupied, handle.cordoned.result())
        if occupied.is_at_work or occupied.serves_a_provider or handle.links != len(occupied.links):
            return None  # the last: someone else lends it (gateway.reaper)
        if self._hibernate_seconds and idle_seconds >= self._hibernate_seconds:
            return self._hibernate(occupied)
        if self._freeze_seconds and idle_seconds >= self._freeze_seconds and not handle.is_frozen:
            return self._freeze(occupied)
        return None

    async def _doubt_turns(self, occupied: Occupied) -> None:
        """Ask about turns that have gone on for long: one whose end could not be written has none.

        On a full disk the runtime says at most that it is full, never that it is idle (measured), and would be kept for ever.
        """
        _use(occupied)
        for realm, session_id in self._services.router.live_in(occupied.handle.runtime_id):
            resident = self._services.residents.find(realm, session_id)
            for holder in resident.live if resident is not None else []:
                held, upstream = holder.held, holder.held.upstream
                if held.state is not AttachmentState.TURN or upstream is None or residents.is_waiting(holder):
                    continue
                used_at = upstream.used_at
                if await unloading.is_active(upstream, session_id) or upstream.used_at != used_at:
                    continue
                if held.state is AttachmentState.TURN:
                    held.move(AttachmentState.IDLE)
                    holder.client.end_turn(held, TurnEnd.LOST)
                    holder.client.turn_ended.set()
                    _log.warning("turn.ended_unsaid", session=session_id, runtime=occupied.handle.runtime_id)

    async def _freeze(self, occupied: Occupied) -> None:
        used_at = occupied.used_at
        if await self._has_hidden_work(occupied):
            _use(occupied)
        elif occupied.used_at == used_at and not occupied.is_at_work:
            occupied.handle.freeze()
            _log.info("runtime.frozen", runtime=occupied.handle.runtime_id)

    async def _has_hidden_work(self, occupied: Occupied) -> bool:
        """Ask the runtime about every live session: a shell in the background would stand still with it."""
        for realm, session_id in self._services.router.live_in(occupied.handle.runtime_id):
            resident = self._services.residents.find(realm, session_id)
            for holder in resident.live if resident is not None else []:
                upstream = holder.held.upstream
                if upstream is not None and await unloading.is_active(upstream, session_id):
                    return True
        return False

    async def _hibernate(self, occupied: Occupied) -> None:
        if await self._unload_all(occupied, "hibernation"):
            self._leave(occupied, "nothing was at work in it")
            _log.info("runtime.hibernated", runtime=occupied.handle.runtime_id)
        else:
            _use(occupied)

    async def _empty(self, occupied: Occupied, reason: str) -> None:
        if await self._unload_all(occupied, "cordon"):
            self._leave(occupied, reason)

    async def _unload_all(self, occupied: Occupied, reason: str) -> bool:
        """Unload every idle session of a runtime; say whether nothing is left in it and no link waits for anything."""
        runtime_id = occupied.handle.runtime_id
        for realm, session_id in self._services.router.live_in(runtime_id):
            resident = self._services.residents.find(realm, session_id)
            if resident is not None and not resident.is_at_work:
                await unloading.unload(self._services, resident, reason)
        return not self._services.router.count_live(runtime_id) and not occupied.is_at_work

    def _leave(self, occupied: Occupied, reason: str) -> None:
        """Take every link out of an empty runtime and have it stopped, in one step of the loop: no request comes between."""
        for upstream, client in list(occupied.links.items()):
            upstream.link.abort()
            reattach.settle(client, upstream)
        self._services.fleet.retire(occupied.handle, reason)


def _use(occupied: Occupied) -> None:
    """Have the idle time begin anew: something was at work that links do not see."""
    now = asyncio.get_running_loop().time()
    for upstream in occupied.links:
        upstream.used_at = now
