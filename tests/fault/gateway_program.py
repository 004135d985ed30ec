"""`aerodrome serve` that says on SIGUSR1 which tasks it runs, as one JSON line; its argument is the state directory.

On SIGUSR2 it says on standard error where each of them waits: for a request that is never answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from aerodrome import app, observe, settings


async def _announce(application: app.Application) -> None:
    def tell() -> None:
        print(json.dumps(sorted(task.get_name() for task in asyncio.all_tasks())), flush=True)

    def explain() -> None:
        for task in asyncio.all_tasks():
            print(task.get_name(), *_places(task.get_coro()), sep="\n    ", file=sys.stderr, flush=True)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, explain)
    print(f"listening on {application.host}:{application.port}", flush=True)


def _places(waiting: Any) -> list[str]:
    """Return where a coroutine waits, the outermost call first."""
    found = []
    while (frame := getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)) is not None:
        found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)
    return found


if __name__ == "__main__":
    unsandboxed = {"mode": "off", "unsandboxed": "agents run commands as the gateway's user"}
    if any(name.startswith("AERODROME_SANDBOX__") for name in os.environ):
        unsandboxed = None
    loaded = settings.load(None, listen="127.0.0.1:0", state_directory=Path(sys.argv[1]), sandbox=unsandboxed)
    observe.configure_logs(loaded.log_level, loaded.log_json)
    app.run_loop(app.run(loaded, _announce))
