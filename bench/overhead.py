"""What the gateway costs: direct against through the gateway, in one run, on this machine.

    python bench/overhead.py [--sessions 25] [--turns 4] [--rounds 3]

Part one: the real runtime, with a raw client, the Python SDK and the Node SDK: direct, through the transparent gateway
before that same runtime, and through the tenant gateway in both isolations. Rounds alternate, so that a drift of the machine
meets all. Part two: a null runtime, for frames per second and added latency, with a plain TCP proxy (HAProxy or nginx,
whichever is installed) beside the gateway. Ratios are what to compare; milliseconds are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

import clients
import proxies
from aerodrome.transport import control
from clients import Target, Times

Client = Callable[[Target, int, int], Awaitable[Times]]
CLIENTS: dict[str, Client] = {
    "raw client": clients.raw,
    "Python SDK": clients.python_sdk,
    "Node SDK": clients.node_sdk,
}
#: What is asked of the gateway before the same runtime: p50 through it over p50 direct. The tenant gateway's rows are on a
#: runtime of their own and do more (owners recorded; `shared`: restricted, with a directory of its own): no bound there.
BOUNDS = {"raw client": 1.15, "Python SDK": 0.35, "Node SDK": 0.35}
FLOOD_FRAMES, FLOOD_BYTES, PINGS = 20_000, 400, 2_000


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


async def compare(name: str, ways: dict[str, Target], options: argparse.Namespace) -> None:
    """Measure one client every way, in alternating rounds, and print its rows."""
    merged: dict[str, Times] = {way: defaultdict(list) for way in ways}
    measure = CLIENTS[name]
    for target in ways.values():
        await measure(target, 2, 1)
    for _ in range(options.rounds):
        for way, target in ways.items():
            for call, values in (await measure(target, options.sessions, options.turns)).items():
                merged[way][call] += values
    for call in ("create", "turn", "ping"):
        direct = statistics.median(merged["direct"][call])
        for way, times in merged.items():
            figures = "".join(f"{percentile(times[call], share):9.2f}" for share in (0.5, 0.95, 0.99))
            bound = f" (bound {BOUNDS[name]:.2f})" if way == "transparent" and call != "ping" else ""
            tail = "" if way == "direct" else f"   {statistics.median(times[call]) / direct:5.2f} of direct{bound}"
            print(f"{name:<11} {call:<7} {way:<12}{len(times[call]):5} {figures}{tail}", flush=True)


async def real_runtime(options: argparse.Namespace) -> None:
    """Print part one."""
    print("real runtime, p50 / p95 / p99 in ms")
    async with proxies.demo() as running, proxies.runtime() as port, proxies.gateway(port) as gateway_port:
        direct = Target(port, proxies.UPSTREAM_TOKEN, running["model"])
        demo_port = int(running["sdk"].rpartition(":")[2])
        tokens = {principal["isolation"]: principal["token"] for principal in running["principals"]}
        ways = {
            "direct": direct,
            "transparent": replace(direct, port=gateway_port, token=proxies.TOKEN),
            "user": replace(direct, port=demo_port, token=tokens["user"]),
            "shared": replace(direct, port=demo_port, token=tokens["shared"]),
        }
        for name in CLIENTS:
            await compare(name, ways, options)


async def flood(port: int, token: str) -> tuple[float, list[float]]:
    """Return frames per second and ping times against a null runtime."""
    link, _ = await control.open_control("127.0.0.1", port, token)
    try:
        pings: list[float] = []
        for _ in range(PINGS):
            began = time.perf_counter()
            await link.call("ping")
            pings.append(time.perf_counter() - began)
        began = time.perf_counter()
        await link.call("null.flood", {"frames": FLOOD_FRAMES, "bytes": FLOOD_BYTES}, 120)
        return FLOOD_FRAMES / (time.perf_counter() - began), pings
    finally:
        await link.aclose()


async def null_runtime() -> None:
    """Print part two."""
    print(f"\nnull runtime: {FLOOD_FRAMES} events of {FLOOD_BYTES} bytes, {PINGS} pings")
    async with (
        proxies.null_runtime() as port,
        proxies.gateway(port) as gateway_port,
        proxies.plain_proxy(port) as plain,
    ):
        targets = [("direct", port, proxies.UPSTREAM_TOKEN), ("gateway", gateway_port, proxies.TOKEN)]
        if plain is None:
            print("no plain TCP proxy beside it: install haproxy or nginx (with its stream module) to have one")
        else:
            targets.append((plain[0], plain[1], proxies.UPSTREAM_TOKEN))
        base = 0.0
        for name, target_port, token in targets:
            rates, pings = [], []
            for _ in range(3):
                rate, times = await flood(target_port, token)
                rates.append(rate)
                pings += times
            base = base or percentile(pings, 0.5)
            print(
                f"{name:<8} {statistics.median(rates):10.0f} frames/s   ping p50 {percentile(pings, 0.5):.3f} ms, "
                f"p99 {percentile(pings, 0.99):.3f} ms, added p50 {percentile(pings, 0.5) - base:+.3f} ms"
            )


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description="Measure the gateway's overhead.")
    parser.add_argument("--sessions", type=int, default=15, help="sessions of a round (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=4, help="turns of a session (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds each way, alternating (default: %(default)s)")
    options = parser.parse_args()

    async def run() -> None:
        await real_runtime(options)
        await null_runtime()

    asyncio.run(run())


if __name__ == "__main__":
    main()
