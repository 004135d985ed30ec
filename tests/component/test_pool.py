"""The fleet of a gateway: spawned once, spread, limited, stopped when idle, backed off when broken."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
import structlog

from aerodrome import errors
from aerodrome.core.backoff import Backoff
from aerodrome.core.placement import Realm
from aerodrome.core.policy import Isolation
from aerodrome.fleet import spec
from aerodrome.fleet.given import GivenUpstream
from aerodrome.fleet.pool import RuntimePool
from aerodrome.testing import peer as peers
from aerodrome.testing import rig as rigs
from aerodrome.testing.scripted_host import ScriptedHost
from aerodrome.testing.scripted_runtime import Faults

ANN, BEN = Realm("user:acme/ann", Isolation.USER), Realm("user:acme/ben", Isolation.USER)
SHARED = Realm("shared", Isolation.SHARED)


@pytest.fixture
async def open_pool(tmp_path):
    pools = []
    before = asyncio.all_tasks()

    def opened(faults=lambda _: Faults(), **changes) -> tuple[RuntimePool, ScriptedHost]:
        host = ScriptedHost(faults)
        pools.append(RuntimePool(host, rigs.fleet_settings(tmp_path, **changes)))
        return pools[-1], host

    yield opened
    for pool in pools:
        await pool.aclose()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=20)
    assert left == set()


async def eventually(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  a stop has no event for tests
            await asyncio.sleep(0.002)


def home_of(process) -> str:
    """Return the directory that a runtime's COPILOT_HOME leads to."""
    return os.path.realpath(process.spec.environment["COPILOT_HOME"])


async def test_many_who_want_one_realm_at_once_share_one_spawn(open_pool):
    pool, host = open_pool()
    handles = await asyncio.gather(*(pool.acquire(ANN) for _ in range(50)))
    assert len(host.processes) == 1
    assert {handle.runtime_id for handle in handles} == {handles[0].runtime_id}
    assert handles[0].links == 50


async def test_each_realm_has_its_own_runtime_home_and_token(open_pool):
    pool, host = open_pool()
    ann, ben = await asyncio.gather(pool.acquire(ANN), pool.acquire(BEN))
    assert ann.runtime_id != ben.runtime_id
    assert ann.token != ben.token
    assert ann.work_directory != ben.work_directory
    one, other = (process.spec.environment for process in host.processes)
    for name in ("COPILOT_HOME", "HOME", "TMPDIR", "COPILOT_CONNECTION_TOKEN"):
        assert one[name] != other[name]


async def test_a_caller_who_gives_up_does_not_take_the_spawn_along(open_pool):
    pool, host = open_pool()
    host.may_spawn.clear()
    impatient, patient = asyncio.create_task(pool.acquire(ANN)), asyncio.create_task(pool.acquire(ANN))
    await eventually(lambda: host.processes)
    impatient.cancel()
    await asyncio.wait((impatient,))
    host.may_spawn.set()
    handle = await patient
    assert handle.links == 1
    assert len(host.processes) == 1


async def test_spawns_of_different_realms_run_at_once_up_to_their_limit(open_pool):
    pool, host = open_pool(spawns_at_once=2)
    host.may_spawn.clear()
    acquiring = [asyncio.create_task(pool.acquire(Realm(f"user:a/{number}", Isolation.USER))) for number in range(5)]
    await eventually(lambda: len(host.processes) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(host.processes) == 2
    host.may_spawn.set()
    await asyncio.gather(*acquiring)
    assert len(host.processes) == 5


async def test_a_shared_realm_spreads_over_more_runtimes_when_one_is_full_and_refuses_when_all_are(open_pool):
    pool, host = open_pool(links_per_runtime=3, shared_runtimes=2)
    handles = [await pool.acquire(SHARED) for _ in range(6)]
    assert sorted({handle.runtime_id: handle.links for handle in handles}.values()) == [3, 3]
    with pytest.raises(errors.OverCapacity, match="2 runtimes") as raised:
        await pool.acquire(SHARED)
    assert raised.value.retryable
    pool.release(handles[5])
    assert (await pool.acquire(SHARED)).runtime_id == handles[5].runtime_id
    assert len(host.processes) == 2


async def test_new_links_go_to_the_runtime_with_the_fewest(open_pool):
    pool, _ = open_pool(links_per_runtime=2)
    first = [await pool.acquire(SHARED) for _ in range(2)]
    second = [await pool.acquire(SHARED) for _ in range(2)]
    for handle in (*first, second[0]):
        pool.release(handle)
    assert [(await pool.acquire(SHARED)).runtime_id for _ in range(2)] == [first[0].runtime_id] * 2


@pytest.mark.parametrize("realm", [ANN, Realm("tenant:acme", Isolation.TENANT)])
async def test_a_realm_of_one_user_or_tenant_never_has_two_runtimes(open_pool, realm):
    pool, host = open_pool(links_per_runtime=2)
    for _ in range(2):
        await pool.acquire(realm)
    with pytest.raises(errors.OverCapacity):
        await pool.acquire(realm)
    assert len(host.processes) == 1


async def test_a_named_runtime_is_had_or_none(open_pool):
    pool, host = open_pool(links_per_runtime=2)
    handle = await pool.acquire(SHARED)
    assert (await pool.acquire(SHARED, handle.runtime_id)) is handle
    with pytest.raises(errors.OverCapacity, match="of this session"):
        await pool.acquire(SHARED, handle.runtime_id)
    host.processes[0].kill()
    await handle.lost
    with pytest.raises(errors.RuntimeLost) as raised:
        await pool.acquire(SHARED, handle.runtime_id)
    assert raised.value.retryable


async def test_a_runtime_is_stopped_once_it_was_idle_so_long_and_a_new_one_has_the_same_home(open_pool):
    pool, host = open_pool(idle_seconds=0.05)
    handle = await pool.acquire(ANN)
    other = await pool.acquire(ANN)
    home = home_of(host.processes[0])
    pool.release(handle)
    await asyncio.sleep(0.1)
    assert host.alive, "a link is left"
    pool.release(other)
    assert await handle.lost == "idle"
    await eventually(lambda: not host.alive)
    await pool.acquire(ANN)
    assert len(host.processes) == 2
    assert home_of(host.processes[1]) == home


async def test_nothing_is_kept_of_a_realm_without_runtimes(open_pool):
    pool, host = open_pool(lambda number: Faults(exits_at_once=number < 3))
    with pytest.raises(errors.SpawnFailed):
        await pool.acquire(ANN)
    assert pool.realms == 0
    handles = [await pool.acquire(realm) for realm in (ANN, BEN, SHARED)]
    assert pool.realms == 3
    host.processes[3].kill()
    await handles[0].lost
    pool.retire(handles[1], "enough")
    await handles[1].lost
    assert pool.realms == 1
    for handle in handles[:2]:
        pool.release(handle)
    with pytest.raises(errors.RuntimeLost):
        await pool.acquire(ANN, handles[0].runtime_id)
    assert pool.realms == 1


async def test_a_link_in_time_keeps_an_idle_runtime(open_pool):
    pool, host = open_pool(idle_seconds=0.05)
    handle = await pool.acquire(ANN)
    for _ in range(4):
        pool.release(handle)
        # In the same step of the loop: however slow the machine is, that is in time.
        assert await pool.acquire(ANN) is handle
    await asyncio.sleep(0.15)
    assert not handle.lost.done()
    assert len(host.alive) == 1


async def test_a_dead_runtime_is_noticed_at_once_and_the_next_caller_has_another(open_pool):
    pool, host = open_pool()
    handle = await pool.acquire(ANN)
    host.processes[0].kill()
    async with asyncio.timeout(5):  # health, which would find it as well, asks seldom, and says something else
        assert "signal 9" in await handle.lost
    assert (await pool.acquire(ANN)).runtime_id != handle.runtime_id


async def test_a_runtime_that_closes_its_control_link_is_stopped_and_replaced(open_pool):
    pool, host = open_pool()
    handle = await pool.acquire(ANN)
    host.runtimes[0].cut()
    assert "control link" in await handle.lost
    await eventually(lambda: not host.alive)
    await pool.acquire(ANN)


async def test_a_runtime_that_is_retired_while_its_loss_is_being_noticed_is_stopped_all_the_same(open_pool):
    for steps in range(12):
        pool, host = open_pool(stop_grace_seconds=0.05, faults=lambda _: Faults(ignores_term=True))
        handle = await pool.acquire(ANN)
        host.runtimes[0].cut()
        for _ in range(steps):
            await asyncio.sleep(0)
        pool.retire(handle, "cannot be reached")
        await handle.lost
        await eventually(lambda host=host: not host.alive)


async def test_retiring_twice_stops_once(open_pool):
    pool, host = open_pool()
    handle = await pool.acquire(ANN)
    pool.retire(handle, "first")
    pool.retire(handle, "second")
    assert await handle.lost == "first"
    await eventually(lambda: not host.alive)
    assert host.processes[0].stops == 1


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(exits_at_once=True), "exited with code 1"),
        (Faults(never_ready=True), "not ready within 0.05 s"),
        (Faults(unanswered="connect"), "not ready within 0.05 s"),
        (Faults(unanswered="ping"), "not ready within 0.05 s"),
        (Faults(closes_mid_frame_at="connect"), "ended"),
        (Faults(closes_mid_frame_at="ping"), "ended"),
        (Faults(dies_at="ping"), "ended"),
        (Faults(refuses="ping"), "refuses to be used"),
        (Faults(refuses="connect"), "refuses our token"),
    ],
)
async def test_spawns_that_fail_are_tried_so_often_and_end_with_the_reason(open_pool, faults, reason):
    # Who does not say anything is not waited for; who does must be heard, however slow the machine is.
    pool, host = open_pool(lambda _: faults, ready_seconds=0.05 if reason.startswith("not ready") else 20.0)
    with structlog.testing.capture_logs() as logs, pytest.raises(errors.SpawnFailed, match=reason) as raised:
        await pool.acquire(ANN)
    assert "3 attempts" in raised.value.message
    assert len(host.processes) == 3
    assert host.alive == []
    failed = [entry for entry in logs if entry["event"] == "runtime.spawn_failed"]
    assert [entry["failures"] for entry in failed] == [1, 2, 3]
    assert host.processes[0].spec.environment["COPILOT_CONNECTION_TOKEN"] not in raised.value.message


async def test_a_spawn_that_fails_once_succeeds_at_the_next_attempt(open_pool):
    pool, host = open_pool(lambda number: Faults(exits_at_once=number == 0))
    assert (await pool.acquire(ANN)).links == 1
    assert len(host.processes) == 2


async def test_all_who_wait_for_a_spawn_hear_that_it_failed_and_the_next_caller_tries_anew(open_pool):
    pool, host = open_pool(lambda number: Faults(exits_at_once=number < 3))
    outcomes = await asyncio.gather(*(pool.acquire(ANN) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(outcome, errors.SpawnFailed) for outcome in outcomes)
    assert len(host.processes) == 3
    await pool.acquire(ANN)
    assert len(host.processes) == 4


async def test_waits_between_attempts_grow(open_pool):
    backoff = Backoff(first_seconds=0.05, factor=4.0, limit_seconds=10.0, attempts=3)
    pool, _ = open_pool(lambda _: Faults(exits_at_once=True), backoff=backoff)
    started = time.monotonic()
    with pytest.raises(errors.SpawnFailed):
        await pool.acquire(ANN)
    assert time.monotonic() - started >= (0.05 + 0.2) / 2


async def test_a_realm_whose_directories_cannot_be_made_is_an_answer_not_a_crash(open_pool, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    host = ScriptedHost()
    pool = RuntimePool(host, rigs.fleet_settings(blocked))
    with pytest.raises(errors.RuntimeUnavailable, match="director"):
        await pool.acquire(ANN)
    assert host.processes == []


async def test_closing_stops_what_runs_and_what_is_starting_and_refuses_the_rest(open_pool):
    pool, host = open_pool(lambda number: Faults(never_ready=number == 1))
    handle = await pool.acquire(ANN)
    starting = asyncio.create_task(pool.acquire(BEN))
    await eventually(lambda: len(host.processes) == 2)
    async with asyncio.timeout(20):
        await pool.aclose()
    assert host.alive == []
    assert "stopping" in await handle.lost
    await asyncio.wait((starting,), timeout=20)
    assert starting.done()
    with pytest.raises(errors.Draining):
        await pool.acquire(ANN)


async def test_lifecycle_broadcasts_of_a_control_link_are_delivered_and_nothing_else(open_pool):
    pool, host = open_pool()
    heard = []
    pool.subscribe(lambda realm, runtime_id, body: heard.append((realm, runtime_id, body)))
    handle = await pool.acquire(ANN)
    [control] = host.runtimes[0].peers
    control.notify("session.event", {"sessionId": "x"})
    control.notify("session.lifecycle", {"type": "session.created", "sessionId": "x"})
    await eventually(lambda: heard)
    [(realm, runtime_id, body)] = heard
    assert (realm, runtime_id) == (ANN, handle.runtime_id)
    assert b"session.created" in body


async def test_odd_words_of_a_runtime_on_its_control_link_do_not_end_it(open_pool):
    pool, host = open_pool()
    handle = await pool.acquire(ANN)
    [control] = host.runtimes[0].peers
    for body in (b"[]", b"nonsense", b'{"jsonrpc":"2.0","id":77,"result":1}', b'{"jsonrpc":"2.0","id":1.5,"result":1}'):
        control.send_bytes(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    with pytest.raises(peers.RpcError, match="Unhandled method"):
        await control.call("hooks.invoke")
    assert not handle.lost.done()


def test_the_environment_of_a_runtime_is_what_is_named_and_nothing_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "hunter2")
    settings = rigs.fleet_settings(
        tmp_path, environment={"HTTPS_PROXY": "http://proxy", "COPILOT_CONNECTION_TOKEN": "no"}
    )
    directories = spec.directories_of(ANN, tmp_path)
    made = spec.spawn_spec("rt-1", "the-token", directories, settings)
    assert "SECRET_OF_THE_GATEWAY" not in made.environment
    assert made.environment["HTTPS_PROXY"] == "http://proxy"
    assert made.environment["COPILOT_CONNECTION_TOKEN"] == "the-token"
    assert "the-token" not in " ".join(made.argv)
    assert "the-token" not in repr(settings)
    assert "--no-auto-login" in made.argv
    with_login = rigs.fleet_settings(tmp_path, environment={"GH_TOKEN": "ghp"})
    assert "--no-auto-login" not in spec.spawn_spec("rt-1", "t", directories, with_login).argv


def test_directories_of_realms_are_apart_readable_and_private(tmp_path):
    keys = [
        "user:a/b",
        "user:a-b",
        "user:a.b",
        "tenant:a",
        "shared",
        "user:" + "x" * 100 + "/y",
        "user:" + "x" * 100 + "/z",
    ]
    found = [spec.directories_of(Realm(key, Isolation.USER), tmp_path) for key in keys]
    assert len({directories.root for directories in found}) == len(keys)
    assert found[0].root.name.startswith("user-a-b-")
    for directories in found:
        directories.create()
        directories.create()
        assert directories.root.parent == tmp_path / "realms"
        for path in (
            directories.root,
            directories.copilot_home,
            directories.home,
            directories.temporary,
            directories.work,
        ):
            assert path.stat().st_mode & 0o777 == 0o700


async def test_a_given_upstream_is_counted_but_never_started_or_stopped():
    fleet = GivenUpstream("127.0.0.1", 1, "token")
    one, other = await fleet.acquire(ANN), await fleet.acquire(ANN)
    assert (one.host, one.port, one.token, one.links) == ("127.0.0.1", 1, "token", 1)
    assert one is not other
    assert "token" not in repr(one)
    fleet.retire(one, "gone")
    fleet.retire(one, "again")
    assert await one.lost == "gone"
    assert not other.lost.done()
    fleet.release(one)
    await fleet.aclose()
    with pytest.raises(errors.Draining):
        await fleet.acquire(ANN)
