"""`aerodrome serve` that says on SIGUSR1 which tasks it runs, as one JSON line; its argument is the state directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from aerodrome import app, observe, settings


async def _announce(application: app.Application) -> None:
    def tell() -> None:
        print(json.dumps(sorted(task.get_name() for task in asyncio.all_tasks())), flush=True)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    print(f"listening on {application.host}:{application.port}", flush=True)


if __name__ == "__main__":
    unsandboxed = {"mode": "off", "unsandboxed": "agents run commands as the gateway's user"}
    if any(name.startswith("AERODROME_SANDBOX__") for name in os.environ):
        unsandboxed = None
    loaded = settings.load(None, listen="127.0.0.1:0", state_directory=Path(sys.argv[1]), sandbox=unsandboxed)
    observe.configure_logs(loaded.log_level, loaded.log_json)
    app.run_loop(app.run(loaded, _announce))
