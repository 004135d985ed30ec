"""`aerodrome-copilot`: the program to name in COPILOT_CLI_PATH. No logic: aerodrome.forward.shim does the work.

A script of its own and not a command of `aerodrome`, because SDKs pass a runtime's arguments to it. It imports little:
every program waits for it.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata

from aerodrome import errors, observe
from aerodrome.forward import loop, shim


def main() -> None:
    """Serve the SDK that started this process."""
    arguments = sys.argv[1:]
    if {"--version", "-v", "version"} & set(arguments):
        print(f"aerodrome-copilot {metadata.version('aerodrome')}")
        return
    if {"--help", "-h", "help"} & set(arguments):
        print(shim.USAGE)
        return
    observe.configure_logs(os.environ.get("AERODROME_LOG_LEVEL", "warning"), as_json=False)
    try:
        loop.run(shim.run(arguments, os.environ))
    except errors.AerodromeError as error:
        sys.stderr.write(f"aerodrome-copilot: {error.message}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
