"""What tests take for a demo's runtimes, on processes that stand for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerodrome.testing import demo_process
from aerodrome.testing.demo_process import DemoProcess

#: A runtime that has just forked: for a moment, its child has its command line and its environment.
FORKS = "import os, sys, time; os.fork(); sys.stdout.write('.'); sys.stdout.flush(); time.sleep(300)"
#: A demo with one runtime.
DEMO = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoProcess]:
    """A demo whose runtime has forked."""
    home = tmp_path / "realms" / "user-acme-ann-1" / "copilot"
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, FORKS],
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, demo_process.RUNTIME_MARK: "rt-1", "COPILOT_HOME": str(home), "TMPDIR": str(tmp_path)},
    )
    demo = DemoProcess(process, tmp_path)
    demo.described = {"runtime": {"path": f"{sys.executable} -c import os"}}
    assert process.stdout is not None
    assert process.stdout.read(1) + process.stdout.read(1) == b".."
    yield demo
    for child in demo.processes():
        os.kill(child.pid, 9)
    process.wait(30)
    process.stdout.close()


def test_a_child_that_a_runtime_has_just_forked_is_not_taken_for_the_runtime(demo: DemoProcess) -> None:
    own, *others = demo.processes()
    [runtime] = [child for child in others if child.parent == own.pid]
    [forked] = [child for child in others if child.parent == runtime.pid]

    assert forked.command == runtime.command
    assert demo.runtimes() == {"rt-1": runtime}
    assert demo.runtimes("acme-ann") == {"rt-1": runtime}
    assert demo.runtimes("acme-ben") == {}


def test_a_demo_that_ends_before_it_printed_what_is_waited_for_says_so(demo: DemoProcess) -> None:
    for child in demo.processes():
        os.kill(child.pid, 9)

    with pytest.raises(EOFError, match="ended without a word of 'Ctrl-C'"):
        demo.read_until("Ctrl-C")
