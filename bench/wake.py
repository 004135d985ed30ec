"""How long a client waits for the first token: of a new user, and of one whose session sleeps.

    python bench/wake.py [--rounds 30]

From the first byte of the client's request (it is connected already) to the first `assistant.message_delta`, and to the end of
the turn. A new user's request is `session.create`, then `session.send`; a user with a session just sends. All cases take turns in
random order in every round, on gateways that run beside each other and differ in one setting. Compare ratios: to `warm`, a new
user who is given a warm runtime.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import gateways
from aerodrome import app, demo
from gateways import Place, Talk, Turn, percentile

GUARDED, OPEN = "guarded", "open"
TENANTS = {
    GUARDED: {"isolation": "user", "trust": "limited"},
    OPEN: {"isolation": "user", "trust": "full"},
}
#: No round takes so long; runtimes of rounds that are over do not pile up.
_ROUND_SECONDS = 30
#: What the gateways differ in; of everything else they have the defaults.
GATEWAYS: dict[str, dict[str, Any]] = {
    "plain": {"warm_runtimes": 0, "freeze_seconds": 0, "idle_seconds": _ROUND_SECONDS},
    "warm": {"warm_runtimes": 2, "freeze_seconds": 0, "idle_seconds": _ROUND_SECONDS},
    "freezing": {"warm_runtimes": 0, "freeze_seconds": 0.3, "idle_seconds": _ROUND_SECONDS},
    "evicting": {
        "warm_runtimes": 0,
        "freeze_seconds": 0,
        "live_sessions": 1,
        "live_memory_bytes": 0,
        "idle_seconds": _ROUND_SECONDS,
    },
    "hibernating": {"warm_runtimes": 0, "freeze_seconds": 0, "idle_seconds": 0.3},
    "hibernating and warm": {"warm_runtimes": 2, "freeze_seconds": 0, "idle_seconds": 0.3},
}
#: A wake may take so many times what a new user waits who is given a warm runtime.
BOUND = 1.5
_REST_SECONDS = 0.3
_SLEEP_SECONDS = 1.5
Case = Callable[[], Awaitable[Turn]]


class Bench:
    """The gateways, and who sits at them."""

    def __init__(self, places: dict[str, Place]) -> None:
        self.places = places
        self.talks: list[Talk] = []
        self._used: dict[tuple[str, str], int] = defaultdict(int)

    async def newcomer(self, name: str, tenant: str) -> Talk:
        """Connect a user who has not been here before."""
        place = self.places[name]
        number = self._used[name, tenant] = self._used[name, tenant] + 1
        talk = Talk(place.model)
        self.talks.append(talk)
        return await talk.connect(place.port, place.tokens[tenant][number - 1])

    async def prepare(self) -> dict[str, Case]:
        """Have a client ready for each case, those that are to sleep in time to fall asleep."""
        wanted = [(name, GUARDED) for name in (*_ARRIVALS, *_RETURNS)]
        # An open realm is never given a warm runtime.
        wanted += [(name, OPEN) for name in (*_ARRIVALS, *_RETURNS) if "warm" not in name]
        cases = await asyncio.gather(*(self._prepare(name, tenant) for name, tenant in wanted))
        return {_label(name, tenant): case for (name, tenant), case in zip(wanted, cases, strict=True)}

    async def _prepare(self, name: str, tenant: str) -> Case:
        if name in _ARRIVALS:
            return _first_turn(await self.newcomer(_ARRIVALS[name], tenant))
        talk = await self.newcomer(_RETURNS[name], tenant)
        session_id = await talk.create()
        await talk.turn(session_id, "first")
        if name == "evicted":
            await talk.turn(await talk.create(), "in its place")
        return _next_turn(talk, session_id, touch_first=name == "live")

    async def leave(self) -> None:
        """Disconnect everyone."""
        for talk in self.talks:
            await talk.aclose()
        self.talks.clear()


def _label(name: str, tenant: str) -> str:
    return name if tenant == GUARDED else f"{name}, open"


#: What a case does, and on which gateway.
_ARRIVALS = {"warm": "warm", "cold": "plain"}
_RETURNS = {
    "live": "plain",
    "frozen": "freezing",
    "evicted": "evicting",
    "hibernated, spawn": "hibernating",
    "hibernated, warm runtime": "hibernating and warm",
}


def _first_turn(talk: Talk) -> Case:
    async def take() -> Turn:
        began = time.perf_counter()
        return await talk.turn(await talk.create(), "first", began)

    return take


def _next_turn(talk: Talk, session_id: str, touch_first: bool) -> Case:
    async def take() -> Turn:
        if touch_first:
            await talk.turn(session_id, "just before")
        return await talk.recall(session_id, "again")

    return take


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    users = 3 * (options.rounds + 1)
    times: dict[str, list[Turn]] = defaultdict(list)
    print(gateways.describe_machine())
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(demo.open_model())
        places = {
            name: await stack.enter_async_context(gateways.gateway(model, TENANTS, users, section))
            for name, section in GATEWAYS.items()
        }
        bench = Bench(places)
        for number in range(options.rounds + 1):
            cases = await bench.prepare()
            await asyncio.sleep(_SLEEP_SECONDS)
            for name in random.sample(list(cases), len(cases)):
                turn = await cases[name]()
                if number:  # the first round warms everything up
                    times[name].append(turn)
                await asyncio.sleep(_REST_SECONDS)
            await bench.leave()
        _print(times)
        _check(places, options.rounds + 1)


def _check(places: dict[str, Place], rounds: int) -> None:
    """See in the gateways' logs that what was to sleep did.

    Raises:
        RuntimeError: it did not.
    """
    counts = {name: place.count_events() for name, place in places.items()}
    # Now and then a warm runtime is not there yet: that wake is a spawn, and counts as it is.
    expected = {
        ("warm", "runtime.bound"): rounds,
        ("freezing", "runtime.frozen"): 2 * rounds,
        ("evicting", "session.evicted"): 2 * rounds,
        ("hibernating", "runtime.hibernated"): 2 * rounds,
        ("hibernating and warm", "runtime.hibernated"): rounds,
        # One for the first turn, one for the wake.
        ("hibernating and warm", "runtime.bound"): 2 * rounds,
    }
    for (name, event), least in expected.items():
        if counts[name][event] < 0.9 * least:
            raise RuntimeError(
                f"{name}: {event} {counts[name][event]} times, expected {least}: the figures mean nothing"
            )


def _print(times: dict[str, list[Turn]]) -> None:
    base = percentile([turn.first for turn in times["warm"]], 0.5)
    print(f"{'':<28}{'n':>4}{'first token p50':>17}{'p95':>7}{'answer p50':>12}{'p95':>7} ms   first token, of warm")
    names = [_label(name, tenant) for tenant in (GUARDED, OPEN) for name in (*_ARRIVALS, *_RETURNS)]
    for name in [name for name in names if name in times]:
        first, whole = [turn.first for turn in times[name]], [turn.whole for turn in times[name]]
        figures = f"{percentile(first, 0.5) * 1e3:17.1f}{percentile(first, 0.95) * 1e3:7.1f}"
        figures += f"{percentile(whole, 0.5) * 1e3:12.1f}{percentile(whole, 0.95) * 1e3:7.1f}"
        bound = f" (bound {BOUND})" if name.startswith("hibernated") else ""
        print(f"{name:<28}{len(first):4}{figures}      {percentile(first, 0.5) / base:5.2f}{bound}")
    print(gateways.describe_machine())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure how long the first token takes, asleep and awake.")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each case (default: %(default)s)")
    app.run_loop(run(parser.parse_args()))


if __name__ == "__main__":
    main()
