"""The event loop of the local programs: uvloop where it is installed. They have no state to undo when it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end."""
    factory = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415  optional

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)
