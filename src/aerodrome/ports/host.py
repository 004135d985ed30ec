"""Where runtime processes come from: a machine's process table today, a sandbox or a cluster later.

Implemented by adapters.process (child processes) and testing.scripted_host.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Opens a connection to a runtime that only its host can reach.
Dial = Callable[[], Awaitable[socket.socket]]


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """What one runtime and all it starts may use; None sets no limit of ours.

    `processes` counts tasks (threads included) where a cgroup holds it. What a host cannot hold it says once, in its log.
    """

    open_files: int
    memory_bytes: int | None = None
    processes: int | None = None
    cpu_cores: float | None = None


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """What a runtime uses now: memory of the whole tree, the rest of the runtime itself; `processes` counts it and all below."""

    memory_bytes: int
    threads: int
    open_files: int
    processes: int


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a sandboxed runtime may see and reach besides the system: its realm's directories, and HOST:PORT of what is elsewhere.

    `realm` is the directory that holds `directories`, but for one where its sessions work; `place` is one that a sandbox may
    make for this runtime: it goes with it. `egress` is what core.egress reads.
    """

    realm: Path
    directories: tuple[Path, ...]
    place: Path
    egress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpawnSpec:
    """What a runtime is started with. `environment` is complete: nothing of the gateway's own is added.

    With a `confinement` it is started in a sandbox or not at all. `descriptors` are files open to it for reading, from 3 on.
    `is_wrapped`: argv is a program that starts the runtime as its grandchild, in namespaces of its own.
    """

    runtime_id: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: Path
    limits: ResourceLimits
    confinement: Confinement | None = None
    descriptors: tuple[Path, ...] = ()
    is_wrapped: bool = False


class RuntimeNetwork(Protocol):
    """The loopback interface of a runtime that has a network of its own."""

    async def connect(self, port: int) -> socket.socket:
        """Return a connection to a port there. Raises OSError if nobody listens, or the runtime is gone."""
        ...

    async def listen(self, port: int) -> socket.socket:
        """Return a socket that listens there. Raises OSError if the port is taken, or the runtime is gone."""
        ...


class RuntimeProcess(Protocol):
    """One spawned runtime process."""

    @property
    def network(self) -> RuntimeNetwork | None:
        """Return the network that its address is in; None: this machine's."""
        ...

    @property
    def pid(self) -> int:
        """Return its process id."""
        ...

    @property
    def exited(self) -> asyncio.Future[int]:
        """Return a future of its exit code (negative: killed by that signal)."""
        ...

    async def address(self) -> tuple[str, int]:
        """Wait until it listens; return host and port. Raises errors.SpawnFailed if it exits before, with its last words."""
        ...

    def usage(self) -> ResourceUsage | None:
        """Return what it uses now; None where that cannot be told, or it is gone."""
        ...

    def freeze(self) -> None:
        """Stop it and all it started from running, memory kept; does nothing if it is gone. Idempotent."""
        ...

    def thaw(self) -> None:
        """Let it run again; orders are kept in order. Idempotent."""
        ...

    def let_reach(self, targets: tuple[str, ...]) -> None:
        """Let it reach these (core.egress) and nothing else, connections that are open included; nothing where it is not held."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Climb the stop ladder: TERM, wait, KILL; return when it and all it started are gone. Idempotent.

        A grace of 0 kills at once. A frozen one is thawed first.
        """
        ...


class RuntimeHost(Protocol):
    """Starts runtime processes."""

    async def spawn(self, spec: SpawnSpec) -> RuntimeProcess:
        """Start a process; it is not ready yet. Raises errors.SpawnFailed if it cannot be started at all."""
        ...

    async def aclose(self) -> None:
        """Kill every process of this host and all they started."""
        ...
