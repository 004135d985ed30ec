"""Whether runtimes are well: a ping on a schedule for each, and what they use. The rules are core.vitals.

Finds two things and leaves what to do to fleet.pool: a runtime that *hangs* (it missed its deadlines) and one that *drifts* (it
serves, but should be replaced). A frozen runtime is left alone: it cannot answer, and that is no fault.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable

import structlog

from aerodrome.clock import Clock
from aerodrome.core import vitals
from aerodrome.core.vitals import Vitals
from aerodrome.fleet.spec import FleetSettings
from aerodrome.fleet.supervisor import SupervisedRuntime

_log = structlog.get_logger()

Finding = Callable[[SupervisedRuntime, str], None]


class HealthWatch:
    """A named task for each runtime that is watched; it ends with the runtime."""

    def __init__(self, settings: FleetSettings, clock: Clock, on_hang: Finding, on_drift: Finding) -> None:
        self._settings = settings.health
        self._limits = settings.drift_limits
        self._clock = clock
        self._on_hang = on_hang
        self._on_drift = on_drift
        self._tasks: dict[SupervisedRuntime, asyncio.Task[None]] = {}

    def watch(self, runtime: SupervisedRuntime) -> None:
        """Ask a runtime how it is for as long as it lives."""
        if self._settings.interval_seconds <= 0 or runtime.lost.done():
            return
        task = asyncio.create_task(self._follow(runtime), name=f"runtime {runtime.runtime_id} health")
        self._tasks[runtime] = task
        runtime.lost.add_done_callback(lambda _: task.cancel())
        task.add_done_callback(lambda _: self._note_end(runtime, task))

    async def aclose(self) -> None:
        """Ask no more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _follow(self, runtime: SupervisedRuntime) -> None:
        interval, missed = self._settings.interval_seconds, 0
        # Runtimes that were spawned together are not asked together.
        due = self._clock.monotonic() + interval * (0.5 + random.random() / 2)  # noqa: S311 jitter
        while True:
            await asyncio.sleep(max(0.0, due - self._clock.monotonic()))
            due = self._clock.monotonic() + interval
            missed = missed + 1 if await self._misses(runtime) else 0
            if missed >= self._settings.failures:
                self._on_hang(runtime, f"the runtime did not answer {missed} pings")
                return
            if missed == 0:
                reason = self._find_drift(runtime)
                if reason is not None:
                    self._on_drift(runtime, reason)

    async def _misses(self, runtime: SupervisedRuntime) -> bool:
        """Ping; say whether the runtime did not answer though it could have."""
        handle = runtime.handle
        if handle is not None and handle.is_frozen:
            return False
        freezes = handle.freezes if handle is not None else 0
        seconds = await runtime.ping(self._settings.deadline_seconds)
        if runtime.handle is not None and runtime.handle.freezes != freezes:
            return False
        if seconds is not None:
            runtime.pings = runtime.pings.add(seconds)
        return seconds is None

    def _find_drift(self, runtime: SupervisedRuntime) -> str | None:
        handle = runtime.handle
        if handle is not None and handle.is_frozen:
            return None
        usage = runtime.measure()
        signs = Vitals(runtime.spawned_at, handle.opened if handle is not None else 0)
        if usage is not None:
            signs = Vitals(
                signs.spawned_at, signs.opened, usage.memory_bytes, usage.threads, usage.open_files, usage.processes
            )
        reason = vitals.find_drift(signs, self._limits, self._clock.monotonic())
        if reason is None and vitals.find_slowness(runtime.pings, self._limits):
            reason = vitals.find_slowness(runtime.pings, self._limits, self._others_seconds(runtime))
        return reason

    def _others_seconds(self, runtime: SupervisedRuntime) -> float:
        """Return the median of what the others' last pings took, 0 if there are none."""
        latest = [other.pings.latest for other in self._tasks if other is not runtime]
        return statistics.median([seconds for seconds in latest if seconds is not None] or [0.0])

    def _note_end(self, runtime: SupervisedRuntime, task: asyncio.Task[None]) -> None:
        self._tasks.pop(runtime, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("runtime.unwatched", runtime=runtime.runtime_id, reason=repr(error))
