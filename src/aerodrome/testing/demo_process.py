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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

RUNTIME_MARK = "AERODROME_RUNTIME_ID"
_POLL_SECONDS = 0.01
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


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

    @property
    def is_reaped(self) -> bool:
        """Say whether its parent has collected it: only then are all of its threads gone, and its sockets closed."""
        stat = _stat(self.pid)
        return stat is None or int(stat[19]) != self.started


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may connect, as the demo printed it."""

    tenant: str
    user: str
    token: str
    isolation: str


class DemoProcess:
    """A demo in a process of its own; use it `with running()`, or `with spawn()` to do without waiting for it."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.line = ""
        self.described: dict[str, Any] = {}
        self._seen: set[Child] = set()

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Wait for its first line: the JSON object, or the first for people.

        Raises:
            TimeoutError: nothing was said in time. RuntimeError: it ended instead; its words went to standard error.
        """
        assert self.process.stdout is not None
        self.line = _read_line(self.process.stdout, seconds)
        if not self.line:
            raise RuntimeError(f"the demo ended with code {self.process.wait(seconds)} before it was ready")
        self.described = json.loads(self.line) if self.line.startswith("{") else {}

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
        """Return the runtimes that serve somebody now, by id; `realm` is a part of their directory's name, such as a user's."""
        entry = self.described["runtime"]["path"]
        found: dict[int, tuple[str, Child]] = {}
        for child in self._descendants():
            # What a runtime started may carry the same environment, but it is another program.
            variables = dict(value.partition("=")[::2] for value in _environment(child.pid))
            is_runtime = child.command.startswith(entry) and RUNTIME_MARK in variables
            # A runtime's own path is a link to its realm's directory; one that is warm has none yet.
            home = os.path.realpath(variables.get("COPILOT_HOME", ""))
            if is_runtime and "/realms/" in home and realm in home:
                found[child.pid] = (variables[RUNTIME_MARK], child)
        # Only until it has become that program: what a runtime has just forked looks like the runtime itself.
        return {name: child for name, child in found.values() if child.parent not in found}

    def processes(self) -> list[Child]:
        """Return the demo's own process and everything that descends from it."""
        own = _read(self.process.pid)
        return [*([own] if own else []), *self._descendants()]

    def listening(self) -> set[tuple[str, int]]:
        """Return the TCP addresses on which its processes listen now; an IPv6 one as the kernel writes it."""
        sockets = {number for child in self.processes() for number in _sockets(child.pid)}
        return {address for number, address in _listeners() if number in sockets}

    def read_until(self, words: str, seconds: float = 60.0) -> str:
        """Return what it prints next, up to and with the line that holds these words.

        Raises:
            TimeoutError: they did not come in time. EOFError: it printed something else, and its end.
        """
        assert self.process.stdout is not None
        said, deadline = b"", time.monotonic() + seconds
        while words.encode() not in said or not said.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the demo did not print {words!r} within {seconds:g} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise EOFError(f"the demo ended without a word of {words!r}; it printed {said!r}")
            said += more
        return said.decode()

    def find(self, words: str) -> list[Child]:
        """Return the living processes of the whole machine whose command line holds these words."""
        return [child for child in _table() if words in child.command and child.pid != os.getpid()]

    def stop(self, sign: int = signal.SIGTERM, seconds: float = 60.0) -> int:
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
        wait_for(lambda: not self.leftovers(), 30.0)
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


def spawn(arguments: Sequence[str] = ("--json",), environment: Mapping[str, str] | None = None) -> DemoProcess:
    """Spawn a demo on a free port, in a temporary directory of its own, with settings by environment; it is not ready yet."""
    directory = Path(tempfile.mkdtemp(prefix="demo-process-"))
    process = subprocess.Popen(
        [sys.executable, "-m", "aerodrome", "demo", "--sdk-port", "0", "--http-port", "0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, **(environment or {}), "TMPDIR": str(directory)},
        start_new_session=True,
    )
    return DemoProcess(process, directory)


@contextmanager
def running(
    arguments: Sequence[str] = ("--json",), environment: Mapping[str, str] | None = None
) -> Iterator[DemoProcess]:
    """Run a demo for the length of a block; at its end nothing of it may be left."""
    with spawn(arguments, environment) as demo:
        demo.wait_ready()
        yield demo


def _read_line(stream: IO[bytes], seconds: float) -> str:
    """Read one line and not a byte more, so that `select` tells the truth about what follows."""
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"the demo said no line within {seconds:g} s")
        byte = stream.read(1)
        if not byte:
            break
        line += byte
    return line.decode()


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


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields of a process after its name: state, parent, ... , start time at 19."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split() or None
    return None


def _read(pid: int) -> Child | None:
    stat = _stat(pid)
    if stat is None or stat[0] in (b"Z", b"X"):
        return None
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return Child(pid, int(stat[1]), int(stat[19]), command.strip())
    return None


def _environment(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def _sockets(pid: int) -> set[str]:
    """Return the inode numbers of a process's sockets."""
    found = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _listeners() -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the inode number and address of every listening TCP socket of this network namespace."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    host, port = fields[1].split(":")
                    plain = socket.inet_ntoa(bytes.fromhex(host)[::-1]) if name == "tcp" else host
                    yield fields[9], (plain, int(port, 16))


def _carries(child: Child, place: str) -> bool:
    return place in child.command or any(place in variable for variable in _environment(child.pid))
