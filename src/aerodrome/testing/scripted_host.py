"""A RuntimeHost in memory: each spawn is a ScriptedRuntime in this process, listening on loopback; pids are invented.

What a process would do to its surroundings is imitated as far as fleet.supervisor sees it: an address, an exit code, a stop.
Real processes are adapters.process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from aerodrome import errors
from aerodrome.ports.host import ResourceUsage, SpawnSpec
from aerodrome.testing.scripted_runtime import Faults, ScriptedRuntime

_FIRST_PID = 1_000_000


class ScriptedProcess:
    """A runtime that a ScriptedHost started."""

    network = None

    def __init__(self, pid: int, spec: SpawnSpec, runtime: ScriptedRuntime) -> None:
        self.pid = pid
        self.spec = spec
        self.runtime = runtime
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stops = 0
        #: What it says it uses; None: it cannot be told.
        self.used: ResourceUsage | None = ResourceUsage(80_000_000, 6, 14, 1)
        #: With what grace it was stopped, in order.
        self.graces: list[float] = []
        #: What it was let reach since it was spawned, in order.
        self.reaches: list[tuple[str, ...]] = []
        runtime.die = self.kill

    async def address(self) -> tuple[str, int]:
        """Listen, unless it is never to be ready or has exited."""
        if self.runtime.faults.exits_at_once:
            self.exited.set_result(1)
            raise errors.SpawnFailed("the runtime exited with code 1 before it was ready: as it was told")
        if self.runtime.faults.never_ready:
            await asyncio.get_running_loop().create_future()
        return "127.0.0.1", await self.runtime.start()

    def usage(self) -> ResourceUsage | None:
        """Return what a test says it uses."""
        return None if self.exited.done() else self.used

    def freeze(self) -> None:
        """Have it answer nothing until it is thawed."""
        self.runtime.freeze()

    def thaw(self) -> None:
        """Have it answer again, first what was asked meanwhile."""
        self.runtime.thaw()

    def let_reach(self, targets: tuple[str, ...]) -> None:
        """Note it."""
        self.reaches.append(targets)

    async def stop(self, grace_seconds: float) -> None:
        """End it; one that ignores TERM takes its grace."""
        self.stops += 1
        self.graces.append(grace_seconds)
        self.thaw()
        if self.exited.done():
            return
        if self.runtime.faults.ignores_term:
            await asyncio.sleep(grace_seconds)
        self.kill(0)
        await self.runtime.aclose()

    def kill(self, code: int = -signal.SIGKILL) -> None:
        """End it at once, as a signal from outside does."""
        if not self.exited.done():
            self.exited.set_result(code)
        self.runtime.cut()


class ScriptedHost:
    """Starts scripted runtimes. `faults` says how the n-th of them (from 0) misbehaves; `prepare` sees each before it listens.

    Sessions that had a turn are on one disk per COPILOT_HOME, which outlives every runtime.
    """

    def __init__(
        self,
        faults: Callable[[int], Faults] = lambda _: Faults(),
        prepare: Callable[[ScriptedRuntime], None] = lambda _: None,
    ) -> None:
        self.processes: list[ScriptedProcess] = []
        #: Cleared: a spawn waits until it is set again.
        self.may_spawn = asyncio.Event()
        self.may_spawn.set()
        self._faults = faults
        self._prepare = prepare
        self._disks: dict[str, set[str]] = {}

    @property
    def runtimes(self) -> list[ScriptedRuntime]:
        """Return the runtimes of all spawns, dead ones too, in order."""
        return [process.runtime for process in self.processes]

    @property
    def alive(self) -> list[ScriptedProcess]:
        """Return the processes that have not exited."""
        return [process for process in self.processes if not process.exited.done()]

    async def spawn(self, spec: SpawnSpec) -> ScriptedProcess:
        """Make a runtime; it listens when it is asked for its address."""
        number = len(self.processes)
        home = spec.environment["COPILOT_HOME"]
        runtime = ScriptedRuntime(spec.environment["COPILOT_CONNECTION_TOKEN"], self._faults(number))
        # Where the path leads is looked up at each use, as the real one does: a warm runtime's changes once.
        runtime.find_disk = lambda: self._disks.setdefault(os.path.realpath(home), set())
        self._prepare(runtime)
        process = ScriptedProcess(_FIRST_PID + number, spec, runtime)
        self.processes.append(process)
        try:
            await self.may_spawn.wait()
        except asyncio.CancelledError:
            process.kill()  # what is spawned for a caller who gave up
            raise
        return process

    async def aclose(self) -> None:
        """Kill every process of this host."""
        for process in self.processes:
            process.kill()
            await process.runtime.aclose()
