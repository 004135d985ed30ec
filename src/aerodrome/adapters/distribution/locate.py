"""Find a Copilot release on this machine, in a fixed order, without the network.

An explicit setting and COPILOT_CLI_PATH are orders: what they name is used, whatever its version, or it is an error.
PATH and the cache are offers: they count only when they hold the pinned release. Fetching is `install`'s part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.distribution import cache, manifest, node_entry, package, release, unpack
from aerodrome.adapters.distribution.release import ANY, Pin, RuntimeRelease, Wanted, WantedEntry

ENV_NAME = "COPILOT_CLI_PATH"


@dataclass(frozen=True, slots=True)
class Search:
    """Where releases are kept and what is looked for."""

    root: Path
    pin: Pin
    wanted: Wanted
    report: cache.Report


def locate(
    explicit: Path | None = None,
    wanted: Wanted = ANY,
    *,
    environ: Mapping[str, str] | None = None,
    cache_root: Path | None = None,
    pin: Pin | None = None,
    report: cache.Report = cache.quiet,
) -> RuntimeRelease:
    """Return the first usable release: explicit path, COPILOT_CLI_PATH, `copilot` on PATH, our cache.

    A single-executable `copilot` is unpacked into the cache the first time (about 2 s); where its Node entry point is wanted, or
    is all there is, it is started once there, too, to have its code compiled (another second). With `verify` every file of a
    cached release is hashed (about 0.3 s), and the entry points of any other are held against the pinned digests.
    Blocking: use a thread inside an event loop.

    Raises:
        RuntimeMissing: nothing usable; `details["tried"]` lists the places in order, and `details["configured"]` says
            that a path was ordered, so that nothing else was looked at.
    """
    env = os.environ if environ is None else environ
    return by(Search(cache_root or cache.directory(env), pin or release.pinned(), wanted, report), explicit, env)


def by(search: Search, explicit: Path | None, env: Mapping[str, str]) -> RuntimeRelease:
    """Do what `locate` does, for a search that is made up already."""
    ordered = _ordered(explicit, env)
    if ordered is not None:
        source, path = ordered
        return _use(path, source, search)
    tried = ["setting: not given", f"{ENV_NAME}: not set"]
    try:
        return _on_path(env, search)
    except errors.RuntimeMissing as error:
        tried.append(f"PATH: {error.message}")
    try:
        return cached(search)
    except errors.RuntimeMissing as error:
        tried.append(f"cache: {error.message}")
    raise missing(search.pin, tried, next_step(search.wanted.entry))


def next_step(entry: WantedEntry) -> str:
    """Return what to do where there is no release with such an entry point."""
    option = "" if entry == "auto" else f" --entry {entry}"
    return f"run `aerodrome runtime install{option}` (needs npm, which comes with Node.js), or set {ENV_NAME}"


def missing(pin: Pin, tried: list[str], next_step: str) -> errors.RuntimeMissing:
    """Return the error that says what was tried, in order, and what to do next."""
    places = "; ".join(tried)
    return errors.RuntimeMissing(
        f"no usable Copilot CLI {pin.version} for {pin.platform} (tried {places}): {next_step}",
        tried=tried,
        configured=False,
    )


def _ordered(explicit: Path | None, env: Mapping[str, str]) -> tuple[str, Path] | None:
    if explicit is not None:
        return "setting", explicit
    if env.get(ENV_NAME):
        return ENV_NAME, Path(env[ENV_NAME])
    return None


def _use(path: Path, source: str, search: Search) -> RuntimeRelease:
    """Use what the operator named, or say why it cannot be used; never look elsewhere."""
    try:
        return _open(package.recognise(path, search.pin.platform), source, search)
    except errors.RuntimeMissing as error:
        message = f"{source} {path} cannot be used: {error.message}"
        raise errors.RuntimeMissing(message, tried=[f"{source}: {error.message}"], configured=True) from error


def _on_path(env: Mapping[str, str], search: Search) -> RuntimeRelease:
    name = shutil.which("copilot", path=env.get("PATH", os.defpath))
    if name is None:
        raise errors.RuntimeMissing("no `copilot`")
    found = package.recognise(Path(name), search.pin.platform)
    if not _is_pinned(found, search.pin):
        version = found.version or "another release"
        raise errors.RuntimeMissing(
            f"{name} is {version}, expected {search.pin.version} (set {ENV_NAME} to use it anyway)"
        )
    return _open(found, "PATH", search, only_sha256=search.pin.binary_sha256)


def _is_pinned(found: package.Found, pin: Pin) -> bool:
    """Compare by version where a package says it; a bare executable by size, then by hash."""
    if found.version is not None:
        return found.version == pin.version
    if found.form != "single_executable" or found.path.stat().st_size != pin.binary_bytes:
        return False
    return manifest.sha256(found.path) == pin.binary_sha256


def _open(found: package.Found, source: str, search: Search, only_sha256: str | None = None) -> RuntimeRelease:
    is_executable = found.form == "single_executable"
    if is_executable:
        usable = unpack.obtain(
            found.path, source, search.root, search.pin, only_sha256=only_sha256, report=search.report
        )
    else:
        usable = package.as_release(found.path, "native", found.package_dir, found.version, source)
    if search.wanted.verify:
        _check(usable, search.pin)
    if is_native(usable, search):
        return usable
    if not is_executable:
        raise errors.RuntimeMissing(
            f"expected a Node entry point, found the native one alone in {found.package_dir}: "
            "name the single executable `copilot`"
        )
    return node_entry.prepare(usable, found.path, search.root, full=search.wanted.verify, report=search.report)


def cached(search: Search) -> RuntimeRelease:
    """Return the pinned release from the cache as it is there.

    Raises:
        RuntimeMissing: it is not, or not with the entry point that is wanted.
    """
    usable = unpack.pinned(search.root, search.pin, full=search.wanted.verify)
    if is_native(usable, search):
        return usable
    return node_entry.prepared(usable, search.root, full=search.wanted.verify)


def is_native(usable: RuntimeRelease, search: Search) -> bool:
    """Say which entry point of a release is wanted, the native one or Node's.

    Raises:
        RuntimeMissing: it has none such.
    """
    if search.wanted.entry == "native" and usable.kind == "node":
        raise errors.RuntimeMissing(
            f"expected a native entry point for {search.pin.platform}, the release has only the Node one: "
            'set runtime.entry to "node" or "auto"'
        )
    return search.wanted.entry != "node" and usable.kind == "native"


def _check(found: RuntimeRelease, pin: Pin) -> None:
    """Hold a release against its manifest, and against the pinned digests if it claims that version."""
    known = manifest.read(found.package_dir)
    problem = manifest.damage(found.package_dir, known, full=True) if known else None
    wrong = manifest.mismatch(found.package_dir, pin.native_sha256) if found.version == pin.version else None
    if problem or wrong:
        reason = problem or f"{wrong} is not the pinned one"
        raise errors.RuntimeMissing(f"damaged release in {found.package_dir}: {reason}")
