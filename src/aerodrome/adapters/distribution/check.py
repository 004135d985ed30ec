"""The form of one finding of `doctor`, and what the checks are told about the machine they look at.

Values only; the checks themselves are in `doctor` (the runtime) and `surroundings` (everything around it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.distribution.release import Pin


class Status(StrEnum):
    """Fine or merely interesting; works, but not well or not everywhere; does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, what was found, and what to do about it (empty when nothing)."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at: an environment, our directories, and the address to listen on."""

    environ: Mapping[str, str]
    cache_root: Path
    state_dir: Path
    host: str
    port: int
    explicit: Path | None
    pin: Pin


def ok(name: str, found: str) -> Check:
    """Return a finding that asks for nothing."""
    return Check(name, Status.OK, found)


def warn(name: str, found: str, advice: str) -> Check:
    """Return a finding that one can live with."""
    return Check(name, Status.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """Return a finding that keeps Aerodrome from working."""
    return Check(name, Status.FAIL, found, advice)


def address(text: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in square brackets.

    Raises:
        ConfigError: it is not of that form.
    """
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise errors.ConfigError(f"expected --listen HOST:PORT, found {text}")
    return host.removeprefix("[").removesuffix("]"), int(port)
