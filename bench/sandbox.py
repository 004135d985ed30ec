"""What a sandbox costs: the time from a spawn to the first ping, memory, and the round trip, for each network and without one.

Runtimes in a sandbox start cold, so the ratio to a spawn without one is what a user of host tools waits longer.

    python bench/sandbox.py [--rounds N] [--entry native|node]

The real runtime, one at a time, by the product's own host; no gateway between.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from aerodrome import tailoring
from aerodrome.adapters.distribution import install
from aerodrome.adapters.distribution.release import RuntimeRelease, Wanted, WantedEntry
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.adapters.sandbox import probe
from aerodrome.adapters.sandbox.bubblewrap import Network
from aerodrome.adapters.sandbox.host import SandboxHost
from aerodrome.adapters.sandbox.uids import UidRange
from aerodrome.core.placement import Realm
from aerodrome.core.policy import HostTools, Isolation
from aerodrome.fleet import compiled, spec
from aerodrome.fleet.spec import FleetSettings
from aerodrome.ports.host import RuntimeHost
from aerodrome.settings import RuntimeSection, Settings
from aerodrome.transport import control

FIRST_UID = 2_000_000_000
PINGS = 200


@dataclass
class Measured:
    """Of each round: milliseconds until it is ready, MiB, microseconds of a ping."""

    ready: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    ping: list[float] = field(default_factory=list)

    def describe(self, plain: Measured) -> str:
        """Return the figures, with the ratio to a spawn without a sandbox."""
        p95 = sorted(self.ready)[int(len(self.ready) * 0.95)]
        ready, memory, ping = map(statistics.median, (self.ready, self.memory, self.ping))
        ratio = ready / statistics.median(plain.ready)
        return f"ready p50 {ready:.1f} ms ({ratio:.2f}), p95 {p95:.1f} | {memory:.1f} MiB | ping {ping:.0f} us"


@dataclass(frozen=True)
class Way:
    """How runtimes are started: `network` None is no sandbox; `is_compiled`: with code compiled ahead, if there is any."""

    name: str
    network: Network | None
    is_compiled: bool = True


WAYS = (Way("no sandbox", None), *(Way(network.value, network) for network in Network))
#: What the Node entry point's code costs when each runtime compiles it.
UNCOMPILED = (
    Way("no sandbox, not compiled ahead", None, False),
    Way("egress, not compiled ahead", Network.EGRESS, False),
)


async def measure(found: RuntimeRelease, way: Way, rounds: int, state: Path) -> Measured:
    """Spawn so many runtimes, each for a realm of its own."""
    network = way.network
    found = found if way.is_compiled else replace(found, compile_cache=None)
    host_tools = HostTools.UNSANDBOXED if network is None else HostTools.SANDBOXED
    # The Node entry point wants a provider to be offline with; it is never called.
    offline = {"COPILOT_OFFLINE": "true", "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9", "COPILOT_MODEL": "none"}
    chosen = Settings(state_directory=state, runtime=RuntimeSection(environment=offline))
    settings = replace(tailoring.fleet_settings(chosen, found), host_tools=host_tools)
    host: RuntimeHost = ProcessHost()
    if network is not None:
        sandbox = probe.find(None, network, (found.package_dir, found.entry), FIRST_UID)
        sandbox = replace(sandbox, compile_cache=found.compile_cache)
        host = SandboxHost(host, sandbox, UidRange(FIRST_UID, 100_000) if sandbox.setpriv else None)
    measured = Measured()
    for number in range(rounds):
        await measure_one(host, settings, f"u{number}", measured)
    await host.aclose()
    return measured


async def measure_one(host: RuntimeHost, settings: FleetSettings, user: str, measured: Measured) -> None:
    """Spawn one, ping it, stop it."""
    realm = Realm(f"user:bench/{user}", Isolation.USER, has_host_tools=True)
    directories = spec.directories_of(realm, settings.state_directory)
    confinement = spec.confinement_of(realm, f"rt-{user}", settings)
    directories.create(is_confined=confinement is not None)
    wanted = spec.spawn_spec(f"rt-{user}", "token", directories, settings, confinement)
    began = time.perf_counter()
    compiled.link(f"rt-{user}", settings, confinement)
    process = await host.spawn(wanted)
    address = await process.address()
    dial = functools.partial(process.network.connect, address[1]) if process.network else None
    link, _ = await control.open_control(*address, "token", dial=dial)
    await link.call("ping")
    measured.ready.append((time.perf_counter() - began) * 1e3)
    used = process.usage()
    assert used is not None
    measured.memory.append(used.memory_bytes / 2**20)
    for _ in range(PINGS):
        began = time.perf_counter()
        await link.call("ping")
        measured.ping.append((time.perf_counter() - began) * 1e6)
    await link.aclose()
    await process.stop(1.0)


async def main(rounds: int, entry: WantedEntry) -> None:
    """Print a line for each way to start a runtime."""
    found = await asyncio.to_thread(install.install, None, Wanted(entry))
    plain = None
    for way in (*WAYS, *(UNCOMPILED if found.compile_cache else ())):
        with tempfile.TemporaryDirectory(prefix="aerodrome-bench-") as directory:
            measured = await measure(found, way, rounds, Path(directory))
        plain = plain or measured
        print(f"{way.name:>10} | {measured.describe(plain)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--entry", choices=["native", "node"], default="native")
    wanted = parser.parse_args()
    asyncio.run(main(wanted.rounds, wanted.entry))
