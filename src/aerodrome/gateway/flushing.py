"""Writing on schedule what is collected in memory: one loop for all that collect (times of use, usage)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aerodrome import errors

Flush = Callable[[], Awaitable[None]]
Failed = Callable[[errors.StoreUnavailable], None]


async def flush_every(flush: Flush, seconds: float, failed: Failed) -> None:
    """Flush on schedule until cancelled, and once more then; `failed` hears of every flush that did not succeed."""
    try:
        while True:
            await asyncio.sleep(seconds)
            await _try(flush, failed)
    finally:
        await _try(flush, failed)


async def _try(flush: Flush, failed: Failed) -> None:
    try:
        await flush()
    except errors.StoreUnavailable as error:
        failed(error)
