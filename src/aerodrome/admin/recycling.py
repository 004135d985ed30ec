"""Recycling: every runtime replaced by a fresh one, in each realm one after another, without losing a request.

A runtime is cordoned and then emptied by gateway.caretaker as its sessions fall idle; their next calls find them on another. The
next of its realm is cordoned when it is gone, or after a bound: one long turn must not keep old runtimes for ever. Warm runtimes
have served nobody and are left as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from aerodrome.fleet.pool import RuntimePool
from aerodrome.ports.fleet import RuntimeHandle

REASON = "recycled by the operator"

#: Hears a runtime's id and whether it is gone; False: it still serves after the bound, and goes when it can.
Progress = Callable[[str, bool], None]


async def recycle(pool: RuntimePool, handles: Iterable[RuntimeHandle], each_seconds: float, progress: Progress) -> None:
    """Recycle runtimes, realms side by side, those of a realm in turn; return when the last is gone or its bound has passed."""
    by_realm: dict[str, list[RuntimeHandle]] = {}
    for handle in handles:
        by_realm.setdefault(handle.realm.key, []).append(handle)
    async with asyncio.TaskGroup() as group:
        for key, queue in by_realm.items():
            group.create_task(_recycle_realm(pool, queue, each_seconds, progress), name=f"recycling of {key}")


async def _recycle_realm(
    pool: RuntimePool, handles: list[RuntimeHandle], each_seconds: float, progress: Progress
) -> None:
    for handle in handles:
        if not handle.lost.done():
            pool.cordon(handle, REASON)
            await asyncio.wait((handle.lost,), timeout=each_seconds)
        progress(handle.runtime_id, handle.lost.done())
