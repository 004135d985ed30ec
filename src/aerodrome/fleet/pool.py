"""The spawned runtimes, by realm: one per user or tenant, several for `shared`; and those that wait for a realm (fleet.warm).

Deliberately holds no sessions: which session lives where is gateway.router. A runtime without links is stopped after
`idle_seconds`, a cordoned one at once; its realm's directories stay, and the next call spawns another over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from aerodrome import errors
from aerodrome.clock import Clock, SystemClock
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Isolation
from aerodrome.core.runtime import RuntimeState
from aerodrome.fleet import spec
from aerodrome.fleet.health import HealthWatch
from aerodrome.fleet.queue import SpawnQueue
from aerodrome.fleet.spec import FleetSettings
from aerodrome.fleet.supervisor import SupervisedRuntime
from aerodrome.fleet.warm import WarmPool
from aerodrome.ports.fleet import Broadcast, PoolView, RuntimeHandle, RuntimeView
from aerodrome.ports.host import RuntimeHost


@dataclass(slots=True)
class _Placed:
    runtime: SupervisedRuntime
    handle: RuntimeHandle
    idle_timer: asyncio.TimerHandle | None = None

    @property
    def is_cordoned(self) -> bool:
        return self.runtime.state is RuntimeState.CORDONED


@dataclass(slots=True)
class _RealmRuntimes:
    #: Those that serve, cordoned ones too.
    ready: dict[str, _Placed] = field(default_factory=dict)
    spawning: asyncio.Task[None] | None = None
    #: The realm under a policy that has changed since they were spawned.
    reaching: Realm | None = None

    @property
    def placeable(self) -> list[_Placed]:
        return [placed for placed in self.ready.values() if not placed.is_cordoned]


class RuntimePool:
    """A fleet of runtimes on one host."""

    def __init__(self, host: RuntimeHost, settings: FleetSettings, clock: Clock | None = None) -> None:
        self._host = host
        self._settings = settings
        self._clock = clock or SystemClock()
        self._realms: dict[str, _RealmRuntimes] = {}
        self._broadcasts: list[Broadcast] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._queue = SpawnQueue(settings.spawns_at_once, settings.spawn_queue)
        self._health = HealthWatch(settings, self._clock, self._end_hanging, self._replace_drifting)
        self._warm = WarmPool(settings, self._clock, self._queue, self._make_warm, self._health.watch, self._room)
        self._closing = False

    @property
    def version(self) -> str:
        """Return the release of the runtimes."""
        return self._settings.version

    @property
    def realms(self) -> int:
        """Return how many realms have a runtime, or one on its way."""
        return len(self._realms)

    def start(self) -> None:
        """Remove what an earlier life left below STATE/runtimes, which must be ours alone, and begin to keep runtimes warm."""
        spec.remove_leftovers(self._settings.state_directory)
        self._warm.start()

    def let_all_reach(self, target: str) -> None:
        """Let sandboxed runtimes that are spawned from now on reach HOST:PORT, whatever their realm's policy names."""
        self._settings = replace(self._settings, egress=(*self._settings.egress, target))

    def let_reach(self, realm: Realm) -> None:
        """Put in force what a realm's policy lets its sandboxed runtimes reach now, those on their way included."""
        runtimes = self._realms.get(realm.key)
        if runtimes is None:
            return
        runtimes.reaching = realm
        for placed in runtimes.ready.values():
            placed.runtime.let_reach(realm)

    async def acquire(self, realm: Realm, runtime_id: str | None = None) -> RuntimeHandle:
        """Return a ready runtime with its link counted (see ports.fleet)."""
        if self._closing:
            raise errors.Draining("this gateway is stopping; connect again to reach another")
        spec.check_held(realm, self._settings)
        if runtime_id is not None:
            self._end_unconfined(realm)
            return self._count_link(self._find(realm, runtime_id), realm)
        while True:
            self._end_unconfined(realm)
            # Anew each time: a realm whose last runtime is gone is forgotten.
            runtimes = self._realms.setdefault(realm.key, _RealmRuntimes())
            if placed := self._least_loaded(runtimes):
                return self._count_link(placed, realm)
            self._check_room(realm, runtimes)
            if runtimes.spawning is None:
                if not spec.is_spawned_for(realm, self._settings):
                    self._warm.note_demand()
                if placed := self._place_warm(realm, runtimes):
                    return self._count_link(placed, realm)
                self._make_room(realm)
                runtimes.spawning = self._run(self._spawn(realm, runtimes), f"spawn for {realm.key}")
            # Shielded: the spawn is everybody's, a caller who gives up must not take it along.
            await asyncio.shield(runtimes.spawning)

    def release(self, handle: RuntimeHandle) -> None:
        """Give a link back; the last one starts the idle clock, or ends a cordoned runtime."""
        handle.links -= 1
        placed = self._lookup(handle)
        if placed is None or handle.links > 0 or self._closing:
            return
        if placed.is_cordoned:
            self.retire(handle, placed.runtime.cordon_reason or "cordoned")
            return
        loop = asyncio.get_running_loop()
        placed.idle_timer = loop.call_later(self._settings.idle_seconds, self.retire, handle, "idle")

    def cordon(self, handle: RuntimeHandle, reason: str) -> None:
        """Place nothing new on a runtime; without links it is retired at once."""
        placed = self._lookup(handle)
        if placed is None or placed.runtime.state is not RuntimeState.READY:
            return
        placed.runtime.cordon(reason)
        if handle.links == 0:
            self.retire(handle, reason)

    def retire(self, handle: RuntimeHandle, reason: str) -> None:
        """Stop a runtime and tell its users."""
        self._retire(handle, reason)

    async def end_realm(self, realm_key: str, reason: str) -> None:
        """Stop every runtime of a realm, and wait until they and those that were stopping are gone."""
        runtimes = self._realms.get(realm_key)
        if runtimes is not None and runtimes.spawning is not None:
            with suppress(errors.AerodromeError):
                await asyncio.shield(runtimes.spawning)
        for handle in [handle for handle in self.handles() if handle.realm.key == realm_key]:
            self.retire(handle, reason)
        stopping = [task for task in self._tasks if task.get_name().startswith("stop ")]
        if stopping:
            await asyncio.wait(stopping)

    def subscribe(self, broadcast: Broadcast) -> None:
        """Have notifications of the control links delivered."""
        self._broadcasts.append(broadcast)

    def handles(self) -> list[RuntimeHandle]:
        """Return every runtime that serves a realm, cordoned ones too."""
        return [placed.handle for runtimes in self._realms.values() for placed in runtimes.ready.values()]

    def describe(self) -> list[RuntimeView]:
        """Return every runtime, warm ones last."""
        serving = [placed.runtime for runtimes in self._realms.values() for placed in runtimes.ready.values()]
        return [runtime.view() for runtime in (*serving, *self._warm.runtimes)]

    def describe_pool(self) -> PoolView:
        """Return the counts of the pool."""
        return PoolView(
            runtimes=sum(len(runtimes.ready) for runtimes in self._realms.values()),
            max_runtimes=self._settings.max_runtimes,
            warm=len(self._warm),
            warm_target=self._warm.target,
            spawning=self._queue.running,
            queued=self._queue.queued,
            spawn_queue=self._settings.spawn_queue,
        )

    async def aclose(self) -> None:
        """Stop everything at once and wait for it."""
        self._closing = True
        for runtimes in list(self._realms.values()):
            if runtimes.spawning is not None:
                runtimes.spawning.cancel()
            for placed in list(runtimes.ready.values()):
                self.retire(placed.handle, "the gateway is stopping")
        await self._warm.aclose()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._health.aclose()
        await self._host.aclose()

    # -- placing ----------------------------------------------------------------------------------------------------------

    def _lookup(self, handle: RuntimeHandle) -> _Placed | None:
        runtimes = self._realms.get(handle.realm.key)
        return runtimes.ready.get(handle.runtime_id) if runtimes else None

    def _end_unconfined(self, realm: Realm) -> None:
        """Retire runtimes that were spawned under an earlier policy of the realm and are not confined as it now says."""
        runtimes = self._realms.get(realm.key)
        for placed in list(runtimes.ready.values()) if runtimes else []:
            if not placed.runtime.may_serve(realm):
                self.retire(placed.handle, "the realm's policy has changed; its runtimes are spawned anew")

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
        open_ones = [p for p in runtimes.placeable if p.handle.links < self._settings.links_per_runtime]
        return min(open_ones, key=lambda placed: placed.handle.links, default=None)

    def _check_room(self, realm: Realm, runtimes: _RealmRuntimes) -> None:
        limit = self._settings.shared_runtimes if realm.isolation is Isolation.SHARED else 1
        if len(runtimes.placeable) >= limit:
            raise errors.OverCapacity(
                f"all {limit} runtimes of this realm serve {self._settings.links_per_runtime} connections each; try later"
            )

    def _room(self) -> int | None:
        """Return how many more runtimes there may be, None for any number."""
        if not self._settings.max_runtimes:
            return None
        living = sum(len(r.ready) + (r.spawning is not None) for r in self._realms.values())
        return self._settings.max_runtimes - living - len(self._warm) - self._warm.spawning

    def _make_room(self, realm: Realm) -> None:
        """See that one more runtime may be spawned; one that waits for nobody gives way to one that is wanted."""
        room = self._room()
        if room is None or room > 0:
            return
        if not self._warm.give_way():
            self._forget_if_empty(realm)
            raise errors.OverCapacity(
                f"this gateway has {self._settings.max_runtimes} runtimes, its limit (runtime.max_runtimes); try again later"
            )

    # -- spawning ---------------------------------------------------------------------------------------------------------

    def _place_warm(self, realm: Realm, runtimes: _RealmRuntimes) -> _Placed | None:
        """Bind a warm runtime, if there is one that may serve this realm (see fleet.spec)."""
        is_its_own = spec.is_spawned_for(realm, self._settings)
        runtime = None if is_its_own else self._warm.take(spec.spawn_key(self._settings))
        if runtime is None:
            return None
        try:
            runtime.bind(realm)
        except errors.SpawnFailed as error:
            self._run(runtime.stop(error.message, 0.0), f"stop {runtime.runtime_id}")
            self._forget_if_empty(realm)
            raise
        return self._place(realm, runtimes, runtime)

    async def _spawn(self, realm: Realm, runtimes: _RealmRuntimes) -> None:
        runtime: SupervisedRuntime | None = None
        try:
            async with self._queue.turn(realm.tenant):
                # One may have become ready meanwhile.
                if self._place_warm(realm, runtimes) is None:
                    runtime = self._make(realm)
                    began = self._clock.monotonic()
                    await runtime.start()
                    self._warm.note_spawn(self._clock.monotonic() - began)
        except BaseException:
            runtimes.spawning = None
            self._forget_if_empty(realm)
            raise
        runtimes.spawning = None
        if runtime is None:
            return
        if self._closing:
            await runtime.stop("the gateway is stopping")
            raise errors.Draining("this gateway is stopping; connect again to reach another")
        self._place(realm, runtimes, runtime)
        self._health.watch(runtime)

    def _place(self, realm: Realm, runtimes: _RealmRuntimes, runtime: SupervisedRuntime) -> _Placed:
        assert runtime.handle is not None
        placed = runtimes.ready[runtime.runtime_id] = _Placed(runtime, runtime.handle)
        if runtimes.reaching is not None:
            runtime.let_reach(runtimes.reaching)
        runtime.lost.add_done_callback(lambda _: self._forget(realm, runtime.runtime_id))
        return placed

    def _make(self, realm: Realm | None) -> SupervisedRuntime:
        return SupervisedRuntime(realm, self._host, self._settings, self._broadcast, self._clock)

    def _make_warm(self) -> SupervisedRuntime:
        return self._make(None)

    # -- ending -----------------------------------------------------------------------------------------------------------

    def _retire(self, handle: RuntimeHandle, reason: str, grace_seconds: float | None = None) -> None:
        runtimes = self._realms.get(handle.realm.key)
        placed = runtimes.ready.pop(handle.runtime_id, None) if runtimes else None
        self._forget_if_empty(handle.realm)
        if placed is not None:
            self._run(placed.runtime.stop(reason, grace_seconds), f"stop {handle.runtime_id}")

    def _end_hanging(self, runtime: SupervisedRuntime, reason: str) -> None:
        if runtime.handle is None:
            self._warm.drop(runtime, reason)
        else:
            self._retire(runtime.handle, reason, grace_seconds=0.0)

    def _replace_drifting(self, runtime: SupervisedRuntime, reason: str) -> None:
        if runtime.handle is None:
            self._warm.drop(runtime, reason)
        else:
            self.cordon(runtime.handle, reason)

    def _forget(self, realm: Realm, runtime_id: str) -> None:
        runtimes = self._realms.get(realm.key)
        if runtimes is not None:
            runtimes.ready.pop(runtime_id, None)
            self._forget_if_empty(realm)

    def _forget_if_empty(self, realm: Realm) -> None:
        """Keep nothing of a realm without runtimes: there are as many realms as users."""
        runtimes = self._realms.get(realm.key)
        if runtimes is not None and not runtimes.ready and runtimes.spawning is None:
            del self._realms[realm.key]

    def _count_link(self, placed: _Placed, realm: Realm) -> RuntimeHandle:
        if not placed.runtime.knows_reach:
            placed.runtime.let_reach(realm)
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
