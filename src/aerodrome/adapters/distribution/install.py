"""Make sure a Copilot release is there: find one, else fetch the pinned one with npm into our cache.

npm is asked for one exact package of one exact version, from whatever registry it is configured for; its install
scripts are never run. What arrives must have the pinned SHA-256 before any of it is executed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from aerodrome import errors
from aerodrome.adapters.distribution import cache, child, locate, manifest, node_entry, package, release, unpack
from aerodrome.adapters.distribution.release import ANY, Pin, RuntimeRelease, Wanted

NPM_TIMEOUT_SECONDS = 600.0
_TAIL_CHARACTERS = 400
#: Given on the command line, because the caller's npm settings may say otherwise.
_FLAGS = (
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-save",
    "--no-package-lock",
    "--global=false",
    "--dry-run=false",
    "--loglevel=error",
)


def install(
    explicit: Path | None = None,
    wanted: Wanted = ANY,
    *,
    environ: Mapping[str, str] | None = None,
    cache_root: Path | None = None,
    pin: Pin | None = None,
    report: cache.Report = cache.quiet,
) -> RuntimeRelease:
    """Return a usable release as `locate` does, fetching the pinned one if there is none.

    Safe to call from several processes at once, and again after a crash. Blocking for as long as npm takes.

    Raises:
        RuntimeMissing: what was tried, in order, and the next step.
    """
    env = os.environ if environ is None else environ
    search = locate.Search(cache_root or cache.directory(env), pin or release.pinned(), wanted, report)
    try:
        return locate.by(search, explicit, env)
    except errors.RuntimeMissing as error:
        if error.details.get("configured"):
            raise
        tried = list(error.details.get("tried", []))
    try:
        return _fetch(env, search)
    except errors.RuntimeMissing as error:
        raise locate.missing(search.pin, [*tried, f"npm: {error.message}"], _next_step(env)) from error


def _next_step(env: Mapping[str, str]) -> str:
    remedy = "run `aerodrome runtime doctor`" if _npm(env) else "install npm, which comes with Node.js"
    return f"{remedy}, or set {locate.ENV_NAME} to a Copilot CLI"


def _npm(env: Mapping[str, str]) -> str | None:
    return shutil.which("npm", path=env.get("PATH", os.defpath))


def _fetch(env: Mapping[str, str], search: locate.Search) -> RuntimeRelease:
    root, pin, report = search.root, search.pin, search.report
    npm = _npm(env)
    if npm is None:
        raise errors.RuntimeMissing("no `npm` on PATH")
    with cache.exclusive(root, report):
        try:
            # Another process may have finished while this one waited for the lock.
            return locate.cached(search)
        except errors.RuntimeMissing:
            pass
        # A neighbour of `staging`, which is emptied by whoever unpacks.
        download = root / "download"
        cache.discard(download)
        try:
            binary = _download(npm, env, download, pin, report)
            digest = _verified(binary, pin)
            report("unpacking")
            usable = unpack.unpacked_locked(binary, digest, "npm", root, pin)
            if locate.is_native(usable, search):
                return usable
            return node_entry.prepare_locked(usable, binary, root, report)
        finally:
            cache.discard(download)


def _download(npm: str, env: Mapping[str, str], project: Path, pin: Pin, report: cache.Report) -> Path:
    """Install the platform's package into an empty project; return its executable."""
    wanted = f"{pin.package}@{pin.version}"
    project.mkdir(parents=True)
    (project / "package.json").write_text('{"private": true}\n')
    report(f"fetching {wanted} with npm")
    argv = [npm, "install", wanted, *_FLAGS, "--prefix", str(project)]
    outcome = child.run(argv, env, project, NPM_TIMEOUT_SECONDS)
    if outcome.code != 0:
        ended = "did not end in time" if outcome.code is None else f"ended with {outcome.code}"
        raise errors.RuntimeMissing(
            f"npm install {wanted} {ended} (check npm's registry and proxy settings): {_tail(outcome.output)}"
        )
    binary = project / "node_modules" / pin.package / package.BINARY_NAME
    if not binary.is_file():
        raise errors.RuntimeMissing(f"expected `{package.BINARY_NAME}` in {wanted}, found none")
    return binary.resolve()


def _verified(binary: Path, pin: Pin) -> str:
    digest = manifest.sha256(binary)
    if digest != pin.binary_sha256:
        raise errors.RuntimeMissing(
            f"expected {pin.package}@{pin.version} with SHA-256 {pin.binary_sha256}, found {digest}: not executed"
        )
    return digest


def _tail(output: str) -> str:
    """Return what npm said went wrong, on one line, without credentials that a URL may carry."""
    lines = [line for line in output.splitlines() if not line.lower().startswith("npm warn")]
    text = " ".join(" ".join(lines).split())
    return re.sub(r"//[^/@\s]+@", "//", text)[:_TAIL_CHARACTERS] or "nothing printed"
