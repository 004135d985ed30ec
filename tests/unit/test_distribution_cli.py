"""`aerodrome runtime install | path | doctor` as a user and a script see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aerodrome.adapters.distribution import cache, release
from aerodrome.cli import runtime
from aerodrome.testing.fake_release import PLATFORM, FakeRelease

NATIVE = f"prebuilds/{PLATFORM}/copilot-runtime"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRelease]:
    """Make the stand-in the pinned release of this process."""
    fake = FakeRelease(tmp_path, version=release.VERSION)
    monkeypatch.setattr(release, "platform_tag", lambda: PLATFORM)
    monkeypatch.setitem(release.PINS, PLATFORM, fake.pin(fake.executable()))
    monkeypatch.setenv("AERODROME_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("COPILOT_CLI_PATH", raising=False)
    yield fake
    cache.discard(tmp_path)


def test_path_prints_nothing_but_the_entry_point(fake: FakeRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOT_CLI_PATH", str(fake.package()))
    result = CliRunner().invoke(runtime.app, ["path"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{fake.root / 'package' / NATIVE}\n", "")


def test_path_warns_of_another_version_on_stderr_only(fake: FakeRelease) -> None:
    other = FakeRelease(fake.root, version="0.0.1").package("other")
    result = CliRunner().invoke(runtime.app, ["path", "--cli-path", str(other)])
    assert result.stdout == f"{other / NATIVE}\n"
    assert "found 0.0.1" in result.stderr


def test_path_as_json_says_everything(fake: FakeRelease) -> None:
    package = fake.package()
    result = CliRunner().invoke(runtime.app, ["path", "--json", "--cli-path", str(package)])
    assert json.loads(result.stdout) == {
        "entry": str(package / NATIVE),
        "kind": "native",
        "version": release.VERSION,
        "package_dir": str(package),
        "schema": str(package / "schemas" / "api.schema.json"),
        "source": "setting",
    }


@pytest.mark.parametrize("command", ["path", "install"])
def test_an_error_is_one_line_on_stderr(command: str, fake: FakeRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake.root / "empty"))
    result = CliRunner().invoke(runtime.app, [command])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no usable Copilot CLI")
    assert result.stderr.count("\n") == 1


def test_install_reports_progress_on_stderr_and_the_path_on_stdout(
    fake: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{fake.npm(fake.root / 'copilot')}:/usr/bin:/bin")
    result = CliRunner().invoke(runtime.app, ["install"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{fake.root}/cache/runtime/{release.VERSION}-{PLATFORM}/{NATIVE}\n"
    assert result.stderr.splitlines() == [
        f"fetching @github/copilot-{PLATFORM}@{release.VERSION} with npm",
        "unpacking",
    ]


def test_doctor_prints_a_table_and_fails_only_on_failures(fake: FakeRelease) -> None:
    good, bad = fake.package("good"), fake.package("bad", "exits")
    arguments = ["doctor", "--listen", "127.0.0.1:0", "--state-directory", str(fake.root)]
    result = CliRunner().invoke(runtime.app, [*arguments, "--cli-path", str(good)])
    assert result.exit_code == 0, result.stdout
    assert "runtime starts" in result.stdout
    result = CliRunner().invoke(runtime.app, [*arguments, "--json", "--cli-path", str(bad)])
    assert result.exit_code == 1
    starts = next(finding for finding in json.loads(result.stdout) if finding["name"] == "runtime starts")
    assert starts["status"] == "fail"
    assert starts["advice"]


@pytest.mark.parametrize("listen", ["4321", "localhost:", "localhost:99999", "host:x"])
def test_doctor_refuses_an_address_it_cannot_read(listen: str, fake: FakeRelease) -> None:
    result = CliRunner().invoke(runtime.app, ["doctor", "--listen", listen])
    assert (result.exit_code, result.stderr) == (1, f"error: expected --listen HOST:PORT, found {listen}\n")
