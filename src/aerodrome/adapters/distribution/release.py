"""Which Copilot CLI release Aerodrome is built against, as data, and the value that names one found on disk.

Deliberately not here: looking for a release (`locate`), fetching one (`install`), reading packages (`package`).
The digests were taken from the platform packages of the pinned release; npm's own integrity check does not replace
them, because it only says that a mirror is consistent with itself.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aerodrome import errors

VERSION = "1.0.102"
PROTOCOL_VERSION = 3
UNKNOWN_VERSION = "unknown"

Kind = Literal["native", "node"]
#: Which entry point is wanted: `auto` is the native one where the release has it.
WantedEntry = Literal["auto", "native", "node"]


@dataclass(frozen=True, slots=True)
class RuntimeRelease:
    """A Copilot runtime that can be started: `entry` is the file to execute."""

    entry: Path
    kind: Kind
    version: str
    package_dir: Path
    schema: Path | None
    source: str = ""
    #: What V8 compiled of the Node entry point's code ahead, for NODE_COMPILE_CACHE; never to be written by a runtime.
    compile_cache: Path | None = None

    @property
    def warning(self) -> str | None:
        """Say how the release differs from the pinned one, or None."""
        if self.version == VERSION:
            return None
        return f"expected Copilot CLI {VERSION}, found {self.version} ({self.source}): accepted, but not tested with it"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entry point is wanted of a release, and whether each of its files is to be hashed."""

    entry: WantedEntry = "auto"
    verify: bool = False


ANY = Wanted()


@dataclass(frozen=True, slots=True)
class Pin:
    """The release for one platform: its npm package and the SHA-256 of what must be inside."""

    platform: str
    package: str
    binary_sha256: str
    binary_bytes: int
    native_sha256: Mapping[str, str] = field(default_factory=dict)
    version: str = VERSION


#: platform -> (sha256 of the single-executable `copilot`, its size in bytes)
_BINARIES: dict[str, tuple[str, int]] = {
    "linux-x64": ("b673fa072f7e9ec6d01dcef14ae22807beba4bcaa945f1d8c1518ec464cec9fd", 197462848),
    "linux-arm64": ("e80b611cc2198fca1c84fc9f10818123f8fbff00b5b0eeec5dcf7ade9ba203ba", 193334016),
    "linuxmusl-x64": ("19002df4199a057724b218b2afa199c8d9475675d120e4825f783e8842de885f", 196258160),
    "linuxmusl-arm64": ("b1765e8bcf563a46d969efc4d98d6c5444d829afe8b527aecca3e54c675f13d9", 188238736),
    "darwin-x64": ("432697eef90d253ee31ac9784909236dda6d23fd47576037c1bc88886af63acc", 188215792),
    "darwin-arm64": ("506d032ae26882d40f1396e9b2080c6d9c3a5d5392404f9ef13eb7540efb55ec", 180666640),
}

#: platform -> path inside the unpacked package -> sha256. Taken where a package could be unpacked and started.
_NATIVE: dict[str, dict[str, str]] = {
    "linux-x64": {
        "prebuilds/linux-x64/copilot-runtime": "4305ffb1c2ba738875b7a1fc450e459606ef447aa8fb9e9fe0bcd376d49a4d33",
        "prebuilds/linux-x64/runtime.node": "2de067cb7d490b5bbde7cc0e4a5d2c3fd56ffa263bf1ed4f7587fd83850b3d5d",
        "prebuilds/linux-x64/cli-native.node": "08b934193459e32feb434317548dd275aca874577b6181f32471285348a45c82",
        "schemas/api.schema.json": "3ea4787901ebed80f00e2c5271769049bc93ebfbbd6b6635c8c168ca7aad4922",
        "schemas/session-events.schema.json": "2d2ac2bea9ede2d02c1e51f4595d3e2c8cf81bfb2b00cb13d74fea83014ffa5d",
    },
}

PINS: dict[str, Pin] = {
    tag: Pin(tag, f"@github/copilot-{tag}", digest, size_bytes, _NATIVE.get(tag, {}))
    for tag, (digest, size_bytes) in _BINARIES.items()
}

_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def platform_tag() -> str:
    """Return this machine's platform as the packages spell it, such as `linux-x64` or `linuxmusl-arm64`."""
    machine = platform.machine().lower()
    system = sys.platform
    if system == "linux" and not _has_glibc():
        system = "linuxmusl"
    return f"{system}-{_MACHINES.get(machine, machine)}"


def _has_glibc() -> bool:
    """Say whether the C library is glibc; musl does not define the name that is asked for."""
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        return False


def pinned() -> Pin:
    """Return the pinned release for this machine.

    Raises:
        RuntimeMissing: no release exists for this platform.
    """
    tag = platform_tag()
    if tag not in PINS:
        known = ", ".join(sorted(PINS))
        raise errors.RuntimeMissing(f"expected one of the platforms {known}, found {tag}: use a supported machine")
    return PINS[tag]
