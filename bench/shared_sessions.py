"""Twenty members hammer one session of the real runtime: are turns serial, in order, and is everyone served?

Every member sends its next message as soon as it knows the one before was taken; one process has the gateway, another the
members. Prints turns a second, how long a message waited for its turn (median, 99th percentile, longest), how evenly members
were served, and the cost of a member more. `check` holds what must be true, from the runtime's own events; it fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
from typing import Any

from aerodrome.testing import crowd as crowds
from aerodrome.testing import demo_process


def main() -> None:
    """Run it and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--members", type=int, default=20)
    print(json.dumps(asyncio.run(_measure(parser.parse_args())), indent=2))


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with demo_process.running(environment={"AERODROME_MASTER_KEY": secrets.token_hex(32)}) as demo:
        crowd = await crowds.gather(demo, options.members)
        seconds = await crowds.hammer(crowd, options.seconds)
        crowds.check(crowd)
        for one in (crowd.owner, *crowd.members.values()):
            await one.aclose()
    waits, turns = sorted(crowd.waits), sum(crowd.sent.values())
    mean = seconds / turns
    return {
        "members": options.members,
        "seconds": round(seconds, 1),
        "turns": turns,
        "turns_per_second": round(turns / seconds, 2),
        "wait_ms": {
            "median": round(statistics.median(waits) * 1000),
            "p99": round(waits[int(len(waits) * 0.99)] * 1000),
            "max": round(waits[-1] * 1000),
        },
        "longest_wait_in_fair_shares": round(waits[-1] / (mean * options.members), 2),
        "turns_of_a_member": {"least": min(crowd.sent.values()), "most": max(crowd.sent.values())},
    }


if __name__ == "__main__":
    main()
