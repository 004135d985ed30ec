"""The Node entry point of a release: its single executable beside the unpacked package, and its code compiled ahead.

Started as it comes, the executable unpacks 235 MB into each new home and compiles its code each time (measured on 1.0.102:
3.1 s until it listens). Here it lies beside the package that was unpacked once, with what V8 made of its code, read-only: 0.4 s.

Such a directory becomes visible by one rename, like the packages (`unpack`). What V8 compiled is trusted by whoever loads it, so
that it is made here, by a start of our own in a home of its own, and never taken from a runtime that served anybody.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.distribution import cache, manifest, package, trial
from aerodrome.adapters.distribution.release import RuntimeRelease

COMPILE_CACHE_NAME = "compile-cache"
_FILL_SECONDS = 60.0


def prepared(unpacked: RuntimeRelease, root: Path, *, full: bool = False) -> RuntimeRelease:
    """Return the Node entry point of an unpacked release from the cache, checked cheaply, or by every file's hash with `full`.

    Raises:
        RuntimeMissing: it is not there or is damaged; the message says which.
    """
    directory = _directory(unpacked, root)
    found, origin = manifest.read(directory), manifest.read(unpacked.package_dir)
    if found is None or origin is None:
        raise errors.RuntimeMissing(f"no Node entry point in {directory}")
    problem = manifest.damage(directory, found, full=full)
    if problem or found.source.sha256 != origin.source.sha256:
        raise errors.RuntimeMissing(f"damaged Node entry point in {directory}: {problem or 'of another release'}")
    _sweep(unpacked.package_dir)
    entry = directory / package.BINARY_NAME
    return replace(unpacked, kind="node", entry=entry, compile_cache=directory / COMPILE_CACHE_NAME)


def prepare(
    unpacked: RuntimeRelease, binary: Path, root: Path, *, full: bool = False, report: cache.Report = cache.quiet
) -> RuntimeRelease:
    """Return the Node entry point of a release that was unpacked from an executable, made ready if nobody did so before.

    Raises:
        RuntimeMissing: the executable does not start, or the cache cannot be written.
    """
    try:
        return prepared(unpacked, root, full=full)
    except errors.RuntimeMissing:
        pass
    with cache.exclusive(root, report):
        return prepare_locked(unpacked, binary, root, report)


def prepare_locked(unpacked: RuntimeRelease, binary: Path, root: Path, report: cache.Report) -> RuntimeRelease:
    """Do what `prepare` does, for a caller that holds the cache's lock.

    Raises:
        RuntimeMissing: the executable does not start.
    """
    try:
        return prepared(unpacked, root)
    except errors.RuntimeMissing:
        report("compiling the Node entry point")
    origin = manifest.read(unpacked.package_dir)
    if origin is None:
        raise errors.RuntimeMissing(f"expected a package of ours, found none in {unpacked.package_dir}")
    with cache.staging(root) as scratch:
        made = scratch / "node"
        made.mkdir()
        entry = made / package.BINARY_NAME
        _put(binary, entry, is_ours=binary.is_relative_to(root))
        if manifest.sha256(entry) != origin.source.sha256:
            raise errors.RuntimeMissing(f"expected the executable of {unpacked.package_dir}, found another in {binary}")
        _fill(replace(unpacked, kind="node", entry=entry), made / COMPILE_CACHE_NAME)
        facts = manifest.survey(made)
        manifest.write(made, replace(origin, kind="node", entry=package.BINARY_NAME, files=facts))
        cache.publish(made, _directory(unpacked, root), scratch)
    return prepared(unpacked, root)


def _sweep(package_dir: Path) -> None:
    """Remove what killed runtimes noted in the package; nobody else does, and they may be many."""
    for note in package_dir.glob(f"{manifest.IN_USE}*"):
        pid = note.name.split(".")[1]
        with suppress(OSError):
            if pid.isdigit() and not Path("/proc", pid).exists():
                note.unlink()


def _directory(unpacked: RuntimeRelease, root: Path) -> Path:
    return root / "node" / unpacked.package_dir.name


def _put(binary: Path, entry: Path, is_ours: bool) -> None:
    """Put the executable there; a file of somebody else's is copied, for it may change."""
    if is_ours:
        os.link(binary, entry)
    else:
        shutil.copy2(binary, entry)


def _fill(node: RuntimeRelease, directory: Path) -> None:
    """Start it once, to have V8 write down what it compiles."""
    directory.mkdir()
    try:
        trial.start(node, _FILL_SECONDS, compile_cache=directory)
    except errors.SpawnFailed as error:
        raise errors.RuntimeMissing(f"the Node entry point cannot be used: {error.message}") from error
    if not any(path.is_file() for path in directory.rglob("*")):
        raise errors.RuntimeMissing("expected the Node entry point to keep what it compiles, it kept nothing")
