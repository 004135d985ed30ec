"""How a runtime is started: its directories, its environment, its command line.

A runtime is started with paths of its own, STATE/runtimes/<id>/{copilot,home,tmp,work}, which are symbolic links: to its realm's
directories, or while it is warm to empty ones of its own. The runtime keeps the paths as it was given them and looks them up at
each use (measured on release 1.0.102), so that a link turned to a realm's directory takes effect at the next session. What it
reads once, at its start, is its working directory, COPILOT_HOME/settings.json, config.json and providers.json: realms whose
agents may rely on those (`Realm.has_host_tools`) are never given a warm one. Their runtimes are told the realm's directories as
they are, because such agents may keep the paths that a runtime names (`workspacePath`) for longer than it lives; and a sandbox's
mounts, made at its start, follow no links.

Once a realm was sandboxed it always is: an agent wrote to its COPILOT_HOME what a runtime outside might read and run.

Default deny: the environment holds only what is named here and what the operator names; nothing is inherited, so no secret
of the gateway's can reach a runtime by accident.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from aerodrome import errors
from aerodrome.core.backoff import Backoff
from aerodrome.core.placement import Realm
from aerodrome.core.policy import HostTools
from aerodrome.core.vitals import DriftLimits
from aerodrome.ports.host import Confinement, ResourceLimits, SpawnSpec

#: Where an agent's shell looks for programs; the operator's own PATH may hold what is not for tenants.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


#: Drift in open files begins at this part of what a runtime may open.
_OPEN_FILES_PART = 0.8
#: In the root directory of a realm that was sandboxed once; no sandbox shows it.
_SANDBOXED_MARK = "sandboxed"


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """How often runtimes are asked whether they live (0: never), and when the answer is that they do not."""

    interval_seconds: float = 5.0
    deadline_seconds: float = 5.0
    failures: int = 2


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """How runtimes are spawned, watched and replaced, and how many links each takes. Counts of 0 set no limit."""

    entry: Path
    is_native: bool
    version: str
    state_directory: Path
    #: What becomes of realms whose agents may have a runtime run commands (`Realm.has_host_tools`).
    host_tools: HostTools = HostTools.REFUSED
    #: HOST:PORT that sandboxed runtimes may reach besides what their realm's policy names.
    egress: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: What V8 compiled ahead of the Node entry point's code (adapters.distribution.node_entry).
    compile_cache: Path | None = None
    ready_seconds: float = 20.0
    stop_grace_seconds: float = 5.0
    idle_seconds: float = 300.0
    #: The native runtime accepts 128 connections (measured); one is the control link, some are kept back.
    links_per_runtime: int = 120
    shared_runtimes: int = 4
    spawns_at_once: int = 4
    #: So many spawns may wait for their turn.
    spawn_queue: int = 1000
    max_runtimes: int = 0
    warm_runtimes: int = 0
    warm_runtimes_max: int = 8
    limits: ResourceLimits = field(default_factory=lambda: ResourceLimits(open_files=16384))
    backoff: Backoff = field(default_factory=Backoff)
    health: HealthSettings = field(default_factory=HealthSettings)
    drift: DriftLimits = field(default_factory=DriftLimits)

    @property
    def drift_limits(self) -> DriftLimits:
        """Return the limits of drift, that of open files taken from what a runtime may open."""
        return replace(self.drift, open_files=int(self.limits.open_files * _OPEN_FILES_PART))


@dataclass(frozen=True, slots=True)
class Directories:
    """The four directories that a runtime works in: a realm's, which outlive its runtimes, or a runtime's links to them."""

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

    def create(self, is_confined: bool = False) -> None:
        """Make them, readable by this user alone; `is_confined`: a sandbox may give them to a user of its own."""
        for path in (self.root, *self.all):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_confined:
            (self.root / _SANDBOXED_MARK).touch(mode=0o600)
        elif os.geteuid() == 0 and self.root.stat().st_uid != 0:
            # What root is about to write there belongs to no sandbox's user: the next one is to look (adapters.sandbox.uids).
            os.chown(self.root, 0, 0)

    def point_to(self, target: Directories) -> None:
        """Make each of them a link to the target's, in place of what it was; each link is one atomic rename."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for link, path in zip(self.all, target.all, strict=True):
            fresh = link.with_name(f"{link.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(path)
            os.replace(fresh, link)

    def remove(self) -> None:
        """Remove them with all that is in them; links are not followed."""
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def were_confined(self) -> bool:
        """Say whether agents in a sandbox may have written to them."""
        return (self.root / _SANDBOXED_MARK).exists()

    @property
    def all(self) -> tuple[Path, ...]:
        """Return the four."""
        return (self.copilot_home, self.home, self.temporary, self.work)


@dataclass(frozen=True, slots=True)
class SpawnKey:
    """What is fixed when a runtime is spawned: a warm one may serve whoever wants the same."""

    entry: Path
    environment: tuple[tuple[str, str], ...] = field(repr=False)
    limits: ResourceLimits


def spawn_key(settings: FleetSettings) -> SpawnKey:
    """Return what runtimes of these settings are spawned with."""
    return SpawnKey(settings.entry, tuple(sorted(settings.environment.items())), settings.limits)


def runtime_directories(runtime_id: str, state_directory: Path) -> Directories:
    """Return a runtime's own paths."""
    return Directories(_runtimes(state_directory) / runtime_id)


def placeholders(runtime_id: str, state_directory: Path) -> Directories:
    """Return the empty directories that a warm runtime's paths lead to."""
    return Directories(_runtimes(state_directory) / runtime_id / "warm")


def compiled_links(runtime_id: str, settings: FleetSettings, confinement: Confinement | None) -> Path | None:
    """Return the directory of a runtime's links to code that was compiled ahead (fleet.compiled).

    None: nothing was, or a sandbox shows it as it is.
    """
    if settings.compile_cache is None or confinement is not None:
        return None
    return runtime_directories(runtime_id, settings.state_directory).root / "compiled"


def remove_leftovers(state_directory: Path) -> None:
    """Remove the paths of runtimes that an earlier life of the gateway left; nothing in them is a realm's."""
    shutil.rmtree(_runtimes(state_directory), ignore_errors=True)


def _runtimes(state_directory: Path) -> Path:
    return state_directory / "runtimes"


def directories_of(realm: Realm, state_directory: Path) -> Directories:
    """Return a realm's directories: a readable name, made unambiguous by a digest of the key."""
    slug = re.sub(r"[^a-z0-9]+", "-", realm.key.lower())[:40].strip("-")
    digest = hashlib.sha256(realm.key.encode()).hexdigest()[:16]
    return Directories(state_directory / "realms" / f"{slug}-{digest}")


def needs_sandbox(realm: Realm, settings: FleetSettings) -> bool:
    """Say whether a realm's runtimes must be held by a sandbox: their tools reach the host, or did."""
    return realm.has_host_tools or directories_of(realm, settings.state_directory).were_confined


def is_spawned_for(realm: Realm, settings: FleetSettings) -> bool:
    """Say whether a realm's runtimes are spawned for it alone, over its directories as they are; others may be warm ones."""
    is_confined = settings.host_tools is HostTools.SANDBOXED and needs_sandbox(realm, settings)
    return realm.has_host_tools or is_confined


def check_held(realm: Realm, settings: FleetSettings) -> None:
    """Check that there is a sandbox for a realm that must have one, or the operator's word that it may do without.

    Raises:
        errors.PolicyRejected: there is neither.
    """
    if settings.host_tools is not HostTools.REFUSED or not needs_sandbox(realm, settings):
        return
    what = "host tools need" if realm.has_host_tools else "agents had host tools here, and what they left needs"
    way = 'to set trust = "limited"' if realm.is_open else "to set host_tools = false"
    raise errors.PolicyRejected(
        f"{what} a sandbox and this gateway has none; ask its operator to install bubblewrap"
        + (f", or {way} (docs/sandbox.md)" if realm.has_host_tools else " (docs/sandbox.md)")
    )


def confinement_of(realm: Realm | None, runtime_id: str, settings: FleetSettings) -> Confinement | None:
    """Return what a realm's runtime is confined to; None: its sessions have no host tools, or the operator wants no sandbox.

    Raises:
        errors.SpawnFailed: its sessions work where a link leads elsewhere.
    """
    if realm is None or settings.host_tools is not HostTools.SANDBOXED or not needs_sandbox(realm, settings):
        return None
    directories = directories_of(realm, settings.state_directory)
    place = runtime_directories(runtime_id, settings.state_directory).root / "sandbox"
    elsewhere = () if realm.work_root is None else (_work_below(realm, realm.work_root),)
    return Confinement(directories.root, (*directories.all, *elsewhere), place, egress_of(realm, settings))


def egress_of(realm: Realm, settings: FleetSettings) -> tuple[str, ...]:
    """Return what a realm's sandboxed runtimes may reach: what its policy names, and what the operator lets all of them."""
    return (*(realm.egress or ()), *settings.egress)


def _work_below(realm: Realm, work_root: str) -> Path:
    """Return the directory below a policy's `work_root` that is the realm's. Who could write there may have left links."""
    names = Path(realm.tenant, realm.user or "")
    directory = Path(work_root) / names
    if Path(os.path.realpath(directory)) != Path(os.path.realpath(work_root)) / names:
        raise errors.SpawnFailed(f"expected a directory at {directory}, found a link; remove it")
    return directory


def spawn_spec(
    runtime_id: str,
    token: str,
    directories: Directories,
    settings: FleetSettings,
    confinement: Confinement | None = None,
) -> SpawnSpec:
    """Return the process to start for one runtime. The token goes by environment, never by argument."""
    compiled = compiled_links(runtime_id, settings, confinement)
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
        **({} if compiled is None else {"NODE_COMPILE_CACHE": str(compiled)}),
        **settings.environment,
        "COPILOT_CONNECTION_TOKEN": token,
    }
    argv = [str(settings.entry), "--headless", "--port", "0", "--no-auto-update", "--log-level", "none"]
    if not any(name in environment for name in ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN")):
        argv.append("--no-auto-login")
    return SpawnSpec(runtime_id, tuple(argv), environment, directories.work, settings.limits, confinement)
