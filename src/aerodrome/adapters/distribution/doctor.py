"""Check everything a new user trips over: first the Copilot runtime, then what is around it (`surroundings`).

Findings are data (`check.Check`); printing them is the CLI's part. The runtime is really started once, for less than
a second, with a home and a token of its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.distribution import locate, manifest, surroundings, trial
from aerodrome.adapters.distribution.check import Check, Machine, Status, fail, ok, warn
from aerodrome.adapters.distribution.release import PROTOCOL_VERSION, RuntimeRelease


def examine(machine: Machine) -> list[Check]:
    """Run every check, in the order in which they are worth reading. Blocking, up to about 12 s."""
    findings, found = _find(machine)
    if found is not None:
        findings += [_safely(check.__name__, functools.partial(check, machine, found)) for check in RUNTIME_CHECKS]
    findings += [_safely(check.__name__, functools.partial(check, machine)) for check in surroundings.CHECKS]
    return findings


def healthy(findings: list[Check]) -> bool:
    """Say whether nothing failed; warnings do not count."""
    return all(finding.status is not Status.FAIL for finding in findings)


def _safely(name: str, check: Callable[[], Check]) -> Check:
    """Make a check that cannot be carried out a finding, so that the others are still made."""
    try:
        return check()
    except OSError as error:
        return warn(name.replace("_", " "), f"could not be examined: {error}", "look at it by hand")


def _find(machine: Machine) -> tuple[list[Check], RuntimeRelease | None]:
    try:
        found = locate.locate(machine.explicit, environ=machine.environ, cache_root=machine.cache_root, pin=machine.pin)
    except errors.RuntimeMissing as error:
        return [fail("runtime", error.message, locate.next_step("auto"))], None
    where = f"{found.version} from {found.source}: {found.entry}"
    if found.version != machine.pin.version:
        return [warn("runtime", where, f"Aerodrome is tested with {machine.pin.version}")], found
    return [ok("runtime", where)], found


def contents(machine: Machine, found: RuntimeRelease) -> Check:
    """Hold every file against its digest, as far as digests are known."""
    known = manifest.read(found.package_dir)
    problem = manifest.damage(found.package_dir, known, full=True) if known else None
    if problem:
        return fail("runtime contents", problem, "run `aerodrome runtime install` again")
    if found.version != machine.pin.version or not machine.pin.native_sha256:
        return ok("runtime contents", "as unpacked" if known else "no digests known for this release")
    wrong = manifest.mismatch(found.package_dir, machine.pin.native_sha256)
    if wrong:
        return warn("runtime contents", f"{wrong} is not the pinned one", "use it only if you know where it comes from")
    return ok("runtime contents", "the pinned digests")


def executable(machine: Machine, found: RuntimeRelease) -> Check:
    """Check that the entry point may be executed, by its mode and by its file system."""
    if os.statvfs(found.entry).f_flag & getattr(os, "ST_NOEXEC", 0):
        return fail("runtime executable", "its file system is mounted noexec", "set AERODROME_CACHE_DIR to another one")
    if not os.access(found.entry, os.X_OK):
        return fail("runtime executable", f"{found.entry} may not be executed", "chmod it, or install it again")
    return ok("runtime executable", oct(Path(found.entry).stat().st_mode & 0o777))


def entry_point(machine: Machine, found: RuntimeRelease) -> Check:
    """Say which of the two entry points is used."""
    if found.kind == "native":
        return ok("runtime entry point", "native")
    advice = "the native one starts 25 times faster; this package has none for the platform"
    return warn("runtime entry point", "the `copilot` executable", advice)


def answers(machine: Machine, found: RuntimeRelease) -> Check:
    """Start the runtime and check what it says about itself."""
    try:
        answer = trial.start(found)
    except errors.SpawnFailed as error:
        return fail("runtime starts", error.message, "run it by hand with --headless to see why")
    said = f"{answer.version}, protocol {answer.protocol_version}, ready in {answer.ready_seconds * 1000:.0f} ms"
    if answer.protocol_version != PROTOCOL_VERSION:
        return fail("runtime starts", said, f"use a release that speaks protocol {PROTOCOL_VERSION}")
    if answer.version != machine.pin.version:
        return warn("runtime starts", said, f"Aerodrome is tested with {machine.pin.version}")
    return ok("runtime starts", said)


RUNTIME_CHECKS: tuple[Callable[[Machine, RuntimeRelease], Check], ...] = (contents, executable, entry_point, answers)
