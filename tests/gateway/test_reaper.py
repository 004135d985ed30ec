"""The session reaper over scripted runtimes: what is deleted, what is left, and that no client loses what it was just given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import structlog

from aerodrome import errors
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Policy
from aerodrome.fleet import spec
from aerodrome.gateway import deletion
from aerodrome.gateway import reaper as reapers
from aerodrome.gateway.deletion import Outcome
from aerodrome.gateway.presence import ResidentPresence
from aerodrome.gateway.reaper import ReaperSettings
from aerodrome.testing.peer import RpcError
from aerodrome.testing.rig import TENANTS
from aerodrome.testing.scripted_runtime import Faults

HOUR = 3600.0
LIMITED = {"session_idle_seconds": HOUR, "session_age_seconds": 24 * HOUR}


class ShiftedClock:
    """The machine's clock, set forward by hand."""

    def __init__(self, clock) -> None:
        self._clock = clock
        self.ahead = 0.0

    def now(self) -> float:
        return self._clock.now() + self.ahead

    def monotonic(self) -> float:
        return self._clock.monotonic()


@pytest.fixture(autouse=True)
def logged():
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def clock(rig):
    """The rig's clock, as the reaper and the ownership rule see it."""
    clock = ShiftedClock(rig.clock)
    rig.clock = rig.ownership._clock = clock
    return clock


@pytest.fixture
def reaper(rig, clock):
    return reaper_of(rig)


def reaper_of(rig, *names: str, **settings):
    policies = {name: replace(TENANTS[name], **LIMITED) for name in names or TENANTS}
    return rig.reaper(policies, settings=ReaperSettings(**settings))


async def make(rig, tenant: str, session_id: str, user: str = "user") -> None:
    """Have a session with a turn on disk, and nobody attached."""
    client = await rig.client(tenant, user)
    await client.call("session.create", {"sessionId": session_id})
    await client.call("session.send", {"sessionId": session_id, "prompt": "hello"})
    await client.wait_for_event(session_id, "session.idle")
    await client.aclose()
    await rig.settled(lambda: rig.router.find(rig.realm(tenant, user), session_id) is None)


def stored(rig) -> set[str]:
    """Return the ids on all disks."""
    return {session_id for disk in rig.scripted._disks.values() for session_id in disk}


def work_directory(rig, tenant: str, user: str = "user"):
    realm = reapers.placement.realm_of_key(rig.realm(tenant, user))
    return spec.directories_of(realm, rig.pool._settings.state_directory).work


def gate(target, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold the first call of a method; return what says it has come, and what lets it go on."""
    usual: Callable[..., Awaitable[object]] = getattr(target, name)
    came, may_go = asyncio.Event(), asyncio.Event()

    async def gated(*args, **kwargs):
        if not came.is_set():
            came.set()
            await may_go.wait()
        return await usual(*args, **kwargs)

    setattr(target, name, gated)
    return came, may_go


def hold_deletions(rig) -> tuple[asyncio.Event, asyncio.Event]:
    """Have the runtimes that run now hold deletions; return what says one has come, and what lets them go on."""
    came, may_go = asyncio.Event(), asyncio.Event()

    async def held(runtime, peer, params):
        came.set()
        await may_go.wait()
        return runtime._delete(peer, params)

    for runtime in rig.scripted.runtimes:
        runtime.on["session.delete"] = lambda peer, params, runtime=runtime: held(runtime, peer, params)
    return came, may_go


def waiting_for(rig, session_id: str) -> int:
    """Return how many wait for the end of a session's withdrawal."""
    return len(rig.ownership._withdrawn[session_id].over._waiters)


async def within(work: Awaitable[object], seconds: float = 10.0):
    async with asyncio.timeout(seconds):
        return await work


class TestDeleting:
    @pytest.mark.parametrize("tenant", ["alone", "guarded", "team", "shared"])
    async def test_an_expired_session_is_deleted_with_its_record_and_its_own_directory(
        self, rig, clock, reaper, tenant
    ):
        await make(rig, tenant, "old")
        own = work_directory(rig, tenant) / "old"
        own.mkdir(exist_ok=True)
        (own / "file").write_text("x")
        beside = own.with_name("older")
        beside.mkdir()
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 1}

        assert stored(rig) == set()
        assert await rig.registry.find("old") is None
        assert not own.exists()
        assert beside.exists()
        assert await reaper.run_pass() == {}

    async def test_a_session_within_its_limits_is_not(self, rig, clock, reaper):
        await make(rig, "guarded", "young")
        clock.ahead = HOUR - 60

        assert await reaper.run_pass() == {}
        assert stored(rig) == {"young"}

    async def test_a_tenant_without_limits_loses_nothing(self, rig, clock):
        await make(rig, "shared", "theirs")
        await make(rig, "other", "kept")
        clock.ahead = 1000 * HOUR

        assert await reaper_of(rig, "shared").run_pass() == {Outcome.REAPED: 1}
        assert stored(rig) == {"kept"}

    async def test_a_session_at_work_is_left_and_deleted_once_it_is_idle_whoever_holds_it(self, rig, clock, reaper):
        client = await rig.client("guarded")
        await client.call("session.create", {"sessionId": "s"})
        await client.call("session.send", {"sessionId": "s", "prompt": "[hold]"})
        await client.wait_for_event("s", "assistant.turn_start")
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.LEFT: 1}
        assert stored(rig) == {"s"}
        await client.call("session.abort", {"sessionId": "s"})
        await client.wait_for_event("s", "session.idle")

        assert await reaper.run_pass() == {Outcome.REAPED: 1}
        assert stored(rig) == set()
        with pytest.raises(RpcError, match="not found"):
            await client.call("session.send", {"sessionId": "s", "prompt": "still there?"})

    async def test_a_use_that_is_not_written_yet_counts(self, rig, clock, reaper):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        rig.ownership.touch("s")

        assert await reaper.run_pass() == {}
        assert stored(rig) == {"s"}

    async def test_a_use_noted_after_the_page_was_read_counts(self, rig, clock, reaper):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        came, may_go = gate(rig.pool, "acquire")
        passing = asyncio.create_task(reaper.run_pass())
        await within(came.wait())

        rig.ownership.touch("s")
        may_go.set()

        assert await within(passing) == {Outcome.LEFT: 1}
        assert stored(rig) == {"s"}

    async def test_a_session_that_the_runtime_never_stored_is_forgotten(self, rig, clock, reaper):
        client = await rig.client("guarded")
        await client.call("session.create", {"sessionId": "no-turn"})
        await client.aclose()
        await rig.settled(lambda: rig.router.find(rig.realm("guarded"), "no-turn") is None)
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 1}
        assert await rig.registry.find("no-turn") is None

    async def test_an_id_that_reads_like_the_beginning_of_another_deletes_its_own_session_or_none(
        self, rig, clock, reaper
    ):
        """A runtime that has none of that name would delete the other one."""
        await make(rig, "alone", "0123abcd")
        await make(rig, "alone", "0123abcd-0000-4000-8000-000000000000")
        await rig.ownership.claim("4567abcd", Owner("alone", "user"), rig.realm("alone"))
        await make(rig, "alone", "4567abcd-0000-4000-8000-000000000000")
        clock.ahead = 2 * HOUR
        for session_id in stored(rig) - {"0123abcd"}:
            rig.ownership.touch(session_id)

        assert await reaper.run_pass() == {Outcome.REAPED: 2}

        assert len(stored(rig)) == 2
        asked = [call["sessionId"] for runtime in rig.scripted.runtimes for call in runtime.called("session.delete")]
        assert asked == ["0123abcd"]
        assert await rig.registry.find("4567abcd") is None

    async def test_many_sessions_go_page_by_page(self, rig, clock, reaper, monkeypatch):
        monkeypatch.setattr(reapers.list_expired, "__defaults__", (2,))
        for user in ("ann", "ben"):
            for number in range(5):
                await make(rig, "guarded", f"{user}{number}", user)
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 10}
        assert stored(rig) == set()

    async def test_the_sessions_of_a_realm_go_on_one_runtime(self, open_rig):
        rig = await open_rig(fleet={"idle_seconds": 0.01})
        clock = rig.clock = rig.ownership._clock = ShiftedClock(rig.clock)
        for user in ("ann", "ben"):
            for number in range(3):
                await make(rig, "guarded", f"{user}{number}", user)
        await rig.settled(lambda: not rig.scripted.alive)
        spawned = len(rig.scripted.processes)
        clock.ahead = 2 * HOUR

        assert await reaper_of(rig).run_pass() == {Outcome.REAPED: 6}
        assert len(rig.scripted.processes) - spawned == 2

    async def test_a_runtime_that_came_for_a_deletion_does_not_stay(self, rig, clock, reaper):
        await make(rig, "guarded", "s")
        rig.scripted.processes[0].kill()
        await rig.settled(lambda: not rig.pool.realms)
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 1}

        assert len(rig.scripted.processes) == 2
        await rig.settled(lambda: not rig.scripted.alive)

    async def test_a_runtime_that_serves_clients_stays_and_so_do_their_sessions(self, rig, clock):
        await make(rig, "shared", "old")
        client = await rig.client("other")
        await client.call("session.create", {"sessionId": "busy"})
        before = rig.scripted.alive
        clock.ahead = 2 * HOUR

        assert await reaper_of(rig, "shared").run_pass() == {Outcome.REAPED: 1}

        assert rig.scripted.alive == before
        await client.call("session.getMessages", {"sessionId": "busy"})

    async def test_the_owner_hears_that_the_session_is_deleted(self, rig, clock, reaper):
        await make(rig, "team", "old", "ann")
        clock.ahead = 2 * HOUR
        owner, colleague = await rig.client("team", "ann"), await rig.client("team", "ben")
        for client, session_id in ((owner, "anns"), (colleague, "bens")):
            await client.call("session.create", {"sessionId": session_id})

        await reaper.run_pass()

        told = {"type": "session.deleted", "sessionId": "old"}
        await owner.wait_until(lambda: told in owner.notifications("session.lifecycle"))
        await colleague.call("session.getMessages", {"sessionId": "bens"})
        assert told not in colleague.notifications("session.lifecycle")

    async def test_what_is_done_is_logged_by_limit_and_counted(self, rig, clock, reaper, logged):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR

        await reaper.run_pass()

        [reaped] = [entry for entry in logged if entry["event"] == "session.reaped"]
        assert (reaped["session"], reaped["limit"]) == ("s", "idle")
        [finished] = [entry for entry in logged if entry["event"] == "reaper.pass_finished"]
        assert (finished["reaped"], finished["left"], finished["failed"]) == (1, 0, 0)


class TestRaces:
    @pytest.mark.parametrize("tenant", ["alone", "guarded", "shared"])
    async def test_a_client_that_comes_during_a_deletion_waits_and_finds_the_session_missing(
        self, rig, clock, reaper, tenant
    ):
        await make(rig, tenant, "s")
        client = await rig.client(tenant)
        await client.call("session.create", {"sessionId": "another"})
        clock.ahead = 2 * HOUR
        rig.ownership.touch("another")
        came, may_go = hold_deletions(rig)
        passing = asyncio.create_task(reaper.run_pass())
        await within(came.wait())

        resuming = client.ask("session.resume", {"sessionId": "s"})
        await within(rig.settled(lambda: waiting_for(rig, "s")))
        assert not any(runtime.called("session.resume") for runtime in rig.scripted.runtimes)
        may_go.set()

        with pytest.raises(RpcError, match=r"[Nn]ot found"):
            await within(resuming)
        assert await within(passing) == {Outcome.REAPED: 1}
        await client.call("session.create", {"sessionId": "s"})
        assert (await rig.registry.find("s")).owner == Owner(tenant, "user")

    async def test_the_id_cannot_be_claimed_before_the_runtime_has_let_go_of_the_session(self, rig, clock, reaper):
        await make(rig, "shared", "s", "ann")
        other = await rig.client("other")
        await other.call("session.create", {"sessionId": "another"})
        clock.ahead = 2 * HOUR
        rig.ownership.touch("another")
        came, may_go = hold_deletions(rig)
        passing = asyncio.create_task(reaper.run_pass())
        await within(came.wait())

        with pytest.raises(RpcError, match="being freed"):
            await other.call("session.create", {"sessionId": "s"})
        may_go.set()

        assert await within(passing) == {Outcome.REAPED: 1}
        await other.call("session.create", {"sessionId": "s"})
        assert (await rig.registry.find("s")).owner == Owner("other", "user")

    @pytest.mark.parametrize("tenant", ["alone", "guarded", "shared"])
    async def test_a_resume_that_was_let_through_before_is_waited_for_and_keeps_its_session(
        self, rig, clock, reaper, tenant
    ):
        await make(rig, tenant, "s")
        clock.ahead = 2 * HOUR
        client = await rig.client(tenant)
        came, may_go = gate(rig.pool, "acquire")
        resuming = client.ask("session.resume", {"sessionId": "s"})
        await within(came.wait())
        passing = asyncio.create_task(reaper.run_pass())
        await within(rig.settled(lambda: "s" in rig.ownership._withdrawn))

        may_go.set()

        assert (await within(resuming))["sessionId"] == "s"
        assert await within(passing) == {Outcome.LEFT: 1}
        assert stored(rig) == {"s"}
        await client.call("session.getMessages", {"sessionId": "s"})

    async def test_a_resume_that_takes_too_long_to_be_waited_for_keeps_its_session(self, rig, clock):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        client = await rig.client("guarded")
        came, may_go = gate(rig.pool, "acquire")
        resuming = client.ask("session.resume", {"sessionId": "s"})
        await within(came.wait())

        assert await reaper_of(rig, settle_seconds=0.01).run_pass() == {Outcome.LEFT: 1}

        may_go.set()
        assert (await within(resuming))["sessionId"] == "s"
        await client.call("session.getMessages", {"sessionId": "s"})

    async def test_a_request_that_waited_goes_on_where_the_session_is_left(self, rig, clock, reaper):
        await make(rig, "guarded", "s")
        client = await rig.client("guarded")
        await client.call("session.create", {"sessionId": "another"})
        clock.ahead = 2 * HOUR
        rig.ownership.touch("another")
        came, may_go = asyncio.Event(), asyncio.Event()

        async def busy(_peer, params):
            came.set()
            await may_go.wait()
            error = f"Cannot delete session {params['sessionId']}: it is currently in use by another process."
            return {"success": False, "error": error}

        rig.scripted.runtimes[-1].on["session.delete"] = busy
        passing = asyncio.create_task(reaper.run_pass())
        await within(came.wait())
        resuming = client.ask("session.resume", {"sessionId": "s"})
        await within(rig.settled(lambda: waiting_for(rig, "s")))
        may_go.set()

        assert (await within(resuming))["sessionId"] == "s"
        assert await within(passing) == {Outcome.LEFT: 1}
        assert stored(rig) == {"s"}


class FakePresence:
    """Says what it is told; `unloads` is what became of each session that was to be unloaded."""

    def __init__(self, at_work: set[str] = frozenset(), idle: set[str] = frozenset()) -> None:
        self.at_work = set(at_work)
        self.idle = set(idle)
        self.asked: list[tuple[str, str]] = []

    def is_at_work(self, realm_key: str, session_id: str) -> bool:
        return session_id in self.at_work

    async def unload(self, realm_key: str, session_id: str) -> bool:
        self.asked.append((realm_key, session_id))
        return session_id in self.idle


class TestPresence:
    async def test_a_session_at_work_is_neither_unloaded_nor_deleted(self, rig, clock):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        presence = FakePresence(at_work={"s"})

        outcomes = await rig.reaper({"guarded": Policy(**LIMITED)}, presence).run_pass()

        assert (outcomes, presence.asked, stored(rig)) == ({Outcome.LEFT: 1}, [], {"s"})

    async def test_an_idle_session_is_deleted_only_if_it_could_be_unloaded(self, rig, clock):
        for session_id in ("idle", "turned-busy"):
            await make(rig, "guarded", session_id)
        clock.ahead = 2 * HOUR
        presence = FakePresence(idle={"idle"})

        outcomes = await rig.reaper({"guarded": Policy(**LIMITED)}, presence).run_pass()

        assert outcomes == {Outcome.REAPED: 1, Outcome.LEFT: 1}
        assert sorted(presence.asked) == [(rig.realm("guarded"), "idle"), (rig.realm("guarded"), "turned-busy")]
        assert stored(rig) == {"turned-busy"}

    async def test_a_session_used_since_the_page_was_read_is_not_even_unloaded(self, rig, clock):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        presence = FakePresence(idle={"s"})
        came, may_go = gate(rig.pool, "acquire")
        passing = asyncio.create_task(rig.reaper({"guarded": Policy(**LIMITED)}, presence).run_pass())
        await within(came.wait())

        rig.ownership.touch("s")
        may_go.set()

        assert await within(passing) == {Outcome.LEFT: 1}
        assert presence.asked == []

    async def test_a_session_used_while_its_requests_were_waited_for_is_left(self, rig, clock):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        came, may_go = gate(rig.ownership, "wait_unasked")
        passing = asyncio.create_task(rig.reaper({"guarded": Policy(**LIMITED)}, FakePresence(idle={"s"})).run_pass())
        await within(came.wait())

        rig.ownership.touch("s")
        may_go.set()

        assert await within(passing) == {Outcome.LEFT: 1}
        assert stored(rig) == {"s"}

    async def test_a_session_that_is_at_work_again_after_it_was_unloaded_is_left(self, rig, clock):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        presence = FakePresence(idle={"s"})
        came, may_go = gate(rig.ownership, "wait_unasked")
        passing = asyncio.create_task(rig.reaper({"guarded": Policy(**LIMITED)}, presence).run_pass())
        await within(came.wait())

        presence.at_work.add("s")
        may_go.set()

        assert await within(passing) == {Outcome.LEFT: 1}
        assert stored(rig) == {"s"}


class TestFailing:
    async def test_a_session_in_use_by_another_process_is_left(self, rig, clock, reaper):
        def prepare(runtime):
            async def busy(_peer, params):
                return {
                    "success": False,
                    "error": f"Cannot delete session {params['sessionId']}: it is currently in use",
                }

            runtime.on["session.delete"] = busy

        await make(rig, "guarded", "s")
        for runtime in rig.scripted.runtimes:
            prepare(runtime)
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.LEFT: 1}
        assert await rig.registry.find("s") is not None
        client = await rig.client("guarded")
        assert (await client.call("session.resume", {"sessionId": "s"}))["sessionId"] == "s"

    @pytest.mark.parametrize("answer", [{"success": False, "error": "disk on fire"}, {}, None, [], "no"])
    async def test_a_deletion_that_fails_keeps_the_record_and_stops_no_other(self, rig, clock, reaper, answer):
        for session_id in ("a", "bad", "c"):
            await make(rig, "guarded", session_id)
        runtime = rig.scripted.runtimes[0]

        async def delete(peer, params):
            return answer if params["sessionId"] == "bad" else runtime._delete(peer, params)

        runtime.on["session.delete"] = delete
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 2, Outcome.FAILED: 1}
        assert stored(rig) == {"bad"}
        assert await rig.registry.find("bad") is not None

    async def test_a_runtime_that_dies_at_a_deletion_fails_its_realm_alone_and_the_next_pass_succeeds(self, open_rig):
        rig = await open_rig(faults=lambda number: Faults(dies_at="session.delete") if number == 0 else Faults())
        clock = rig.clock = rig.ownership._clock = ShiftedClock(rig.clock)
        for user in ("ann", "ben"):
            await make(rig, "guarded", f"of-{user}", user)
        clock.ahead = 2 * HOUR
        reaper = reaper_of(rig)

        assert await within(reaper.run_pass()) == {Outcome.REAPED: 1, Outcome.FAILED: 1}
        assert stored(rig) == {"of-ann"}
        assert await within(reaper.run_pass()) == {Outcome.REAPED: 1}
        assert stored(rig) == set()

    async def test_a_runtime_that_does_not_answer_is_retired_so_that_it_cannot_delete_later(
        self, open_rig, monkeypatch
    ):
        monkeypatch.setattr(deletion, "_DELETE_SECONDS", 0.05)
        rig = await open_rig(faults=lambda number: Faults(unanswered="session.delete") if number == 0 else Faults())
        clock = rig.clock = rig.ownership._clock = ShiftedClock(rig.clock)
        await make(rig, "shared", "s")
        client = await rig.client("other")
        await client.call("session.create", {"sessionId": "busy"})
        clock.ahead = 2 * HOUR

        assert await within(reaper_of(rig, "shared").run_pass()) == {Outcome.FAILED: 1}

        await rig.settled(lambda: rig.scripted.processes[0] not in rig.scripted.alive)
        assert await rig.registry.find("s") is not None

    async def test_a_realm_whose_runtime_cannot_be_spawned_stops_no_other(self, open_rig):
        doomed = {"number": -1}
        rig = await open_rig(
            faults=lambda number: Faults(exits_at_once=True) if number >= doomed["number"] >= 0 else Faults(),
            fleet={"idle_seconds": 0.01},
        )
        clock = rig.clock = rig.ownership._clock = ShiftedClock(rig.clock)
        await make(rig, "guarded", "dead", "ann")
        await rig.settled(lambda: not rig.scripted.alive)
        holder = await rig.client("team", "ben")
        await holder.call("session.create", {"sessionId": "live"})
        await make(rig, "team", "old", "cat")
        doomed["number"] = len(rig.scripted.processes)
        clock.ahead = 2 * HOUR
        rig.ownership.touch("live")

        assert await within(reaper_of(rig).run_pass()) == {Outcome.REAPED: 1, Outcome.FAILED: 1}
        assert stored(rig) == {"dead"}

    async def test_a_tenant_whose_sessions_cannot_be_listed_stops_no_other(self, rig, clock, reaper, logged):
        await make(rig, "guarded", "s")
        await make(rig, "shared", "t")
        usual = rig.registry.list_stale

        async def broken(tenant, *rest):
            if tenant == "guarded":
                raise errors.StoreUnavailable("down")
            return await usual(tenant, *rest)

        rig.registry.list_stale = broken
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 1}
        assert stored(rig) == {"s"}
        assert [entry["tenant"] for entry in logged if entry["event"] == "reaper.tenant_failed"] == ["guarded"]

    async def test_a_record_whose_realm_nobody_knows_fails_alone(self, rig, clock, reaper):
        await rig.ownership.claim("odd", Owner("guarded", "ann"), "pool:7")
        await make(rig, "guarded", "s", "ben")
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 1, Outcome.FAILED: 1}

    async def test_the_loop_outlives_a_pass_that_fails(self, rig, clock, logged):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        attempts = []

        async def list_tenants():
            attempts.append(len(attempts))
            if len(attempts) == 1:
                raise errors.ConfigError("unreadable")
            if len(attempts) == 2:
                raise ZeroDivisionError
            return [Tenant("guarded", Policy(**LIMITED))]

        presence = ResidentPresence(rig.services)
        settings = ReaperSettings(interval_seconds=0.001)
        reaper = reapers.SessionReaper(rig.pool, rig.ownership, list_tenants, presence, clock, settings)
        running = asyncio.create_task(reaper.run(), name="session reaper")
        try:
            await rig.settled(lambda: not stored(rig))
        finally:
            running.cancel()
            await asyncio.wait((running,))
        assert [entry["event"] for entry in logged].count("reaper.pass_failed") == 2

    async def test_a_reaper_that_is_cancelled_at_a_deletion_lets_those_go_on_who_wait(self, rig, clock, reaper):
        await make(rig, "guarded", "s")
        clock.ahead = 2 * HOUR
        came, _ = hold_deletions(rig)
        passing = asyncio.create_task(reaper.run_pass())
        await within(came.wait())
        asking = asyncio.create_task(rig.ownership.find_owner("s"))

        passing.cancel()
        await asyncio.wait((passing,))

        assert await within(asking) == Owner("guarded", "user")


class TestDryRun:
    async def test_a_dry_run_deletes_nothing_and_says_what_it_would(self, rig, clock, logged):
        await make(rig, "guarded", "old")
        client = await rig.client("guarded")
        await client.call("session.create", {"sessionId": "busy"})
        await client.call("session.send", {"sessionId": "busy", "prompt": "[hold]"})
        await client.wait_for_event("busy", "assistant.turn_start")
        clock.ahead = 2 * HOUR
        spawned = len(rig.scripted.processes)

        outcomes = await reaper_of(rig, is_dry_run=True).run_pass()

        assert outcomes == {Outcome.WOULD_BE_REAPED: 1, Outcome.LEFT: 1}
        assert stored(rig) == {"old", "busy"}
        assert await rig.registry.find("old") is not None
        assert len(rig.scripted.processes) == spawned
        found = [(e["session"], e["limit"]) for e in logged if e["event"] == "session.would_be_reaped"]
        assert found == [("old", "idle")]


class TestDirectories:
    def test_a_directory_is_removed_with_all_in_it_but_not_what_its_links_lead_to(self, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "kept").touch()
        own = tmp_path / "work" / "s"
        (own / "deep" / "er").mkdir(parents=True)
        (own / "deep" / "way-out").symlink_to(outside)

        deletion.remove_directory(tmp_path / "work", "s")

        assert not own.exists()
        assert (outside / "kept").exists()

    def test_a_link_in_the_directorys_place_is_not_followed(self, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "kept").touch()
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "s").symlink_to(outside)

        with pytest.raises(OSError, match="symbolic link"):
            deletion.remove_directory(tmp_path / "work", "s")

        assert (outside / "kept").exists()

    def test_a_link_in_the_parents_place_is_not_followed(self, tmp_path):
        (tmp_path / "outside" / "s").mkdir(parents=True)
        (tmp_path / "work").symlink_to(tmp_path / "outside")

        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            deletion.remove_directory(tmp_path / "work", "s")

        assert (tmp_path / "outside" / "s").exists()

    @pytest.mark.parametrize("parent", ["work", "nowhere"])
    def test_a_directory_that_is_not_there_is_no_error(self, tmp_path, parent):
        (tmp_path / "work").mkdir()

        deletion.remove_directory(tmp_path / parent, "s")

    async def test_an_id_that_would_climb_out_removes_nothing(self, rig, clock, reaper):
        await make(rig, "guarded", "s")
        work = work_directory(rig, "guarded")
        (work / "s" / "kept").touch()
        await rig.ownership.claim("../work", Owner("guarded", "user"), rig.realm("guarded"))
        clock.ahead = 2 * HOUR
        rig.ownership.touch("s")

        assert await reaper.run_pass() == {Outcome.REAPED: 1}
        assert (work / "s" / "kept").exists()

    async def test_a_link_in_place_of_a_sessions_directory_keeps_what_it_leads_to_and_the_session_goes(
        self, rig, clock, reaper, tmp_path, logged
    ):
        await make(rig, "guarded", "s")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "kept").touch()
        own = work_directory(rig, "guarded") / "s"
        own.rmdir()
        own.symlink_to(outside)
        clock.ahead = 2 * HOUR

        assert await reaper.run_pass() == {Outcome.REAPED: 1}
        assert (outside / "kept").exists()
        assert await rig.registry.find("s") is None
        assert "session.directory_kept" in [entry["event"] for entry in logged]
