"""What the gateway asks of the fleet: a ready runtime for a realm, and word when it is lost.

Implemented by fleet.pool (spawned runtimes) and fleet.given (one upstream given by address).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aerodrome.core.placement import Realm
from aerodrome.ports.host import Dial

#: Called with (realm, runtime id, message body) for each notification on a runtime's control link.
Broadcast = Callable[[Realm, str, bytes], None]


class Freezer(Protocol):
    """Stops a runtime from running, and lets it run again (ports.host.RuntimeProcess is one)."""

    def freeze(self) -> None:
        """Stop it from running, memory kept. Idempotent."""
        ...

    def thaw(self) -> None:
        """Let it run. Idempotent."""
        ...


@dataclass(slots=True, eq=False)
class RuntimeHandle:
    """A ready runtime as the gateway sees it.

    `lost` is done, with the reason, once it is gone. `cordoned` is done, with the reason, once no new session may be placed on
    it: the gateway unloads its sessions as they fall idle, then retires it. `work_directory` is where sessions of this realm may
    work; None for a runtime that we did not spawn. `opened` counts the sessions opened on it, by the gateway.
    """

    runtime_id: str
    realm: Realm
    host: str
    port: int
    token: str | None = field(repr=False)
    lost: asyncio.Future[str]
    work_directory: Path | None = None
    links: int = 0
    cordoned: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    freezer: Freezer | None = None
    is_frozen: bool = False
    opened: int = 0
    dial: Dial | None = None
    #: What the runtime and all it started last used, and when that was measured, in seconds of a clock; 0 before the first time.
    memory_bytes: int = 0
    measured_at: float = 0.0
    #: How often it was frozen: an answer that came late over a freeze says nothing of its health.
    freezes: int = 0

    def freeze(self) -> None:
        """Stop the runtime from running while nothing is at work in it. Idempotent."""
        if self.freezer is not None and not self.is_frozen and not self.lost.done():
            self.is_frozen = True
            self.freezes += 1
            self.freezer.freeze()

    def thaw(self) -> None:
        """Let a frozen runtime run, before anything is sent to it. Idempotent."""
        if self.is_frozen:
            self.is_frozen = False
            if self.freezer is not None:
                self.freezer.thaw()


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """One runtime as an operator sees it; `realm` is None while it is warm, `cordoned` is why nothing new is placed on it."""

    runtime_id: str
    realm: str | None
    state: str
    pid: int
    age_seconds: float
    links: int
    opened: int
    is_frozen: bool
    memory_bytes: int | None
    cordoned: str | None
    ping_seconds: float | None


@dataclass(frozen=True, slots=True)
class PoolView:
    """The pool as an operator sees it: counts now, and the limits they run against (0: none)."""

    runtimes: int
    max_runtimes: int
    warm: int
    warm_target: int
    spawning: int
    queued: int
    spawn_queue: int


class Fleet(Protocol):
    """Runtimes by realm."""

    @property
    def version(self) -> str:
        """Return the release of the runtimes, e.g. 1.0.102."""
        ...

    async def acquire(self, realm: Realm, runtime_id: str | None = None) -> RuntimeHandle:
        """Return a ready runtime of the realm with room for one more link, spawning one if need be, and count that link.

        With `runtime_id`, that one or none other. Concurrent callers of one realm share one spawn. Cancelling a caller does
        not stop the spawn for the others.

        Raises:
            errors.RuntimeUnavailable: none became ready, or that one is gone.
            errors.OverCapacity: all are full and no more may be spawned.
        """
        ...

    def release(self, handle: RuntimeHandle) -> None:
        """Give a counted link back."""
        ...

    def cordon(self, handle: RuntimeHandle, reason: str) -> None:
        """Place nothing new on a runtime; `cordoned` tells the gateway, which moves its sessions and retires it. Idempotent."""
        ...

    def retire(self, handle: RuntimeHandle, reason: str) -> None:
        """Take a runtime that cannot serve any more out of placement and stop it; `lost` tells its users. Idempotent."""
        ...

    def let_reach(self, realm: Realm) -> None:
        """Have the realm's sandboxed runtimes reach what its policy names now, and nothing else. Idempotent."""
        ...

    def subscribe(self, broadcast: Broadcast) -> None:
        """Have notifications of the control links delivered."""
        ...

    async def aclose(self) -> None:
        """Stop all runtimes and wait until they are gone."""
        ...
