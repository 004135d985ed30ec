"""Turn a single-executable `copilot` into a read-only package directory in the cache, once, however many ask.

The executable unpacks itself when told to; that happens in a scratch directory and becomes visible by one rename, so
a crash leaves nothing that looks finished. Not here: finding the executable (`locate`) and fetching it (`install`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.distribution import cache, child, manifest, package
from aerodrome.adapters.distribution.release import Pin, RuntimeRelease

UNPACK_TIMEOUT_SECONDS = 120.0
_TAIL_CHARACTERS = 300


def pinned(root: Path, pin: Pin, *, full: bool = False) -> RuntimeRelease:
    """Return the pinned release from the cache, checked cheaply, or by every file's hash with `full`.

    Raises:
        RuntimeMissing: it is not there or is damaged; the message says which.
    """
    directory = _home(root) / _name(pin.version, pin, pin.binary_sha256)
    found = manifest.read(directory)
    if found is None:
        raise errors.RuntimeMissing(f"nothing unpacked in {directory}")
    problem = manifest.damage(directory, found, full=full)
    if problem is None and full:
        wrong = manifest.mismatch(directory, pin.native_sha256)
        problem = f"{wrong} is not the pinned one" if wrong else None
    unpacked = package.release_in(directory, pin.platform, found.version, "cache")
    if problem or unpacked is None or found.source.sha256 != pin.binary_sha256:
        raise errors.RuntimeMissing(f"damaged release in {directory}: {problem or 'it is not the pinned one'}")
    return unpacked


def obtain(
    binary: Path,
    source: str,
    root: Path,
    pin: Pin,
    *,
    only_sha256: str | None = None,
    report: cache.Report = cache.quiet,
) -> RuntimeRelease:
    """Return the unpacked release of an executable, unpacking it if nobody did so before.

    With `only_sha256` an executable with another digest is refused, and not executed.

    Raises:
        RuntimeMissing: the file is refused or does not unpack itself, or the cache cannot be written.
    """
    for directory, found in _published(root):
        if _is_from(binary, found.source) and only_sha256 in (None, found.source.sha256):
            return _release(directory, found, source, pin)
    digest = manifest.sha256(binary)
    if only_sha256 not in (None, digest):
        raise errors.RuntimeMissing(f"expected {binary} with SHA-256 {only_sha256}, found {digest}: not executed")
    for directory, found in _published(root):
        if found.source.sha256 == digest:
            return _release(directory, found, source, pin)
    with cache.exclusive(root, report):
        report("unpacking")
        return unpacked_locked(binary, digest, source, root, pin)


def unpacked_locked(binary: Path, digest: str, source: str, root: Path, pin: Pin) -> RuntimeRelease:
    """Do what `obtain` does, for a caller that holds the cache's lock and knows the executable's SHA-256.

    Raises:
        RuntimeMissing: the file does not unpack itself.
    """
    for directory, found in _published(root):
        if found.source.sha256 == digest:
            return _release(directory, found, source, pin)
    with cache.staging(root) as scratch:
        tree = _extract(binary, scratch)
        if package.release_in(tree, pin.platform, None, source) is None:
            _keep_binary(binary, tree)
        status = binary.stat()
        # What npm fetched is gone in a moment; only a file that stays can be recognised by its path.
        path = "" if binary.is_relative_to(root) else str(binary)
        origin = manifest.Source(source, path, status.st_size, status.st_mtime_ns, digest)
        found = _describe(tree, origin, pin)
        directory = _home(root) / _name(found.version, pin, digest)
        manifest.write(tree, found)
        cache.publish(tree, directory, scratch)
    return _release(directory, found, source, pin)


def _is_from(binary: Path, origin: manifest.Source) -> bool:
    """Tell a file that was unpacked before without reading its 190 MB."""
    status = binary.stat()
    return (origin.path, origin.size_bytes, origin.mtime_ns) == (str(binary), status.st_size, status.st_mtime_ns)


def _published(root: Path) -> Iterator[tuple[Path, manifest.Manifest]]:
    for directory in sorted(_home(root).glob("*/")):
        found = manifest.read(directory)
        if found is not None and manifest.damage(directory, found) is None:
            yield directory, found


def _release(directory: Path, found: manifest.Manifest, source: str, pin: Pin) -> RuntimeRelease:
    unpacked = package.release_in(directory, pin.platform, found.version, source)
    if unpacked is None:
        raise errors.RuntimeMissing(f"expected a runtime for {pin.platform}, found none in {directory}")
    return unpacked


def _home(root: Path) -> Path:
    return root / "runtime"


def _name(version: str, pin: Pin, digest: str) -> str:
    """Name a directory: only the verified pinned executable gets the plain name."""
    plain = f"{version}-{pin.platform}"
    return plain if digest == pin.binary_sha256 else f"{plain}-{digest[:12]}"


def _extract(binary: Path, scratch: Path) -> Path:
    """Let the executable unpack itself below `scratch`; return the package directory."""
    private = scratch / "home"
    private.mkdir()
    env = {
        "PATH": os.defpath,
        "HOME": str(private),
        "TMPDIR": str(private),
        "COPILOT_HOME": str(private),
        "COPILOT_SEA_EXTRACT_ONLY": "1",
        "COPILOT_PKG_CACHE_HOME": str(scratch),
        "COPILOT_AUTO_UPDATE": "false",
    }
    try:
        outcome = child.run([str(binary)], env, private, UNPACK_TIMEOUT_SECONDS)
    except OSError as error:
        raise errors.RuntimeMissing(
            f"expected an executable Copilot CLI, found {binary} ({error.strerror}): check its mode and its file system"
        ) from error
    trees = [found.parent for found in scratch.glob("pkg/*/*/package.json")]
    if outcome.code != 0 or len(trees) != 1:
        ended = "did not end in time" if outcome.code is None else f"ended with {outcome.code}"
        tail = " ".join(outcome.output[-_TAIL_CHARACTERS:].split())
        raise errors.RuntimeMissing(f"expected {binary} to unpack itself, it {ended}: {tail or 'nothing printed'}")
    return trees[0]


def _keep_binary(binary: Path, tree: Path) -> None:
    """Put the executable into a package that has no native entry: it is the way to start it then."""
    shutil.copy2(binary, tree / package.BINARY_NAME)


def _describe(tree: Path, origin: manifest.Source, pin: Pin) -> manifest.Manifest:
    version = package.version_of(tree)
    unpacked = package.release_in(tree, pin.platform, version, origin.how)
    if unpacked is None or version is None:
        raise errors.RuntimeMissing("expected a Copilot CLI package inside the executable, found something else")
    entry = unpacked.entry.relative_to(tree).as_posix()
    files = manifest.survey(tree)
    if origin.sha256 == pin.binary_sha256:
        wrong = [
            name for name, digest in pin.native_sha256.items() if name not in files or files[name].sha256 != digest
        ]
        if wrong:
            raise errors.RuntimeMissing(
                f"expected the pinned {wrong[0]}, found another one: remove the cache and retry"
            )
    return manifest.Manifest(version, pin.platform, unpacked.kind, entry, origin, files)
