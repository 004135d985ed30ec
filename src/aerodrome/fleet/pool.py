"""The spawned runtimes, by realm: one per user or tenant, several for `shared`.

Deliberately holds no sessions: which session lives where is gateway.router. A runtime without links is stopped after
`idle_seconds`; its realm's directories stay, and the next call spawns another over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from aerodrome import errors
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Isolation
from aerodrome.fleet.spec import FleetSettings
from aerodrome.fleet.supervisor import SupervisedRuntime
from aerodrome.ports.fleet import Broadcast, RuntimeHandle
from aerodrome.ports.host import RuntimeHost


@dataclass(slots=True)
class _Placed:
    runtime: SupervisedRuntime
    handle: RuntimeHandle
    idle_timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _RealmRuntimes:
    ready: dict[str, _Placed] = field(default_factory=dict)
    spawning: asyncio.Task[RuntimeHandle] | None = None


class RuntimePool:
    """A fleet of runtimes on one host."""

    def __init__(self, host: RuntimeHost, settings: FleetSettings) -> None:
        self._host = host
        self._settings = settings
        self._realms: dict[str, _RealmRuntimes] = {}
        self._broadcasts: list[Broadcast] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._spawns = asyncio.Semaphore(settings.spawns_at_once)
        self._closing = False

    @property
    def version(self) -> str:
        """Return the release of the runtimes."""
        return self._settings.version

    @property
    def realms(self) -> int:
        """Return how many realms have a runtime, or one on its way."""
        return len(self._realms)

    async def acquire(self, realm: Realm, runtime_id: str | None = None) -> RuntimeHandle:
        """Return a ready runtime with its link counted (see ports.fleet)."""
        if self._closing:
            raise errors.Draining("this gateway is stopping; connect again to reach another")
        if runtime_id is not None:
            return self._count_link(self._find(realm, runtime_id))
        while True:
            # Anew each time: a realm whose last runtime is gone is forgotten.
            runtimes = self._realms.setdefault(realm.key, _RealmRuntimes())
            if placed := self._least_loaded(runtimes):
                return self._count_link(placed)
            self._check_room(realm, runtimes)
            if runtimes.spawning is None:
                runtimes.spawning = self._run(self._spawn(realm, runtimes), f"spawn for {realm.key}")
            # Shielded: the spawn is everybody's, a caller who gives up must not take it along.
            await asyncio.shield(runtimes.spawning)

    def release(self, handle: RuntimeHandle) -> None:
        """Give a link back; the last one starts the idle clock."""
        handle.links -= 1
        runtimes = self._realms.get(handle.realm.key)
        placed = runtimes.ready.get(handle.runtime_id) if runtimes else None
        if placed is not None and handle.links == 0 and not self._closing:
            loop = asyncio.get_running_loop()
            placed.idle_timer = loop.call_later(self._settings.idle_seconds, self.retire, handle, "idle")

    def retire(self, handle: RuntimeHandle, reason: str) -> None:
        """Stop a runtime and tell its users."""
        runtimes = self._realms.get(handle.realm.key)
        placed = runtimes.ready.pop(handle.runtime_id, None) if runtimes else None
        self._forget_if_empty(handle.realm)
        if placed is not None:
            self._run(placed.runtime.stop(handle, reason), f"stop {handle.runtime_id}")

    def subscribe(self, broadcast: Broadcast) -> None:
        """Have notifications of the control links delivered."""
        self._broadcasts.append(broadcast)

    async def aclose(self) -> None:
        """Stop everything at once and wait for it."""
        self._closing = True
        for runtimes in list(self._realms.values()):
            if runtimes.spawning is not None:
                runtimes.spawning.cancel()
            for placed in list(runtimes.ready.values()):
                self.retire(placed.handle, "the gateway is stopping")
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._host.aclose()

    def _find(self, realm: Realm, runtime_id: str) -> _Placed:
        runtimes = self._realms.get(realm.key)
        placed = runtimes.ready.get(runtime_id) if runtimes else None
        if placed is None:
            raise errors.RuntimeLost(f"runtime {runtime_id} is gone; resume the session to have it on another")
        if placed.handle.links >= self._settings.links_per_runtime:
            raise errors.OverCapacity(
                f"the runtime of this session serves {self._settings.links_per_runtime} connections, its limit; "
                "close some, then try again"
            )
        return placed

    def _least_loaded(self, runtimes: _RealmRuntimes) -> _Placed | None:
        open_ones = [p for p in runtimes.ready.values() if p.handle.links < self._settings.links_per_runtime]
        return min(open_ones, key=lambda placed: placed.handle.links, default=None)

    def _check_room(self, realm: Realm, runtimes: _RealmRuntimes) -> None:
        limit = self._settings.shared_runtimes if realm.isolation is Isolation.SHARED else 1
        if len(runtimes.ready) >= limit:
            raise errors.OverCapacity(
                f"all {limit} runtimes of this realm serve {self._settings.links_per_runtime} connections each; try later"
            )

    async def _spawn(self, realm: Realm, runtimes: _RealmRuntimes) -> RuntimeHandle:
        runtime = SupervisedRuntime(realm, self._host, self._settings, self._broadcast)
        try:
            async with self._spawns:
                handle = await runtime.start()
        except BaseException:
            runtimes.spawning = None
            self._forget_if_empty(realm)
            raise
        runtimes.spawning = None
        if self._closing:
            await runtime.stop(handle, "the gateway is stopping")
            raise errors.Draining("this gateway is stopping; connect again to reach another")
        runtimes.ready[handle.runtime_id] = _Placed(runtime, handle)
        handle.lost.add_done_callback(lambda _: self._forget(handle))
        return handle

    def _forget(self, handle: RuntimeHandle) -> None:
        runtimes = self._realms.get(handle.realm.key)
        if runtimes is not None:
            runtimes.ready.pop(handle.runtime_id, None)
            self._forget_if_empty(handle.realm)

    def _forget_if_empty(self, realm: Realm) -> None:
        """Keep nothing of a realm without runtimes: there are as many realms as users."""
        runtimes = self._realms.get(realm.key)
        if runtimes is not None and not runtimes.ready and runtimes.spawning is None:
            del self._realms[realm.key]

    def _count_link(self, placed: _Placed) -> RuntimeHandle:
        if placed.idle_timer is not None:
            placed.idle_timer.cancel()
            placed.idle_timer = None
        placed.handle.links += 1
        return placed.handle

    def _broadcast(self, realm: Realm, runtime_id: str, body: bytes) -> None:
        for broadcast in self._broadcasts:
            broadcast(realm, runtime_id, body)

    def _run(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note_done)
        return task

    def _note_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a failed spawn is raised to those who wait for it; nobody may be left
