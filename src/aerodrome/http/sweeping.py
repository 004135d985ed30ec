"""Removing from the stores what is over: one loop for all that the edge keeps for a time (idempotency keys, browsers)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from aerodrome import errors

_log = structlog.get_logger()
SWEEP_SECONDS = 600.0


async def sweep_on_schedule(sweeps: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Make each sweep at once and then on schedule, until cancelled; one that fails is made again the next time."""
    while True:
        for sweep in sweeps:
            try:
                await sweep()
            except errors.StoreUnavailable as error:
                _log.warning("registry.flush_failed", reason=error.message)
        await asyncio.sleep(SWEEP_SECONDS)
