"""How many users a GiB holds: a runtime for each of them, or this gateway with and without hibernation.

    python bench/density.py [--clients 500] [--seconds 300] [--active 25] [--sample 50]

All users are registered and connected, each with a runtime of its own (isolation `user`) and a session that has had a turn.

1. process per user: real runtimes without a gateway, `--sample` of them, scaled to `--clients`;
2. the gateway without hibernation, likewise;
3. the gateway with hibernation, all clients for real: for `--seconds`, `--active` of them at a time, chosen at random, have a
   turn. The answer must be all that was said in this session and nothing else, so that every turn proves its history.

Memory is the PSS of everything: gateway, guardian, keepers and runtimes, sampled each second in part three. Not the clients, nor
the model. A turn's model answers for `--turn-seconds`; latencies are given without that time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import gateways
import memory
import proxies
from aerodrome import app, demo
from gateways import Place, Talk, Turn, percentile
from memory import MIB, Sampler

TENANT = "acme"
TENANTS = {TENANT: {"isolation": "user", "trust": "limited"}}
#: A user's own choice of settings for many mostly idle users; the rest are the defaults.
HIBERNATING = {"idle_seconds": 1, "warm_runtimes": 2, "warm_runtimes_max": 3, "spawns_at_once": 2, "freeze_seconds": 0}
AWAKE = {"idle_seconds": 3600, "warm_runtimes": 0, "freeze_seconds": 0}
#: Everything of ours may take this part of what a runtime for each user takes.
BOUND = 0.1
_OPENING_AT_ONCE = 4
_EVENTS = ("runtime.ready", "runtime.bound", "runtime.hibernated", "session.reattached")


@dataclass(frozen=True, slots=True)
class User:
    """A connected client and its session."""

    talk: Talk
    session_id: str


@dataclass(slots=True)
class Show:
    """What came of the turns of many users."""

    turns: list[Turn] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    served: set[int] = field(default_factory=set)
    most_at_once: int = 0


async def process_per_user(model: dict[str, Any], count: int) -> float:
    """Return the bytes that a user takes who has a runtime process for itself, with one session that had a turn."""
    entry = ""
    async with AsyncExitStack() as stack:
        runtimes = []
        for _ in range(count):
            started = await stack.enter_async_context(proxies.runtime_process())
            runtimes.append(started.pid)
            talk = await Talk(model).connect(started.port, proxies.UPSTREAM_TOKEN)
            stack.push_async_callback(talk.aclose)
            await talk.turn(await talk.create(), "first")
            entry = started.entry
        await asyncio.sleep(2)
        total = sum(memory.pss_bytes(pid) for pid in runtimes)
    print(
        f"process per user: {count} runtimes of {entry.rpartition('/')[2]}, {total / count / MIB:.1f} MiB each",
        flush=True,
    )
    return total / count


async def open_users(place: Place, count: int, stack: AsyncExitStack) -> list[User]:
    """Connect clients, each a user of its own, and open a session with a first turn for each, a few at a time."""
    users: list[User] = []
    numbers = iter(range(count))

    async def open_some() -> None:
        for number in numbers:
            talk = await Talk(place.model).connect(place.port, place.tokens[TENANT][number])
            stack.push_async_callback(talk.aclose)
            session_id = await talk.create()
            await talk.turn(session_id, f"I am number {number}")
            users.append(User(talk, session_id))

    await asyncio.gather(*(open_some() for _ in range(_OPENING_AT_ONCE)))
    return users


async def have_turns(users: list[User], active: int, seconds: float, turn_seconds: float) -> Show:
    """Have so many users at a time, chosen at random, take a turn, for so long."""
    show, busy = Show(), set[int]()
    ends = time.monotonic() + seconds

    async def take_turns() -> None:
        await asyncio.sleep(random.uniform(0, turn_seconds))  # or all would begin, and wake, together
        while time.monotonic() < ends:
            number = random.choice([n for n in range(len(users)) if n not in busy])
            busy.add(number)
            show.most_at_once = max(show.most_at_once, len(busy))
            user = users[number]
            try:
                show.turns.append(await user.talk.recall(user.session_id, f"turn [stream 20 {turn_seconds:g}]"))
                show.served.add(number)
            except Exception as error:
                show.errors.append(repr(error))
            busy.remove(number)

    await asyncio.gather(*(take_turns() for _ in range(active)))
    return show


async def awake(model: dict[str, Any], options: argparse.Namespace) -> float:
    """Return the bytes of the gateway without hibernation, scaled to all clients."""
    count = options.sample
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(gateways.gateway(model, TENANTS, count, AWAKE))
        bare = memory.footprint(place.pid, place.entry)
        users = await open_users(place, count, stack)
        show = await have_turns(users, max(1, count // 20), 5, 2)
        full = memory.footprint(place.pid, place.entry)
    _fail_on(show.errors)
    each = (full.total - bare.total) / count
    print(
        f"gateway without hibernation: {full.runtimes} runtimes, {each / MIB:.1f} MiB each with their keepers",
        flush=True,
    )
    return float(bare.total + each * options.clients)


async def hibernating(model: dict[str, Any], options: argparse.Namespace, naive: float) -> list[memory.Footprint]:
    """Run the main show and print it; return its samples."""
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(gateways.gateway(model, TENANTS, options.clients, HIBERNATING))
        bare = memory.footprint(place.pid, place.entry)
        began = time.monotonic()
        async with Sampler(place.pid, place.entry) as opening:
            users = await open_users(place, options.clients, stack)
        print(
            f"{len(users)} clients connected, each with a session and a first turn, in {time.monotonic() - began:.0f} s, "
            f"{_OPENING_AT_ONCE} at a time; peak {max(s.total for s in opening.samples) / MIB:.0f} MiB",
            flush=True,
        )
        before, cpu = place.count_events(), _cpu(place)
        began = time.monotonic()
        async with Sampler(place.pid, place.entry) as sampler:
            show = await have_turns(users, options.active, options.seconds, options.turn_seconds)
        lasted = time.monotonic() - began
        counts = Counter(place.count_events())
        counts.subtract(before)
        used = {kind: seconds - cpu[kind] for kind, seconds in _cpu(place).items()}
        complaints = place.complaints()
        await asyncio.sleep(3)
        asleep = memory.footprint(place.pid, place.entry)
    _print_show(show, counts, lasted, options)
    print("cores: " + ", ".join(f"{kind} {seconds / lasted:.2f}" for kind, seconds in used.items()))
    _print_memory(sampler.samples, asleep, naive, options.clients)
    each = (asleep.gateway - bare.gateway) / options.clients / 1024
    print(f"a connected client without a runtime: {each:.0f} KiB of the gateway's memory")
    _fail_on([*show.errors, *complaints])
    return sampler.samples


def _cpu(place: Place) -> dict[str, float]:
    """Return processor time so far: of the gateway, and of all that ended or lives below it."""
    below = memory.below(place.pid)
    return {"gateway": memory.cpu_seconds(place.pid), "runtimes": sum(memory.cpu_seconds(pid) for pid in below)}


def _print_show(show: Show, counts: Counter[str], lasted: float, options: argparse.Namespace) -> None:
    print(
        f"{len(show.turns)} turns of {len(show.served)} users in {lasted:.0f} s, {show.most_at_once} at once at most, "
        f"{len(show.errors)} errors; " + ", ".join(f"{event} {counts[event]}" for event in _EVENTS)
    )
    for name, times in (
        ("first token", [turn.first for turn in show.turns]),
        (f"whole turn less {options.turn_seconds:g} s", [turn.whole - options.turn_seconds for turn in show.turns]),
    ):
        shares = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"), (1.0, "most"))
        print(f"{name}: " + ", ".join(f"{word} {percentile(times, share) * 1e3:.0f}" for share, word in shares) + " ms")


def _print_memory(samples: list[memory.Footprint], asleep: memory.Footprint, naive: float, clients: int) -> None:
    print(
        f"{'MiB, of ' + str(len(samples)) + ' samples':<24}{'gateway':>9}{'guardian':>10}{'runtimes':>10}{'(count)':>9}{'all':>8}"
    )
    for word, choose in (("mean", memory.mean), ("peak", max)):
        columns = [
            choose([getattr(sample, name) for sample in samples]) / MIB for name in ("gateway", "guardian", "runtime")
        ]
        count, total = (choose([getattr(sample, name) for sample in samples]) for name in ("runtimes", "total"))
        part = f"   {total / (naive * clients):.3f} of a process per user (bound {BOUND})"
        print(f"{word:<24}{columns[0]:9.0f}{columns[1]:10.0f}{columns[2]:10.0f}{count:9.1f}{total / MIB:8.0f}{part}")
    print(
        f"{'all asleep':<24}{asleep.gateway / MIB:9.0f}{asleep.guardian / MIB:10.0f}{asleep.runtime / MIB:10.0f}"
        f"{asleep.runtimes:9.1f}{asleep.total / MIB:8.0f}"
    )


def _fail_on(complaints: list[str]) -> None:
    """Raise RuntimeError if there are any."""
    if complaints:
        raise RuntimeError(f"{len(complaints)} went wrong: {complaints[:5]}")


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    print(
        f"{gateways.describe_machine()}; of {options.clients} users {options.active} active, turns of {options.turn_seconds:g} s"
    )
    print(f"settings of the gateway with hibernation: {HIBERNATING}")
    async with demo.open_model() as model:
        naive = await process_per_user(model, options.sample)
        without = await awake(model, options)
        samples = await hibernating(model, options, naive)
    print(gateways.describe_machine())
    print(f"{'':<32}{'users per GiB':>14}{'of a process per user':>23}")
    ours = memory.mean(sample.total for sample in samples)
    for name, total in (
        ("process per user", naive * options.clients),
        ("gateway without hibernation", without),
        ("gateway with hibernation", ours),
    ):
        per_gib = options.clients / (total / 1024 / MIB)
        print(f"{name:<32}{per_gib:14.1f}{naive * options.clients / total:22.1f}x")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure how many users a GiB holds.")
    parser.add_argument("--clients", type=int, default=500, help="users, all connected (default: %(default)s)")
    parser.add_argument("--active", type=int, default=25, help="turns at a time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="how long (default: %(default)s)")
    parser.add_argument("--turn-seconds", type=float, default=10, help="a model's answer (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=50, help="processes of parts one and two (default: %(default)s)")
    app.run_loop(run(parser.parse_args()))


if __name__ == "__main__":
    main()
