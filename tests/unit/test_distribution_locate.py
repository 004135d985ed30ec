"""Where a release is looked for, in which order, and what every kind of path means."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aerodrome import errors
from aerodrome.adapters.distribution import cache, install, locate, release
from aerodrome.testing.fake_release import PACKAGE, PLATFORM, FakeRelease, environment

NATIVE = f"prebuilds/{PLATFORM}/copilot-runtime"
VERIFIED = release.Wanted(verify=True)


def filled_cache(fake: FakeRelease) -> tuple[Path, release.Pin]:
    binary = fake.executable()
    root, pin = fake.root / "cache", fake.pin(binary)
    install.install(environ=environment(fake.npm(binary)), cache_root=root, pin=pin)
    return root, pin


def test_an_explicit_path_comes_before_the_environment_and_the_cache(fake: FakeRelease) -> None:
    root, pin = filled_cache(fake)
    explicit, ordered = fake.package("explicit"), fake.package("ordered")
    env = environment(COPILOT_CLI_PATH=str(ordered))
    assert locate.locate(explicit, environ=env, cache_root=root, pin=pin).package_dir == explicit
    assert locate.locate(environ=env, cache_root=root, pin=pin).package_dir == ordered
    assert locate.locate(environ=environment(), cache_root=root, pin=pin).source == "cache"


FORMS: dict[str, Callable[[FakeRelease], Path]] = {
    "package directory": lambda fake: fake.package(),
    "script in the package": lambda fake: _touch(fake.package() / "npm-loader.js"),
    "native runtime": lambda fake: fake.package() / NATIVE,
    "directory of the native runtime": lambda fake: (fake.package() / NATIVE).parent,
    "link to the native runtime": lambda fake: _link(fake.root / "link", fake.package() / NATIVE),
    "native runtime under the name copilot": lambda fake: _copied(fake.package() / NATIVE, "copilot"),
    "single executable": lambda fake: fake.executable(),
    "link on PATH made by npm": lambda fake: fake.npm_packages(fake.root / "node_modules", fake.executable()),
    "npm package": lambda fake: fake.npm_packages(fake.root / "node_modules", fake.executable()).resolve().parent,
    "npm platform package": lambda fake: (
        fake.npm_packages(fake.root / "node_modules", fake.executable()).parents[1] / PACKAGE
    ),
}


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _link(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


def _copied(path: Path, name: str) -> Path:
    return Path(shutil.copy2(path, path.with_name(name)))


@pytest.mark.parametrize("form", FORMS)
def test_copilot_cli_path_may_name_a(form: str, fake: FakeRelease) -> None:
    env = environment(COPILOT_CLI_PATH=str(FORMS[form](fake)))
    pin = fake.pin(fake.executable("other"))
    found = locate.locate(environ=env, cache_root=fake.root / "cache", pin=pin)
    assert (found.kind, found.version, found.source) == ("native", fake.version, "COPILOT_CLI_PATH")
    assert os.access(found.entry, os.X_OK)
    assert found.schema == found.package_dir / "schemas" / "api.schema.json"


def test_the_sdk_platform_package_has_the_version_that_the_sdk_beside_it_names(fake: FakeRelease) -> None:
    package = fake.package(f"node_modules/@github/copilot-sdk-{PLATFORM}")
    (package / "package.json").write_text(f'{{"name": "@github/copilot-sdk-{PLATFORM}", "version": "1.0.0"}}')
    pin = fake.pin(fake.executable())
    assert locate.locate(package, environ={}, pin=pin).version == release.UNKNOWN_VERSION
    sdk = package.parent / "copilot-sdk"
    sdk.mkdir()
    (sdk / "package.json").write_text('{"name": "@github/copilot-sdk", "copilotCliVersion": "5.5.5"}')
    assert locate.locate(package, environ={}, pin=pin).version == "5.5.5"


def test_an_ordered_release_of_another_version_is_accepted_with_a_warning(fake: FakeRelease) -> None:
    found = locate.locate(fake.package(), environ={}, pin=fake.pin(fake.executable(), "9.9.9"))
    assert found.version == "7.7.7"
    assert release.VERSION in str(found.warning)
    assert "7.7.7" in str(found.warning)


def test_an_ordered_path_that_cannot_be_used_is_an_error_and_nothing_else_is_tried(fake: FakeRelease) -> None:
    root, pin = filled_cache(fake)
    for path in (fake.root / "nowhere", fake.trace, root):
        env = environment(COPILOT_CLI_PATH=str(path))
        with pytest.raises(errors.RuntimeMissing, match=r"COPILOT_CLI_PATH .* cannot be used: expected") as caught:
            install.install(environ=env, cache_root=root, pin=pin)
        assert caught.value.details["configured"] is True


def test_the_pinned_release_on_path_is_used(fake: FakeRelease) -> None:
    binary = fake.executable("binary")
    link = fake.npm_packages(fake.root / "node_modules", binary)
    found = locate.locate(environ=environment(link.parent), cache_root=fake.root / "cache", pin=fake.pin(binary))
    assert (found.source, found.kind) == ("PATH", "native")


def test_another_release_on_path_is_passed_over_and_named(fake: FakeRelease) -> None:
    binary = fake.executable("binary")
    link = fake.npm_packages(fake.root / "node_modules", binary)
    with pytest.raises(errors.RuntimeMissing, match=r"is 7\.7\.7, expected 9\.9\.9 \(set COPILOT_CLI_PATH"):
        locate.locate(
            environ=environment(link.parent), cache_root=fake.root / "cache", pin=fake.pin(binary, version="9.9.9")
        )
    assert fake.executed() == []


def test_a_binary_on_path_that_is_not_the_pinned_one_is_never_executed(fake: FakeRelease) -> None:
    pinned = fake.executable("binary", before=": one")
    same_size = fake.executable("bin/copilot", before=": two")
    assert pinned.stat().st_size == same_size.stat().st_size
    root = fake.root / "cache"
    with pytest.raises(errors.RuntimeMissing, match="is another release"):
        locate.locate(environ=environment(same_size.parent), cache_root=root, pin=fake.pin(pinned))
    link = fake.npm_packages(fake.root / "node_modules", same_size)
    with pytest.raises(errors.RuntimeMissing, match="not executed"):
        locate.locate(environ=environment(link.parent), cache_root=root, pin=fake.pin(pinned))
    assert fake.executed() == []


def test_an_unrelated_program_called_copilot_is_passed_over(fake: FakeRelease) -> None:
    other = fake.root / "bin" / "copilot"
    other.parent.mkdir()
    other.write_text(f"#!/bin/sh\necho ran >> '{fake.trace}'\n")
    other.chmod(0o755)
    with pytest.raises(errors.RuntimeMissing, match="PATH: expected the Copilot CLI, found something else"):
        locate.locate(
            environ=environment(other.parent), cache_root=fake.root / "cache", pin=fake.pin(fake.executable())
        )
    assert fake.executed() == []


def test_the_error_lists_what_was_tried_in_order_and_the_next_step(fake: FakeRelease) -> None:
    with pytest.raises(errors.RuntimeMissing) as caught:
        locate.locate(environ=environment(), cache_root=fake.root / "cache", pin=fake.pin(fake.executable()))
    places = [line.split(":")[0] for line in caught.value.details["tried"]]
    assert places == ["setting", "COPILOT_CLI_PATH", "PATH", "cache"]
    assert "aerodrome runtime install" in caught.value.message
    assert "\n" not in caught.value.message


def _truncate(file: Path) -> None:
    file.write_text("")


def _replace(file: Path) -> None:
    file.write_text(file.read_text().upper())


def _remove(file: Path) -> None:
    file.parent.chmod(0o755)
    file.unlink()


@pytest.mark.parametrize("harm", [_truncate, _replace, _remove])
def test_a_damaged_cache_is_noticed_without_hashing_everything(harm: Callable[[Path], None], fake: FakeRelease) -> None:
    root, pin = filled_cache(fake)
    library = (locate.locate(environ={}, cache_root=root, pin=pin).entry).with_name("runtime.node")
    library.chmod(0o644)
    harm(library)
    with pytest.raises(errors.RuntimeMissing, match=r"cache: damaged release in .*runtime\.node"):
        locate.locate(environ=environment(), cache_root=root, pin=pin)


def test_verify_finds_a_change_that_kept_size_and_time(fake: FakeRelease) -> None:
    root, pin = filled_cache(fake)
    library = (locate.locate(environ={}, cache_root=root, pin=pin).entry).with_name("runtime.node")
    times = library.stat().st_atime_ns, library.stat().st_mtime_ns
    library.chmod(0o644)
    _replace(library)
    os.utime(library, ns=times)
    assert locate.locate(environ=environment(), cache_root=root, pin=pin).kind == "native"
    with pytest.raises(errors.RuntimeMissing, match=r"runtime\.node has changed"):
        locate.locate(None, VERIFIED, environ=environment(), cache_root=root, pin=pin)


def test_verify_holds_an_ordered_package_of_the_pinned_version_against_the_pinned_digests(fake: FakeRelease) -> None:
    package = fake.package()
    pin = release.Pin(PLATFORM, PACKAGE, "0" * 64, 1, {NATIVE: "0" * 64}, fake.version)
    assert locate.locate(package, environ={}, pin=pin).package_dir == package
    with pytest.raises(errors.RuntimeMissing, match="copilot-runtime is not the pinned one"):
        locate.locate(package, VERIFIED, environ={}, pin=pin)


def test_a_copy_of_the_cache_with_other_times_is_as_good(fake: FakeRelease) -> None:
    root, pin = filled_cache(fake)
    copy = fake.root / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copy)
    assert locate.locate(environ=environment(), cache_root=copy, pin=pin).package_dir.is_relative_to(copy)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AERODROME_CACHE_DIR": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/aerodrome"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/aerodrome"),
        ({"AERODROME_CACHE_DIR": "", "HOME": "/h"}, "/h/.cache/aerodrome"),
    ],
)
def test_the_cache_directory_follows_the_environment(environ: dict[str, str], expected: str) -> None:
    assert cache.directory(environ) == Path(expected)


def test_every_platform_has_a_package_of_its_own_and_a_digest() -> None:
    assert {"linux-x64", "linux-arm64", "linuxmusl-x64", "linuxmusl-arm64", "darwin-x64", "darwin-arm64"} == set(
        release.PINS
    )
    assert len({pin.binary_sha256 for pin in release.PINS.values()}) == 6
    for tag, pin in release.PINS.items():
        assert pin.package == f"@github/copilot-{tag}"
        assert all(len(digest) == 64 for digest in (pin.binary_sha256, *pin.native_sha256.values()))
