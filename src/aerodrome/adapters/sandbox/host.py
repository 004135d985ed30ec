"""A runtime host that starts confined runtimes in a sandbox, by way of another host that starts processes.

    SandboxHost ── bubblewrap.wrap ──► the other host ──► bwrap ── its first process ── runtime

A spec without a confinement passes untouched; whether a realm needs one is fleet.spec's to say. In a network of its own the
runtime is dialled through the other host, and what policy lets it reach comes in by egress.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from aerodrome import errors
from aerodrome.adapters.sandbox import bubblewrap
from aerodrome.adapters.sandbox.bubblewrap import Network, Sandbox
from aerodrome.adapters.sandbox.egress import Egress
from aerodrome.adapters.sandbox.uids import UidRange
from aerodrome.ports.host import ResourceUsage, RuntimeHost, RuntimeNetwork, RuntimeProcess, SpawnSpec


class SandboxedRuntime:
    """A runtime in a sandbox: the process, and the ways out that are open for it until it ends."""

    def __init__(self, process: RuntimeProcess, network: Network, egress: Egress | None) -> None:
        self._process = process
        self._network = network
        self._egress = egress
        process.exited.add_done_callback(lambda _: self._close_egress())

    @property
    def pid(self) -> int:
        """Return the sandbox program's process id."""
        return self._process.pid

    @property
    def network(self) -> RuntimeNetwork | None:
        """Return its own network, unless it shares the machine's."""
        return None if self._network is Network.HOST else self._process.network

    @property
    def exited(self) -> asyncio.Future[int]:
        """Return the future of the exit code."""
        return self._process.exited

    async def address(self) -> tuple[str, int]:
        """Wait until it listens and its ways out are open."""
        address = await self._process.address()
        network = self.network
        if self._egress is not None and network is not None:
            try:
                await self._egress.start(network)
            except (OSError, TimeoutError) as error:
                raise errors.SpawnFailed(f"the sandbox's way out cannot be opened: {error or 'timeout'}") from None
        return address

    def usage(self) -> ResourceUsage | None:
        """Return what it uses."""
        return self._process.usage()

    def freeze(self) -> None:
        """Stop all in the sandbox from running."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let it run again."""
        self._process.thaw()

    def let_reach(self, targets: tuple[str, ...]) -> None:
        """Let other targets through from now on; where the network is not policy's to hold, nothing changes."""
        if self._egress is not None:
            self._egress.let_reach(targets)

    async def stop(self, grace_seconds: float) -> None:
        """Climb the stop ladder."""
        await self._process.stop(grace_seconds)
        self._close_egress()

    def _close_egress(self) -> None:
        if self._egress is not None:
            self._egress.close()


class SandboxHost:
    """Starts runtimes, confined ones in a sandbox."""

    def __init__(self, host: RuntimeHost, sandbox: Sandbox, uids: UidRange | None) -> None:
        self._host = host
        self._sandbox = sandbox
        self._uids = uids

    async def spawn(self, spec: SpawnSpec) -> RuntimeProcess:
        """Start a process, in a sandbox if it is to be confined.

        Raises:
            errors.SpawnFailed: it cannot be started, or not so confined.
        """
        if spec.confinement is None:
            return await self._host.spawn(spec)
        try:
            wrapped = await asyncio.to_thread(self._wrap, spec)
        except OSError as error:
            raise errors.SpawnFailed(f"cannot prepare the sandbox: {error.strerror}") from None
        process = await self._host.spawn(replace(wrapped, confinement=None))
        is_let_out = self._sandbox.network is Network.EGRESS
        egress = Egress(spec.confinement.egress, bubblewrap.PROXY_PORT) if is_let_out else None
        return SandboxedRuntime(process, self._sandbox.network, egress)

    async def aclose(self) -> None:
        """Kill every process."""
        await self._host.aclose()

    def _wrap(self, spec: SpawnSpec) -> SpawnSpec:
        assert spec.confinement is not None
        uid = os.geteuid()
        if self._uids is not None:
            uid = self._uids.give(spec.confinement.realm, spec.confinement.directories)
        return bubblewrap.wrap(spec, self._sandbox, uid)
