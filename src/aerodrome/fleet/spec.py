"""How a runtime is started: its directories, its environment, its command line.

Default deny: the environment holds only what is named here and what the operator names; nothing is inherited, so no secret
of the gateway's can reach a runtime by accident.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aerodrome.core.backoff import Backoff
from aerodrome.core.placement import Realm
from aerodrome.ports.host import ResourceLimits, SpawnSpec

#: Where an agent's shell looks for programs; the operator's own PATH may hold what is not for tenants.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """How runtimes are spawned and how many links each takes."""

    entry: Path
    is_native: bool
    version: str
    state_directory: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    ready_seconds: float = 20.0
    stop_grace_seconds: float = 5.0
    idle_seconds: float = 300.0
    #: The native runtime accepts 128 connections (measured); one is the control link, some are kept back.
    links_per_runtime: int = 120
    shared_runtimes: int = 4
    spawns_at_once: int = 4
    limits: ResourceLimits = field(default_factory=lambda: ResourceLimits(open_files=16384))
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True)
class RealmDirectories:
    """What of the disk belongs to one realm; it outlives its runtimes."""

    root: Path

    @property
    def copilot_home(self) -> Path:
        """Return where the runtime keeps sessions and settings."""
        return self.root / "copilot"

    @property
    def home(self) -> Path:
        """Return the runtime's HOME."""
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        """Return the runtime's TMPDIR."""
        return self.root / "tmp"

    @property
    def work(self) -> Path:
        """Return where the realm's sessions work."""
        return self.root / "work"

    def create(self) -> None:
        """Make them, readable by this user alone."""
        for path in (self.root, self.copilot_home, self.home, self.temporary, self.work):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)


def directories_of(realm: Realm, state_directory: Path) -> RealmDirectories:
    """Return a realm's directories: a readable name, made unambiguous by a digest of the key."""
    slug = re.sub(r"[^a-z0-9]+", "-", realm.key.lower())[:40].strip("-")
    digest = hashlib.sha256(realm.key.encode()).hexdigest()[:16]
    return RealmDirectories(state_directory / "realms" / f"{slug}-{digest}")


def spawn_spec(runtime_id: str, token: str, directories: RealmDirectories, settings: FleetSettings) -> SpawnSpec:
    """Return the process to start for one runtime. The token goes by environment, never by argument."""
    environment = {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": str(directories.home),
        "TMPDIR": str(directories.temporary),
        "COPILOT_HOME": str(directories.copilot_home),
        "COPILOT_AUTO_UPDATE": "false",
        "COPILOT_DISABLE_KEYTAR": "1",
        # The runtime gives memory of unloaded sessions back only with this (protocol facts 2.1).
        "MALLOC_TRIM_THRESHOLD_": "131072",
        **settings.environment,
        "COPILOT_CONNECTION_TOKEN": token,
    }
    argv = [str(settings.entry), "--headless", "--port", "0", "--no-auto-update", "--log-level", "none"]
    if not any(name in environment for name in ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN")):
        argv.append("--no-auto-login")
    return SpawnSpec(runtime_id, tuple(argv), environment, directories.work, settings.limits)
