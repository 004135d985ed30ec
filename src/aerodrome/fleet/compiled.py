"""Code of the Node entry point that was compiled ahead, laid out for a runtime without a sandbox.

Links of the runtime's own to what all share: what it compiles besides is written beside them and goes with it, so that no runtime
writes what another one loads, also where both are root. A sandbox binds what is shared for reading instead (adapters.sandbox).
"""

from __future__ import annotations

import os
from contextlib import suppress

from aerodrome.core import compile_cache
from aerodrome.fleet import spec
from aerodrome.fleet.spec import FleetSettings
from aerodrome.ports.host import Confinement


def link(runtime_id: str, settings: FleetSettings, confinement: Confinement | None) -> None:
    """Make what a runtime needs of it, for this user id. Blocking: some ten files. Idempotent."""
    own = spec.compiled_links(runtime_id, settings, confinement)
    if own is None or settings.compile_cache is None:
        return
    for filled in settings.compile_cache.iterdir():
        directory = own / compile_cache.directory_name(filled.name, os.geteuid())
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for code in filled.iterdir():
            with suppress(FileExistsError):
                (directory / code.name).symlink_to(code)
