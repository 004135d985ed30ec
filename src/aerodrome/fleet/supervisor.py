"""One supervised runtime: spawn, prove ready, watch, stop. Drives the table of core.runtime.

Ready means that `connect` and `ping` were answered. The control link stays open for the runtime's life: its end is the first
sign of a crash. Which runtime serves whom is fleet.pool.
"""

from __future__ import annotations

import asyncio
import random
import secrets

import structlog

from aerodrome import errors
from aerodrome.core import runtime as runtime_states
from aerodrome.core.placement import Realm
from aerodrome.core.runtime import RuntimeState
from aerodrome.fleet import spec
from aerodrome.fleet.spec import FleetSettings
from aerodrome.ports.fleet import Broadcast, RuntimeHandle
from aerodrome.ports.host import RuntimeHost, RuntimeProcess
from aerodrome.transport import control as control_module
from aerodrome.transport.control import ControlLink

_log = structlog.get_logger()


class SupervisedRuntime:
    """The life of one runtime, from its first spawn to its end."""

    def __init__(self, realm: Realm, host: RuntimeHost, settings: FleetSettings, broadcast: Broadcast) -> None:
        self.runtime_id = f"rt-{secrets.token_hex(5)}"
        self.realm = realm
        self.state = RuntimeState.STARTING
        self._host = host
        self._settings = settings
        self._broadcast = broadcast
        self._token = secrets.token_urlsafe(32)
        self._directories = spec.directories_of(realm, settings.state_directory)
        self._process: RuntimeProcess | None = None
        self._control: ControlLink | None = None
        self._watching: asyncio.Task[None] | None = None
        self._log = _log.bind(runtime=self.runtime_id, realm=realm.key)

    async def start(self) -> RuntimeHandle:
        """Spawn until ready; return the handle.

        Raises:
            errors.SpawnFailed: the last failure, when the backoff's budget is spent; the state is FATAL then.
        """
        try:
            self._directories.create()
        except OSError as error:
            raise errors.SpawnFailed(
                f"cannot make the directories of {self.realm.key} below the state directory: {error.strerror}"
            ) from None
        failures = 0
        while True:
            try:
                return await self._spawn_once()
            except errors.RuntimeUnavailable as error:
                failures += 1
                await self._stop_process()
                delay = self._settings.backoff.delay_seconds(failures, random.random())  # noqa: S311 jitter
                self._log.warning("runtime.spawn_failed", reason=error.message, failures=failures)
                if delay is None:
                    self._move(RuntimeState.FATAL)
                    raise errors.SpawnFailed(
                        f"no runtime became ready in {failures} attempts; the last said: {error.message}"
                    ) from None
                self._move(RuntimeState.BACKOFF)
                await asyncio.sleep(delay)
                self._move(RuntimeState.STARTING)
            except BaseException:
                await self._stop_process()
                raise

    async def stop(self, handle: RuntimeHandle | None, reason: str) -> None:
        """Stop the process by the ladder and tell the handle's users why. Idempotent."""
        if handle is not None and not handle.lost.done():
            handle.lost.set_result(reason)
        if self._watching is not None:
            if self.state is RuntimeState.STOPPED:
                await asyncio.wait((self._watching,))  # it noticed the end first, and sees to what is left
                return
            self._watching.cancel()
        if self.state in (RuntimeState.READY, RuntimeState.CORDONED, RuntimeState.STARTING):
            self._move(RuntimeState.STOPPING)
        await self._stop_process()
        if self.state is RuntimeState.STOPPING:
            self._move(RuntimeState.STOPPED)
            self._log.info("runtime.stopped", reason=reason)

    async def _spawn_once(self) -> RuntimeHandle:
        wanted = spec.spawn_spec(self.runtime_id, self._token, self._directories, self._settings)
        try:
            async with asyncio.timeout(self._settings.ready_seconds):
                self._process = await self._host.spawn(wanted)
                host, port = await self._process.address()
                self._control, _ = await control_module.open_control(host, port, self._token, self._on_notification)
                await self._control.call("ping")
        except TimeoutError:
            raise errors.SpawnFailed(f"not ready within {self._settings.ready_seconds:g} s") from None
        except control_module.RemoteError as error:
            raise errors.SpawnFailed(f"the runtime refuses to be used: {error.message}") from None
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        handle = RuntimeHandle(self.runtime_id, self.realm, host, port, self._token, lost, self._directories.work)
        self._move(RuntimeState.READY)
        self._watching = asyncio.create_task(self._watch(handle), name=f"runtime {self.runtime_id} watch")
        self._log.info("runtime.ready", pid=self._process.pid, port=port)
        return handle

    async def _watch(self, handle: RuntimeHandle) -> None:
        """Notice the end of the process or of the control link, whichever comes first."""
        assert self._process is not None
        assert self._control is not None
        await asyncio.wait((self._process.exited, self._control.closed), return_when=asyncio.FIRST_COMPLETED)
        # The socket often closes a moment before the exit is reaped: wait for the code, it is the better reason.
        await asyncio.wait((self._process.exited,), timeout=0.2)
        reason = "the runtime closed its control link"
        if self._process.exited.done():
            reason = _describe_exit(self._process.exited.result())
        if self.state in (RuntimeState.READY, RuntimeState.CORDONED):
            self._move(RuntimeState.STOPPED)
        self._log.warning("runtime.lost", reason=reason)
        if not handle.lost.done():
            handle.lost.set_result(reason)
        await self._stop_process()

    async def _stop_process(self) -> None:
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            await control.aclose()
        if process is not None:
            await process.stop(self._settings.stop_grace_seconds)

    def _on_notification(self, method: str, body: bytes) -> None:
        if method == "session.lifecycle":
            self._broadcast(self.realm, self.runtime_id, body)

    def _move(self, following: RuntimeState) -> None:
        self.state = runtime_states.move(self.state, following)


def _describe_exit(code: int) -> str:
    return f"the runtime was killed by signal {-code}" if code < 0 else f"the runtime exited with code {code}"
