"""The bench of event streams runs, at a fiftieth of its size: readers are served, slow ones dropped, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.runtime
BENCH = Path(__file__).parents[2] / "bench" / "streams.py"
WORDS = ["--streams", "20", "--sessions", "2", "--turns", "1", "--slow", "1", "--seconds", "1", "--stall", "0.5"]


@pytest.mark.timeout(360)
def test_a_small_run_serves_all_readers_and_a_slow_one_loses_nothing():
    run = subprocess.run([sys.executable, BENCH, *WORDS], capture_output=True, text=True, timeout=300, check=False)

    assert run.returncode == 0, run.stdout + run.stderr
    assert "20 streams:     400 events" in run.stdout
    assert "slow readers: 1 of 1 dropped" in run.stdout
    assert " 0 missed or doubled any" in run.stdout
