"""What live sessions cost a shared runtime, and what a cap of them saves and costs.

    python bench/live_sessions.py [--levels 10,50,100,200,300] [--turns 120] [--cap 50]

Many users of a `shared` tenant, each with its own connection, have a growing number of sessions open on one runtime, through two
gateways beside each other: one with a cap of live sessions, one without. At every level turns are taken one after the other, in
alternating batches on both gateways: evenly (round robin: with a cap the session that is next is always one that has been
evicted) and at random. A turn is timed from the first byte of its request to its end, any return of its session included, and its
answer must be its own history. Beside it, the memory (PSS) of the runtime.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import gateways
import memory
from gateways import Place, Talk, percentile

from aerodrome import app, demo

TENANT = "globex"
TENANTS = {TENANT: {"isolation": "shared", "trust": "limited"}}
#: A turn among 300 open sessions may take so many times what it takes among 10.
BOUND = 2.0
CLIENTS = 100
_BATCHES = 4
Pick = Callable[[], tuple[Talk, str]]


@dataclass(slots=True)
class Room:
    """One gateway's runtime with the sessions open in it, in the order in which they were opened."""

    name: str
    place: Place
    talks: list[Talk] = field(default_factory=list)
    sessions: list[tuple[Talk, str]] = field(default_factory=list)

    async def fill(self, level: int) -> None:
        """Open sessions until there are so many; each takes a turn."""
        while len(self.sessions) < level:
            number = len(self.sessions)
            if len(self.talks) < CLIENTS:
                talk = await Talk(self.place.model).connect(self.place.port, self.place.tokens[TENANT][number])
                self.talks.append(talk)
            talk = self.talks[number % CLIENTS]
            session_id = await talk.create()
            await talk.turn(session_id, f"number {number}")
            self.sessions.append((talk, session_id))

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
    for room in rooms:
        await room.fill(level)
    evenly: dict[str, Pick] = {room.name: itertools.cycle(room.sessions).__next__ for room in rooms}
    for _ in range(_BATCHES):
        for spread in ("evenly", "random"):
            for room in rooms:
                for _ in range(turns // _BATCHES):
                    talk, session_id = evenly[room.name]() if spread == "evenly" else random.choice(room.sessions)
                    turn = await talk.recall(session_id, f"at {level}")
                    found[room.name].times[spread].append(turn.whole)
    for room in rooms:
        found[room.name].runtime_bytes = room.runtime_bytes()
    return found


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    levels = [int(text) for text in options.levels.split(",")]
    runtime = {"shared_runtimes": 1, "warm_runtimes": 0, "freeze_seconds": 0, "links_per_runtime": CLIENTS + 5}
    caps = {f"cap {options.cap}": options.cap, "no cap": 0}
    print(f"{gateways.describe_machine()}; {CLIENTS} clients at most, {options.turns} turns a series")
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(demo.open_model())
        rooms = []
        for name, cap in caps.items():
            section = {**runtime, "live_sessions": cap}
            place = await stack.enter_async_context(gateways.gateway(model, TENANTS, CLIENTS, section))
            rooms.append(Room(name, place))
        _head()
        base: dict[str, float] = {}
        for level in levels:
            found = await measure(rooms, level, options.turns)
            for name, series in found.items():
                base.setdefault(name, percentile(series.times["evenly"], 0.5))
                _row(level, name, series, base[name])
        for room in rooms:
            counts = room.place.count_events()
            print(f"{room.name}: {counts['session.evicted']} evicted, {counts['session.reattached']} brought back")
            for talk in room.talks:
                await talk.aclose()
    print(gateways.describe_machine())


def _head() -> None:
    print(f"{'':26}turn, evenly spread{'':18}turn, at random")
    print(
        f"{'open':>4} {'':<8}{'p50':>10}{'p95':>8} ms{'of 10 open':>12}{'p50':>12}{'p95':>8} ms{'of 10 open':>12}{'MiB':>8}"
    )


def _row(level: int, name: str, series: Series, base: float) -> None:
    parts = []
    for spread in ("evenly", "random"):
        p50, p95 = (percentile(series.times[spread], share) for share in (0.5, 0.95))
        parts.append(f"{p50 * 1e3:10.1f}{p95 * 1e3:8.1f}   {p50 / base:12.2f}  ")
    print(f"{level:4} {name:<8}{''.join(parts)}{series.runtime_bytes / memory.MIB:8.0f}", flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure what live sessions cost a shared runtime.")
    parser.add_argument("--levels", default="10,50,100,200,300", help="sessions open (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=120, help="turns of a series (default: %(default)s)")
    parser.add_argument(
        "--cap", type=int, default=50, help="live sessions of the capped runtime (default: %(default)s)"
    )
    app.run_loop(run(parser.parse_args()))


if __name__ == "__main__":
    main()
