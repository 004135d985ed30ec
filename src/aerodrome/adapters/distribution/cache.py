"""The cache directory: where it is, who may write it now, and scratch space inside it.

Nothing here knows what a release is (`unpack`, `install` do). Readers need no lock, because everything becomes visible
by one rename; writers hold `exclusive`, which the kernel releases when a process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from aerodrome import errors

LOCK_WAIT_SECONDS = 900.0
_POLL_SECONDS = 0.1

Report = Callable[[str], None]


def quiet(line: str) -> None:
    """Drop a progress line."""


def directory(environ: Mapping[str, str] | None = None) -> Path:
    """Return the cache directory: AERODROME_CACHE_DIR, else XDG_CACHE_HOME/aerodrome, else ~/.cache/aerodrome."""
    env = os.environ if environ is None else environ
    if env.get("AERODROME_CACHE_DIR"):
        return Path(env["AERODROME_CACHE_DIR"]).expanduser().absolute()
    xdg = env.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path must be ignored.
    root = Path(xdg) if xdg.startswith("/") else Path(env.get("HOME") or Path.home()) / ".cache"
    return root / "aerodrome"


@contextlib.contextmanager
def exclusive(root: Path, report: Report = quiet, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold the cache's write lock, across processes.

    Raises:
        RuntimeMissing: the directory cannot be written, another process kept the lock for `wait_seconds`, or the work
            done under the lock met an operating system error (a full disk).
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / "install.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise errors.RuntimeMissing(
            f"expected a writable cache directory, found {root} ({error.strerror}): set AERODROME_CACHE_DIR"
        ) from error
    try:
        _lock(descriptor, report, wait_seconds)
        yield
    except OSError as error:
        raise errors.RuntimeMissing(
            f"the cache directory {root} could not be used ({error.strerror}): free some space or set AERODROME_CACHE_DIR"
        ) from error
    finally:
        os.close(descriptor)


def _lock(descriptor: int, report: Report, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if time.monotonic() > deadline:
            raise errors.RuntimeMissing(
                f"another process has been installing for {wait_seconds:.0f} s: stop it and retry"
            )
        if not told:
            report("waiting for another process that is installing the runtime")
            told = True
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """Lend an empty directory on the cache's own file system, and remove it. Hold `exclusive` meanwhile.

    Whatever an earlier process left behind when it died is removed first: under the lock nobody else can be using it.
    """
    parent = root / "staging"
    discard(parent)
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield scratch
    finally:
        discard(parent)


def publish(tree: Path, directory: Path, scratch: Path) -> None:
    """Make a finished tree read-only and visible, in place of whatever had its name, which goes to `scratch`."""
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder) / name
            path.chmod(0o555 if path.stat().st_mode & stat.S_IXUSR else 0o444)
        if Path(folder) != tree:
            Path(folder).chmod(0o555)
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists():
        # A directory that changes its parent must be writable itself, for anyone but root.
        directory.chmod(0o755)
        directory.rename(scratch / "replaced")
    tree.rename(directory)
    directory.chmod(0o555)


def discard(tree: Path) -> None:
    """Remove a directory, read-only parts included; one that is not there is fine."""
    for folder, _, _ in os.walk(tree):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    shutil.rmtree(tree, ignore_errors=True)
