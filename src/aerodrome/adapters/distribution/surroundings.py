"""What `doctor` checks around the runtime: the interpreter, the directories, the network, limits, optional parts.

Every check reads; the only thing ever written is an empty file, at once removed, in the two directories that must be
writable. The checks of the runtime itself are in `doctor`.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from aerodrome.adapters.distribution import trial
from aerodrome.adapters.distribution.check import Check, Machine, fail, ok, warn

MINIMUM_PYTHON = (3, 11)
MINIMUM_FILES = 4096
#: npm's copy of the executable, the unpacked package, and npm's own cache of the download.
INSTALL_BYTES = 600 << 20
STATE_BYTES = 100 << 20
_PROXY_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def python(machine: Machine) -> Check:
    """Check the interpreter's version."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info[:2] < MINIMUM_PYTHON:
        return fail("python", found, "use Python 3.11 or newer")
    return ok("python", found)


def uvloop(machine: Machine) -> Check:
    """Check that the fast event loop can be imported."""
    if importlib.util.find_spec("uvloop") is None:
        return warn("uvloop", "not installed", "install uvloop: the gateway works without it, but costs more CPU")
    return ok("uvloop", "installed")


def npm(machine: Machine) -> Check:
    """Check that npm is there to fetch the runtime with."""
    found = shutil.which("npm", path=machine.environ.get("PATH", os.defpath))
    if found is None:
        return warn("npm", "not on PATH", "install npm (it comes with Node.js), unless the runtime is there already")
    return ok("npm", found)


def cache_directory(machine: Machine) -> Check:
    """Check that the runtime can be installed in the cache, or is there already."""
    finding = _directory("cache directory", machine.cache_root, INSTALL_BYTES, "AERODROME_CACHE_DIR")
    if finding.advice and any(machine.cache_root.glob(f"runtime/{machine.pin.version}-*")):
        return warn(finding.name, finding.found, f"enough for the release that is there; for another: {finding.advice}")
    return finding


def state_directory(machine: Machine) -> Check:
    """Check that session state and the registry can be written."""
    return _directory("state directory", machine.state_dir, STATE_BYTES, "another state directory")


def _directory(name: str, path: Path, needed_bytes: int, setting: str) -> Check:
    """Check that a directory, or the place where it will be made, can be written and has room."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free_bytes = shutil.disk_usage(there).free
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", f"make it writable, or set {setting}")
    found = f"{path}, {free_bytes >> 20} MiB free"
    if free_bytes < needed_bytes:
        return fail(name, found, f"free {needed_bytes >> 20} MiB, or set {setting}")
    return ok(name, found)


def listen_port(machine: Machine) -> Check:
    """Check that the gateway's address is free, or that what holds it is a gateway."""
    address = f"{machine.host}:{machine.port}"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(machine.host, machine.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if machine.port and trial.speaks_protocol(machine.host, machine.port):
            return warn("listen address", f"{address} is served by a gateway or a runtime", "stop it to start another")
        return fail("listen address", f"{address}: {error.strerror}", "choose another address with --listen")
    return ok("listen address", f"{address} is free")


def open_files(machine: Machine) -> Check:
    """Check the limit of open files: each client takes two here, and each live session four in its runtime."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MINIMUM_FILES:
        return warn("open files", f"limit {soft} (hard {hard})", f"raise it to {MINIMUM_FILES} or more: ulimit -n")
    return ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"limit {soft}")


def proxies(machine: Machine) -> Check:
    """Check that proxy settings leave loopback alone; their values may hold passwords and are not shown."""
    env = {name.upper(): value for name, value in machine.environ.items() if value}
    present = [name for name in _PROXY_NAMES if name in env]
    if not present:
        return ok("proxy settings", "none")
    direct = {part.strip() for part in env.get("NO_PROXY", "").split(",")}
    lacking = [] if "*" in direct else sorted({"localhost", "127.0.0.1"} - direct - _covered(direct))
    if lacking:
        found = f"{', '.join(present)} set, NO_PROXY without {', '.join(lacking)}"
        return warn(
            "proxy settings", found, f"add {','.join(lacking)} to NO_PROXY: local model servers are not reached else"
        )
    return ok("proxy settings", f"{', '.join(present)} set, loopback excepted")


def _covered(direct: set[str]) -> set[str]:
    """Return the loopback address if one of the networks in NO_PROXY contains it."""
    loopback = ipaddress.ip_address("127.0.0.1")
    for part in direct:
        try:
            if "/" in part and loopback in ipaddress.ip_network(part, strict=False):
                return {str(loopback)}
        except ValueError:
            continue
    return set()


def control_group(machine: Machine) -> Check:
    """Look for a control group of our own to put runtimes under; optional."""
    if sys.platform != "linux":
        return ok("control group", "not on this system (only resource limits need it)")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    group = Path("/sys/fs/cgroup") / own if own is not None else None
    if group is not None and os.access(group / "cgroup.subtree_control", os.W_OK):
        return ok("control group", f"{group} is writable")
    return ok("control group", "not writable (only resource limits need it)")


CHECKS: tuple[Callable[[Machine], Check], ...] = (
    python,
    uvloop,
    npm,
    cache_directory,
    state_directory,
    listen_port,
    open_files,
    proxies,
    control_group,
)
