"""Runtimes that get slow, grow or hang, and all of them one after the other, replaced under load, on the real runtime.

The gateway is in this process, so that a test can see its pool; its clients and what they hear are those of any other.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from aerodrome import app
from aerodrome import demo as demo_module
from aerodrome import settings as settings_module
from aerodrome.app import Application
from aerodrome.core import identity
from aerodrome.core.identity import Owner, Tenant
from aerodrome.core.policy import Isolation, Policy, Trust
from aerodrome.fleet.pool import RuntimePool
from aerodrome.ports.fleet import RuntimeHandle, RuntimeView
from aerodrome.testing import peer as peers
from aerodrome.testing.peer import Peer, RpcError

from .served import state_of

pytestmark = pytest.mark.runtime

TENANTS = {
    "acme": Policy(Isolation.USER, Trust.FULL),
    "shop": Policy(Isolation.SHARED, Trust.LIMITED),
}
#: Nothing leaves a runtime for any other reason than the one a test is about.
CALM = {"live_sessions": 0, "freeze_seconds": 0.0, "idle_seconds": 600.0, "warm_runtimes": 0}
BRISK = {"health_interval_seconds": 0.1, "health_deadline_seconds": 1.0, "health_failures": 2}


@dataclass
class House:
    """A gateway in this process over the real runtime."""

    application: Application
    model: dict[str, Any]
    clients: list[Peer] = field(default_factory=list)

    @property
    def pool(self) -> RuntimePool:
        assert isinstance(self.application.fleet, RuntimePool)
        return self.application.fleet

    def views(self) -> list[RuntimeView]:
        """Return the runtimes that serve somebody."""
        return [view for view in self.pool.describe() if view.realm is not None]

    def handles(self, runtime_id: str = "") -> list[RuntimeHandle]:
        """Return the handles of the runtimes in use, or of one."""
        assert self.application.services is not None
        found = [occupied.handle for occupied in self.application.services.occupancy]
        return [handle for handle in found if runtime_id in ("", handle.runtime_id)]

    async def client(self, tenant: str, user: str) -> Peer:
        """Connect a user, who is made for the occasion."""
        assert self.application.stores is not None
        key, token = identity.create_key(Owner(tenant, user), time.time())
        await self.application.stores.keys.add(key)
        client = await peers.open_client(self.application.host, self.application.port, token)
        self.clients.append(client)
        return client

    async def talk(self, tenant: str, user: str, **params: Any) -> Talk:
        """Have a user open a session."""
        client = await self.client(tenant, user)
        session_id = f"{tenant}-{user}"
        provider = {"type": "openai", "baseUrl": self.model["base_url"], "apiKey": self.model["api_key"]}
        wishes = {"model": self.model["name"], "provider": {**provider, "wireApi": "completions"}, "availableTools": []}
        await client.call("session.create", {**wishes, "sessionId": session_id, **params})
        return Talk(client, session_id)


@dataclass
class Talk:
    """A session and its client."""

    client: Peer
    session_id: str
    said: list[str] = field(default_factory=list)
    #: (when it ended, how long it took) of every turn.
    turns: list[tuple[float, float]] = field(default_factory=list)

    async def turn(self, prompt: str, seconds: float = 40.0) -> str:
        """Have a turn; return the answer. Raises RpcError, AssertionError (the session said that it failed)."""
        before, began = len(self.client.heard), time.monotonic()
        await self.client.call("session.send", {"sessionId": self.session_id, "prompt": prompt}, seconds)

        def outcome() -> list[tuple[str, Any]]:
            heard = [h.params["event"] for h in self.client.heard[before:] if h.method == "session.event"]
            kinds = [(event["type"], event["data"]) for event in heard]
            return kinds if {"session.idle", "session.error"} & {kind for kind, _ in kinds} else []

        events = await self.client.wait_until(outcome, seconds)
        failures = [data for kind, data in events if kind == "session.error"]
        assert not failures, failures
        self.turns.append((time.monotonic(), time.monotonic() - began))
        self.said.append(prompt)
        del self.client.heard[:]
        return str(next(data["content"] for kind, data in events[::-1] if kind == "assistant.message"))

    async def go_on_until(self, done: asyncio.Event, pause: float = 0.01) -> None:
        """Have turns all the time."""
        while not done.is_set():
            await self.turn(f"{self.session_id}/{len(self.said)}")
            await asyncio.sleep(random.random() * 2 * pause)

    async def remembers(self) -> None:
        """All that was said is there."""
        expected = [*self.said, "[recall]"]
        assert (await self.turn("[recall]")).split(" | ") == expected


@asynccontextmanager
async def opened(place: Path, **runtime: Any) -> AsyncIterator[House]:
    """Run a gateway for the length of a block; nothing of it may be left."""
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(demo_module.open_model())
        section = {"environment": {"COPILOT_OFFLINE": "true"}, **CALM, **BRISK, **runtime}
        settings = settings_module.load(
            None,
            listen="127.0.0.1:0",
            state_directory=place / "state",
            drain_seconds=0.0,
            runtime=section,
            sandbox={"mode": "off", "unsandboxed": "agents run commands as the gateway's user"},
        )
        application = await stack.enter_async_context(app.open_application(settings))
        assert application.stores is not None
        for name, policy in TENANTS.items():
            # By its address: no `*` lets those who are guarded reach this machine.
            await application.stores.tenants.add(Tenant(name, replace(policy, provider_urls=(model["base_url"],))))
        house = House(application, model)
        yield house
        pids = [view.pid for view in house.views()]
        for client in house.clients:
            assert client.stray == []
            await client.aclose()
    assert not any(map(is_running, pids))
    assert paths_of_runtimes(place) == []


def paths_of_runtimes(place: Path) -> list[Path]:
    return list(place.glob("state/runtimes/*"))


def is_running(pid: int) -> bool:
    return state_of(pid) not in ("", "Z", "X")


def threads_of(pid: int) -> set[str]:
    """Return the states of all threads: on a busy machine some run on for a moment after the signal."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found.add((task / "stat").read_bytes().rpartition(b")")[2].split()[0].decode())
    return found


async def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait for a condition; return its value. Raises AssertionError: it did not come true."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not (found := condition()):  # noqa: ASYNC110  a pool has no events for tests
                await asyncio.sleep(0.01)
            return found
    raise AssertionError(what)


async def stutter(pid: int, done: asyncio.Event, step: float = 0.02) -> None:
    """Have a process run an ever smaller part of the time, down to a fifth; then stand still ever longer at a time.

    The last is for a machine on which its pings took long from the first.
    """
    share = 0.0
    with suppress(ProcessLookupError):
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(step * share)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(step * (1 - share))
            step = min(0.3, step * 1.02) if share == 0.8 else step
            share = min(0.8, share + 0.002)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def p95(turns: list[float]) -> float:
    return sorted(turns)[int((len(turns) - 1) * 0.95)]


async def test_a_runtime_that_gets_slower_is_cordoned_then_replaced_and_nobody_fails(tmp_path):
    """How much slower turns had become by then is printed: on a machine with two cores it is no assertion."""
    async with opened(tmp_path) as house:
        talks = [await house.talk("shop", f"user{number}") for number in range(3)]
        for talk in talks:
            await talk.turn("warm up")
        [slow] = house.views()
        [handle] = house.handles()
        order: list[str] = []
        handle.cordoned.add_done_callback(lambda _: order.append("cordoned"))
        handle.lost.add_done_callback(lambda _: order.append("lost"))
        done, began = asyncio.Event(), time.monotonic()
        working = [asyncio.create_task(talk.go_on_until(done, 0.02)) for talk in talks]
        await asyncio.sleep(1.5)  # fifteen pings: what is usual is known
        slowing = time.monotonic()
        stuttering = asyncio.create_task(stutter(slow.pid, done))
        async with asyncio.timeout(40):
            reason = await asyncio.shield(handle.cordoned)
        cordoned = time.monotonic()
        assert "pings take" in reason
        await until(lambda: not is_running(slow.pid), "the slow runtime goes on")
        done.set()
        await asyncio.gather(*working, stuttering)
        assert order == ["cordoned", "lost"]
        for talk in talks:
            await talk.remembers()
        assert [view.runtime_id for view in house.views()] != [slow.runtime_id]

        ended = [turn for talk in talks for turn in talk.turns]
        before = [took for at, took in ended if began < at < slowing]
        until_cordon = [took for at, took in ended if slowing <= at < cordoned][-60:]
        print(f"\ncordoned {cordoned - slowing:.2f} s after it began to slow down: {reason}")
        for name, turns in (("before", before), ("the last until the cordon", until_cordon)):
            if not turns:  # other load had it cordoned sooner
                continue
            print(
                f"{name}: {len(turns)} turns, median {statistics.median(turns) * 1e3:.0f} ms, p95 {p95(turns) * 1e3:.0f} ms"
            )


async def test_a_runtime_that_grows_is_cordoned_for_its_memory_and_its_sessions_go_on(tmp_path):
    megabytes = 1024 * 1024
    async with opened(tmp_path, recycle_memory_bytes=500 * megabytes, recycle_ping_factor=0.0) as house:
        agent = await house.talk("acme", "ann", availableTools=["bash"], requestPermission=False)
        other = await house.client("acme", "ann")
        await agent.client.call("session.permissions.setApproveAll", {"sessionId": agent.session_id, "enabled": True})
        await agent.turn("remember this")
        [first] = house.views()
        assert first.memory_bytes is not None
        seen = tmp_path / "seen"
        holder = (
            "import os,time; held=bytearray(600*2**20); held[::4096]=b'x'*len(held[::4096]); end=time.monotonic()+20\n"
            f"while not os.path.exists('{seen}') and time.monotonic()<end: time.sleep(0.02)"
        )
        command = {"command": f'python3 -c "{holder}"', "description": "hold memory"}
        leaking = asyncio.create_task(agent.turn(f"[tool bash {json.dumps(command)}]"))
        [handle] = house.handles()
        async with asyncio.timeout(30):
            reason = await asyncio.shield(handle.cordoned)
        seen.touch()
        assert "bytes of memory" in reason
        assert "tool said" in await leaking, "a turn at work is not cut short"
        await until(lambda: not is_running(first.pid), "the grown runtime goes on")
        assert (await agent.turn("[recall]")).startswith("remember this | ")
        [second] = house.views()
        assert second.runtime_id != first.runtime_id
        assert second.cordoned is None
        assert await other.call("ping", {"message": "x"})


@pytest.mark.parametrize("tenant", ["acme", "shop"])
async def test_a_runtime_that_hangs_is_found_in_time_and_the_session_goes_on_with_its_history(tmp_path, tenant):
    async with opened(tmp_path, health_deadline_seconds=0.5) as house:
        talk = await house.talk(tenant, "ann")
        await talk.turn("remember this")
        [first] = house.views()
        turn = asyncio.create_task(talk.turn("[stream 1000 300]"))
        await talk.client.wait_until(lambda: "assistant.turn_start" in talk.client.events(talk.session_id))
        os.kill(first.pid, signal.SIGSTOP)
        await until(lambda: threads_of(first.pid) <= {"T"}, "it does not stop")
        began = time.monotonic()
        waiting = [talk.client.ask("session.getMessages", {"sessionId": talk.session_id}) for _ in range(5)]
        async with asyncio.timeout(30):
            for answer in waiting:
                with pytest.raises(RpcError) as raised:
                    await answer
                assert raised.value.data["retryable"] is True
                assert raised.value.data["code"] == "runtime_lost"
            with pytest.raises(AssertionError, match="interrupted"):
                await turn
        print(f"\ntold after {time.monotonic() - began:.2f} s")
        await until(lambda: not is_running(first.pid), "the hung runtime is still there")
        assert (await talk.turn("[recall]")).startswith("remember this | ")
        assert house.views()[0].runtime_id != first.runtime_id


async def test_all_runtimes_are_replaced_one_after_the_other_under_load_and_not_one_request_fails(tmp_path):
    async with opened(tmp_path, recycle_ping_factor=0.0) as house:
        talks = [await house.talk("acme", f"user{number}") for number in range(2)]
        talks += [await house.talk("shop", f"user{number}") for number in range(4)]
        done = asyncio.Event()
        working = [asyncio.create_task(talk.go_on_until(done)) for talk in talks]
        gone: set[int] = set()
        for _ in range(2):
            # A realm has none for a moment when its last is gone and nobody has asked for another yet.
            for view in await until(lambda: len(found := house.views()) == 3 and found, "a realm has no runtime"):
                await until(lambda: all(len(talk.said) > 2 for talk in talks), "no load")
                [handle] = await until(lambda view=view: house.handles(view.runtime_id), "nobody uses it")
                house.pool.cordon(handle, "a new release")
                await until(lambda view=view: not is_running(view.pid), "a cordoned runtime goes on")
                gone.add(view.pid)
        at_last = [len(talk.said) for talk in talks]
        await until(lambda: all(len(t.said) > n for t, n in zip(talks, at_last, strict=True)), "turns go on")
        done.set()
        await asyncio.gather(*working)
        for talk in talks:
            await talk.remembers()
        assert len(gone) == 6
        assert not gone & {view.pid for view in house.views()}
        print(f"\n{len(gone)} runtimes replaced under {sum(len(talk.said) for talk in talks)} turns")
