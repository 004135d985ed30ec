"""`aerodrome demo --json` as a child process: started, read, watched, stopped, and proved to have left nothing behind.

For end-to-end tests and benchmarks. Linux only where it looks into the process table. Its processes are known by two signs: they
descend from it, or they carry the directory that was made for this one demo (TMPDIR, COPILOT_HOME and HOME of its runtimes
lie below it). Deliberately speaks no protocol: that is for the SDK under test.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

RUNTIME_MARK = "AERODROME_RUNTIME_ID"
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Child:
    """A process: the start time (ticks since boot) tells it from a later one with the same pid."""

    pid: int
    parent: int
    started: int
    command: str

    @property
    def is_alive(self) -> bool:
        """Say whether it still runs (a zombie does not)."""
        present = _read(self.pid)
        return present is not None and present.started == self.started


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may connect, as the demo printed it."""

    tenant: str
    user: str
    token: str
    isolation: str


class DemoProcess:
    """A running demo; use `start` or, better, `with running()`."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, line: str) -> None:
        self.process = process
        self.directory = directory
        self.line = line
        self.described: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        self._seen: set[Child] = set()

    @property
    def sdk(self) -> str:
        """Return host:port for SDK programs."""
        return str(self.described["sdk"])

    @property
    def model(self) -> dict[str, str]:
        """Return base_url, name and api_key of the demo model."""
        return dict(self.described["model"])

    @property
    def principals(self) -> list[Principal]:
        """Return everyone who may connect."""
        return [Principal(**principal) for principal in self.described["principals"]]

    def tenants(self, isolation: str) -> list[list[Principal]]:
        """Return the users of each tenant with that isolation."""
        found: dict[str, list[Principal]] = {}
        for principal in self.principals:
            if principal.isolation == isolation:
                found.setdefault(principal.tenant, []).append(principal)
        return list(found.values())

    def runtimes(self, realm: str = "") -> dict[str, Child]:
        """Return the runtimes that live now by id; `realm` is a part of their directory's name, such as a user's."""
        mark = f"{RUNTIME_MARK}="
        found = {}
        for child in self._descendants():
            variables = _environment(child.pid)
            names = [value[len(mark) :] for value in variables if value.startswith(mark)]
            home = next((value for value in variables if value.startswith("COPILOT_HOME=")), "")
            # What a runtime started has the same environment: its own parent is the guardian, which has no mark.
            is_runtime = names and not any(value.startswith(mark) for value in _environment(child.parent))
            if is_runtime and realm in home:
                found[names[0]] = child
        return found

    def find(self, words: str) -> list[Child]:
        """Return the living processes of the whole machine whose command line holds these words."""
        return [child for child in _table() if words in child.command and child.pid != os.getpid()]

    def stop(self, sign: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send a signal and wait; return the exit code (negative: the signal that ended it)."""
        self._seen.update(self._descendants())
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(seconds)

    def leftovers(self) -> list[Child]:
        """Return what of this demo still runs though it ended."""
        place = str(self.directory)
        carrying = [child for child in _table() if child.pid != os.getpid() and _carries(child, place)]
        seen = [child for child in self._seen if child.is_alive]
        return [child for child in {*carrying, *seen} if child.pid != self.process.pid]

    def kill_leftovers(self) -> list[Child]:
        """Kill what is left, after some time to go by itself; return it."""
        wait_for(lambda: not self.leftovers(), 10.0)
        left = self.leftovers()
        for child in left:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        return left

    def _descendants(self) -> list[Child]:
        table = _table()
        found: list[Child] = []
        frontier = {self.process.pid}
        while frontier:
            children = [child for child in table if child.parent in frontier]
            found += children
            frontier = {child.pid for child in children}
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.stop(signal.SIGKILL)
                raise
            left = self.kill_leftovers()
            if left and error is None:
                raise AssertionError(f"the demo left processes behind: {left}")
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            shutil.rmtree(self.directory, ignore_errors=True)


def start(arguments: Sequence[str] = ("--json",), seconds: float = 30.0) -> DemoProcess:
    """Start a demo on a free port and wait for its first line.

    Raises:
        TimeoutError: nothing was said in time. RuntimeError: it ended instead; its words went to standard error.
    """
    directory = Path(tempfile.mkdtemp(prefix="demo-process-"))
    process = subprocess.Popen(
        [sys.executable, "-m", "aerodrome", "demo", "--sdk-port", "0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(directory)},
        start_new_session=True,
    )
    assert process.stdout is not None
    demo = DemoProcess(process, directory, "")
    try:
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError(f"the demo said nothing within {seconds:g} s")
        line = process.stdout.readline().decode()
        if not line:
            raise RuntimeError(f"the demo ended with code {process.wait(seconds)} before it was ready")
    except BaseException:
        demo.stop(signal.SIGKILL)
        demo.kill_leftovers()
        process.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return DemoProcess(process, directory, line)


@contextmanager
def running(arguments: Sequence[str] = ("--json",)) -> Iterator[DemoProcess]:
    """Run a demo for the length of a block; at its end nothing of it may be left."""
    with start(arguments) as demo:
        yield demo


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Poll until a condition about other processes holds; return whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _table() -> list[Child]:
    return [child for name in os.listdir("/proc") if name.isdigit() and (child := _read(int(name)))]


def _read(pid: int) -> Child | None:
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            return Child(pid, int(fields[1]), int(fields[19]), command.strip())
    return None


def _environment(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def _carries(child: Child, place: str) -> bool:
    return place in child.command or any(place in variable for variable in _environment(child.pid))
