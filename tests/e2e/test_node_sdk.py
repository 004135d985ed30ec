"""Unchanged programs of the published npm SDK through the real gateway, on the real runtime.

The scenarios are JavaScript, in node/scenarios.mjs; each is a test here, and they run in one Node process for each isolation.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.runtime, pytest.mark.node]

NODE_TESTS = Path(__file__).with_name("node")
SCENARIOS = re.findall(r'^scenario\("(.+?)"', (NODE_TESTS / "scenarios.mjs").read_text("utf-8"), re.MULTILINE)
#: For all scenarios of an isolation together; they take some 4 s.
SCENARIOS_SECONDS = 100.0


def environment(demo):
    return {**os.environ, "AERODROME_DEMO": demo.line}


@pytest.fixture(scope="module", params=["user", "shared"])
def results(request, demo):
    """What became of every scenario: None if it ended well, else the error."""
    done = subprocess.run(
        ["node", "scenarios.mjs", request.param],
        cwd=NODE_TESTS,
        env=environment(demo),
        capture_output=True,
        check=False,
        text=True,
        timeout=SCENARIOS_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: None if line["ok"] else line["error"] for line in lines}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(results, name):
    error = results[name]
    assert error is None, error


def test_every_scenario_is_a_test_here(results):
    assert len(SCENARIOS) > 15
    assert set(results) == set(SCENARIOS)


@pytest.mark.parametrize("isolation", ["user", "shared"])
def test_a_turn_fails_at_once_when_its_runtime_is_killed_and_the_session_works_on_a_fresh_one(demo, isolation):
    owner = demo.tenants(isolation)[0][0]
    program = subprocess.Popen(
        ["node", "death.mjs", owner.tenant, owner.user],
        cwd=NODE_TESTS,
        env=environment(demo),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout.readline() == "streaming\n"
        killed_at = time.time()
        for child in demo.runtimes(
            f"user-{owner.tenant}-{owner.user}-" if isolation == "user" else "/shared-"
        ).values():
            os.kill(child.pid, signal.SIGKILL)
        said, _ = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
        program.stdout.close()

    result = json.loads(said)
    assert "try again" in result["failure"]
    assert result["failedAt"] - killed_at < 10, "the turn itself would have taken minutes"
    assert result["recalled"].startswith("remember the moon | ")
    assert result["created"] == "You said: hello"
