"""One supervised runtime: spawn, prove ready, bind to a realm, watch, stop. Drives the table of core.runtime.

Ready means that `connect` and `ping` were answered. The control link stays open for the runtime's life: its end is the first
sign of a crash. Which runtime serves whom is fleet.pool; whether it is well is fleet.health.
"""

from __future__ import annotations

import asyncio
import functools
import random
import secrets

import structlog

from aerodrome import errors
from aerodrome.clock import Clock
from aerodrome.core import runtime as runtime_states
from aerodrome.core.placement import Realm
from aerodrome.core.runtime import RuntimeState
from aerodrome.core.vitals import PingWindow
from aerodrome.fleet import compiled, spec
from aerodrome.fleet.spec import FleetSettings
from aerodrome.ports.fleet import Broadcast, RuntimeHandle, RuntimeView
from aerodrome.ports.host import Dial, ResourceUsage, RuntimeHost, RuntimeProcess
from aerodrome.transport import control as control_module
from aerodrome.transport.control import ControlLink

_log = structlog.get_logger()


class SupervisedRuntime:
    """The life of one runtime, from its first spawn to its end. Without a realm it is warm until it is bound to one."""

    def __init__(
        self, realm: Realm | None, host: RuntimeHost, settings: FleetSettings, broadcast: Broadcast, clock: Clock
    ) -> None:
        self.runtime_id = f"rt-{secrets.token_hex(5)}"
        self.realm = realm
        self.state = RuntimeState.STARTING
        self.handle: RuntimeHandle | None = None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.spawned_at = clock.monotonic()
        self.pings = PingWindow()
        self.usage: ResourceUsage | None = None
        self.cordon_reason: str | None = None
        self._clock = clock
        self._host = host
        self._settings = settings
        self._broadcast = broadcast
        self._token = secrets.token_urlsafe(32)
        #: Its own, removed with it; and those it is told: a realm's as they are where agents see them (fleet.spec).
        self._directories = spec.runtime_directories(self.runtime_id, settings.state_directory)
        self._told = self._directories
        if realm is not None and spec.is_spawned_for(realm, settings):
            self._told = spec.directories_of(realm, settings.state_directory)
        self._confinement = spec.confinement_of(realm, self.runtime_id, settings)
        self._dial: Dial | None = None
        self._process: RuntimeProcess | None = None
        self._control: ControlLink | None = None
        self._address = ("", 0)
        self._watching: asyncio.Task[None] | None = None
        self._log = _log.bind(runtime=self.runtime_id, realm=realm.key if realm else None)

    def may_serve(self, realm: Realm) -> bool:
        """Say whether it is confined if a realm's runtimes are to be: its policy may have changed since it was spawned.

        Raises:
            errors.SpawnFailed: the realm's sessions work where a link leads elsewhere.
        """
        wanted = spec.confinement_of(realm, self.runtime_id, self._settings)
        held = self._confinement
        return wanted is None or (held is not None and set(wanted.directories) <= set(held.directories))

    @property
    def knows_reach(self) -> bool:
        """Say whether it was told what its realm's policy lets it reach: not if it was spawned to delete sessions."""
        return self._confinement is None or (self.realm is not None and self.realm.egress is not None)

    def let_reach(self, realm: Realm) -> None:
        """Have the sandbox, if there is one, let through what the realm's policy names now, and nothing else."""
        if self._confinement is not None and self._process is not None and realm.egress is not None:
            self.realm = realm
            self._process.let_reach(spec.egress_of(realm, self._settings))

    @property
    def is_usable(self) -> bool:
        """Say whether it is warm and its control link stands: the end of that is seen before the process's."""
        return self.state is RuntimeState.WARM and self._control is not None and not self._control.closed.done()

    async def start(self) -> None:
        """Spawn until ready; then there is a handle, or without a realm the state is WARM.

        Raises:
            errors.SpawnFailed: the last failure, when the backoff's budget is spent; the state is FATAL then.
        """
        self._point_to(self.realm)
        compiled.link(self.runtime_id, self._settings, self._confinement)
        failures = 0
        while True:
            try:
                await self._spawn_once()
                return
            except errors.RuntimeUnavailable as error:
                failures += 1
                await self._stop_process(self._settings.stop_grace_seconds)
                delay = self._settings.backoff.delay_seconds(failures, random.random())  # noqa: S311 jitter
                self._log.warning("runtime.spawn_failed", reason=error.message, failures=failures)
                if delay is None:
                    self._move(RuntimeState.FATAL)
                    self._directories.remove()
                    raise errors.SpawnFailed(
                        f"no runtime became ready in {failures} attempts; the last said: {error.message}"
                    ) from None
                self._move(RuntimeState.BACKOFF)
                await asyncio.sleep(delay)
                self._move(RuntimeState.STARTING)
            except BaseException:
                await self._stop_process(self._settings.stop_grace_seconds)
                self._directories.remove()
                raise

    def bind(self, realm: Realm) -> RuntimeHandle:
        """Give a warm runtime to a realm, for the rest of its life.

        Raises:
            errors.SpawnFailed: the realm's directories cannot be made; the runtime must be stopped.
        """
        self._move(RuntimeState.READY)
        self.realm = realm
        self._log = self._log.bind(realm=realm.key)
        self._point_to(realm)
        self._log.info("runtime.bound")
        return self._make_handle(realm)

    def cordon(self, reason: str) -> None:
        """Have nothing new placed on it, and tell those who use it."""
        assert self.handle is not None
        self._move(RuntimeState.CORDONED)
        self.cordon_reason = reason
        self._log.warning("runtime.cordoned", reason=reason)
        if not self.handle.cordoned.done():
            self.handle.cordoned.set_result(reason)

    async def ping(self, deadline_seconds: float) -> float | None:
        """Return how long the runtime took to answer, in seconds; None if it did not in time."""
        if self._control is None:
            return None
        began = self._clock.monotonic()
        try:
            await self._control.call("ping", timeout_seconds=deadline_seconds)
        except control_module.RemoteError:
            pass  # it lives, and says no
        except errors.RuntimeLost:
            return None
        return self._clock.monotonic() - began

    def measure(self) -> ResourceUsage | None:
        """Return what it uses now, and remember it."""
        if self._process is not None:
            self.usage = self._process.usage()
        if self.usage is not None and self.handle is not None:
            self.handle.memory_bytes, self.handle.measured_at = self.usage.memory_bytes, self._clock.monotonic()
        return self.usage

    async def stop(self, reason: str, grace_seconds: float | None = None) -> None:
        """Tell its users why, then stop the process by the ladder, with another grace than usual if given. Idempotent."""
        self._tell_lost(reason)
        if self._watching is not None:
            if self.state is RuntimeState.STOPPED:
                await asyncio.wait((self._watching,))  # it noticed the end first, and sees to what is left
                return
            self._watching.cancel()
        if RuntimeState.STOPPING in runtime_states.TRANSITIONS[self.state]:
            self._move(RuntimeState.STOPPING)
        await self._stop_process(self._settings.stop_grace_seconds if grace_seconds is None else grace_seconds)
        if self.state is RuntimeState.STOPPING:
            self._move(RuntimeState.STOPPED)
            self._log.info("runtime.stopped", reason=reason)
        self._directories.remove()

    def view(self) -> RuntimeView:
        """Return what an operator may see of it."""
        handle, usage = self.handle, self.usage or self.measure()
        return RuntimeView(
            runtime_id=self.runtime_id,
            realm=self.realm.key if self.realm else None,
            state=self.state.value,
            pid=self._process.pid if self._process else 0,
            age_seconds=self._clock.monotonic() - self.spawned_at,
            links=handle.links if handle else 0,
            opened=handle.opened if handle else 0,
            is_frozen=handle is not None and handle.is_frozen,
            memory_bytes=usage.memory_bytes if usage else None,
            cordoned=self.cordon_reason,
            ping_seconds=self.pings.latest,
        )

    async def _spawn_once(self) -> None:
        wanted = spec.spawn_spec(self.runtime_id, self._token, self._told, self._settings, self._confinement)
        try:
            async with asyncio.timeout(self._settings.ready_seconds):
                self._process = await self._host.spawn(wanted)
                self._address = await self._process.address()
                if (network := self._process.network) is not None:
                    self._dial = functools.partial(network.connect, self._address[1])
                self._control, _ = await control_module.open_control(
                    *self._address, self._token, self._on_notification, dial=self._dial
                )
                await self._control.call("ping")
        except TimeoutError:
            raise errors.SpawnFailed(f"not ready within {self._settings.ready_seconds:g} s") from None
        except control_module.RemoteError as error:
            raise errors.SpawnFailed(f"the runtime refuses to be used: {error.message}") from None
        self.spawned_at = self._clock.monotonic()
        self._move(RuntimeState.READY if self.realm else RuntimeState.WARM)
        if self.realm is not None:
            self._make_handle(self.realm)
        self._watching = asyncio.create_task(self._watch(), name=f"runtime {self.runtime_id} watch")
        is_sandboxed = self._confinement is not None
        self._log.info("runtime.ready", pid=self._process.pid, port=self._address[1], sandboxed=is_sandboxed)

    def _make_handle(self, realm: Realm) -> RuntimeHandle:
        work = spec.directories_of(realm, self._settings.state_directory).work
        self.handle = RuntimeHandle(self.runtime_id, realm, *self._address, self._token, self.lost, work)
        self.handle.freezer = self._process
        self.handle.dial = self._dial
        return self.handle

    def _point_to(self, realm: Realm | None) -> None:
        state_directory = self._settings.state_directory
        target = (
            spec.directories_of(realm, state_directory)
            if realm is not None
            else spec.placeholders(self.runtime_id, state_directory)
        )
        try:
            target.create(is_confined=self._confinement is not None)
            for path in self._confinement.directories if self._confinement is not None else ():
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._told != target:
                self._directories.point_to(target)
        except OSError as error:
            self._directories.remove()
            whose = realm.key if realm is not None else "a warm runtime"
            raise errors.SpawnFailed(
                f"cannot make the directories of {whose} below the state directory: {error.strerror}"
            ) from None

    async def _watch(self) -> None:
        """Notice the end of the process or of the control link, whichever comes first."""
        assert self._process is not None
        assert self._control is not None
        await asyncio.wait((self._process.exited, self._control.closed), return_when=asyncio.FIRST_COMPLETED)
        # The socket often closes a moment before the exit is reaped: wait for the code, it is the better reason.
        await asyncio.wait((self._process.exited,), timeout=0.2)
        reason = "the runtime closed its control link"
        if self._process.exited.done():
            reason = _describe_exit(self._process.exited.result())
        if RuntimeState.STOPPED in runtime_states.TRANSITIONS[self.state]:
            self._move(RuntimeState.STOPPED)
        self._log.warning("runtime.lost", reason=reason)
        self._tell_lost(reason)
        await self._stop_process(self._settings.stop_grace_seconds)
        self._directories.remove()

    def _tell_lost(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def _stop_process(self, grace_seconds: float) -> None:
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            await control.aclose()
        if process is not None:
            await process.stop(grace_seconds)

    def _on_notification(self, method: str, body: bytes) -> None:
        if method == "session.lifecycle" and self.realm is not None:
            self._broadcast(self.realm, self.runtime_id, body)

    def _move(self, following: RuntimeState) -> None:
        self.state = runtime_states.move(self.state, following)


def _describe_exit(code: int) -> str:
    return f"the runtime was killed by signal {-code}" if code < 0 else f"the runtime exited with code {code}"
