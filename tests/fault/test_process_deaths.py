"""Processes killed, stopped and restarted under a gateway at work: then verifiers over everything its clients saw."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aerodrome.adapters.process.host import ProcessHost
from aerodrome.core.backoff import Backoff
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.testing import demo_process
from aerodrome.testing import peer as peers
from aerodrome.testing import rig as rigs
from aerodrome.testing.peer import Peer, RpcError
from aerodrome.testing.rig import Rig

CHAOS_SECONDS = 5.0
#: Longer than any answer may take: a spawn of a Python process on a busy machine, tried again.
ANSWER_SECONDS = 15.0
#: Health, which asks seldom, would take twice as long to notice.
HEARD_SECONDS = 5.0


@pytest.fixture
async def rig(tmp_path) -> AsyncIterator[Rig]:
    """A gateway over real processes that run the scripted runtime; at the end none of them may be left."""
    entry = tmp_path / "runtime"
    entry.write_text(f'#!/bin/sh\nexec {sys.executable} -m aerodrome.testing.scripted_runtime "$@"\n')
    entry.chmod(0o755)
    before = len(os.listdir("/proc/self/fd"))
    backoff = Backoff(first_seconds=0.01, limit_seconds=0.1, attempts=5)
    fleet = rigs.fleet_settings(tmp_path / "state", entry=entry, ready_seconds=10.0, backoff=backoff)
    settings = GatewaySettings(listen_port=0, stall_seconds=10.0)
    async with rigs.open_rig(ProcessHost(), fleet, settings) as opened:
        yield opened
    assert runtimes_of(tmp_path) == []
    gc.collect()
    await opened.settled(lambda: len(os.listdir("/proc/self/fd")) == before)


def runtimes_of(place: Path) -> list[int]:
    """Return the living processes whose environment names a place: the runtimes of one gateway."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            if f"COPILOT_HOME={place}".encode() in Path(f"/proc/{pid}/environ").read_bytes() and state != b"Z":
                found.append(pid)
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


@dataclass
class Worker:
    """A client that works on, whatever happens, and remembers what it met with."""

    client: Peer
    session_id: str
    sent: list[str] = field(default_factory=list)
    served: int = 0
    failures: list[RpcError] = field(default_factory=list)

    async def attempt(self, method: str, params: dict[str, Any]) -> bool:
        """Make one call; a failure must say that it may be tried again."""
        try:
            await self.client.call(method, params, seconds=ANSWER_SECONDS)
        except RpcError as error:
            self.failures.append(error)
            return False
        self.served += 1
        return True

    async def work_until(self, done: asyncio.Event) -> None:
        """Create a session as often as it takes, then give it turns."""
        while not await self.attempt("session.create", {"sessionId": self.session_id}):
            pass
        while not done.is_set():
            prompt = f"{self.session_id}/{len(self.sent):06d}"
            self.sent.append(prompt)
            await self.attempt("session.send", {"sessionId": self.session_id, "prompt": prompt})
            await self.attempt("session.list", {})
            await asyncio.sleep(random.random() / 50)

    def echoes(self) -> list[str]:
        """Return what the model's double said to this session, in the order it was heard."""
        events = [params["event"] for params in self.client.notifications("session.event")]
        return [event["data"]["content"] for event in events if event["type"] == "assistant.message"]


async def cause_chaos(rig: Rig, place: Path, seconds: float, is_enough: Callable[[int], bool]) -> int:
    """Kill and stop what the gateway stands on, for so long and until it is enough; return how often."""
    strokes, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline or (not is_enough(strokes) and time.monotonic() < deadline + ANSWER_SECONDS):
        await asyncio.sleep(random.uniform(0.1, 0.5))
        living = runtimes_of(place)
        guardian = rig.host.guardian_pid
        stroke: Callable[[], Awaitable[None] | None] = random.choice(
            [
                lambda living=living: _signal(random.choice(living), signal.SIGKILL) if living else None,
                lambda living=living: _signal(random.choice(living), signal.SIGSEGV) if living else None,
                lambda living=living: _pause(random.choice(living)) if living else None,
                lambda living=living: _signal(parent_of(random.choice(living)), signal.SIGKILL) if living else None,
                lambda guardian=guardian: _signal(guardian, signal.SIGKILL) if guardian else None,
            ]
        )
        with suppress(OSError):
            pausing = stroke()
            if pausing is not None:
                await pausing
        strokes += 1
    return strokes


def _signal(pid: int, number: int) -> None:
    os.kill(pid, number)


async def _pause(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.15)
    os.kill(pid, signal.SIGCONT)


async def test_whatever_dies_every_request_is_answered_once_in_order_and_all_work_in_the_end(rig, tmp_path):
    workers = [
        Worker(await rig.client(tenant, f"user{number}"), f"{tenant}-{number}")
        for number, tenant in enumerate(["shared", "shared", "other", "team", "alone", "guarded"])
    ]
    done = asyncio.Event()
    working = [asyncio.create_task(worker.work_until(done)) for worker in workers]
    strokes = await cause_chaos(
        rig, tmp_path, CHAOS_SECONDS, lambda so_far: so_far >= 5 and any(worker.failures for worker in workers)
    )
    done.set()
    async with asyncio.timeout(4 * ANSWER_SECONDS):
        await asyncio.gather(*working)
    assert strokes >= 5
    assert any(worker.failures for worker in workers), "nobody noticed: that was no chaos"
    for worker in workers:
        assert worker.client.stray == [], "an answer that nobody asked for, or one twice"
        assert all(failure.data["retryable"] for failure in worker.failures), worker.failures
        heard = [text for text in worker.echoes() if text in worker.sent]
        assert heard == sorted(set(heard)), "a turn was repeated or overtaken"
        last = f"{worker.session_id}/last"
        while not await worker.attempt("session.send", {"sessionId": worker.session_id, "prompt": last}):
            pass
        await worker.client.wait_until(lambda worker=worker, last=last: last in worker.echoes())
    for worker in workers:
        await worker.client.aclose()
    await rig.settled(lambda: rig.listener.links == 0 and rig.links() == 0 and len(rig.router) == 0)


async def test_a_stopped_runtime_holds_up_its_own_clients_only_and_answers_when_it_goes_on(rig, tmp_path):
    held, other = await rig.client("alone", "ann"), await rig.client("alone", "ben")
    await held.call("session.create", {"sessionId": "s"})
    [runtime] = runtimes_of(tmp_path)
    await other.call("session.create", {"sessionId": "t"})
    os.kill(runtime, signal.SIGSTOP)
    waiting = [held.ask("session.getMessages", {"sessionId": "s"}) for _ in range(10)]
    started = time.monotonic()
    for _ in range(20):
        assert (await other.call("session.getMessages", {"sessionId": "t"}))["events"]
        assert await held.call("ping")
    assert time.monotonic() - started < ANSWER_SECONDS
    assert not any(answer.done() for answer in waiting)
    os.kill(runtime, signal.SIGCONT)
    for answer in waiting:
        assert (await answer)["events"]


async def test_thirty_clients_of_a_killed_runtime_hear_of_it_at_once_and_share_one_fresh_one(rig, tmp_path):
    clients = [await rig.client("shared", f"user{number}") for number in range(30)]
    for number, client in enumerate(clients):
        await client.call("session.create", {"sessionId": f"s-{number}"})
        await client.call("session.send", {"sessionId": f"s-{number}", "prompt": "[hold]"})
        await client.wait_for_event(f"s-{number}", "assistant.turn_start")
    [runtime] = runtimes_of(tmp_path)
    started = time.monotonic()
    os.kill(runtime, signal.SIGKILL)
    for number, client in enumerate(clients):
        await client.wait_for_event(f"s-{number}", "session.error")
    assert time.monotonic() - started < HEARD_SECONDS
    calls = [client.call("session.getMessages", {"sessionId": f"s-{n}"}) for n, client in enumerate(clients)]
    assert all(found["events"] for found in await asyncio.gather(*calls))
    assert len(runtimes_of(tmp_path)) == 1


@pytest.mark.runtime
async def test_a_killed_guardian_costs_the_demo_its_runtimes_and_nothing_more():
    with demo_process.running() as demo:
        host, _, port = demo.sdk.rpartition(":")
        [alice, *_], _ = demo.tenants("user")
        client = await peers.open_client(host, int(port), alice.token)
        try:
            await client.call("session.create", {"sessionId": "s"})
            [(first, child)] = demo.runtimes().items()
            guardian = parent_of(parent_of(child.pid))
            assert any(found.pid == guardian and "guardian" in found.command for found in demo.processes())
            os.kill(guardian, signal.SIGKILL)
            assert demo_process.wait_for(lambda: not child.is_alive, 20.0)
            async with asyncio.timeout(30):
                while True:
                    with suppress(RpcError):
                        await client.call("session.getMessages", {"sessionId": "s"})
                        break
            assert first not in demo.runtimes()
            assert len(demo.runtimes()) == 1
        finally:
            await client.aclose()
