"""Warm runtimes: spawned ahead of demand, nobody's yet. The first realm that takes one keeps it to the end.

One kind is kept, named by its `SpawnKey`. How many is core.warmth; turning one into a realm's is supervisor.bind. Failures to
spawn in advance are logged and tried again ever later; a client never hears of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import warmth
from aerodrome.core.backoff import Backoff
from aerodrome.fleet import spec
from aerodrome.fleet.queue import SpawnQueue
from aerodrome.fleet.spec import FleetSettings, SpawnKey
from aerodrome.fleet.supervisor import SupervisedRuntime

_log = structlog.get_logger()

#: Between failed refills; each has already spent the backoff of a spawn.
_REFILL_BACKOFF = Backoff(first_seconds=1.0, limit_seconds=60.0, attempts=2**31)
#: The first call of whoever took one goes before its replacement: on a small machine a spawn beside it doubles its time
#: (measured: 26 and 48 ms on two cores).
_SETTLE_SECONDS = 0.1
#: Before a spawn was timed: what one takes on a quiet machine, rounded up (protocol facts 2.1).
_SPAWN_SECONDS = 0.05


class WarmPool:
    """The runtimes that wait.

    `make` builds one that belongs to nobody, `on_ready` is told of it once it waits; `room` says how many more may be spawned,
    None for any number.
    """

    def __init__(
        self,
        settings: FleetSettings,
        clock: Clock,
        queue: SpawnQueue,
        make: Callable[[], SupervisedRuntime],
        on_ready: Callable[[SupervisedRuntime], None],
        room: Callable[[], int | None],
    ) -> None:
        self.key = spec.spawn_key(settings)
        self._settings = settings
        self._clock = clock
        self._queue = queue
        self._make = make
        self._on_ready = on_ready
        self._room = room
        self._ready: dict[str, SupervisedRuntime] = {}
        self._demand = warmth.Demand()
        self._spawn_seconds = _SPAWN_SECONDS
        self._failures = 0
        self._not_before = 0.0
        self._changed = asyncio.Event()
        self._refilling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawning: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def spawning(self) -> int:
        """Return how many are on their way."""
        return len(self._spawning)

    @property
    def runtimes(self) -> list[SupervisedRuntime]:
        """Return those that wait."""
        return list(self._ready.values())

    @property
    def target(self) -> int:
        """Return how many should wait now."""
        return warmth.warm_target(
            self._settings.warm_runtimes,
            self._settings.warm_runtimes_max,
            self._demand.recent(self._clock.monotonic()),
            self._spawn_seconds,
        )

    def start(self) -> None:
        """Begin to spawn, if any are wanted."""
        if self._settings.warm_runtimes > 0:
            self._refilling = self._run(self._refill(), "warm runtimes refill")

    def note_demand(self) -> None:
        """Note that a realm that may have a warm runtime needs a fresh one, whether it gets a warm one or not."""
        self._demand.note(self._clock.monotonic())
        self._changed.set()

    def note_spawn(self, seconds: float) -> None:
        """Note how long a spawn took."""
        self._spawn_seconds = seconds

    def take(self, key: SpawnKey) -> SupervisedRuntime | None:
        """Take the one that has waited longest out of the pool, for good; None if none of that kind waits."""
        while key == self.key and self._ready:
            runtime = self._ready.pop(next(iter(self._ready)))
            self._changed.set()
            if runtime.is_usable:
                now = self._clock.monotonic()
                # Counted from the first of several, or a storm would put the refill off for as long as it lasts.
                self._not_before = self._not_before if self._not_before > now else now + _SETTLE_SECONDS
                return runtime
        return None

    def drop(self, runtime: SupervisedRuntime, reason: str, grace_seconds: float = 0.0) -> None:
        """Stop one that waits; another takes its place. Nothing of anybody's is in it, so it is killed."""
        if self._ready.pop(runtime.runtime_id, None) is not None:
            self._run(runtime.stop(reason, grace_seconds), f"stop {runtime.runtime_id}")
            self._changed.set()

    def give_way(self) -> bool:
        """Make room for a runtime that is wanted: drop one that waits, or one on its way; False if there is neither."""
        if self._ready:
            self.drop(self.runtimes[0], "its place was wanted")
        elif self._spawning:
            self._spawning.pop().cancel()
        else:
            return False
        return True

    async def aclose(self) -> None:
        """Stop all and spawn no more."""
        for task in (self._refilling, *self._spawning):
            if task is not None:
                task.cancel()
        for runtime in self.runtimes:
            self.drop(runtime, "the gateway is stopping")
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _refill(self) -> None:
        while True:
            self._changed.clear()
            for _ in range(self._missing()):
                task = self._run(self._spawn(), "spawn a warm runtime")
                self._spawning.add(task)
                task.add_done_callback(self._spawning.discard)
            for runtime in self.runtimes[self.target :]:
                self.drop(runtime, "no longer wanted")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._changed.wait()

    def _missing(self) -> int:
        """Return how many to spawn now; after a failure one at a time."""
        if self._clock.monotonic() < self._not_before:
            return 0
        missing = self.target - len(self._ready) - len(self._spawning)
        if self._failures:
            missing = min(missing, 1 - len(self._spawning))
        room = self._room()
        return missing if room is None else min(missing, room)

    def _patience(self) -> float | None:
        """Return how long nothing need be looked at: demand is forgotten, and room found, without anybody saying so."""
        if (seconds := self._not_before - self._clock.monotonic()) > 0:
            return seconds
        is_settled = self.target == self._settings.warm_runtimes <= len(self._ready)
        return None if is_settled else warmth.DEMAND_SECONDS

    async def _spawn(self) -> None:
        runtime = self._make()
        try:
            async with self._queue.turn_in_advance():
                began = self._clock.monotonic()
                await runtime.start()
                self.note_spawn(self._clock.monotonic() - began)
        except errors.AerodromeError as error:
            self._failures += 1
            delay = _REFILL_BACKOFF.delay_seconds(self._failures, random.random())  # noqa: S311 jitter
            self._not_before = self._clock.monotonic() + (delay or 0.0)
            _log.warning("runtime.refill_failed", reason=error.message, failures=self._failures)
            return
        self._failures = 0
        self._ready[runtime.runtime_id] = runtime
        runtime.lost.add_done_callback(lambda _: self._forget(runtime))
        self._on_ready(runtime)

    def _forget(self, runtime: SupervisedRuntime) -> None:
        """Have one that died replaced."""
        if self._ready.pop(runtime.runtime_id, None) is not None:
            self._changed.set()

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("runtime.refill_failed", reason=repr(task.exception()))
