"""Fetching with npm and unpacking: once, verified, read-only, whatever interrupts it."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from aerodrome import errors
from aerodrome.adapters.distribution import cache, child, install, locate, manifest, release
from aerodrome.testing.fake_release import PACKAGE, PLATFORM, FakeRelease, environment

NATIVE = f"prebuilds/{PLATFORM}/copilot-runtime"
VERIFIED = release.Wanted(verify=True)

#: Runs `install` in a process of its own: argv = cache, PATH, pin as JSON.
PROGRAM = """
import msgspec, pathlib, sys
from aerodrome.adapters.distribution import install, release
pin = msgspec.json.decode(sys.argv[3], type=release.Pin)
found = install.install(environ={"PATH": sys.argv[2]}, cache_root=pathlib.Path(sys.argv[1]), pin=pin)
print(found.entry)
"""


@pytest.fixture
def root(fake: FakeRelease) -> Path:
    return fake.root / "cache"


def in_process(root: Path, npm: Path, pin: release.Pin) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", PROGRAM, str(root), environment(npm)["PATH"], msgspec.json.encode(pin).decode()]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name not in ("runtime", "install.lock"))


def test_npm_fetches_the_exact_version_once_and_without_install_scripts(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    env, pin = environment(fake.npm(binary)), fake.pin(binary)
    first = install.install(environ=env, cache_root=root, pin=pin)
    second = install.install(environ=env, cache_root=root, pin=pin)
    assert (first.source, second.source) == ("npm", "cache")
    assert first.entry == second.entry == root / "runtime" / f"7.7.7-{PLATFORM}" / NATIVE
    npm, unpacked = fake.executed()
    assert npm.startswith(f"install {PACKAGE}@7.7.7 ")
    assert "--ignore-scripts" in npm
    assert unpacked == "unpacked"
    assert leftovers(root) == []


def test_an_executable_with_another_digest_is_refused_and_not_executed(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    pin = dataclasses.replace(fake.pin(binary), binary_sha256="0" * 64)
    with pytest.raises(errors.RuntimeMissing, match=r"npm: expected .* with SHA-256 0000.*: not executed"):
        install.install(environ=environment(fake.npm(binary)), cache_root=root, pin=pin)
    assert "unpacked" not in fake.executed()
    assert leftovers(root) == []


def test_a_pinned_executable_that_unpacks_something_else_is_refused(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    pin = dataclasses.replace(fake.pin(binary), native_sha256={NATIVE: "0" * 64})
    with pytest.raises(errors.RuntimeMissing, match=r"expected the pinned .*copilot-runtime, found another one"):
        install.install(environ=environment(fake.npm(binary)), cache_root=root, pin=pin)
    assert not (root / "runtime").exists()


def test_without_npm_the_error_says_to_install_it(fake: FakeRelease, root: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.RuntimeMissing, match=r"npm: no `npm` on PATH\): install npm.*or set COPILOT_CLI_PATH"):
        install.install(environ={"PATH": str(tmp_path / "empty")}, cache_root=root, pin=fake.pin(fake.executable()))


def test_a_failing_npm_is_quoted_without_its_warnings_and_credentials(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    complaint = "echo 'npm warn Unknown config' >&2; echo 'npm error 404 http://me:secret@host/x' >&2; exit 1"
    env = environment(fake.npm(binary, before=complaint))
    with pytest.raises(
        errors.RuntimeMissing, match=r"ended with 1 \(check .*\): npm error 404 http://host/x"
    ) as caught:
        install.install(environ=env, cache_root=root, pin=fake.pin(binary))
    assert [line.split(":")[0] for line in caught.value.details["tried"]][-2:] == ["cache", "npm"]
    assert "Unknown config" not in caught.value.message


def test_npm_complaints_do_not_matter_when_it_succeeds(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    env = environment(fake.npm(binary, before="echo 'npm warn Unknown env config' >&2"))
    assert install.install(environ=env, cache_root=root, pin=fake.pin(binary)).kind == "native"


def test_a_damaged_release_is_replaced(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    env, pin = environment(fake.npm(binary)), fake.pin(binary)
    entry = install.install(environ=env, cache_root=root, pin=pin).entry
    entry.chmod(0o755)
    entry.write_text("")
    assert install.install(environ=env, cache_root=root, pin=pin).source == "npm"
    assert locate.locate(None, VERIFIED, environ=environment(), cache_root=root, pin=pin).entry == entry
    assert entry.read_text() == "native\n"


def test_processes_that_install_at_once_fetch_once_and_agree(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    npm, pin = fake.npm(binary, before="sleep 0.3"), fake.pin(binary)
    processes = [in_process(root, npm, pin) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert {answer[0].strip() for answer in answers} == {str(root / "runtime" / f"7.7.7-{PLATFORM}" / NATIVE)}
    assert len(fake.executed()) == 2


@pytest.mark.parametrize("moment", ["while npm runs", "while it unpacks"])
def test_an_installation_killed_half_way_is_made_good_by_the_next(moment: str, fake: FakeRelease, root: Path) -> None:
    once = f"[ -e '{fake.root}/killed' ] || {{ touch '{fake.root}/killed'; kill -9 $PPID; exit 1; }}"
    binary = fake.executable(before=once if moment == "while it unpacks" else "")
    npm, pin = fake.npm(binary, before=once if moment == "while npm runs" else ""), fake.pin(binary)
    with in_process(root, npm, pin) as victim:
        victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    assert leftovers(root) != []
    found = install.install(environ=environment(npm), cache_root=root, pin=pin)
    assert locate.locate(None, VERIFIED, environ=environment(), cache_root=root, pin=pin).entry == found.entry
    assert leftovers(root) == []


def test_waiting_for_another_installation_has_an_end(fake: FakeRelease, root: Path) -> None:
    said: list[str] = []
    with (
        cache.exclusive(root),
        pytest.raises(errors.RuntimeMissing, match="another process has been installing"),
        cache.exclusive(root, said.append, wait_seconds=0.2),
    ):
        pass
    assert said == ["waiting for another process that is installing the runtime"]


def test_the_unpacked_release_is_read_only_and_described(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    found = locate.locate(binary, environ={}, cache_root=root, pin=fake.pin(binary))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (found.package_dir, *found.package_dir.rglob("*"))}
    assert modes == {0o555, 0o444}
    described = manifest.read(found.package_dir)
    assert described is not None
    assert (described.version, described.platform, described.entry) == ("7.7.7", PLATFORM, NATIVE)
    assert described.source.sha256 == manifest.sha256(binary)
    assert described.files[NATIVE].sha256 == manifest.sha256(found.entry)


def test_an_executable_is_unpacked_once_and_again_when_it_changes(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable()
    pin = fake.pin(binary)
    first = locate.locate(binary, environ={}, cache_root=root, pin=pin)
    assert locate.locate(binary, environ={}, cache_root=root, pin=pin) == first
    assert fake.executed() == ["unpacked"]
    fake.executable(before=": changed")
    changed = locate.locate(binary, environ={}, cache_root=root, pin=pin)
    assert fake.executed() == ["unpacked", "unpacked"]
    assert changed.package_dir != first.package_dir
    assert first.entry.exists()


def test_an_unpinned_executable_never_takes_the_place_of_the_pinned_release(fake: FakeRelease, root: Path) -> None:
    impostor = fake.executable("impostor", before=": other")
    pin = fake.pin(fake.executable())
    locate.locate(impostor, environ={}, cache_root=root, pin=pin)
    with pytest.raises(errors.RuntimeMissing, match="cache: nothing unpacked"):
        locate.locate(environ=environment(), cache_root=root, pin=pin)


def test_a_package_without_a_native_runtime_is_started_by_its_executable(fake: FakeRelease, root: Path) -> None:
    binary = fake.executable(native=False)
    found = install.install(environ=environment(fake.npm(binary)), cache_root=root, pin=fake.pin(binary))
    assert (found.kind, found.entry) == ("node", root / "node" / found.package_dir.name / "copilot")
    assert found.entry.read_bytes() == binary.read_bytes()
    assert os.access(found.entry, os.X_OK)


@pytest.mark.parametrize("before", ["echo wrong machine; exit 3", "exit 0"])
def test_an_executable_that_does_not_unpack_is_refused_with_what_it_printed(
    before: str, fake: FakeRelease, root: Path
) -> None:
    binary = fake.executable(before=before)
    with pytest.raises(errors.RuntimeMissing, match=r"to unpack itself, it ended with .: (wrong machine|nothing)"):
        locate.locate(binary, environ={}, cache_root=root, pin=fake.pin(binary))
    assert leftovers(root) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_setting(fake: FakeRelease) -> None:
    binary = fake.executable()
    with pytest.raises(errors.RuntimeMissing, match=r"expected a writable cache directory.*set AERODROME_CACHE_DIR"):
        locate.locate(binary, environ={}, cache_root=binary / "cache", pin=fake.pin(binary))


def test_a_child_whose_time_is_over_is_killed_with_its_descendants(tmp_path: Path) -> None:
    for seconds in (0.3, 3.0, 30.0):
        outcome = child.run(["/bin/sh", "-c", "sleep 60 & echo $!; wait"], {}, tmp_path, timeout_seconds=seconds)
        assert outcome.code is None
        if outcome.output:
            break  # else a busy machine had it start nothing in that time
    assert gone(int(outcome.output))


def gone(*pids: int) -> bool:
    """Say whether processes end within a few seconds; one that is dead but not collected by its new parent has ended."""
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")
