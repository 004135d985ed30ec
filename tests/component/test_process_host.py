"""Runtimes as processes: what they are given, how they end, and that nothing of theirs outlives them or the gateway."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from aerodrome import errors
from aerodrome.adapters.process import guardian, orphans
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.core.backoff import Backoff
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Isolation
from aerodrome.fleet.pool import RuntimePool
from aerodrome.ports.host import ResourceLimits, SpawnSpec
from aerodrome.testing import rig as rigs
from aerodrome.testing.process_table import eventually, find, find_groups, is_alive, parent_of, read, wait_for

ANN = Realm("user:acme/ann", Isolation.USER)


@pytest.fixture
async def host(mark) -> AsyncIterator[ProcessHost]:
    """A host; closing it must leave no file descriptor behind, no process and no control group."""
    before = len(os.listdir("/proc/self/fd"))
    opened = ProcessHost()
    yield opened
    await opened.aclose()
    assert len(os.listdir("/proc/self/fd")) == before
    assert find_groups(os.getpid()) == []


def spec(tmp_path: Path, *argv: str, environment: dict[str, str] | None = None, files: int = 512) -> SpawnSpec:
    variables = {"PATH": os.defpath, **(environment or {})}
    return SpawnSpec("rt-test", argv, variables, tmp_path, ResourceLimits(open_files=files))


def shell(tmp_path: Path, script: str) -> SpawnSpec:
    return spec(tmp_path, "/bin/sh", "-c", script)


def asleep(mark: str) -> list[int]:
    """Return who sleeps as it was told; one that is only about to become `sleep` may not be found at any moment."""
    return find(f"sleep\0{mark}")


async def last_words(host: ProcessHost, wanted: SpawnSpec) -> str:
    """Run a program to its end; return what it said."""
    runtime = await host.spawn(wanted)
    with pytest.raises(errors.SpawnFailed) as raised:
        await runtime.address()
    return raised.value.message


#: Every way a tool has to get out of its parent's sight, and then the runtime itself; all carry the mark. `@` is its end.
ESCAPES = """
sleep MARK &
setsid sleep MARK &
(setsid sleep MARK &)
env -i sleep MARK &
env -i setsid sleep MARK &
(env -i setsid sh -c 'sleep MARK & sleep MARK & exit' &)
env -i setsid nohup sh -c 'trap "" TERM HUP INT; while :; do sleep MARK; done' >/dev/null 2>&1 &
"""
ESCAPED = 8


def escaping(mark: str, end: str = "exec sleep MARK") -> str:
    return (ESCAPES + 'echo "listening on port 1"\n' + end).replace("MARK", mark)


# -- what a runtime is given --------------------------------------------------------------------------------------------------


async def test_a_runtime_sees_exactly_the_given_variables_and_its_id(host, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "hunter2")
    words = await last_words(host, spec(tmp_path, "/usr/bin/env", environment={"A": "b c", "TOKEN": "t=1"}))
    seen = dict(line.split("=", 1) for line in words.split(": ", 1)[1].split(" | "))
    assert seen == {"PATH": os.defpath, "A": "b c", "TOKEN": "t=1", "AERODROME_RUNTIME_ID": "rt-test"}


async def test_a_runtime_has_three_file_descriptors_and_none_of_the_gateways(host, tmp_path):
    leaking = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaking, True)
    try:
        words = await last_words(host, shell(tmp_path, "cd /proc/self/fd && for f in *; do readlink $f; done"))
    finally:
        os.close(leaking)
    targets = words.split(": ", 1)[1].split(" | ")
    assert targets[0] == "/dev/null"
    assert targets[1] == targets[2]
    assert targets[1].startswith("pipe:")
    assert len([target for target in targets if target]) <= 4, targets


async def test_a_runtime_has_its_limits_umask_directory_and_session(host, tmp_path):
    script = "ulimit -Sn; ulimit -c; umask; pwd; echo $$; cut -d' ' -f5,6 /proc/$$/stat"
    words = (await last_words(host, shell(tmp_path, script))).split(": ", 1)[1].split(" | ")
    assert words[:2] == ["512", "0"]
    assert words[2] in ("0077", "077")
    assert words[3] == str(tmp_path)
    assert words[5].split() == [words[4], words[4]], "leads its own process group and session"


async def test_more_files_than_the_machine_grants_are_cut_to_what_it_grants(host, tmp_path):
    words = await last_words(host, spec(tmp_path, "/bin/sh", "-c", "ulimit -Sn; ulimit -Hn", files=10**9))
    soft, hard = words.split(": ", 1)[1].split(" | ")
    assert soft == hard


async def test_signals_the_guardian_ignores_reach_a_runtime_all_the_same(host, tmp_path):
    words = await last_words(host, shell(tmp_path, "grep -E 'SigIgn|SigBlk' /proc/self/status"))
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)
    masks = [int(found, 16) for found in re.findall(r"Sig\w+:\s+([0-9a-f]+)", words)]
    assert len(masks) == 2
    # Others come as the machine set them: what started this very test may have had some ignored.
    assert [number for number in stops for mask in masks if mask & 1 << (number - 1)] == []


# -- how it becomes ready or does not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "echo CLI server listening on port 4711; exec sleep MARK",
        "echo CLI server listening on port 4711 >&2; exec sleep MARK",
        "for p in 'some words' 'and CLI server listening on port 4711' 'port 99'; do echo $p; done; exec sleep MARK",
        "printf 'CLI server list'; sleep 0.05; printf 'ening on port 47'; sleep 0.05; echo 11; exec sleep MARK",
        "printf 'CLI server listening on port 4711\\r\\n'; exec sleep MARK",
        "head -c 300000 /dev/zero | tr '\\0' x; echo; echo listening on port 4711; exec sleep MARK",
    ],
)
async def test_the_port_is_read_from_the_ready_line_however_it_is_written(host, tmp_path, mark, script):
    runtime = await host.spawn(shell(tmp_path, script.replace("MARK", mark)))
    async with asyncio.timeout(30):
        assert await runtime.address() == ("127.0.0.1", 4711)


async def test_output_after_the_ready_line_is_read_for_ever_so_that_it_cannot_block_a_runtime(host, tmp_path):
    script = (
        "echo listening on port 1; head -c 2000000 /dev/zero; echo; head -c 500000 /dev/zero | tr '\\0' '\\n'; exit 7"
    )
    runtime = await host.spawn(shell(tmp_path, script))
    async with asyncio.timeout(30):
        assert await runtime.exited == 7


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("/nowhere/copilot-runtime",), "cannot start /nowhere/copilot-runtime: No such file or directory"),
        (("/etc/passwd",), "cannot start /etc/passwd: Permission denied"),
        (("/bin/sh", "-c", "echo first; echo last >&2; exit 3"), "code 3 before it was ready: first | last"),
        (("/bin/sh", "-c", "printf 'no newline'; exit 3"), "no newline"),
        (("/bin/sh", "-c", "kill -SEGV $$"), "code -11 before it was ready: it said nothing"),
        (("/bin/sh", "-c", "yes flood | head -100000; exit 4"), "code 4 before it was ready: flood | flood"),
    ],
)
async def test_a_spawn_that_fails_says_how_in_the_runtimes_last_words(host, tmp_path, argv, words):
    message = await last_words(host, spec(tmp_path, *argv))
    assert words in message
    assert len(message) < 12_000


async def test_a_missing_working_directory_is_named(host, tmp_path):
    assert "cannot enter" in await last_words(host, spec(tmp_path / "gone", "/bin/true"))


async def test_a_variable_that_cannot_be_given_is_an_error_not_a_crash(host, tmp_path):
    assert "cannot start" in await last_words(host, spec(tmp_path, "/bin/true", environment={"A=B": "c"}))


async def test_many_processes_at_once_start_end_and_are_told_apart(host, tmp_path):
    runtimes = await asyncio.gather(*(host.spawn(shell(tmp_path, f"exit {number}")) for number in range(30)))
    async with asyncio.timeout(60):
        assert [await runtime.exited for runtime in runtimes] == list(range(30))


async def test_a_spawn_given_up_half_way_leaves_no_process_and_does_not_confuse_the_next(host, tmp_path, mark):
    await host.spawn(shell(tmp_path, "exit 0"))
    spawning = asyncio.create_task(host.spawn(shell(tmp_path, f"exec sleep {mark}")))
    await asyncio.sleep(0)
    spawning.cancel()
    await asyncio.wait((spawning,))
    assert spawning.cancelled()
    again = await host.spawn(shell(tmp_path, f"echo listening on port 2; exec sleep {mark}"))
    assert (await again.address())[1] == 2
    await eventually(lambda: len(find(mark)) == 1)
    assert not again.exited.done()


# -- how it ends --------------------------------------------------------------------------------------------------------------


async def test_stopping_lets_a_runtime_end_by_itself_within_its_grace(host, tmp_path, mark):
    script = f"trap 'exit 5' TERM; echo listening on port 1; while :; do sleep 0.01; done; : {mark}"
    runtime = await host.spawn(shell(tmp_path, script))
    await runtime.address()
    await runtime.stop(60.0)
    assert runtime.exited.result() == 5


async def test_a_runtime_that_ignores_term_is_killed_after_its_grace(host, tmp_path, mark):
    script = f"trap '' TERM; echo listening on port 1; while :; do sleep {mark}; done"
    runtime = await host.spawn(shell(tmp_path, script))
    await runtime.address()
    started = time.monotonic()
    async with asyncio.timeout(30):
        await runtime.stop(0.3)
    assert time.monotonic() - started >= 0.3
    assert runtime.exited.result() == -signal.SIGKILL
    assert find(mark) == []


async def test_a_stopped_process_is_continued_so_that_it_can_end(host, tmp_path, mark):
    runtime = await host.spawn(shell(tmp_path, f"echo listening on port 1; exec sleep {mark}"))
    await runtime.address()
    os.kill(runtime.pid, signal.SIGSTOP)
    async with asyncio.timeout(30):  # half of its grace
        await runtime.stop(60.0)
    assert runtime.exited.result() == -signal.SIGTERM


async def test_a_stopped_process_that_is_killed_does_not_run_on_before(host, tmp_path, mark):
    """A runtime that hung has sessions that are elsewhere by then: it must not touch them again."""
    runtime = await host.spawn(shell(tmp_path, f"echo listening on port 1; exec sleep {mark}"))
    await runtime.address()
    os.kill(runtime.pid, signal.SIGSTOP)
    sent, send = [], host.signal
    host.signal = lambda number, sign: (sent.append(sign), send(number, sign))
    await runtime.stop(0.0)
    assert runtime.exited.result() == -signal.SIGKILL
    assert sent == [signal.SIGKILL]


async def test_stopping_twice_and_after_the_end_does_nothing(host, tmp_path):
    runtime = await host.spawn(shell(tmp_path, "exit 0"))
    assert await runtime.exited == 0
    await runtime.stop(0.1)
    await asyncio.gather(runtime.stop(0.1), runtime.stop(0.1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_a_death_from_outside_is_noticed_at_once_with_its_signal(host, tmp_path, mark, number):
    waits = []
    for _ in range(3):
        runtime = await host.spawn(shell(tmp_path, f"echo listening on port 1; exec sleep {mark}"))
        await runtime.address()
        started = time.monotonic()
        os.kill(runtime.pid, number)
        async with asyncio.timeout(30):
            assert await runtime.exited == -number
        waits.append(time.monotonic() - started)
    assert min(waits) < 0.5


@pytest.mark.parametrize("how", ["stop", "kill", "exit"])
async def test_whatever_a_runtime_started_ends_with_it(host, tmp_path, mark, how):
    end = "exec sleep MARK" if how != "exit" else "while [ ! -e end ]; do sleep 0.01; done; : MARK"
    runtime = await host.spawn(shell(tmp_path, escaping(mark, end)))
    bystander = await host.spawn(shell(tmp_path, f"setsid sleep 1{mark} & exec sleep 1{mark}"))
    await runtime.address()
    await eventually(lambda: len(asleep(f"1{mark}")) == 2 and len(find(mark)) >= ESCAPED + 2)
    if how == "stop":
        await runtime.stop(2.0)
    elif how == "kill":
        os.kill(runtime.pid, signal.SIGKILL)
    else:
        (tmp_path / "end").touch()
    async with asyncio.timeout(30):
        await runtime.exited
    assert sorted(find(mark)) == sorted(find(f"1{mark}")), "said to be gone, and something is left"
    assert len(find(f"1{mark}")) == 2
    assert not bystander.exited.done()
    await host.aclose()


async def test_closing_the_host_takes_everything_down(host, tmp_path, mark):
    runtimes = [await host.spawn(shell(tmp_path, escaping(mark))) for _ in range(3)]
    for runtime in runtimes:
        await runtime.address()
    await eventually(lambda: len(find(mark)) >= 3 * ESCAPED)
    await host.aclose()
    assert find(mark) == []
    assert all(runtime.exited.done() for runtime in runtimes)


async def test_a_host_can_be_used_again_after_its_guardian_was_killed(host, tmp_path, mark):
    runtime = await host.spawn(shell(tmp_path, escaping(mark)))
    await runtime.address()
    await eventually(lambda: len(find(mark)) >= ESCAPED)
    first = host.guardian_pid
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert await runtime.exited == -signal.SIGKILL
    await eventually(lambda: find(mark) == [])
    again = await host.spawn(shell(tmp_path, f"echo listening on port 3; exec sleep {mark}"))
    assert (await again.address())[1] == 3
    assert host.guardian_pid != first
    await again.stop(1.0)


@pytest.mark.parametrize("lists_children", [True, False])
async def test_a_tree_is_found_whether_or_not_the_kernel_lists_children(
    host, tmp_path, mark, monkeypatch, lists_children
):
    monkeypatch.setattr(guardian, "_LISTS_CHILDREN", lists_children and guardian._LISTS_CHILDREN)
    runtime = await host.spawn(shell(tmp_path, escaping(mark)))
    await runtime.address()
    await eventually(lambda: len(find(mark)) >= ESCAPED)
    keeper = parent_of(runtime.pid)
    assert await eventually(lambda: set(find(mark)) <= set(guardian._descendants(keeper, spared=())))
    spared = guardian._descendants(host.guardian_pid, spared={keeper})
    assert [pid for pid in find(mark) if pid in spared] == []


async def test_a_keeper_that_is_killed_takes_its_runtime_along_and_no_other(host, tmp_path, mark):
    runtime = await host.spawn(shell(tmp_path, escaping(mark)))
    other = await host.spawn(shell(tmp_path, f"echo listening on port 3; exec sleep 1{mark}"))
    await runtime.address()
    await eventually(lambda: len(asleep(f"1{mark}")) == 1 and len(find(mark)) >= ESCAPED + 1)
    keeper = parent_of(runtime.pid)
    os.kill(keeper, signal.SIGKILL)
    async with asyncio.timeout(30):
        await runtime.exited
    assert find(mark) == find(f"1{mark}")
    assert not other.exited.done()
    await host.aclose()


async def test_a_runtime_whose_guardian_and_keeper_are_both_killed_dies_with_them(host, tmp_path, mark):
    runtime = await host.spawn(shell(tmp_path, f"trap '' TERM HUP; echo listening on port 1; exec sleep {mark}"))
    await runtime.address()
    keeper = parent_of(runtime.pid)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(host.guardian_pid, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    await eventually(lambda: find(mark) == [])


GATEWAY = """
import asyncio, os, pathlib, sys
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.ports.host import ResourceLimits, SpawnSpec

async def main():
    host = ProcessHost()
    argv, limits = ("/bin/sh", "-c", sys.argv[1]), ResourceLimits(open_files=512)
    for _ in range(2):
        runtime = await host.spawn(SpawnSpec("rt-test", argv, {"PATH": os.defpath}, pathlib.Path(sys.argv[2]), limits))
        await runtime.address()
    print(host.guardian_pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("victims", ["gateway", "guardian and gateway", "gateway and guardian"])
def test_a_gateway_killed_with_9_leaves_no_process_behind(tmp_path, mark, victims):
    gateway = subprocess.Popen(
        [sys.executable, "-c", GATEWAY, escaping(mark), str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        guardian_pid = int(gateway.stdout.readline())
        wait_for(lambda: len(find(mark)) >= 2 * ESCAPED)
        pids = {"gateway": gateway.pid, "guardian": guardian_pid}
        for victim in victims.split(" and "):
            os.kill(pids[victim], signal.SIGKILL)
        wait_for(lambda: find(mark) == [])
        wait_for(lambda: not is_alive(guardian_pid))
        gateway.wait()
        if victims == "gateway":
            assert find_groups(gateway.pid) == [], "the guardian removes them"
        assert orphans.collect(tmp_path) == []
        assert find_groups(gateway.pid) == [], "the next gateway removes them"
    finally:
        gateway.kill()
        gateway.wait()
        gateway.stdout.close()


# -- under the supervisor -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def open_pool(tmp_path) -> AsyncIterator:
    pools: list[RuntimePool] = []

    def opened(*faults: str, **changes) -> tuple[RuntimePool, ProcessHost]:
        entry = tmp_path / "runtime"
        options = " ".join(f"--fault {fault}" for fault in faults)
        entry.write_text(f'#!/bin/sh\nexec {sys.executable} -m aerodrome.testing.scripted_runtime "$@" {options}\n')
        entry.chmod(0o755)
        host = ProcessHost()
        pools.append(RuntimePool(host, rigs.fleet_settings(tmp_path / "state", entry=entry, **changes)))
        return pools[-1], host

    yield opened
    for pool in pools:
        await pool.aclose()


async def test_a_pool_of_real_processes_is_ready_by_connect_and_ping_and_its_token_shows_nowhere(open_pool):
    pool, host = open_pool(ready_seconds=20.0)
    with structlog.testing.capture_logs() as logs:
        handle = await pool.acquire(ANN)
    [runtime] = [entry["pid"] for entry in logs if entry["event"] == "runtime.ready"]
    token = handle.token.encode()
    assert b"COPILOT_CONNECTION_TOKEN=" + token in read(runtime, "environ")
    assert not any(token in read(pid, "cmdline") for pid in (runtime, os.getpid(), host.guardian_pid))
    assert token not in read(host.guardian_pid, "environ")
    assert handle.token not in str(logs)
    os.kill(runtime, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert await handle.lost == "the runtime was killed by signal 9"


async def test_a_runtime_that_is_never_ready_and_ignores_term_is_given_up_and_gone(open_pool, tmp_path):
    pool, _ = open_pool("never_ready", "ignores_term", ready_seconds=0.6, backoff=Backoff(attempts=1))
    with pytest.raises(errors.SpawnFailed, match=r"not ready within 0\.6 s"):
        await pool.acquire(ANN)
    assert find(str(tmp_path), "environ") == []


async def test_a_runtime_that_exits_at_once_ends_with_its_words_in_the_reason(open_pool):
    pool, _ = open_pool("exits_at_once", ready_seconds=20.0, backoff=Backoff(attempts=1))
    with pytest.raises(errors.SpawnFailed, match="exits at once, as it was told"):
        await pool.acquire(ANN)
