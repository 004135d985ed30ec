"""The real Copilot release, as `aerodrome runtime install` leaves it in the cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from aerodrome import errors
from aerodrome.adapters.distribution import install, locate, manifest, package, release, trial

VERIFIED = release.Wanted(verify=True)

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def installed() -> release.RuntimeRelease:
    return install.install(environ=without_order())


def without_order() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != locate.ENV_NAME}


def test_the_installed_release_is_the_pinned_one_in_every_byte(installed: release.RuntimeRelease) -> None:
    found = locate.locate(None, VERIFIED, environ=without_order())
    assert (found.version, found.kind, found.warning) == (release.VERSION, "native", None)
    assert manifest.mismatch(found.package_dir, release.pinned().native_sha256) is None


def test_the_release_starts_answers_and_leaves_its_package_as_it_was(installed: release.RuntimeRelease) -> None:
    answer = trial.start(installed)
    assert (answer.version, answer.protocol_version) == (installed.version, release.PROTOCOL_VERSION)
    described = manifest.read(installed.package_dir)
    assert described is not None
    assert manifest.survey(installed.package_dir) == described.files


def test_the_schema_of_the_release_lists_its_methods(installed: release.RuntimeRelease) -> None:
    assert installed.schema is not None
    assert {"server", "session"} <= json.loads(installed.schema.read_bytes()).keys()


@pytest.mark.parametrize("part", ["", "prebuilds/{platform}/copilot-runtime", "npm-loader.js"])
def test_copilot_cli_path_may_name_any_part_of_the_package(part: str, installed: release.RuntimeRelease) -> None:
    path = installed.package_dir / part.format(platform=release.platform_tag())
    found = locate.locate(None, VERIFIED, environ={locate.ENV_NAME: str(path)})
    assert (found.entry, found.version, found.kind) == (installed.entry, installed.version, "native")


def test_a_release_that_lost_its_library_is_noticed_at_the_start(
    installed: release.RuntimeRelease, tmp_path: Path
) -> None:
    alone = tmp_path / "prebuilds" / release.platform_tag() / package.NATIVE_NAME
    alone.parent.mkdir(parents=True)
    shutil.copy(installed.entry, alone)
    with pytest.raises(errors.SpawnFailed, match="ended before it was ready"):
        trial.start(package.as_release(alone, "native", tmp_path, installed.version, "setting"))
