"""The Node entry point: chosen by a setting, made ready once with its code compiled, read-only, held against its release."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aerodrome import errors
from aerodrome.adapters.distribution import install, locate
from aerodrome.adapters.distribution.release import Wanted
from aerodrome.testing.fake_release import FakeRelease, environment

NODE, VERIFIED = Wanted("node"), Wanted("node", verify=True)


@pytest.fixture
def root(fake: FakeRelease) -> Path:
    return fake.root / "cache"


def test_the_entry_point_that_is_wanted_is_the_one_of_the_same_release(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    wanted = {
        entry: locate.locate(binary, Wanted(entry), environ={}, cache_root=root, pin=fake.pin(binary))
        for entry in ("node", "auto", "native")
    }
    assert {entry: found.kind for entry, found in wanted.items()} == {
        "node": "node",
        "auto": "native",
        "native": "native",
    }
    assert len({found.package_dir for found in wanted.values()}) == 1
    assert wanted["node"].entry.read_bytes() == binary.read_bytes()
    assert wanted["native"].compile_cache is None


def test_its_code_is_compiled_once_and_nobody_may_write_it(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    pin = fake.pin(binary)
    found = [locate.locate(binary, NODE, environ={}, cache_root=root, pin=pin) for _ in range(2)][-1]
    assert found.compile_cache is not None
    compiled = list(found.compile_cache.glob("*/*"))
    assert [path.name for path in compiled] == ["4e5f6a7b"]
    assert len(fake.executed()) == 2, "expected one unpacking and one start"
    for path in (found.entry, found.compile_cache, *found.compile_cache.rglob("*")):
        assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH), path
    assert sorted(path.name for path in root.iterdir()) == ["install.lock", "node", "runtime"]


def test_npm_fetches_the_executable_again_where_only_its_package_is_left(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    env, pin = environment(fake.npm(binary)), fake.pin(binary)
    assert install.install(environ=env, cache_root=root, pin=pin).kind == "native"
    with pytest.raises(errors.RuntimeMissing, match="cache: no Node entry point in"):
        locate.locate(None, NODE, environ=env, cache_root=root, pin=pin)
    fetched = install.install(None, NODE, environ=env, cache_root=root, pin=pin)
    assert fetched.kind == "node"
    lines = len(fake.executed())
    assert locate.locate(None, NODE, environ=env, cache_root=root, pin=pin).entry == fetched.entry
    assert len(fake.executed()) == lines
    assert not (root / "download").exists()


def test_what_killed_runtimes_noted_in_the_package_is_removed_and_no_damage(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    pin = fake.pin(binary)
    package = locate.locate(binary, NODE, environ={}, cache_root=root, pin=pin).package_dir
    package.chmod(0o755)
    notes = [package / f"inuse.{pid}.{kind}" for pid in (os.getpid(), 2**22 + 1) for kind in ("hold", "lock")]
    for note in notes:
        note.write_text("")
    locate.locate(binary, VERIFIED, environ={}, cache_root=root, pin=pin)
    assert sorted(package.glob("inuse.*")) == sorted(notes[:2])


@pytest.mark.parametrize("harmed", ["copilot", "compile-cache"])
def test_a_damaged_entry_point_is_noticed_and_made_again(harmed: str, fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    env, pin = environment(fake.npm(binary)), fake.pin(binary)
    entry = install.install(None, NODE, environ=env, cache_root=root, pin=pin).entry
    target = entry if harmed == "copilot" else next(entry.parent.glob("compile-cache/*/*"))
    whole = target.read_bytes()
    target.chmod(0o644)
    target.write_bytes(whole + b"!")
    with pytest.raises(errors.RuntimeMissing, match="damaged Node entry point"):
        locate.locate(None, NODE, environ=env, cache_root=root, pin=pin)
    install.install(None, NODE, environ=env, cache_root=root, pin=pin)
    assert target.read_bytes() == whole


def test_verify_hashes_the_entry_point_too(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    env, pin = environment(fake.npm(binary)), fake.pin(binary)
    code = next(install.install(None, NODE, environ=env, cache_root=root, pin=pin).entry.parent.glob("*/*/*"))
    before = code.stat()
    code.chmod(0o644)
    code.write_bytes(b"edoc\n")
    os.utime(code, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert locate.locate(None, NODE, environ=env, cache_root=root, pin=pin).kind == "node"
    with pytest.raises(errors.RuntimeMissing, match="4e5f6a7b has changed"):
        locate.locate(None, VERIFIED, environ=env, cache_root=root, pin=pin)


def test_one_that_does_not_start_is_refused_with_what_it_said(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable(node="exits")
    with pytest.raises(errors.RuntimeMissing, match=r"the Node entry point cannot be used: .*cannot start here"):
        locate.locate(binary, NODE, environ={}, cache_root=root, pin=fake.pin(binary))
    assert sorted(path.name for path in root.iterdir()) == ["install.lock", "runtime"]


def test_what_a_release_has_not_is_said(fake: FakeRelease, root: Path) -> None:
    package, binary = fake.package(), fake.executable(native=False)
    with pytest.raises(errors.RuntimeMissing, match="expected a Node entry point, found the native one alone"):
        locate.locate(package, NODE, environ={}, cache_root=root, pin=fake.pin(binary))
    with pytest.raises(errors.RuntimeMissing, match=r'has only the Node one: set runtime\.entry to "node" or "auto"'):
        locate.locate(binary, Wanted("native"), environ={}, cache_root=root, pin=fake.pin(binary))
