"""What earlier gateways left behind: collected at the next start, and nobody else is touched."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from aerodrome import app, settings
from aerodrome.adapters.process import cgroups, orphans
from aerodrome.testing.process_table import find, find_groups, is_alive, parent_of, wait_for


@pytest.fixture
def start(mark):
    """Start a process with just these variables."""
    started: list[subprocess.Popen] = []

    def starting(**variables: str) -> subprocess.Popen:
        argv = ["sleep", mark]
        started.append(subprocess.Popen(argv, env={"PATH": os.defpath, **variables}, start_new_session=True))
        wait_for(lambda: started[-1].pid in find(mark))
        return started[-1]

    yield starting
    for process in started:
        process.kill()
        process.wait()


def test_whoever_carries_a_runtimes_id_and_this_directory_is_killed(start, tmp_path):
    homes = (tmp_path, tmp_path / "realms" / "a" / "copilot", tmp_path / "runtimes" / "rt-1")
    found = [start(AERODROME_RUNTIME_ID="rt-1", SOME_NAME=str(home)) for home in homes]
    assert orphans.collect(tmp_path) == sorted(process.pid for process in found)
    assert [process.wait(30) for process in found] == [-signal.SIGKILL] * 3
    assert orphans.collect(tmp_path) == []


def test_a_directory_is_known_by_the_name_it_was_given_and_by_its_real_one(start, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    pids = [start(AERODROME_RUNTIME_ID="rt-1", HOME=str(tmp_path / name / "x")).pid for name in ("real", "link")]
    assert orphans.collect(tmp_path / "link") == sorted(pids)


def test_whoever_lacks_one_of_the_marks_is_left_alone(start, tmp_path):
    state = tmp_path / "state"
    bystanders = [
        start(COPILOT_HOME=str(state / "copilot")),
        start(AERODROME_RUNTIME_ID="", COPILOT_HOME=str(state)),
        start(AERODROME_RUNTIME_ID="rt-1"),
        start(AERODROME_RUNTIME_ID="rt-1", COPILOT_HOME=str(tmp_path / "state-of-another" / "copilot")),
        start(AERODROME_RUNTIME_ID="rt-1", COPILOT_HOME=str(tmp_path)),
        start(AERODROME_RUNTIME_ID="rt-1", PATH=f"/bin:{state}/bin"),
        start(MY_AERODROME_RUNTIME_ID="rt-1", COPILOT_HOME=str(state)),
    ]
    assert orphans.collect(state) == orphans.collect(Path("/")) == []
    assert orphans.collect(tmp_path) == sorted(process.pid for process in bystanders[3:5]), "the control"
    assert all(process.poll() is None for process in bystanders[:3])


COLLECT = """
import pathlib, sys
from aerodrome.adapters.process import orphans
print(orphans.collect(pathlib.Path(sys.argv[1])))
"""


def test_neither_the_caller_nor_those_above_it_are_orphans(tmp_path, mark):
    script = f"{sys.executable} -c '{COLLECT}' {tmp_path}; echo survived {mark}"
    variables = {"AERODROME_RUNTIME_ID": "rt-1", "HOME": str(tmp_path)}
    said = subprocess.check_output(["sh", "-c", script], env={**os.environ, **variables}, text=True)
    assert said.splitlines() == ["[]", f"survived {mark}"]


def test_groups_of_gateways_that_are_gone_are_removed_and_others_stay(tmp_path):
    places = [hierarchy.place for hierarchy in cgroups.discover()]
    own, mine = cgroups.GatewayGroups([]).name, secrets.token_hex(4)
    gone = [own.replace(str(os.getpid()), "1", 1), f"aerodrome-999999999-1-{mine}"]
    kept = [own, f"aerodrome-of-somebody-{mine}", f"other-999999999-1-{mine}"]
    try:
        for place in places:
            for name in kept:
                (place / name / "rt-1" / "inner").mkdir(parents=True)
            for name in gone:
                with suppress(FileNotFoundError):  # a gateway of another test that starts now collects it as well
                    (place / name / "rt-1" / "inner").mkdir(parents=True)
        orphans.collect(tmp_path)
        left = [[name for name in (*gone, *kept) if (place / name).exists()] for place in places]
        assert left == [kept] * len(places)
    finally:
        for place in places:
            assert all(cgroups.remove(place / name) for name in (*gone, *kept))


def test_a_group_that_somebody_dies_in_is_waited_for_and_one_that_somebody_lives_in_is_not(tmp_path, monkeypatch):
    dying, living = tmp_path / "dying", tmp_path / "living"
    dead = subprocess.Popen(["true"])
    dead.wait()
    for directory, pid in ((dying, dead.pid), (living, os.getpid())):
        directory.mkdir()
        (directory / "cgroup.procs").write_text(f"{pid}\n")
    monkeypatch.setattr(cgroups, "find_stale", lambda _: [living, dying])
    leaving = threading.Timer(0.1, (dying / "cgroup.procs").unlink)
    leaving.start()
    orphans.collect(tmp_path)
    assert not dying.exists()
    assert living.exists()
    leaving.join()


GATEWAY = """
import asyncio, os, pathlib, sys
from aerodrome import observe
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.ports.host import ResourceLimits, SpawnSpec

async def main():
    host, place = ProcessHost(), pathlib.Path(sys.argv[2])
    variables = {"PATH": os.defpath, "COPILOT_HOME": str(place / "copilot")}
    limits = ResourceLimits(512, 200 << 20, 64)
    for _ in range(2):
        runtime = await host.spawn(SpawnSpec("rt-test", ("/bin/sh", "-c", sys.argv[1]), variables, place, limits))
        await runtime.address()
        print(runtime.pid, flush=True)
        runtime.freeze()
    print(host.guardian_pid, flush=True)
    await asyncio.sleep(60)

observe.configure_logs("error", as_json=True)
asyncio.run(main())
"""


def test_a_gateway_collects_what_is_left_when_all_of_its_predecessor_was_killed_at_once(tmp_path, mark):
    script = f"setsid sleep {mark} & (setsid sleep {mark} &) ; echo listening on port 1; exec sleep {mark}"
    argv = [sys.executable, "-c", GATEWAY, script, str(tmp_path)]
    gateway = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        runtimes = [int(gateway.stdout.readline()) for _ in range(2)]
        above = [gateway.pid, int(gateway.stdout.readline()), *map(parent_of, runtimes)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in above:
                os.kill(pid, number)
        gateway.wait()
        wait_for(lambda: not any(is_alive(pid) for pid in above))
        assert len(find(mark)) >= 2 * 2, "who left their trees are left: else there is nothing to collect"
        chosen = settings.load(policy="transparent", listen="127.0.0.1:0", state_directory=tmp_path)
        with structlog.testing.capture_logs() as logs:
            asyncio.run(app._collect_orphans(chosen.state_directory))
        [collected] = [entry["count"] for entry in logs if entry["event"] == "orphans.collected"]
        assert collected >= 2 * 2
        assert find(mark) == []
        assert find_groups(gateway.pid) == []
    finally:
        gateway.kill()
        gateway.wait()
        gateway.stdout.close()
