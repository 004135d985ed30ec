"""What live sessions cost a shared runtime, and what a cap of them saves and costs.

    python bench/live_sessions.py [--levels 10,50,100,200,300] [--turns 120] [--caps default,50,0]

Many users of a `shared` tenant, each with its own connection, have a growing number of sessions open on one runtime, through
gateways beside each other that differ in their cap of live sessions (0: none). At every level turns are taken one by one,
in alternating batches on all gateways, spread in three ways: evenly (round robin: with a cap, the session that is next is always
one that has been evicted), at random, and skewed (a tenth of the sessions has nine tenths of the turns). A turn is timed from the
first byte of its request to its end, any return of its session included, and its answer must be its own history. Sessions with
more than a few turns are replaced meanwhile, so that all histories are about as long. Beside it, the memory (PSS) of the runtime.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import gateways
import memory
from aerodrome import app, demo
from gateways import Place, Talk, percentile

TENANT = "globex"
TENANTS = {TENANT: {"isolation": "shared", "trust": "limited"}}
CLIENTS = 100
#: One runtime for everybody, that is replaced for no reason while it is measured.
RUNTIME = {
    "shared_runtimes": 1,
    "warm_runtimes": 0,
    "freeze_seconds": 0,
    "links_per_runtime": CLIENTS + 5,
    "recycle_ping_factor": 0,
}
#: A turn among 300 open sessions may take so many times what it takes among 10.
BOUND = 2.0
SPREADS = ("evenly", "at random", "skewed")
_BATCH = 20
_MOST_TURNS = 5


@dataclass(slots=True)
class Room:
    """One gateway's runtime with the sessions open in it, in the order in which they were opened."""

    name: str
    place: Place
    talks: list[Talk] = field(default_factory=list)
    sessions: list[tuple[Talk, str]] = field(default_factory=list)
    _next: int = 0

    async def fill(self, level: int) -> None:
        """Open sessions until there are so many, and replace those with a long history."""
        for number, (talk, session_id) in enumerate(self.sessions):
            if len(talk.said[session_id]) > _MOST_TURNS:
                await talk.link.call("session.delete", {"sessionId": session_id})
                self.sessions[number] = await self._open(number)
        while len(self.sessions) < level:
            self.sessions.append(await self._open(len(self.sessions)))

    async def _open(self, number: int) -> tuple[Talk, str]:
        if number == len(self.talks) < CLIENTS:
            talk = await Talk(self.place.model).connect(self.place.port, self.place.tokens[TENANT][number])
            self.talks.append(talk)
        talk = self.talks[number % CLIENTS]
        session_id = await talk.create()
        await talk.turn(session_id, f"number {number}")
        return talk, session_id

    def pick(self, spread: str) -> tuple[Talk, str]:
        """Return the session whose turn it is."""
        if spread == "evenly":
            self._next = (self._next + 1) % len(self.sessions)
            return self.sessions[self._next]
        return random.choice(self.few if spread == "skewed" and random.random() < 0.9 else self.sessions)

    @property
    def few(self) -> list[tuple[Talk, str]]:
        """Return the tenth of the sessions that has most turns when these are skewed."""
        return self.sessions[: max(1, len(self.sessions) // 10)]

    def runtime_bytes(self) -> int:
        """Return the memory of the runtime."""
        return memory.footprint(self.place.pid, self.place.entry).runtime


@dataclass(slots=True)
class Series:
    """What one level took on one gateway, in seconds, by how turns were spread."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    runtime_bytes: int = 0


async def measure(rooms: list[Room], level: int, turns: int) -> dict[str, Series]:
    """Take turns at one level, in alternating batches."""
    found = {room.name: Series() for room in rooms}
    for spread in SPREADS:
        for room in rooms:
            await room.fill(level)
            if spread == "skewed":  # what is used most has been used lately
                for talk, session_id in room.few:
                    await talk.recall(session_id, "before")
        for _ in range(-(-turns // _BATCH)):
            for room in rooms:
                await room.fill(level)
                for _ in range(min(_BATCH, turns)):
                    talk, session_id = room.pick(spread)
                    turn = await talk.recall(session_id, f"at {level}")
                    found[room.name].times[spread].append(turn.whole)
    for room in rooms:
        found[room.name].runtime_bytes = room.runtime_bytes()
    return found


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    print(f"{gateways.describe_machine()}; {CLIENTS} clients at most, {options.turns} turns a series")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(demo.open_model())
        rooms = []
        for cap in options.caps.split(","):
            fixed = {} if cap == "default" else {"live_sessions": int(cap), "live_memory_bytes": 0}
            place = await stack.enter_async_context(gateways.gateway(model, TENANTS, CLIENTS, {**RUNTIME, **fixed}))
            rooms.append(Room({"0": "no cap", "default": "default"}.get(cap, f"cap {cap}"), place))
        heads = "".join(f"{'turns ' + spread + ': p50':>22}{'p95':>7} ms  ratio" for spread in SPREADS)
        print(f"open {'':<9}{heads}   MiB")
        base: dict[str, float] = {}
        for level in [int(text) for text in options.levels.split(",")]:
            for name, series in (await measure(rooms, level, options.turns)).items():
                base.setdefault(name, percentile(series.times["evenly"], 0.5))
                _row(level, name, series, base[name])
        for room in rooms:
            counts = room.place.count_events()
            print(f"{room.name}: {counts['session.evicted']} evicted, {counts['session.reattached']} brought back")
            if complaints := room.place.complaints():
                raise RuntimeError(f"{room.name}: {complaints[:5]}")
            for talk in room.talks:
                await talk.aclose()
    print(f"ratio: to the first row of the same gateway (bound {BOUND:g} at 300)\n{gateways.describe_machine()}")


def _row(level: int, name: str, series: Series, base: float) -> None:
    parts = []
    for spread in SPREADS:
        p50, p95 = (percentile(series.times[spread], share) for share in (0.5, 0.95))
        parts.append(f"{p50 * 1e3:22.1f}{p95 * 1e3:7.1f}    {p50 / base:5.2f}")
    print(f"{level:4} {name:<9}{''.join(parts)}{series.runtime_bytes / memory.MIB:6.0f}", flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure what live sessions cost a shared runtime.")
    parser.add_argument("--levels", default="10,50,100,200,300", help="sessions open (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=120, help="turns of a series (default: %(default)s)")
    parser.add_argument(
        "--caps", default="default,50,0", help="caps of live sessions: 'default' follows memory, 0 is none"
    )
    app.run_loop(run(parser.parse_args()))


if __name__ == "__main__":
    main()
