"""The benchmarks run, with numbers too small to say anything: none of them measures time here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.runtime
BENCH = Path(__file__).parents[2] / "bench"

RUNS = {
    "density": ["--clients", "5", "--active", "2", "--seconds", "1.5", "--turn-seconds", "0.3", "--sample", "2"],
    "live_sessions": ["--levels", "2,4", "--turns", "4", "--caps", "2,0"],
    "wake": ["--rounds", "1"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_to_its_end(name):
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), *RUNS[name]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
