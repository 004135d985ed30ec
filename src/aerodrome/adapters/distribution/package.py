"""Tell what a path is: a native runtime, a single-executable `copilot`, or a package directory that holds one.

Reads only; nothing is executed and nothing is unpacked (`unpack` does). The forms come from the npm packages
`@github/copilot`, `@github/copilot-<platform>` and `@github/copilot-sdk-<platform>`, from the directory that the
single executable unpacks, and from the runtime cache of the Python SDK, which names its native entry `copilot`.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from aerodrome import errors
from aerodrome.adapters.distribution import release

NATIVE_NAME = "copilot-runtime"
BINARY_NAME = "copilot"
LIBRARY_NAME = "runtime.node"
#: Node marks an executable that carries an application with this fuse, set to 1.
_FUSE = b"NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2:1"
_VERSION = re.compile(r"\d+\.\d+\.\d+[\w.+-]*")


@dataclass(frozen=True, slots=True)
class Found:
    """What a path turned out to be. `version` is None where only running or unpacking it can tell."""

    form: Literal["native", "single_executable"]
    path: Path
    package_dir: Path
    version: str | None


def recognise(path: Path, platform: str) -> Found:
    """Tell what a path is, following links.

    Raises:
        RuntimeMissing: it is nothing that could be started; the message says what it is instead.
    """
    real = path.expanduser().resolve()
    if real.is_dir():
        return _directory(real, platform)
    if not real.is_file():
        raise errors.RuntimeMissing(f"expected a file or directory, found nothing at {path}")
    if real.name in (NATIVE_NAME, BINARY_NAME) and (real.parent / LIBRARY_NAME).is_file():
        return _native(real)
    if real.suffix == ".js":
        return _directory(real.parent, platform)
    if is_single_executable(real):
        return Found("single_executable", real, real.parent, version_of(real.parent))
    raise errors.RuntimeMissing(
        f"expected the Copilot CLI, found something else at {path}: name its binary or its package directory"
    )


def is_single_executable(path: Path) -> bool:
    """Say whether a file is a Node single-executable application."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return image.find(_FUSE) >= 0
    except (OSError, ValueError):
        return False


def release_in(package_dir: Path, platform: str, version: str | None, source: str) -> release.RuntimeRelease | None:
    """Return the release that an unpacked package directory holds, the native entry preferred, or None."""
    native = package_dir / "prebuilds" / platform / NATIVE_NAME
    entry = native if native.is_file() else package_dir / BINARY_NAME
    if not entry.is_file():
        return None
    kind: release.Kind = "native" if entry == native else "node"
    return as_release(entry, kind, package_dir, version, source)


def as_release(
    entry: Path, kind: release.Kind, package_dir: Path, version: str | None, source: str
) -> release.RuntimeRelease:
    """Return the release with this entry; its schema is there when the package ships one."""
    schema = package_dir / "schemas" / "api.schema.json"
    return release.RuntimeRelease(
        entry=entry,
        kind=kind,
        version=version or release.UNKNOWN_VERSION,
        package_dir=package_dir,
        schema=schema if schema.is_file() else None,
        source=source,
    )


def _native(entry: Path) -> Found:
    package_dir = entry.parents[2] if entry.parent.parent.name == "prebuilds" else entry.parent
    return Found("native", entry, package_dir, version_of(package_dir))


def _directory(directory: Path, platform: str) -> Found:
    for native in (directory / "prebuilds" / platform / NATIVE_NAME, directory / NATIVE_NAME):
        if native.is_file():
            return _native(native)
    binary = directory / BINARY_NAME
    if binary.is_file() and is_single_executable(binary):
        return Found("single_executable", binary, directory, version_of(directory))
    if _metadata(directory).get("name") == "@github/copilot":
        return _directory(_platform_package(directory, platform), platform)
    raise errors.RuntimeMissing(f"expected a Copilot CLI package for {platform}, found none in {directory}")


def _platform_package(wrapper: Path, platform: str) -> Path:
    """Find the package with the binary the way Node resolves it: in each `node_modules` from here upwards."""
    for parent in (wrapper, *wrapper.parents):
        candidate = parent / "node_modules" / "@github" / f"copilot-{platform}"
        if candidate.is_dir():
            return candidate.resolve()
    raise errors.RuntimeMissing(
        f"expected the npm package @github/copilot-{platform} beside {wrapper}, found none: install @github/copilot again"
    )


def version_of(package_dir: Path) -> str | None:
    """Return the CLI version of a package; the SDK's own packages carry it under another name."""
    metadata = _metadata(package_dir)
    name = str(metadata.get("name", ""))
    if name.startswith("@github/copilot-sdk"):
        return _text(_metadata(package_dir.parent / "copilot-sdk").get("copilotCliVersion"))
    if name.startswith("@github/copilot"):
        return _text(metadata.get("version"))
    return package_dir.name if _VERSION.fullmatch(package_dir.name) else None


def _metadata(package_dir: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode((package_dir / "package.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
