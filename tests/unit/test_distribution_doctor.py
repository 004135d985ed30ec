"""What `doctor` finds, and that starting a runtime to look at it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import resource
import socket
import threading
import time
from pathlib import Path

import pytest

from aerodrome import errors
from aerodrome.adapters.distribution import doctor, locate, surroundings, trial
from aerodrome.adapters.distribution.check import Check, Machine, Status
from aerodrome.testing.fake_release import Behaviour, FakeRelease


@pytest.fixture
def machine(fake: FakeRelease) -> Machine:
    pin = fake.pin(fake.executable())
    environ = {"PATH": "/usr/bin:/bin"}
    return Machine(environ, fake.root / "cache", fake.root / "state", "127.0.0.1", 0, fake.package(), pin)


def by_name(findings: list[Check]) -> dict[str, Check]:
    return {finding.name: finding for finding in findings}


def test_a_working_machine_has_no_failure(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "a variable of ours: the stand-in refuses to start when it sees it")
    findings = doctor.examine(machine)
    assert doctor.healthy(findings), findings
    assert by_name(findings)["runtime starts"].found.startswith("7.7.7, protocol 3, ready in ")
    assert all(finding.advice for finding in findings if finding.status is not Status.OK)


def test_without_a_runtime_the_rest_is_still_examined(machine: Machine, fake: FakeRelease) -> None:
    findings = doctor.examine(dataclasses.replace(machine, explicit=None))
    assert not doctor.healthy(findings)
    assert findings[0].status is Status.FAIL
    assert "aerodrome runtime install" in findings[0].advice
    assert len(findings) == 1 + len(surroundings.CHECKS)


@pytest.mark.parametrize(
    ("behaviour", "found"),
    [("exits", "ended before it was ready: cannot start here"), ("old_protocol", "7.7.7, protocol 2")],
)
def test_a_runtime_that_does_not_serve_is_a_failure(
    behaviour: Behaviour, found: str, machine: Machine, fake: FakeRelease
) -> None:
    broken = fake.package("broken", behaviour)
    starts = by_name(doctor.examine(dataclasses.replace(machine, explicit=broken)))["runtime starts"]
    assert starts.status is Status.FAIL
    assert found in starts.found


@pytest.mark.parametrize("behaviour", ["well", "silent", "mute"])
def test_a_trial_ends_in_time_and_leaves_no_process_and_no_file(
    behaviour: Behaviour, fake: FakeRelease, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    found = locate.locate(fake.package("tried", behaviour), environ={}, pin=machine.pin)
    began = time.monotonic()
    if behaviour == "well":
        assert trial.start(found).version == "7.7.7"
    else:
        for seconds in (1.0, 10.0, 30.0):
            with pytest.raises(errors.SpawnFailed):
                trial.start(found, timeout_seconds=seconds)
            if fake.executed():
                break  # else a busy machine had it start nothing in that time
    assert time.monotonic() - began < 60, "as long as what it starts sleeps"
    pids = [int(pid) for line in fake.executed() for pid in line.split()]
    assert len(pids) == 2
    assert gone(*pids)
    assert list(scratch.iterdir()) == []


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


def test_an_entry_point_that_may_not_be_executed_is_a_failure(machine: Machine) -> None:
    assert machine.explicit is not None
    found = locate.locate(machine.explicit, environ={}, pin=machine.pin)
    found.entry.chmod(0o644)
    findings = by_name(doctor.examine(machine))
    assert findings["runtime executable"].status is Status.FAIL
    assert findings["runtime starts"].status is Status.FAIL


def test_contents_that_differ_from_the_pinned_digests_are_a_warning(machine: Machine, fake: FakeRelease) -> None:
    pin = dataclasses.replace(machine.pin, native_sha256={"package.json": "0" * 64})
    contents = by_name(doctor.examine(dataclasses.replace(machine, pin=pin)))["runtime contents"]
    assert (contents.status, contents.found) == (Status.WARN, "package.json is not the pinned one")


def test_another_version_than_the_pinned_one_is_a_warning(machine: Machine, fake: FakeRelease) -> None:
    pin = fake.pin(fake.executable(), version="9.9.9")
    findings = by_name(doctor.examine(dataclasses.replace(machine, pin=pin)))
    assert findings["runtime"].status is Status.WARN
    assert findings["runtime starts"].status is Status.WARN
    assert doctor.healthy(list(findings.values()))


def hang_up(server: socket.socket) -> None:
    link, _ = server.accept()
    link.close()


def test_a_port_taken_by_another_program_is_a_failure(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        closer = threading.Thread(target=hang_up, args=(server,))
        closer.start()
        finding = surroundings.listen_port(dataclasses.replace(machine, port=port))
        closer.join(timeout=10)
    assert finding.status is Status.FAIL
    assert "--listen" in finding.advice


def test_a_port_on_which_a_gateway_answers_is_only_a_warning(machine: Machine) -> None:
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"AUTHENTICATION_REQUIRED"}}'

    def answer(server: socket.socket) -> None:
        link, _ = server.accept()
        with link:
            link.recv(65536)
            link.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        finding = surroundings.listen_port(dataclasses.replace(machine, port=server.getsockname()[1]))
        thread.join(timeout=10)
    assert finding.status is Status.WARN


def test_a_directory_that_cannot_be_made_is_a_failure(machine: Machine, fake: FakeRelease) -> None:
    blocked = fake.executable("file") / "state"
    finding = surroundings.state_directory(dataclasses.replace(machine, state_dir=blocked))
    assert finding.status is Status.FAIL


def test_looking_at_a_directory_that_is_not_there_does_not_make_it(machine: Machine) -> None:
    assert surroundings.state_directory(machine).status is Status.OK
    assert not machine.state_dir.exists()


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, Status.OK),
        ({"http_proxy": "http://me:secret@proxy:3128"}, Status.WARN),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "localhost"}, Status.WARN),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "localhost, 127.0.0.1"}, Status.OK),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "localhost,127.0.0.0/8"}, Status.OK),
        ({"ALL_PROXY": "socks5://proxy", "NO_PROXY": "*"}, Status.OK),
    ],
)
def test_a_proxy_that_would_catch_loopback_is_a_warning(
    environ: dict[str, str], status: Status, machine: Machine
) -> None:
    finding = surroundings.proxies(dataclasses.replace(machine, environ=environ))
    assert finding.status is status
    assert "secret" not in finding.found + finding.advice


def test_a_low_limit_of_open_files_is_a_warning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1048576))
    assert surroundings.open_files(machine).status is Status.WARN
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    assert surroundings.open_files(machine).status is Status.OK


def test_missing_npm_is_a_warning_that_says_where_it_comes_from(machine: Machine, tmp_path: Path) -> None:
    finding = surroundings.npm(dataclasses.replace(machine, environ={"PATH": str(tmp_path)}))
    assert finding.status is Status.WARN
    assert "Node.js" in finding.advice
