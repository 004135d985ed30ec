"""The life of a fleet: cordoned, found hanging, drifting, kept warm, queued in a storm, described to an operator."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from aerodrome import errors
from aerodrome.clock import SystemClock
from aerodrome.core.backoff import Backoff
from aerodrome.core.placement import Realm
from aerodrome.core.policy import HostTools, Isolation
from aerodrome.core.vitals import BASELINE_PINGS, DriftLimits
from aerodrome.fleet import spec
from aerodrome.fleet.pool import RuntimePool
from aerodrome.fleet.queue import SpawnQueue
from aerodrome.fleet.spec import HealthSettings
from aerodrome.ports.host import ResourceUsage
from aerodrome.testing import rig as rigs
from aerodrome.testing.peer import RpcError
from aerodrome.testing.scripted_host import ScriptedHost, ScriptedProcess
from aerodrome.testing.scripted_runtime import Faults

ANN, BEN = Realm("user:acme/ann", Isolation.USER), Realm("user:acme/ben", Isolation.USER)
OPEN = Realm("user:free/zoe", Isolation.USER, is_open=True, has_host_tools=True)
SHARED = Realm("shared", Isolation.SHARED)
#: Two pings in a row that a busy machine delays for so long would be a hang.
BRISK = HealthSettings(interval_seconds=0.01, deadline_seconds=0.3)


def user(tenant: str, number: int) -> Realm:
    return Realm(f"user:{tenant}/u{number:03d}", Isolation.USER)


@pytest.fixture
async def open_pool(tmp_path):
    pools = []
    before = asyncio.all_tasks()

    def opened(
        faults=lambda _: Faults(), prepare=lambda _: None, clock=None, **changes
    ) -> tuple[RuntimePool, ScriptedHost]:
        host = ScriptedHost(faults, prepare)
        pool = RuntimePool(host, rigs.fleet_settings(tmp_path, **{"health": HealthSettings(0), **changes}), clock)
        pool.start()
        pools.append((pool, host))
        return pool, host

    yield opened
    for pool, host in pools:
        await pool.aclose()
        assert host.alive == []
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=20)
    assert left == set()
    assert not (tmp_path / "runtimes").exists() or os.listdir(tmp_path / "runtimes") == []


class ShiftedClock(SystemClock):
    """The real clock, ahead by as much as a test says."""

    shift = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift


async def eventually(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a pool has no events for tests
            await asyncio.sleep(0.002)


def home(process: ScriptedProcess, name: str = "COPILOT_HOME") -> Path:
    """Return the directory that a runtime's path leads to now."""
    return Path(process.spec.environment[name]).resolve()


def pings(process: ScriptedProcess) -> int:
    return len(process.runtime.called("ping"))


# -- cordon -------------------------------------------------------------------------------------------------------------------


async def test_a_cordoned_runtime_serves_its_own_and_its_realm_has_another_at_once(open_pool):
    pool, host = open_pool()
    old = await pool.acquire(ANN)
    pool.cordon(old, "too old")
    assert await old.cordoned == "too old"
    fresh = await pool.acquire(ANN)
    assert fresh.runtime_id != old.runtime_id
    assert (await pool.acquire(ANN)) is fresh
    assert (await pool.acquire(ANN, old.runtime_id)) is old
    assert not old.lost.done()
    assert len(host.alive) == 2


async def test_a_cordoned_runtime_ends_with_its_last_link_not_after_the_idle_time(open_pool):
    pool, host = open_pool(idle_seconds=1000)
    handle = await pool.acquire(ANN)
    await pool.acquire(ANN)
    pool.cordon(handle, "too old")
    pool.release(handle)
    assert not handle.lost.done()
    pool.release(handle)
    async with asyncio.timeout(20):
        assert await handle.lost == "too old"
    await eventually(lambda: not host.alive)


async def test_a_cordoned_runtime_without_links_ends_at_once(open_pool):
    pool, _ = open_pool(idle_seconds=1000)
    handle = await pool.acquire(ANN)
    pool.release(handle)
    pool.cordon(handle, "too old")
    async with asyncio.timeout(20):
        assert await handle.lost == "too old"
    assert pool.realms == 0


async def test_cordoning_again_or_too_late_changes_nothing(open_pool):
    pool, host = open_pool()
    handle = await pool.acquire(ANN)
    pool.cordon(handle, "first")
    pool.cordon(handle, "second")
    assert await handle.cordoned == "first"
    pool.retire(handle, "moved")
    assert await handle.lost == "moved"
    pool.cordon(handle, "third")
    await eventually(lambda: not host.alive)
    assert host.processes[0].stops == 1


async def test_a_cordoned_runtime_does_not_count_toward_the_limit_of_the_shared_realm(open_pool):
    pool, _ = open_pool(shared_runtimes=1, links_per_runtime=1)
    full = await pool.acquire(SHARED)
    with pytest.raises(errors.OverCapacity):
        await pool.acquire(SHARED)
    pool.cordon(full, "too old")
    assert (await pool.acquire(SHARED)).runtime_id != full.runtime_id


async def test_a_handle_freezes_and_thaws_its_own_process(open_pool):
    pool, host = open_pool()
    handle = await pool.acquire(ANN)
    [control] = host.runtimes[0].peers
    handle.freeze()
    before = pings(host.processes[0])
    async with asyncio.timeout(20):
        seconds = asyncio.create_task(pool._lookup(handle).runtime.ping(5))
        await eventually(lambda: control.heard[-1].method == "ping" and len(control.heard) > before)
        assert pings(host.processes[0]) == before
        handle.thaw()
        assert await seconds is not None


# -- host tools ---------------------------------------------------------------------------------------------------------------

TOOLS = replace(ANN, has_host_tools=True, egress=("one.example:80",))


async def test_a_realm_with_host_tools_is_confined_and_spawned_for_itself_over_its_directories_as_they_are(
    open_pool, tmp_path
):
    pool, host = open_pool(host_tools=HostTools.SANDBOXED, warm_runtimes=1, egress=("all.example:1",))
    await eventually(lambda: len(pool.describe()) == 1)
    await pool.acquire(TOOLS)
    await pool.acquire(BEN)
    warm, made = host.processes[0].spec, host.processes[1].spec
    assert warm.confinement is None
    assert made.confinement.egress == ("one.example:80", "all.example:1")
    own = spec.directories_of(ANN, tmp_path)
    assert made.environment["HOME"] == str(own.home)
    assert made.confinement.directories == own.all
    assert {view.realm for view in pool.describe()} >= {ANN.key, BEN.key}
    assert [process.spec.confinement for process in host.processes if process.spec is not made] == [None] * (
        len(host.processes) - 1
    )


async def test_host_tools_without_a_sandbox_are_refused_with_what_to_do_and_others_are_served(open_pool):
    pool, host = open_pool(host_tools=HostTools.REFUSED)
    for realm, way in ((TOOLS, "host_tools = false"), (OPEN, 'trust = "limited"')):
        with pytest.raises(errors.PolicyRejected, match=f"host tools need a sandbox .* {way}"):
            await pool.acquire(realm)
    await pool.acquire(BEN)
    assert len(host.processes) == 1


async def test_a_realm_that_gets_host_tools_gets_a_confined_runtime_and_keeps_to_one_when_they_are_taken_back(
    open_pool, tmp_path
):
    pool, host = open_pool(host_tools=HostTools.SANDBOXED)
    first = await pool.acquire(ANN)
    second = await pool.acquire(TOOLS)
    assert first.lost.done()
    pool.retire(second, "idle")
    await pool.acquire(ANN)  # what an agent left in its directories is read in no runtime outside
    assert [process.spec.confinement is not None for process in host.processes] == [False, True, True]
    assert spec.directories_of(ANN, tmp_path).were_confined
    other, _ = open_pool(host_tools=HostTools.REFUSED)
    with pytest.raises(errors.PolicyRejected, match="what they left needs a sandbox"):
        await other.acquire(ANN)


async def test_what_a_realm_may_reach_changes_in_runtimes_that_serve_and_in_those_on_their_way(open_pool):
    pool, host = open_pool(host_tools=HostTools.SANDBOXED, egress=("all.example:1",))
    await pool.acquire(TOOLS)
    host.may_spawn.clear()
    coming = asyncio.create_task(pool.acquire(replace(TOOLS, key=BEN.key)))
    await eventually(lambda: len(host.processes) == 2)
    for key in (ANN.key, BEN.key):
        pool.let_reach(replace(TOOLS, key=key, egress=("two.example:80",)))
    host.may_spawn.set()
    await coming
    assert [process.reaches for process in host.processes] == [[("two.example:80", "all.example:1")]] * 2
    pool.let_reach(Realm("user:acme/nobody", Isolation.USER))


async def test_a_runtime_that_was_spawned_to_delete_sessions_is_told_what_it_may_reach_before_it_serves_clients(
    open_pool,
):
    pool, host = open_pool(host_tools=HostTools.SANDBOXED)
    pool.retire(await pool.acquire(TOOLS), "idle")
    await pool.acquire(ANN)  # by a stored key: no policy is said
    assert host.processes[1].spec.confinement.egress == ()
    await pool.acquire(TOOLS)
    await pool.acquire(TOOLS)
    assert host.processes[1].reaches == [("one.example:80",)]


async def test_where_sessions_work_elsewhere_that_is_in_the_sandbox_and_no_link_leads_out_of_it(open_pool, tmp_path):
    pool, host = open_pool(host_tools=HostTools.SANDBOXED)
    await pool.acquire(TOOLS)
    there = replace(TOOLS, work_root=str(tmp_path / "work"))
    await pool.acquire(there)  # the one that is there does not show it
    assert [len(process.spec.confinement.directories) for process in host.processes] == [4, 5]
    assert host.processes[1].spec.confinement.directories[-1] == tmp_path / "work" / "acme" / "ann"
    assert (tmp_path / "work" / "acme" / "ann").is_dir()
    (tmp_path / "work" / "acme" / "eve").symlink_to("/etc")
    with pytest.raises(errors.SpawnFailed, match="found a link"):
        await pool.acquire(replace(there, key="user:acme/eve"))


# -- health -------------------------------------------------------------------------------------------------------------------


async def test_a_runtime_that_answers_no_pings_is_killed_and_its_users_are_told_before(open_pool):
    pool, host = open_pool(lambda number: Faults(ignores_term=number == 0), stop_grace_seconds=1000, health=BRISK)
    handle = await pool.acquire(ANN)
    alive_when_told = []
    handle.lost.add_done_callback(lambda _: alive_when_told.append(len(host.alive)))
    host.processes[0].freeze()
    async with asyncio.timeout(20):
        assert await handle.lost == "the runtime did not answer 2 pings"
        await eventually(lambda: not host.alive)
    assert alive_when_told == [1]
    assert host.processes[0].graces == [0.0]
    assert (await pool.acquire(ANN)).runtime_id != handle.runtime_id


async def test_a_missed_ping_now_and_then_is_no_hang_and_neither_is_a_refusal(open_pool):
    count = 0

    async def answer(_peer, _params):
        nonlocal count
        count += 1
        if count % 4 == 2:
            await asyncio.get_running_loop().create_future()
        if count % 4 == 3:
            raise RpcError(-32603, "not today")
        return {}

    pool, host = open_pool(health=HealthSettings(0.01, deadline_seconds=0.25))
    handle = await pool.acquire(ANN)
    host.runtimes[0].on["ping"] = answer
    await eventually(lambda: count >= 12)
    assert not handle.lost.done()


async def test_a_frozen_runtime_is_not_asked_and_a_ping_that_a_freeze_delayed_is_no_miss(open_pool):
    pool, host = open_pool(health=HealthSettings(0.01, deadline_seconds=2.0, failures=1))
    handle = await pool.acquire(ANN)
    [ann] = host.processes
    loop = asyncio.get_running_loop()

    async def freeze_while_asked(_peer, _params):
        handle.freeze()
        await asyncio.get_running_loop().create_future()

    ann.runtime.on["ping"] = freeze_while_asked
    await eventually(lambda: handle.is_frozen)
    asked, over = pings(ann), loop.time() + 2.2
    await eventually(lambda: loop.time() > over)  # longer than the deadline
    assert pings(ann) == asked
    assert not handle.lost.done()
    del ann.runtime.on["ping"]
    handle.thaw()
    await eventually(lambda: pings(ann) > asked + 3)
    assert not handle.lost.done()


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (ResourceUsage(2**31, 6, 14, 1), "bytes of memory"),
        (ResourceUsage(1, 2001, 14, 1), "threads"),
        (ResourceUsage(1, 6, 13_108, 1), "open files"),  # 80 % of 16384 may be open
        (ResourceUsage(1, 6, 14, 257), "processes"),
    ],
)
async def test_a_runtime_that_uses_too_much_is_cordoned_with_the_reason_on_record(open_pool, used, words):
    pool, host = open_pool(health=BRISK)
    with structlog.testing.capture_logs() as logs:
        handle = await pool.acquire(ANN)
        host.processes[0].used = used
        async with asyncio.timeout(20):
            reason = await handle.cordoned
    assert words in reason
    assert [entry["reason"] for entry in logs if entry["event"] == "runtime.cordoned"] == [reason]
    [view] = pool.describe()
    assert (view.state, view.cordoned, view.memory_bytes) == ("cordoned", reason, used.memory_bytes)
    assert not handle.lost.done()


@pytest.mark.parametrize("change", [{"age_seconds": 0.03}, {"sessions": 5}])
async def test_a_runtime_that_is_old_or_had_many_sessions_is_cordoned(open_pool, change):
    pool, _ = open_pool(health=BRISK, drift=DriftLimits(**change))
    handle = await pool.acquire(ANN)
    handle.opened = 6
    async with asyncio.timeout(20):
        assert next(iter(change)).split("_")[0] in await handle.cordoned


async def test_a_runtime_whose_pings_grow_slow_is_cordoned_and_one_that_was_always_slow_is_not(open_pool):
    delays = {}

    def prepare(runtime):
        async def answer(_peer, _params):
            await asyncio.sleep(delays.get(runtime, 0.0))
            return {}

        runtime.on["ping"] = answer

    limits = DriftLimits(ping_floor_seconds=0.02)
    pool, host = open_pool(prepare=prepare, health=HealthSettings(0.005, 5.0), drift=limits)
    slower, slow = await pool.acquire(ANN), await pool.acquire(BEN)
    delays[host.runtimes[1]] = 0.02
    await eventually(lambda: all(pings(process) > BASELINE_PINGS + 1 for process in host.processes))
    assert not slower.cordoned.done()
    delays[host.runtimes[0]] = 0.15  # more than five times what the other takes, too
    async with asyncio.timeout(30):
        assert "pings take" in await slower.cordoned
    assert not slow.cordoned.done()


async def test_a_runtime_that_is_not_to_be_watched_is_never_asked(open_pool):
    pool, host = open_pool(health=HealthSettings(0))
    await pool.acquire(ANN)
    assert pings(host.processes[0]) == 1
    assert not [task for task in asyncio.all_tasks() if "health" in task.get_name()]


# -- warm ---------------------------------------------------------------------------------------------------------------------


async def test_the_first_realm_takes_a_warm_runtime_and_another_takes_its_place(open_pool, tmp_path):
    pool, host = open_pool(warm_runtimes=1)
    await eventually(lambda: pool.describe_pool().warm == 1)
    warm = host.processes[0]
    assert home(warm).is_relative_to(tmp_path / "runtimes")
    host.may_spawn.clear()
    handle = await pool.acquire(ANN)
    assert handle.runtime_id == warm.spec.runtime_id
    assert handle.work_directory == spec.directories_of(ANN, tmp_path).work
    assert home(warm) == spec.directories_of(ANN, tmp_path).copilot_home
    for name in ("HOME", "TMPDIR"):
        assert home(warm, name).is_relative_to(tmp_path / "realms")
    host.may_spawn.set()
    await eventually(lambda: pool.describe_pool().warm == 1)
    assert len(host.processes) == 2


async def test_a_runtime_is_never_given_to_a_second_realm(open_pool):
    pool, host = open_pool(warm_runtimes=2)
    served = {}
    for number in range(6):
        await eventually(lambda: pool.describe_pool().warm > 0)
        handle = await pool.acquire(user("acme", number))
        assert handle.runtime_id not in served
        served[handle.runtime_id] = handle
        pool.release(handle)
        if number % 2:
            pool.retire(handle, "moved")
    homes = [home(process) for process in host.alive]
    assert len(set(homes)) == len(homes)


async def test_a_session_is_resumed_on_a_warm_runtime_and_only_its_realm_can(open_pool):
    pool, host = open_pool(warm_runtimes=1)
    handle = await pool.acquire(ANN)
    host.processes[0].runtime.disk.add("of-ann")
    pool.retire(handle, "moved")
    await eventually(lambda: pool.describe_pool().warm == 1)
    [warm] = [process for process in host.alive if process.spec.runtime_id != handle.runtime_id]
    assert warm.runtime.disk == set()
    assert (await pool.acquire(ANN)).runtime_id == warm.spec.runtime_id
    assert warm.runtime.disk == {"of-ann"}
    await pool.acquire(BEN)
    assert [process.runtime.disk for process in host.alive if "-ben-" in str(home(process))] == [set()]


async def test_a_realm_that_may_rely_on_what_is_read_at_the_start_has_its_own_spawned(open_pool, tmp_path):
    pool, host = open_pool(warm_runtimes=1)
    await eventually(lambda: pool.describe_pool().warm == 1)
    handle = await pool.acquire(OPEN)
    assert handle.runtime_id == host.processes[1].spec.runtime_id
    assert pool.describe_pool().warm == 1
    own, told = spec.directories_of(OPEN, tmp_path), host.processes[1].spec
    assert told.environment["COPILOT_HOME"] == str(own.copilot_home), "what is told outlives the runtime"
    assert told.working_directory == own.work
    (own.work / "kept").touch()
    pool.retire(handle, "moved")
    await handle.lost
    await eventually(lambda: len(host.alive) == 1)
    assert (own.work / "kept").exists()


async def test_a_warm_runtime_that_dies_is_replaced_and_given_to_nobody(open_pool):
    pool, host = open_pool(warm_runtimes=1)
    await eventually(lambda: pool.describe_pool().warm == 1)
    host.processes[0].kill()
    await eventually(lambda: len(host.processes) == 2 and pool.describe_pool().warm == 1)
    assert (await pool.acquire(ANN)).runtime_id == host.processes[1].spec.runtime_id


async def test_a_warm_runtime_whose_control_link_has_ended_is_given_to_nobody(open_pool):
    pool, host = open_pool(warm_runtimes=1)
    await eventually(lambda: pool.describe_pool().warm == 1)
    [cut] = pool._warm.runtimes
    host.runtimes[0].cut()
    await eventually(lambda: not cut.is_usable)
    assert (await pool.acquire(ANN)).runtime_id != cut.runtime_id
    await eventually(host.processes[0].exited.done)


async def test_more_wait_in_demand_and_those_too_many_go_when_it_is_over(open_pool):
    def prepare(runtime):
        async def answer(_peer, _params):
            await asyncio.sleep(0.1)  # how long a spawn takes
            return {}

        runtime.on["ping"] = answer

    clock = ShiftedClock()
    pool, host = open_pool(prepare=prepare, clock=clock, warm_runtimes=1, warm_runtimes_max=3)
    await eventually(lambda: pool.describe_pool().warm == 1)
    for _ in range(40):
        pool._warm.note_demand()
    await eventually(lambda: pool.describe_pool().warm == 3)
    assert pool.describe_pool().warm_target == 3
    clock.shift = 11.0
    assert pool.describe_pool().warm_target == 1
    await pool.acquire(ANN)
    await eventually(lambda: len(host.alive) == 2 and pool.describe_pool().warm == 1)


async def test_a_warm_runtime_that_hangs_or_drifts_is_replaced(open_pool):
    pool, host = open_pool(warm_runtimes=1, health=BRISK)
    await eventually(lambda: pool.describe_pool().warm == 1)
    host.processes[0].freeze()
    await eventually(lambda: len(host.processes) == 2 and pool.describe_pool().warm == 1)
    host.processes[1].used = ResourceUsage(2**31, 6, 14, 1)
    await eventually(lambda: len(host.processes) == 3 and pool.describe_pool().warm == 1)
    assert host.alive == [host.processes[2]]


async def test_a_warm_runtime_that_was_bound_is_watched_on(open_pool):
    pool, host = open_pool(warm_runtimes=1, health=BRISK)
    await eventually(lambda: pool.describe_pool().warm == 1)
    handle = await pool.acquire(ANN)
    host.processes[0].freeze()
    async with asyncio.timeout(20):
        assert "did not answer" in await handle.lost


async def test_refills_that_fail_are_tried_later_and_no_client_hears_of_them(open_pool):
    once = Backoff(first_seconds=0.01, attempts=1)
    spawned_at: list[float] = []
    pool, host = open_pool(
        lambda number: Faults(exits_at_once=number == 0),
        lambda _: spawned_at.append(time.monotonic()),
        warm_runtimes=1,
        backoff=once,
    )
    with structlog.testing.capture_logs() as logs:
        await eventually(lambda: any(entry["event"] == "runtime.refill_failed" for entry in logs))
        assert (await pool.acquire(ANN)).links == 1
        await eventually(lambda: pool.describe_pool().warm == 1)
    assert len(host.processes) == 3
    assert spawned_at[2] - spawned_at[0] >= 0.5, "the next try is a while off"


async def test_a_realm_whose_directories_cannot_be_made_is_an_answer_and_its_warm_runtime_is_stopped(
    open_pool, tmp_path
):
    pool, host = open_pool(warm_runtimes=1)
    await eventually(lambda: pool.describe_pool().warm == 1)
    (tmp_path / "realms").write_text("in the way")
    host.may_spawn.clear()
    with pytest.raises(errors.SpawnFailed, match="directories of user:acme/ann"):
        await pool.acquire(ANN)
    assert pool.realms == 0
    await eventually(host.processes[0].exited.done)
    (tmp_path / "realms").unlink()
    host.may_spawn.set()
    await pool.acquire(ANN)


async def test_paths_of_runtimes_that_an_earlier_life_left_are_removed_and_what_they_lead_to_is_not(
    open_pool, tmp_path
):
    kept = spec.directories_of(ANN, tmp_path)
    kept.create()
    (kept.copilot_home / "session").write_text("of ann")
    spec.runtime_directories("rt-dead", tmp_path).point_to(kept)
    spec.placeholders("rt-dead", tmp_path).create()
    open_pool()
    assert not (tmp_path / "runtimes").exists()
    assert (kept.copilot_home / "session").read_text() == "of ann"


async def test_the_paths_of_a_runtime_go_with_it_however_it_ends(open_pool, tmp_path):
    pool, host = open_pool()
    for end in (lambda handle: pool.retire(handle, "moved"), lambda _: host.processes[-1].kill()):
        handle = await pool.acquire(ANN)
        own = spec.runtime_directories(handle.runtime_id, tmp_path).root
        assert own.is_dir()
        end(handle)
        await handle.lost
        await eventually(lambda own=own: not own.exists())
    assert spec.directories_of(ANN, tmp_path).copilot_home.is_dir()


# -- storms -------------------------------------------------------------------------------------------------------------------


async def test_a_tenant_whose_users_come_in_a_storm_does_not_keep_another_waiting(open_pool):
    pool, host = open_pool(spawns_at_once=1)
    host.may_spawn.clear()
    acquiring = [asyncio.create_task(pool.acquire(user("many", number))) for number in range(30)]
    await eventually(lambda: pool.describe_pool().queued == 29)
    acquiring.append(asyncio.create_task(pool.acquire(user("one", 0))))
    await eventually(lambda: pool.describe_pool().queued == 30)
    host.may_spawn.set()
    handles = await asyncio.gather(*acquiring)
    order = [process.spec.runtime_id for process in host.processes]
    assert order.index(handles[30].runtime_id) <= 2
    own = [order.index(handle.runtime_id) for handle in handles[:30]]
    assert own == sorted(own)


async def test_a_full_queue_says_how_many_wait_and_to_try_later_and_forgets_the_realm(open_pool):
    pool, host = open_pool(spawns_at_once=1, spawn_queue=2)
    host.may_spawn.clear()
    acquiring = [asyncio.create_task(pool.acquire(user("acme", number))) for number in range(3)]
    await eventually(lambda: pool.describe_pool().queued == 2)
    with pytest.raises(errors.OverCapacity, match=r"2 runtimes wait.*spawn_queue.*later") as raised:
        await pool.acquire(user("acme", 3))
    assert raised.value.retryable
    assert pool.realms == 3
    joined = asyncio.create_task(pool.acquire(user("acme", 2)))
    host.may_spawn.set()
    handles = await asyncio.gather(*acquiring, joined)
    assert handles[2] is handles[3], "who wants what is on its way already need not queue"


async def test_closing_ends_those_who_wait_for_their_turn(open_pool):
    pool, host = open_pool(spawns_at_once=1, warm_runtimes=1)
    await eventually(lambda: pool.describe_pool().warm == 1)
    host.may_spawn.clear()
    acquiring = [asyncio.create_task(pool.acquire(user("acme", number))) for number in range(5)]
    await eventually(lambda: pool.describe_pool().queued > 0)
    async with asyncio.timeout(20):
        await pool.aclose()
        await asyncio.wait(acquiring)
    assert host.alive == []


async def test_no_more_runtimes_than_the_gateway_may_have_and_the_error_names_the_setting(open_pool):
    pool, host = open_pool(max_runtimes=2)
    handle = await pool.acquire(ANN)
    await pool.acquire(BEN)
    with pytest.raises(errors.OverCapacity, match=r"2 runtimes.*max_runtimes"):
        await pool.acquire(SHARED)
    assert pool.realms == 2
    pool.cordon(handle, "too old")
    with pytest.raises(errors.OverCapacity):
        await pool.acquire(ANN)
    pool.retire(handle, "moved")
    await pool.acquire(SHARED)
    assert len(host.processes) == 3


async def test_the_limit_holds_for_callers_at_once_and_what_waits_for_nobody_gives_way(open_pool):
    pool, host = open_pool(max_runtimes=2, warm_runtimes=2)
    await eventually(lambda: pool.describe_pool().warm == 2)
    realms = [ANN, OPEN, BEN, SHARED]
    outcomes = await asyncio.gather(*(pool.acquire(realm) for realm in realms), return_exceptions=True)
    assert [isinstance(outcome, errors.OverCapacity) for outcome in outcomes] == [False, False, True, True]
    await eventually(lambda: len(host.alive) == 2)
    assert len(host.processes) == 3


async def test_what_is_still_on_its_way_for_nobody_gives_way_too(open_pool):
    pool, host = open_pool(max_runtimes=1, warm_runtimes=1, spawns_at_once=1)
    host.may_spawn.clear()
    await eventually(lambda: len(host.processes) == 1)
    acquiring = asyncio.create_task(pool.acquire(OPEN))
    await eventually(lambda: len(host.processes) == 2)
    host.may_spawn.set()
    assert (await acquiring).runtime_id == host.processes[1].spec.runtime_id
    assert host.alive == [host.processes[1]]


async def test_spawns_in_advance_leave_clients_their_places_and_go_behind_them(open_pool):
    pool, host = open_pool(spawns_at_once=2, warm_runtimes=4)
    host.may_spawn.clear()
    await eventually(lambda: len(host.processes) == 1)
    acquiring = [asyncio.create_task(pool.acquire(OPEN)), asyncio.create_task(pool.acquire(ANN))]
    await eventually(lambda: len(host.processes) == 2 and pool.describe_pool().queued == 1)
    assert pool.describe_pool().spawning == 2
    host.may_spawn.set()
    await asyncio.gather(*acquiring)
    await eventually(lambda: pool.describe_pool().warm == 4)


async def test_a_client_in_the_queue_takes_what_becomes_warm_meanwhile(open_pool):
    pool, host = open_pool(spawns_at_once=1, warm_runtimes=1)
    host.may_spawn.clear()
    await eventually(lambda: len(host.processes) == 1)
    acquiring = asyncio.create_task(pool.acquire(ANN))
    await eventually(lambda: pool.describe_pool().queued == 1)
    host.may_spawn.set()
    assert (await acquiring).runtime_id == host.processes[0].spec.runtime_id


async def test_one_who_gives_up_waiting_is_out_of_the_queue_at_once_and_is_given_no_place():
    queue = SpawnQueue(1, 10)

    async def spawn() -> None:
        async with queue.turn("acme"):
            pass

    async with queue.turn("acme"):
        waiting = asyncio.create_task(spawn())
        await eventually(lambda: queue.queued == 1)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert queue.queued == 0
        waiting = asyncio.create_task(spawn())
        await eventually(lambda: queue.queued == 1)
        waiting.cancel()  # and before it hears of that, the place becomes free
    assert queue.running == 0
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    async with asyncio.timeout(20):
        await spawn()


async def test_a_place_in_the_queue_is_given_back_whenever_its_holder_gives_up():
    queue = SpawnQueue(1, 10)
    done: Counter[str] = Counter()

    async def spawn(tenant: str, in_advance: bool = False) -> None:
        async with queue.turn_in_advance() if in_advance else queue.turn(tenant):
            done[tenant] += 1
            await asyncio.sleep(0)

    for steps in range(8):
        for in_advance in (False, True):
            first = asyncio.create_task(spawn("first", in_advance))
            second = asyncio.create_task(spawn("second", in_advance))
            for _ in range(steps):
                await asyncio.sleep(0)
            first.cancel()
            second.cancel()
            await asyncio.wait((first, second))
            assert (queue.running, queue.queued) == (0, 0)
            async with asyncio.timeout(20):
                await spawn("last", in_advance)
    assert done["last"] == 16


# -- for operators ------------------------------------------------------------------------------------------------------------


async def test_an_operator_sees_every_runtime_and_the_counts_of_the_pool(open_pool):
    pool, host = open_pool(warm_runtimes=1, health=BRISK, max_runtimes=9)
    await eventually(lambda: pool.describe_pool().warm == 1)
    handle = await pool.acquire(ANN)
    handle.opened = 3
    await eventually(lambda: pool.describe_pool().warm == 1)
    await eventually(lambda: all(view.ping_seconds is not None for view in pool.describe()))
    serving, warm = pool.describe()
    assert (serving.runtime_id, serving.realm, serving.state) == (handle.runtime_id, "user:acme/ann", "ready")
    assert (serving.pid, serving.links, serving.opened) == (host.processes[0].pid, 1, 3)
    assert (serving.is_frozen, serving.memory_bytes, serving.cordoned) == (False, 80_000_000, None)
    assert 0 < serving.age_seconds < 60
    assert (warm.realm, warm.state, warm.links) == (None, "warm", 0)
    handle.freeze()
    assert pool.describe()[0].is_frozen
    counts = pool.describe_pool()
    assert (counts.runtimes, counts.max_runtimes, counts.warm, counts.warm_target) == (1, 9, 1, 1)
    assert (counts.spawning, counts.queued, counts.spawn_queue) == (0, 0, 1000)
