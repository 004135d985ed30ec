"""Run one short-lived child process to its end, with a deadline, and leave none of its descendants behind.

Not for runtimes: those are supervised (`adapters.process`). Blocking; call it from a thread inside an event loop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended: `code` is None when its time was over."""

    code: int | None
    output: str


def run(argv: Sequence[str], env: Mapping[str, str], cwd: Path, timeout_seconds: float) -> Outcome:
    """Run a command in its own process group; return its exit code and what it printed on both streams."""
    with tempfile.TemporaryFile() as sink:
        child = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(child)
        sink.seek(0)
        return Outcome(code, sink.read().decode(errors="replace"))


def end(child: subprocess.Popen[Any]) -> None:
    """Kill a child's whole process group and collect the child. The child must lead its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
