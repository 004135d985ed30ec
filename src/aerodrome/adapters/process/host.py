"""Runtimes as child processes of a guardian (see guardian.py), on this machine.

Deliberately knows nothing of protocol or policy: it starts, watches and stops processes. fleet.supervisor drives it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog

from aerodrome import errors
from aerodrome.adapters.process import cgroups, usage
from aerodrome.adapters.process.cgroups import GatewayGroups, Hierarchy, RuntimeGroup
from aerodrome.ports.host import ResourceLimits, ResourceUsage, SpawnSpec

_GUARDIAN = Path(__file__).with_name("guardian.py")
#: What the runtime prints when it listens (measured; the line has not changed since the first headless release).
_READY_LINE = re.compile(rb"listening on port (\d+)")
_LAST_LINES = 20
_LINE_BYTES = 500
_KILL_SECONDS = 10.0
_OPEN_SECONDS = 10.0
#: They are in the pipe when the exit is known; to read them takes as long as the machine is busy.
_LAST_WORDS_SECONDS = 5.0

_log = structlog.get_logger()


class ProcessRuntime:
    """A runtime process under the guardian."""

    def __init__(self, host: ProcessHost, number: int, output: int, group: RuntimeGroup, is_wrapped: bool) -> None:
        loop = asyncio.get_running_loop()
        self._number = number
        self.group = group
        self._is_wrapped = is_wrapped
        self.exit_note: str | None = None
        self._keeper = 0
        self._is_frozen = False
        self._is_stopping = False
        self.started: asyncio.Future[int] = loop.create_future()
        self._exited: asyncio.Future[int] = loop.create_future()
        self._port: asyncio.Future[int] = loop.create_future()
        self._host = host
        self._last_lines: deque[bytes] = deque(maxlen=_LAST_LINES)
        self.reading = loop.create_task(self._read_output(output), name=f"runtime process {number} output")

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self.started.result()

    @property
    def network(self) -> LoopbackOf | None:
        """Return the way into the network of a wrapped runtime; whether it has one of its own is for the wrapper to know."""
        return LoopbackOf(self._host, self._number) if self._is_wrapped else None

    @property
    def exited(self) -> asyncio.Future[int]:
        """Return the future of the exit code."""
        return self._exited

    async def address(self) -> tuple[str, int]:
        """Wait for the line that names the port."""
        await asyncio.wait((self._port, self._exited), return_when=asyncio.FIRST_COMPLETED)
        if self._port.done():
            return "127.0.0.1", self._port.result()
        await asyncio.wait((self.reading,), timeout=_LAST_WORDS_SECONDS)
        words = b" | ".join(self._last_lines).decode(errors="replace").strip() or "it said nothing"
        raise errors.SpawnFailed(f"the runtime exited with code {self._exited.result()} before it was ready: {words}")

    def usage(self) -> ResourceUsage | None:
        """Return what it and all below its keeper use; some 0.1 ms, blocking (measured: docs/performance.md)."""
        if not self.started.done() or self._exited.done():
            return None
        pid = usage.behind(self.pid) if self._is_wrapped else self.pid
        return usage.measure(pid, self._keeper, self.group)

    def freeze(self) -> None:
        """Stop it by its control group; without one the guardian sends STOP to all below the keeper, some ms later."""
        if not self._is_stopping:
            self._set_frozen(True)

    def thaw(self) -> None:
        """Let it run again."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        if frozen != self._is_frozen and not self._exited.done():
            self._is_frozen = frozen
            if not self.group.set_frozen(frozen):
                self._host.signal_all(self._number, signal.SIGSTOP if frozen else signal.SIGCONT)

    def let_reach(self, targets: tuple[str, ...]) -> None:
        """Do nothing: a process reaches what the machine does."""

    async def stop(self, grace_seconds: float) -> None:
        """TERM, wait, KILL; KILL at once without grace."""
        self._is_stopping = True
        ladder = ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _KILL_SECONDS))
        for sign, wait_seconds in ladder if grace_seconds > 0 else ladder[1:]:
            if self._exited.done():
                break
            self.thaw()
            if sign == signal.SIGTERM:
                # A stopped process acts on no TERM until it is continued; KILL ends it without another word from it.
                self._host.signal(self._number, signal.SIGCONT)
            self._host.signal(self._number, sign)
            await asyncio.wait((self._exited,), timeout=wait_seconds)

    def note_start(self, pid: int, keeper: int) -> None:
        """Take the guardian's word that the process is there."""
        self._keeper = keeper
        self.started.set_result(pid)

    def note_exit(self, code: int) -> None:
        """Take the guardian's word that the process is gone."""
        if not self._exited.done():
            if code == -signal.SIGKILL and not self._is_stopping and self.group.was_out_of_memory():
                self.exit_note = "the kernel killed it or a part of it for want of memory"
            self._exited.set_result(code)

    async def _read_output(self, descriptor: int) -> None:
        """Find the port, keep the last words, and go on reading: a full pipe would block the runtime."""
        reader = asyncio.StreamReader(limit=64 * 1024)
        pipe = os.fdopen(descriptor, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        begun = b""
        try:
            while chunk := await reader.read(16 * 1024):
                *lines, begun = (begun + chunk).split(b"\n")
                begun = begun[:_LINE_BYTES]
                for line in lines:
                    self._note_line(line[:_LINE_BYTES].rstrip(b"\r"))
        finally:
            if begun:
                self._last_lines.append(begun)
            transport.close()

    def _note_line(self, line: bytes) -> None:
        self._last_lines.append(line)
        found = None if self._port.done() else _READY_LINE.search(line)
        if found:
            self._port.set_result(int(found[1]))


class LoopbackOf:
    """The loopback interface of a wrapped runtime; the guardian opens its sockets: only a process with one thread can enter."""

    def __init__(self, host: ProcessHost, number: int) -> None:
        self._host = host
        self._number = number

    async def connect(self, port: int) -> socket.socket:
        """Connect to a port there; some ms."""
        return await self._host.open_socket(self._number, port, listen=False)

    async def listen(self, port: int) -> socket.socket:
        """Listen on a port there."""
        return await self._host.open_socket(self._number, port, listen=True)


class ProcessHost:
    """Spawns runtimes through one guardian process, started at first use and again if it should die."""

    def __init__(self, discover: Callable[[], list[Hierarchy]] = cgroups.discover) -> None:
        self._discover = discover
        self._groups: GatewayGroups | None = None
        #: Of runtimes that are gone, but not the group yet.
        self._leftover: list[RuntimeGroup] = []
        self._unheld: set[str] = set()
        #: What reads the last words of runtimes, also of those whose end is known already.
        self._outputs: set[asyncio.Task[None]] = set()
        #: By a number of ours: a runtime's id may be spawned anew while an earlier process of it is still being reaped.
        self._runtimes: dict[int, ProcessRuntime] = {}
        self._numbers = itertools.count(1)
        self._control: socket.socket | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._attached: list[int] = []
        self._opening: dict[int, asyncio.Future[socket.socket]] = {}

    @property
    def guardian_pid(self) -> int | None:
        """Return the guardian's process id, None before the first spawn."""
        return self._guardian.pid if self._guardian else None

    async def spawn(self, spec: SpawnSpec) -> ProcessRuntime:
        """Ask the guardian for a process, in a control group of its own where one can be had."""
        if spec.confinement is not None:
            raise errors.SpawnFailed("this host makes no sandboxes and starts nothing that is to be in one")
        control = self._control or self._start_guardian()
        number = next(self._numbers)
        group = self._make_group(number, spec.limits)
        read_end, write_end = os.pipe()
        runtime = self._runtimes[number] = ProcessRuntime(self, number, read_end, group, spec.is_wrapped)
        self._outputs.add(runtime.reading)
        runtime.reading.add_done_callback(self._outputs.discard)
        order = {
            "op": "spawn",
            "id": number,
            "argv": list(spec.argv),
            "env": {**spec.environment, "AERODROME_RUNTIME_ID": spec.runtime_id},
            "cwd": str(spec.working_directory),
            "nofile": spec.limits.open_files,
            "data": None if "memory_bytes" in group.held else spec.limits.memory_bytes,
            "groups": [str(directory) for directory in group.directories],
            "files": [str(path) for path in spec.descriptors],
            "wrapped": spec.is_wrapped,
        }
        try:
            _send(control, order, write_end)
        except OSError as error:
            self._lose_guardian()
            raise errors.SpawnFailed(
                f"the guardian process is gone ({error.strerror}); trying again starts another"
            ) from None
        finally:
            os.close(write_end)
        try:
            await asyncio.wait((runtime.started, runtime.exited), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.signal(number, signal.SIGKILL)  # orders are kept in order: it is spawned, then killed
            raise
        if not runtime.started.done():
            raise errors.SpawnFailed(
                "the guardian could not fork a process; is the machine out of memory or processes?"
            )
        return runtime

    def signal(self, number: int, sign: int) -> None:
        """Send a signal to a runtime; does nothing if it is gone."""
        self._order({"op": "signal", "id": number, "signal": int(sign)})

    def signal_all(self, number: int, sign: int) -> None:
        """Send STOP or CONT to a runtime and all it started; does nothing if it is gone."""
        self._order({"op": "signal_all", "id": number, "signal": int(sign)})

    async def open_socket(self, number: int, port: int, listen: bool) -> socket.socket:
        """Return a socket on the loopback of a wrapped runtime. Raises OSError if it cannot be had."""
        if self._control is None or number not in self._runtimes:
            raise ProcessLookupError(errno.ESRCH, "the runtime is gone")
        order = next(self._numbers)
        opening: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._opening[order] = opening
        self._order({"op": "open", "id": number, "number": order, "port": port, "listen": listen})
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                return await opening
        finally:
            del self._opening[order]

    def _order(self, order: dict[str, Any]) -> None:
        if self._control is not None and order["id"] in self._runtimes:
            try:
                _send(self._control, order)
            except OSError:
                self._lose_guardian()

    async def aclose(self) -> None:
        """Close the guardian's socket; it kills what is left and exits."""
        guardian, self._guardian = self._guardian, None
        self._disconnect()
        if guardian is not None:
            await asyncio.to_thread(_collect, guardian)
        self._note_all_gone()
        self._leftover += [runtime.group for runtime in self._runtimes.values()]
        self._runtimes.clear()
        if self._outputs:
            await asyncio.wait(self._outputs, timeout=5)
        groups, self._groups = self._groups, None
        if groups is not None:
            await asyncio.to_thread(_remove_all, groups, self._leftover)
            self._leftover = []

    def _make_group(self, number: int, limits: ResourceLimits) -> RuntimeGroup:
        """Make a runtime's group; say once of each limit that it cannot be held here."""
        self._remove_groups(())
        if self._groups is None:
            self._groups = GatewayGroups(self._discover())
        group = self._groups.make(f"rt-{number}", limits)
        wanted = {name for name in ("memory_bytes", "processes", "cpu_cores") if getattr(limits, name) is not None}
        if unheld := wanted - group.held - self._unheld:
            self._unheld |= unheld
            _log.warning("limits.unheld", limits=sorted(unheld), reason="no writable control group with the controller")
        return group

    def _remove_groups(self, ended: Iterable[RuntimeGroup]) -> None:
        """Remove the groups of runtimes that are gone; one that is still being left is tried again at the next end or spawn."""
        self._leftover = [group for group in (*self._leftover, *ended) if not group.remove()]

    def _start_guardian(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARDIAN), str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        asyncio.get_running_loop().add_reader(ours, self._read_control)
        self._control = ours
        return ours

    def _read_control(self) -> None:
        assert self._control is not None
        try:
            data, attached, _, _ = socket.recv_fds(self._control, 65536, 64, socket.MSG_CMSG_CLOEXEC)
            self._attached += attached
        except OSError:
            data = b""
        if not data:
            self._lose_guardian()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._note(json.loads(line))

    def _note_opened(self, message: dict[str, Any]) -> None:
        opened = None if "errno" in message else socket.socket(fileno=self._attached.pop(0))
        opening = self._opening.get(message["opened"])
        if opening is None or opening.done():
            if opened is not None:
                opened.close()  # who asked has given up
        elif opened is None:
            opening.set_exception(OSError(message["errno"], os.strerror(message["errno"])))
        else:
            opened.setblocking(False)
            opening.set_result(opened)

    def _note(self, message: dict[str, Any]) -> None:
        if "opened" in message:
            self._note_opened(message)
            return
        runtime = self._runtimes.get(message["id"])
        if runtime is None:
            return
        if "pid" in message:
            runtime.note_start(message["pid"], message["keeper"])
        else:
            runtime.note_exit(message.get("exited", -signal.SIGKILL))
            del self._runtimes[message["id"]]
            self._remove_groups((runtime.group,))

    def _lose_guardian(self) -> None:
        """Every runtime has the guardian's death as its own (PDEATHSIG): take note of it."""
        guardian, self._guardian = self._guardian, None
        self._disconnect()
        if guardian is not None:
            guardian.kill()
            guardian.wait()
        self._note_all_gone()
        ended = [runtime.group for runtime in self._runtimes.values()]
        self._runtimes.clear()
        for group in ended:
            group.kill()  # the keepers do, if they live; who killed the guardian may have killed them as well
        self._remove_groups(ended)

    def _disconnect(self) -> None:
        control, self._control = self._control, None
        self._received = b""
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        while self._attached:
            os.close(self._attached.pop())
        for opening in self._opening.values():
            if not opening.done():
                opening.set_exception(ProcessLookupError(errno.ESRCH, "the guardian is gone"))

    def _note_all_gone(self) -> None:
        for runtime in self._runtimes.values():
            runtime.note_exit(-signal.SIGKILL)


def _send(control: socket.socket, order: dict[str, Any], descriptor: int | None = None) -> None:
    data = json.dumps(order).encode() + b"\n"
    if descriptor is None:
        control.sendall(data)
        return
    sent = socket.send_fds(control, [data], [descriptor])
    control.sendall(data[sent:])


def _collect(guardian: subprocess.Popen[bytes]) -> None:
    try:
        guardian.wait(timeout=15)
    except subprocess.TimeoutExpired:
        guardian.kill()
        guardian.wait()


def _remove_all(groups: GatewayGroups, leftover: list[RuntimeGroup]) -> None:
    deadline = time.monotonic() + _KILL_SECONDS
    while not groups.remove() and time.monotonic() < deadline:
        for group in leftover:
            group.kill()
        time.sleep(0.002)
