"""Fuzz the protocol core: python tools/fuzz.py [--seconds 600] [--target streams] [--seed 1] [--processes 2].

Each process takes seeds of its own, one after another, each through every target. It stops at the first fault and prints the seed
and target that repeat it. The same targets run for a moment in the test suite (tests/unit/test_fuzz.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter

from aerodrome.testing import fuzz


def run(first_seed: int, step: int, seconds: float, targets: list[str]) -> tuple[Counter[str], str]:
    """Fuzz for so long; return how often each target ran, and the fault, if any."""
    counts: Counter[str] = Counter()
    seed, end = first_seed, time.monotonic() + seconds
    while time.monotonic() < end:
        for name in targets:
            try:
                fuzz.TARGETS[name](fuzz.Source(seed))
            except Exception:
                return counts, f"target {name}, seed {seed}\n{traceback.format_exc()}"
            counts[name] += 1
        seed += step
    return counts, ""


def main() -> None:
    """Run it; exit code 1 with a fault."""
    parser = argparse.ArgumentParser(description="Fuzz the protocol core.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--target", action="append", choices=sorted(fuzz.TARGETS), help="default: all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    targets = options.target or list(fuzz.TARGETS)
    jobs = [(options.seed + at, options.processes, options.seconds, targets) for at in range(options.processes)]
    with multiprocessing.Pool(options.processes) as pool:
        results = pool.starmap(run, jobs)
    total: Counter[str] = sum((counts for counts, _ in results), Counter())
    faults = [fault for _, fault in results if fault]
    print(f"from seed {options.seed}: " + ", ".join(f"{name} {count:,}" for name, count in total.items()))
    print("\n".join(faults) or "no fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
