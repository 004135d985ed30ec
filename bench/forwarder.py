"""What it costs that keys stay out of runtimes: the time to the first token of a model call, direct and through the forwarder.

    python bench/forwarder.py [--calls 300]

No runtime: an HTTP client in its place calls the demo model, in turns direct and through the forwarder. The client and the
forwarder share one loop, as the gateway and the forwarder do. A real model takes hundreds of milliseconds to its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

import httpx

from aerodrome import demo
from aerodrome.adapters.secrets.cached import CachedSecrets
from aerodrome.adapters.secrets.local import EnvironmentSource
from aerodrome.clock import SystemClock
from aerodrome.core.provider import NamedProvider, ProviderKind
from aerodrome.core.secret import Reference
from aerodrome.gateway.forwarder import Forwarder
from aerodrome.gateway.supplying import Supplier
from aerodrome.transport.asgi import AsgiServer

#: About what a runtime sends: 15 kB of system message.
BODY = {
    "model": "demo",
    "stream": True,
    "messages": [{"role": "system", "content": "x" * 15_000}, {"role": "user", "content": "hello there, how are you"}],
}
WARM_UP = 20


async def call(http: httpx.AsyncClient, provider: dict[str, Any]) -> float:
    """Make a model call; return the milliseconds to the first part of its answer."""
    headers, started = {"authorization": f"Bearer {provider['apiKey']}"}, time.perf_counter()
    async with http.stream("POST", f"{provider['baseUrl']}/chat/completions", headers=headers, json=BODY) as answer:
        answer.raise_for_status()
        parts = answer.aiter_raw()
        await anext(parts)
        first = time.perf_counter() - started
        async for _ in parts:
            pass
    return first * 1000


async def measure(calls: int) -> dict[str, list[float]]:
    """Return the times of both ways."""
    async with demo.open_model() as model, AsyncExitStack() as stack:
        house = NamedProvider(
            "house", ProviderKind.OPENAI, model["base_url"], api_key=Reference("env", "KEY"), models=("demo",)
        )
        supplier = Supplier({"house": house})
        sources = {"env": EnvironmentSource({"KEY": model["api_key"]})}
        forwarder = Forwarder(supplier, CachedSecrets(sources, SystemClock(), 60.0, 0.0), 64 * 1024 * 1024)
        stack.push_async_callback(forwarder.aclose)
        server = AsgiServer(forwarder, 100)
        stack.push_async_callback(server.aclose)
        supplier.forwarder_url = f"http://127.0.0.1:{await server.start()}"
        ways = {
            "direct": {"baseUrl": model["base_url"], "apiKey": model["api_key"]},
            "forwarded": supplier.fill("realm", "session", {"provider": {"baseUrl": "aerodrome:house"}})["provider"],
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        for number in range(WARM_UP + calls):
            for name, provider in ways.items():
                took = await call(http, provider)
                if number >= WARM_UP:
                    times[name].append(took)
        return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    times = asyncio.run(measure(parser.parse_args().calls))
    print("milliseconds to the first token")
    for name, found in times.items():
        p95 = sorted(found)[int(len(found) * 0.95)]
        print(f"{name:10} p50 {statistics.median(found):6.2f}  p95 {p95:6.2f}")


if __name__ == "__main__":
    main()
