"""Whether bubblewrap can make a sandbox on this machine: found out by making one.

Everything a real one uses is used: namespaces, mounts, the filter, the change of user. What is lacking is said to the operator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.sandbox import bubblewrap, syscalls
from aerodrome.adapters.sandbox.bubblewrap import Network, Sandbox
from aerodrome.ports.host import Confinement, ResourceLimits, SpawnSpec

_SECONDS = 10.0
_INSTALL = "install bubblewrap (Debian, Fedora, Arch and Alpine have a package of that name)"


def find(program: Path | None, network: Network, read_only: tuple[Path, ...], uid: int) -> Sandbox:
    """Return how sandboxes are made here, proved by making one as a user id (used where we are root). Blocking, some 50 ms.

    Raises:
        errors.ConfigError: none can be made; says why and what to do.
    """
    found = program or _which("bwrap")
    if found is None:
        raise errors.ConfigError(f"no `bwrap` on PATH: {_INSTALL}")
    setpriv = _which("setpriv") if os.geteuid() == 0 else None
    if os.geteuid() == 0 and setpriv is None:
        raise errors.ConfigError(
            "no `setpriv` on PATH, by which a root gateway's sandbox changes user: install util-linux"
        )
    if os.uname().machine not in syscalls.ARCHITECTURES:
        raise errors.ConfigError(
            f"there is no filter of system calls for {os.uname().machine}, only for x86_64 and aarch64"
        )
    sandbox = Sandbox(found, setpriv, network, read_only)
    problem = _try(sandbox, uid)
    if problem is not None:
        raise errors.ConfigError(
            f'{found} cannot make a sandbox here ({problem}); see docs/sandbox.md, "Where it works"'
        )
    return sandbox


def _which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _try(sandbox: Sandbox, uid: int) -> str | None:
    """Run a program that does nothing in a sandbox; return what is wrong, None if nothing is."""
    with tempfile.TemporaryDirectory(prefix="aerodrome-probe-") as name:
        place = Path(name)
        inside = place / "home"
        inside.mkdir(mode=0o755)
        confinement = Confinement(place, (inside,), place / "sandbox")
        spec = SpawnSpec("probe", ("/usr/bin/env",), {"PATH": os.defpath}, inside, ResourceLimits(256), confinement)
        wrapped = bubblewrap.wrap(spec, sandbox, uid if sandbox.setpriv else os.geteuid())
        return _run(wrapped)


def _run(wrapped: SpawnSpec) -> str | None:
    argv = list(wrapped.argv)
    with wrapped.descriptors[0].open("rb") as program:
        argv[argv.index("--seccomp") + 1] = str(program.fileno())
        try:
            ended = subprocess.run(
                argv,
                env=dict(wrapped.environment),
                pass_fds=(program.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    words = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
    return words[-1][:300] if ended.returncode else None
