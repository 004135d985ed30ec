"""Limits, usage, freeze and thaw of real processes, in whatever control groups this machine has and where it has none."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from aerodrome import errors
from aerodrome.adapters.distribution import install
from aerodrome.adapters.process import cgroups, orphans
from aerodrome.adapters.process.cgroups import Hierarchy
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.ports.host import ResourceLimits, SpawnSpec
from aerodrome.settings import RuntimeSection
from aerodrome.testing.process_table import eventually, find, find_groups, is_alive, parent_of
from aerodrome.transport import control

MEBIBYTE = 1024 * 1024
LIMITS = ResourceLimits(512, memory_bytes=160 * MEBIBYTE, processes=40)
#: Takes 400 MiB and touches them.
HOG = f"{sys.executable} -I -S -c 'x = b\"x\" * (400 << 20)'"
LISTENING = "echo listening on port 1; "


def discover_version_1() -> list[Hierarchy]:
    return [hierarchy for hierarchy in cgroups.discover() if not hierarchy.is_unified]


@pytest.fixture(params=["all", "version 1", "none"])
def discover(request, tmp_path):
    """What is writable here, version 1 of it alone, nothing; the first two are nothing as well on a machine without."""
    kinds = {"all": cgroups.discover, "version 1": discover_version_1, "none": lambda: cgroups.discover(tmp_path)}
    return kinds[request.param]


@pytest.fixture
async def host(discover, mark) -> AsyncIterator[ProcessHost]:
    """A host; closing it must leave no file descriptor behind, no process and no control group."""
    before = len(os.listdir("/proc/self/fd"))
    opened = ProcessHost(discover)
    with structlog.testing.capture_logs() as opened.logs:
        yield opened
        await opened.aclose()
    assert len(os.listdir("/proc/self/fd")) == before
    assert find_groups(os.getpid()) == []


def spec(tmp_path: Path, script: str, limits: ResourceLimits = LIMITS) -> SpawnSpec:
    variables = {"PATH": os.defpath, "COPILOT_HOME": str(tmp_path / "copilot")}
    return SpawnSpec("rt-test", ("/bin/sh", "-c", script), variables, tmp_path, limits)


async def spawn(host: ProcessHost, tmp_path: Path, script: str, limits: ResourceLimits = LIMITS):
    """Spawn a shell that says the ready line; return it and the port that it gave."""
    runtime = await host.spawn(spec(tmp_path, script, limits))
    async with asyncio.timeout(60):
        return runtime, (await runtime.address())[1]


def unheld(host: ProcessHost) -> list[str]:
    return [name for entry in host.logs if entry["event"] == "limits.unheld" for name in entry["limits"]]


# -- limits -------------------------------------------------------------------------------------------------------------------


async def test_a_memory_hog_in_a_runtimes_shell_ends_and_takes_nothing_else_along(host, tmp_path, mark):
    other, _ = await spawn(host, tmp_path, f"{LISTENING} exec sleep {mark}")
    runtime, code = await spawn(host, tmp_path, f"{HOG}; echo listening on port $?; exec sleep {mark}")
    if "memory_bytes" in runtime.group.held:
        assert code == 128 + signal.SIGKILL
        assert runtime.group.was_out_of_memory()
    else:
        assert code == 1, "it is refused the memory (RLIMIT_DATA), and says MemoryError"
        assert "memory_bytes" in unheld(host)
    assert not runtime.exited.done()
    assert not other.exited.done()
    assert not other.group.was_out_of_memory()


async def test_a_runtime_out_of_memory_dies_as_of_any_kill_and_says_why(host, tmp_path, mark):
    runtime = await host.spawn(spec(tmp_path, f"exec {HOG}"))
    killed = await host.spawn(spec(tmp_path, f"{LISTENING} exec sleep {mark}"))
    await killed.address()
    os.kill(killed.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        code = await runtime.exited
        assert await killed.exited == -signal.SIGKILL
    assert killed.exit_note is None
    if "memory_bytes" in runtime.group.held:
        assert (code, runtime.exit_note) == (-signal.SIGKILL, "the kernel killed it or a part of it for want of memory")
    else:
        assert (code, runtime.exit_note) == (1, None)


BOMB = """
import os, sys, time
count = 0
try:
    while count < 200 and os.fork():
        count += 1
    if count == 200:
        raise OSError
except OSError:
    print(f"listening on port {count}", flush=True)
time.sleep(1000)
"""


async def test_a_fork_bomb_is_bounded_and_others_go_on(host, tmp_path, mark):
    (tmp_path / "bomb.py").write_text(BOMB)
    runtime, children = await spawn(host, tmp_path, f"exec {sys.executable} -I -S bomb.py {mark}")
    if "processes" in runtime.group.held:
        assert children == LIMITS.processes - 1
    else:
        assert "processes" in unheld(host), "what is not held is said"
    assert runtime.usage().processes == children + 1
    assert await (await host.spawn(spec(tmp_path, "(exit 3)"))).exited == 3, "another forks as it likes"
    await runtime.stop(5.0)
    assert find(mark) == []


async def test_processor_time_is_bounded(host, tmp_path):
    script = "import time; end = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass\n"
    script += "print(f'listening on port {int(time.process_time() * 1000)}')"
    (tmp_path / "burn.py").write_text(script)
    limits = ResourceLimits(512, cpu_cores=0.2)
    runtime, milliseconds = await spawn(host, tmp_path, f"exec {sys.executable} -I -S burn.py", limits)
    if "cpu_cores" in runtime.group.held:
        assert milliseconds < 500
    else:
        assert unheld(host) == ["cpu_cores"]


async def test_what_a_host_cannot_hold_is_said_once_and_only_if_it_is_wanted(tmp_path):
    host = ProcessHost(list)
    with structlog.testing.capture_logs() as host.logs:
        for limits in (ResourceLimits(512), LIMITS, LIMITS, ResourceLimits(512, LIMITS.memory_bytes, 40, 1.0)):
            await (await host.spawn(spec(tmp_path, "exit 0", limits))).exited
        await host.aclose()
    assert unheld(host) == ["memory_bytes", "processes", "cpu_cores"]


async def test_a_runtime_that_cannot_enter_its_group_is_not_started_outside_of_it(tmp_path):
    (tmp_path / "place").mkdir()
    host = ProcessHost(lambda: [Hierarchy(tmp_path / "place", frozenset({"memory"}), is_unified=False)])
    try:
        runtime = await host.spawn(spec(tmp_path, "exec sleep 1000"))
        with pytest.raises(errors.SpawnFailed, match="cannot enter the control group"):
            await runtime.address()
    finally:
        await host.aclose()
    assert list((tmp_path / "place").iterdir()) == []


async def test_nothing_a_runtime_starts_is_outside_its_group_and_its_keeper_is(host, tmp_path, mark):
    script = f"(setsid sleep {mark} &) ; env -i setsid sleep {mark} & {LISTENING} exec sleep {mark}"
    runtime, _ = await spawn(host, tmp_path, script)

    def inside(directory: Path) -> set[int]:
        return {int(pid) for pid in (directory / "cgroup.procs").read_text().split()}

    for directory in runtime.group.directories:
        # One that becomes another program in that moment has no command line to be found by.
        await eventually(lambda directory=directory: len(found := set(find(mark))) == 3 and inside(directory) == found)
        assert parent_of(runtime.pid) not in inside(directory)
    await runtime.stop(5.0)
    assert [directory for directory in runtime.group.directories if directory.exists()] == []
    assert find(mark) == []


HEADLESS = """
import ctypes, os, threading, time
os.setsid()
threading.Thread(target=time.sleep, args=(1000,)).start()
open("pid", "w").write(str(os.getpid()))
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_a_process_whose_first_thread_has_ended_is_not_taken_for_dead(host, tmp_path, mark):
    (tmp_path / "headless.py").write_text(HEADLESS)
    runtime, _ = await spawn(host, tmp_path, f"{sys.executable} -S headless.py & {LISTENING} exec sleep {mark}")
    pid = int(await eventually(lambda: (path := tmp_path / "pid").exists() and path.read_text()))
    await eventually(lambda: not is_alive(pid))
    assert len(os.listdir(f"/proc/{pid}/task")) == 2
    await runtime.stop(5.0)
    await eventually(lambda: not Path(f"/proc/{pid}").exists())


async def test_groups_that_a_runtime_made_below_its_own_end_with_it(host, tmp_path, mark):
    runtime, _ = await spawn(host, tmp_path, f"sleep {mark} & {LISTENING} exec sleep {mark}")
    [child] = set(await eventually(lambda: len(found := find(mark)) == 2 and found)) - {runtime.pid}
    for directory in runtime.group.directories:
        (directory / "inner" / "most").mkdir(parents=True)
        (directory / "inner" / "most" / "cgroup.procs").write_text(str(child))
    assert runtime.usage().processes == 2
    os.kill(runtime.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        await runtime.exited
    assert not is_alive(child)
    assert [directory for directory in runtime.group.directories if directory.exists()] == []


# -- usage --------------------------------------------------------------------------------------------------------------------

USER = """
import subprocess, sys, threading, time
held = b"x" * (50 << 20), [open("/dev/null") for _ in range(10)]
for _ in range(3):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
subprocess.Popen(["sleep", sys.argv[1]], start_new_session=True)
subprocess.Popen(["sh", "-c", f"sleep {sys.argv[1]} & sleep {sys.argv[1]} & exit"]).wait()
print("listening on port 1", flush=True)
time.sleep(1000)
"""


async def test_usage_tells_memory_of_the_tree_and_threads_and_files_of_the_runtime(host, tmp_path, mark):
    (tmp_path / "user.py").write_text(USER)
    runtime, _ = await spawn(host, tmp_path, f"exec {sys.executable} -S user.py {mark}")
    used = runtime.usage()
    assert 50 * MEBIBYTE < used.memory_bytes < 100 * MEBIBYTE
    assert (used.threads, used.open_files) == (4, 13)
    assert used.processes == 4
    await runtime.stop(5.0)
    assert runtime.usage() is None


async def test_usage_is_cheap(host, tmp_path, mark):
    runtime, _ = await spawn(host, tmp_path, f"{LISTENING} exec sleep {mark}")
    costs = []
    for _ in range(200):
        started = time.perf_counter()
        runtime.usage()
        costs.append(time.perf_counter() - started)
    assert sorted(costs)[len(costs) // 2] < 0.002


# -- freeze and thaw ----------------------------------------------------------------------------------------------------------

#: Two that write a line each few milliseconds: the runtime, and one that has moved to another session.
COUNTING = "count() { while :; do echo >>$1; sleep 0.005; done; }; "
COUNTERS = COUNTING + "(setsid sh -c '" + COUNTING + "count b MARK' &); " + LISTENING + "count a"


def counts(tmp_path: Path) -> list[int]:
    return [path.stat().st_size if (path := tmp_path / name).exists() else 0 for name in ("a", "b")]


async def still(tmp_path: Path) -> list[int]:
    """Wait until nothing is written any more: for the time in which tens of lines would have been.

    Looked at several times in it: where the whole machine stood still for a while, the others had no more of it than we had.
    """
    found, same = counts(tmp_path), 0
    async with asyncio.timeout(30):
        while same < 5:
            before = found
            await asyncio.sleep(0.05)
            found = counts(tmp_path)
            same = same + 1 if found == before else 0
    return found


async def counting(host: ProcessHost, tmp_path: Path, mark: str, prefix: str = ""):
    runtime, _ = await spawn(host, tmp_path, prefix + COUNTERS.replace("MARK", mark))
    await eventually(lambda: min(counts(tmp_path)) > 3)
    return runtime


async def test_a_frozen_tree_does_not_run_others_do_and_it_runs_again_when_thawed(host, tmp_path, mark):
    runtime = await counting(host, tmp_path, mark)
    for _ in range(2):
        runtime.freeze()
        runtime.freeze()
        frozen = await still(tmp_path)
        assert await (await host.spawn(spec(tmp_path, "(exit 3)"))).exited == 3
        assert runtime.usage().processes >= 2
        assert counts(tmp_path) == frozen
        runtime.thaw()
        runtime.thaw()
        await eventually(
            lambda frozen=frozen: all(now > then for now, then in zip(counts(tmp_path), frozen, strict=True))
        )
    assert not runtime.exited.done()


@pytest.mark.parametrize(("grace", "code"), [(60.0, 5), (0.0, -signal.SIGKILL)])
async def test_a_frozen_runtime_is_stopped_and_killed_like_any_other(host, tmp_path, mark, grace, code):
    runtime = await counting(host, tmp_path, mark, "trap 'exit 5' TERM; ")
    runtime.freeze()
    await still(tmp_path)
    async with asyncio.timeout(30):  # half of the grace
        await runtime.stop(grace)
    assert runtime.exited.result() == code
    assert find(mark) == []
    runtime.freeze()
    runtime.thaw()


@pytest.mark.parametrize("victims", ["host", "keeper", "guardian", "keeper and guardian"])
async def test_a_frozen_runtime_does_not_outlive_those_above_it(host, tmp_path, mark, victims):
    runtime = await counting(host, tmp_path, mark)
    runtime.freeze()
    await still(tmp_path)
    pids = {"keeper": parent_of(runtime.pid), "guardian": host.guardian_pid}
    if victims == "host":
        await host.aclose()
    else:
        # Stopped first, so that neither can act on the other's death.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims.split(" and "):
                os.kill(pids[victim], number)
    async with asyncio.timeout(30):
        await runtime.exited
    if victims != "keeper and guardian" or runtime.group.directories:
        await eventually(lambda: find(mark) == [])
        return
    # The runtime dies by the kernel's hand; who has left its tree is stopped for ever, until the next start collects it.
    await eventually(lambda: not is_alive(runtime.pid))
    left = find(mark)
    assert left
    assert set(left) <= set(await asyncio.to_thread(orphans.collect, tmp_path))
    assert find(mark) == find(str(tmp_path), "environ") == []


async def test_what_a_killed_runtime_was_and_had_frozen_stays_gone_for_the_next_of_its_host(host, tmp_path, mark):
    for _ in range(3):
        runtime, _ = await spawn(host, tmp_path, f"{LISTENING} exec sleep {mark}")
        runtime.freeze()
        os.kill(runtime.pid, signal.SIGKILL)
        await runtime.stop(0)
        assert runtime.exited.result() == -signal.SIGKILL


# -- the real one -------------------------------------------------------------------------------------------------------------


@pytest.mark.runtime
async def test_the_real_runtime_is_ready_under_the_default_limits_and_answers_at_once_when_thawed(host, tmp_path, mark):
    section = RuntimeSection()
    limits = ResourceLimits(section.max_open_files, section.memory_bytes, section.processes, section.cpu_cores)
    entry = await asyncio.to_thread(lambda: install.install(None).entry)
    names = ("HOME", "COPILOT_HOME", "TMPDIR")
    variables = {"PATH": os.defpath, "COPILOT_CONNECTION_TOKEN": mark} | dict.fromkeys(names, str(tmp_path))
    argv = (str(entry), "--headless", "--port", "0", "--no-auto-update", "--log-level", "none", "--no-auto-login")
    runtime = await host.spawn(SpawnSpec("rt-test", argv, variables, tmp_path, limits))
    async with asyncio.timeout(60):
        link, _ = await control.open_control(*await runtime.address(), mark, None)
    waits = []
    for _ in range(5):
        runtime.freeze()
        answer = await first_unanswered(link)
        started = time.perf_counter()
        runtime.thaw()
        assert (await answer)["message"]
        waits.append(time.perf_counter() - started)
    assert min(waits) < 0.05
    # A control group does not count the pages that its program shares with others: 9.6 to 22 MB were seen, idle.
    assert runtime.usage().memory_bytes > 4 * MEBIBYTE
    await link.aclose()
    runtime.freeze()
    await runtime.stop(60.0)
    assert runtime.exited.result() == 0


async def first_unanswered(link: control.ControlLink) -> asyncio.Future:
    """Ping until one is not answered: a tree that is frozen by STOP runs on for as long as the guardian takes."""
    async with asyncio.timeout(30):
        while True:
            answer = asyncio.ensure_future(link.call("ping"))
            await asyncio.wait((answer,), timeout=0.2)
            if not answer.done():
                return answer
