"""What an unpacked release looked like when it was published, and whether it still does.

The manifest lies inside the directory it describes, so both appear in one rename. It guards against damage (a full
disk, a half-finished copy, a careless edit), not against somebody who can write the cache: the digests in `release`
are the ones that cannot be rewritten there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aerodrome.adapters.distribution.release import Kind

NAME = "aerodrome-manifest.json"
#: A running Node entry point notes its process id in its package, where it may write (as root); killed, it leaves that there.
IN_USE = "inuse."


@dataclass(frozen=True, slots=True)
class Source:
    """The single-executable file a package was unpacked from, and who named it."""

    how: str
    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of the package. Whole seconds only: image layers and archives keep no more."""

    size_bytes: int
    mtime_seconds: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """An unpacked package: paths are relative to its directory."""

    version: str
    platform: str
    kind: Kind
    entry: str
    source: Source
    files: dict[str, FileFacts]


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def survey(directory: Path) -> dict[str, FileFacts]:
    """Return the facts of every regular file below a directory, the manifest and notes of use left out."""
    found = {}
    for path in _files(directory):
        status = path.stat()
        relative = path.relative_to(directory).as_posix()
        found[relative] = FileFacts(status.st_size, int(status.st_mtime), sha256(path))
    return found


def _files(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            path = Path(folder) / name
            if name != NAME and not name.startswith(IN_USE) and path.is_file() and not path.is_symlink():
                yield path


def write(directory: Path, manifest: Manifest) -> None:
    """Write the manifest into the directory it describes."""
    (directory / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def read(directory: Path) -> Manifest | None:
    """Return a directory's manifest, or None when there is none that can be read."""
    try:
        return msgspec.json.decode((directory / NAME).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def damage(directory: Path, manifest: Manifest, *, full: bool = False) -> str | None:
    """Return the first difference between a directory and its manifest, or None.

    Cheap by default: sizes and times of all files; a file whose time alone differs (a copied cache) is hashed.
    With `full` every file is hashed.
    """
    for relative, facts in manifest.files.items():
        try:
            status = (directory / relative).stat()
        except OSError:
            return f"{relative} is gone"
        if status.st_size != facts.size_bytes:
            return f"{relative} has {status.st_size} bytes instead of {facts.size_bytes}"
        touched = int(status.st_mtime) != facts.mtime_seconds
        if (full or touched) and sha256(directory / relative) != facts.sha256:
            return f"{relative} has changed"
    return None


def mismatch(directory: Path, expected: Mapping[str, str]) -> str | None:
    """Return the first file whose SHA-256 is not the expected one (relative path -> hex digest), or None."""
    for relative, digest in expected.items():
        path = directory / relative
        if not path.is_file() or sha256(path) != digest:
            return relative
    return None
