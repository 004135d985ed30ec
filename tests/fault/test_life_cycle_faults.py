"""Faults at random moments, on the real runtime, while sessions are evicted, frozen, hibernated and woken; then verifiers.

AERODROME_FAULT_ROUNDS says how many faults (15), AERODROME_FAULT_SEED repeats a run as far as clocks allow; both are printed.
The state directory's realms are on a small disk of their own, which becomes full for a while. Needs root for that (mount); where
that is not to be had, runtimes are kept from writing instead (RLIMIT_FSIZE), and the test says so.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aerodrome.core.policy import ClientLoss, Isolation, Policy, Trust
from aerodrome.testing import process_table
from aerodrome.testing.peer import Heard, Peer, RpcError

from . import served as gateways
from .served import Served

pytestmark = pytest.mark.runtime

ROUNDS = int(os.environ.get("AERODROME_FAULT_ROUNDS", "15"))
SEED = int(os.environ.get("AERODROME_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
#: Health is to find a runtime that hangs well before this; what waits for a spawn on a busy machine may take as long.
ANSWER_SECONDS = 20.0
TURN_SECONDS = 20.0
#: A turn whose events cannot be kept has no end (measured: the runtime says so at most once, and never that it is idle).
FULL_TURN_SECONDS = 1.5
HANG_SECONDS = 10.0
DISK_BYTES = 256 * 1024 * 1024

FULL = Policy(Isolation.USER, Trust.FULL, ("*",))
TENANTS = {
    "acme": (FULL, ("ann", "ben")),
    "patient": (Policy(Isolation.USER, Trust.FULL, ("*",), client_loss=ClientLoss.FINISH), ("cat",)),
    "shop": (Policy(Isolation.SHARED, Trust.LIMITED, ("*",)), ("dan", "eve")),
    "late": (Policy(Isolation.SHARED, Trust.LIMITED, ("*",), client_loss=ClientLoss.FINISH), ("fay",)),
}
SETTINGS = {
    "RUNTIME__LIVE_SESSIONS": "3",
    "RUNTIME__FREEZE_SECONDS": "0.15",
    "RUNTIME__IDLE_SECONDS": "0.6",
    "RUNTIME__WARM_RUNTIMES": "1",
    "RUNTIME__WARM_RUNTIMES_MAX": "1",
    # A runtime may hang before it was ever ready, too.
    "RUNTIME__READY_SECONDS": "5",
    "RUNTIME__STOP_GRACE_SECONDS": "1",
    "RUNTIME__HEALTH_INTERVAL_SECONDS": "0.25",
    "RUNTIME__HEALTH_DEADLINE_SECONDS": "0.5",
    "LOG_LEVEL": "warning",
}


@dataclass(frozen=True, slots=True)
class Event:
    """What the verifiers need of an event that was heard."""

    kind: str
    event_id: str
    is_kept: bool
    content: Any = None


class Ears(list[Heard]):
    """Keeps of all that is heard only the events of sessions, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[str, list[Event]] = defaultdict(list)

    def append(self, heard: Heard, /) -> None:
        if heard.method == "session.event":
            event, data = heard.params["event"], heard.params["event"].get("data") or {}
            about = {"assistant.message": "content", "session.error": "errorType"}.get(event["type"], "")
            note = Event(event["type"], event["id"], not event.get("ephemeral"), data.get(about))
            self.events[heard.params["sessionId"]].append(note)


@dataclass(eq=False)
class Line:
    """One client link of a user."""

    peer: Peer
    ears: Ears
    opened: set[str] = field(default_factory=set)
    is_cut: bool = False


@dataclass
class Talk:
    """A session and what became of its turns."""

    session_id: str
    sent: int = 0
    acknowledged: list[str] = field(default_factory=list)


@dataclass
class Chaos:
    """What the faults and the clients tell each other and the verifiers."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    strokes: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    answered: int = 0
    slowest: float = 0.0
    #: When the disk was last full, or None while it is.
    full_until: float | None = 0.0
    #: When a runtime was last asked to end: what it answers on its way out is its own affair.
    terminated_at: float = 0.0

    def was_full_since(self, moment: float) -> bool:
        return self.full_until is None or self.full_until >= moment - FULL_TURN_SECONDS


class Worker:
    """A user's client that works on, whatever happens; one turn at a time in each of its sessions."""

    def __init__(self, gateway: Served, tenant: str, user: str, chaos: Chaos) -> None:
        self.name = f"{tenant}-{user}"
        self.talks = [Talk(f"{tenant}-{user}-{number}") for number in range(2)]
        self.lines: list[Line] = []
        self.waits = TENANTS[tenant][0].client_loss is ClientLoss.FINISH
        self._who = (tenant, user)
        self._gateway = gateway
        self._chaos = chaos
        self._line: Line | None = None
        self._connecting = asyncio.Lock()

    async def line(self) -> Line:
        """Return the link, a new one if it was cut."""
        async with self._connecting:
            if self._line is None or self._line.is_cut:
                peer = await self._gateway.connect(*self._who)
                peer.heard = ears = Ears()
                self._line = Line(peer, ears)
                self.lines.append(self._line)
            return self._line

    async def cut(self) -> None:
        """Be gone in an instant, as a killed client is."""
        line = self._line
        if line is not None and not line.is_cut:
            line.is_cut = True
            await line.peer.aclose()

    async def aclose(self) -> None:
        for line in self.lines:
            await line.peer.aclose()

    async def ask(self, line: Line, method: str, params: dict[str, Any]) -> Any:
        """Make a call. Raises RpcError, ConnectionError (only on a link that was cut)."""
        began = time.monotonic()
        try:
            result = await line.peer.call(method, params, seconds=ANSWER_SECONDS)
        except TimeoutError:
            self._gateway.process.send_signal(signal.SIGUSR2)  # it says where it waits
            self._chaos.wrongs.append(f"{self.name}: {method} was not answered within {ANSWER_SECONDS:g} s")
            raise ConnectionError("no answer") from None
        except ConnectionError:
            if not line.is_cut:
                self._chaos.wrongs.append(f"{self.name}: the gateway closed a link that nobody had cut ({method})")
            raise
        except RpcError as error:
            self._note_error(method, error, began)
            raise
        finally:
            self._chaos.slowest = max(self._chaos.slowest, time.monotonic() - began)
        self._chaos.answered += 1
        return result

    def _note_error(self, method: str, error: RpcError, began: float) -> None:
        chaos = self._chaos
        chaos.answered += 1
        code = error.data.get("code") if isinstance(error.data, dict) else error.number
        chaos.failures[f"{method}: {code}"] += 1
        retryable = isinstance(error.data, dict) and error.data.get("retryable")
        is_unkept = "not found" in str(error).lower() and method == "session.resume"
        is_farewell = chaos.terminated_at >= began - 1.0
        if not (retryable or chaos.was_full_since(began) or is_unkept or is_farewell):
            chaos.wrongs.append(f"{self.name}: {method} failed for good: {error} {error.data}")

    async def live(self, talk: Talk) -> None:
        """Have turns until the faults are over."""
        while not self._chaos.over.is_set():
            with suppress(RpcError, ConnectionError):
                await self._step(talk)
            # Long enough now and then that its runtime is frozen, or hibernates.
            pause = random.choice((0.0, 0.02, 0.1, 0.3, 0.9))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._chaos.over.wait(), pause)

    async def _step(self, talk: Talk) -> None:
        line = await self.line()
        if talk.session_id not in line.opened:
            await self.open(line, talk)
        match random.randrange(6):
            case 0:
                await self.ask(line, "session.list", {})
            case 1:
                await self.ask(line, "session.getMessages", {"sessionId": talk.session_id})
            case _:
                await self.turn(line, talk)

    async def open(self, line: Line, talk: Talk) -> None:
        """Resume a session, or create one that was never kept."""
        params = {**self._gateway.create, "sessionId": talk.session_id, "streaming": True}
        try:
            await self.ask(line, "session.resume", params)
        except RpcError as error:
            if "not found" not in str(error).lower() and "not on disk" not in str(error):
                raise
            if talk.acknowledged:
                self._chaos.wrongs.append(f"{talk.session_id}: lost with {len(talk.acknowledged)} turns in it: {error}")
            await self.ask(line, "session.create", params)
        line.opened.add(talk.session_id)

    async def turn(self, line: Line, talk: Talk) -> bool:
        """Have one turn; say whether it was acknowledged: its answer and that all is done were heard, and no error."""
        talk.sent += 1
        token = f"{talk.session_id}/{talk.sent:04d}"
        stream = f" [stream 6 {random.choice((0.2, 0.5))}]" if random.random() < 0.3 else ""
        heard, began = line.ears.events[talk.session_id], time.monotonic()
        since = len(heard)
        await self.ask(line, "session.send", {"sessionId": talk.session_id, "prompt": f"[say {token}]{stream}"})
        outcome = await self._hear_out(line, lambda: _outcome(heard[since:], token), began)
        if outcome == "cut" and self.waits and not self._chaos.over.is_set():
            outcome = await self._hear_later(talk, token) or outcome
        self._chaos.turns[outcome] += 1
        if outcome in ("served", "served later"):
            talk.acknowledged.append(token)
        elif outcome == "silent" and not self._chaos.was_full_since(began):
            self._chaos.wrongs.append(f"{token}: the turn has no end: {[event.kind for event in heard[since:]][-5:]}")
        return outcome == "served"

    async def _hear_out(self, line: Line, outcome: Callable[[], str], began: float) -> str:
        while True:
            found = outcome()
            if found:
                return found
            if line.is_cut:
                return "cut"
            patience = FULL_TURN_SECONDS if self._chaos.was_full_since(began) else TURN_SECONDS
            if time.monotonic() - began > patience:
                return "silent"
            line.peer._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(line.peer._changed.wait(), 0.25)

    async def _hear_later(self, talk: Talk, token: str) -> str:
        """Come back for a turn that goes on without its client; nothing if what became of it was not heard."""
        with suppress(RpcError, ConnectionError):
            line = await self.line()
            began = time.monotonic()
            if talk.session_id not in line.opened:
                await self.open(line, talk)
            heard = line.ears.events[talk.session_id]
            with suppress(TimeoutError):
                await line.peer.wait_until(lambda: _outcome(heard, token) or line.is_cut, FULL_TURN_SECONDS)
            if _outcome(heard, token) == "served" and began:
                return "served later"
        return ""


def _outcome(events: list[Event], token: str) -> str:
    """Return what became of a turn, nothing while it goes on."""
    is_answered = False
    for event in events:
        if event.kind in ("session.error", "abort"):
            return f"error: {event.content or event.kind}"
        is_answered = is_answered or (event.kind == "assistant.message" and event.content == token)
        if event.kind == "session.idle" and is_answered:
            return "served"
    return ""


class Disk:
    """The disk of all realms, which can be full."""

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True)
        self.place = place
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "aerodrome-fault", str(place)]
        self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        if not self.is_mounted:
            print(
                "\nno disk of its own could be mounted: instead of a full disk, runtimes may write nothing (RLIMIT_FSIZE)"
            )

    def fill(self, runtimes: list[int]) -> None:
        if not self.is_mounted:
            for pid in runtimes:
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with (self.place / "full").open("wb", 0) as file:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, os.statvfs(self.place).f_bavail * os.statvfs(self.place).f_bsize)
            with suppress(OSError):
                file.seek(0, os.SEEK_END)
                while True:
                    file.write(bytes(4096))

    def free(self, runtimes: list[int]) -> None:
        (self.place / "full").unlink(missing_ok=True)
        for pid in runtimes if not self.is_mounted else []:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def aclose(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    made = Disk(tmp_path / "state" / "realms")
    yield made
    made.aclose()


class Faults:
    """What goes wrong, one at a time."""

    def __init__(self, gateway: Served, disk: Disk, workers: list[Worker], chaos: Chaos) -> None:
        self._gateway = gateway
        self._disk = disk
        self._workers = workers
        self._chaos = chaos
        self._random = random.Random(SEED)
        self._deck: list[Callable[[], Awaitable[bool]]] = []

    async def cause(self) -> None:
        """Cause one fault at a random moment; each kind has its turn before any comes again."""
        await asyncio.sleep(self._random.uniform(0.05, 0.6))
        if not self._deck:
            self._deck = [self.kill, self.kill, self.terminate, self.hang, self.pause, self.fill, self.cut, self.cut]
            self._random.shuffle(self._deck)
        fault = self._deck.pop()
        if await fault():
            self._chaos.strokes[fault.__name__] += 1
        else:
            self._chaos.strokes["nothing there to hit"] += 1

    def _victim(self) -> int | None:
        found = self._gateway.runtimes()
        return found[self._random.choice(sorted(found))] if found else None

    async def kill(self) -> bool:
        return _send(self._victim(), signal.SIGKILL)

    async def terminate(self) -> bool:
        self._chaos.terminated_at = time.monotonic()
        return _send(self._victim(), signal.SIGTERM)

    async def hang(self) -> bool:
        """Stop a runtime for good: health must find it, and it must be gone then.

        One that the gateway had just frozen goes on when the gateway thaws it.
        """
        victim = self._victim()
        if not _send(victim, signal.SIGSTOP):
            return False
        assert victim is not None
        began = time.monotonic()
        # All its threads stop within this.
        while gateways.state_of(victim) == "T" or time.monotonic() - began < 0.1:
            await asyncio.sleep(0.02)
            if time.monotonic() - began > HANG_SECONDS:
                self._chaos.wrongs.append(f"runtime {victim} hung for {HANG_SECONDS:g} s and is still there")
                _send(victim, signal.SIGKILL)
        return True

    async def pause(self) -> bool:
        victim = self._victim()
        if not _send(victim, signal.SIGSTOP):
            return False
        await asyncio.sleep(self._random.uniform(0.05, 0.4))
        _send(victim, signal.SIGCONT)
        return True

    async def fill(self) -> bool:
        living = list(self._gateway.runtimes().values())
        self._chaos.full_until = None
        self._disk.fill(living)
        await asyncio.sleep(self._random.uniform(0.2, 0.6))
        self._disk.free(living)
        self._chaos.full_until = time.monotonic()
        return True

    async def cut(self) -> bool:
        await self._random.choice(self._workers).cut()
        return True


def _send(pid: int | None, number: int) -> bool:
    with suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, number)
            return True
    return False


async def eventually(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def rest(gateway: Served) -> tuple[list[str], list[str]]:
    """Wait until a gateway serves nobody; return its open files and its tasks."""

    def is_at_rest() -> bool:
        return not gateway.runtimes() and len(gateways.runtimes_below(gateway.state)) == 1

    await eventually(is_at_rest, "runtimes of nobody are left")
    for _ in range(200):  # what ended a moment ago is still being collected
        found = (gateway.descriptors(), nameless(gateway.tasks()))
        await asyncio.sleep(0.05)
        if is_at_rest() and found == (gateway.descriptors(), nameless(gateway.tasks())):
            return found
    raise AssertionError("the gateway does not come to rest")


def nameless(tasks: list[str]) -> list[str]:
    """Return what tasks do, without whom they do it for."""
    return sorted(re.sub(r"rt-\w+|\d+", "N", name) for name in tasks)


@pytest.mark.timeout(60 + 5 * ROUNDS)
async def test_whatever_fails_no_acknowledged_turn_is_lost_and_every_request_is_answered_once(disk, tmp_path):
    print(f"\nAERODROME_FAULT_SEED={SEED} AERODROME_FAULT_ROUNDS={ROUNDS}")
    random.seed(SEED)
    chaos, began = Chaos(), time.monotonic()
    async with gateways.serving(tmp_path / "state", TENANTS, **SETTINGS) as gateway:
        first = await gateway.connect("acme", "ann")
        await first.call("session.create", {**gateway.create, "sessionId": "first"})
        await first.aclose()
        before = await rest(gateway)

        workers = [Worker(gateway, tenant, user, chaos) for tenant, (_, users) in TENANTS.items() for user in users]
        living = [asyncio.create_task(worker.live(talk)) for worker in workers for talk in worker.talks]
        faults = Faults(gateway, disk, workers, chaos)
        while sum(chaos.strokes.values()) < ROUNDS:
            await faults.cause()
        chaos.over.set()
        async with asyncio.timeout(ANSWER_SECONDS + TURN_SECONDS + 5):
            await asyncio.gather(*living)
        took = time.monotonic() - began

        for worker in workers:
            for talk in worker.talks:
                await verify_history(worker, talk, chaos)
            verify_links(worker, chaos)
            await worker.aclose()
        report(chaos, took)
        assert chaos.wrongs == []
        after = await rest(gateway)
        assert after[1] == before[1], "tasks are left"
        assert after[0] == before[0], "open files are left"
        pid, place = gateway.process.pid, gateway.state
    assert process_table.find_groups(pid) == []
    assert [found[0] for found in gateways.carriers(place)] == []
    assert list((place / "runtimes").iterdir()) == []


async def verify_history(worker: Worker, talk: Talk, chaos: Chaos) -> None:
    """Every session is of use, has every acknowledged turn, and what was heard of it was heard in its order."""
    async with asyncio.timeout(60):
        while True:
            with suppress(RpcError, ConnectionError):
                line = await worker.line()
                if talk.session_id not in line.opened:
                    await worker.open(line, talk)
                if await worker.turn(line, talk):
                    break
    found = await worker.ask(line, "session.getMessages", {"sessionId": talk.session_id})
    kept = [event for event in found["events"] if event["type"] == "assistant.message"]
    said = [event["data"]["content"] for event in kept]
    lost = [token for token in talk.acknowledged if token not in said]
    if lost:
        chaos.wrongs.append(f"{talk.session_id}: acknowledged turns are lost: {lost}")
    places = {event["id"]: place for place, event in enumerate(found["events"])}
    written_twice = {event_id for event_id, times in Counter(e["id"] for e in found["events"]).items() if times > 1}
    for line in worker.lines:
        heard = [event.event_id for event in line.ears.events[talk.session_id] if event.is_kept]
        order = [places[event_id] for event_id in heard if event_id in places and event_id not in written_twice]
        if order != sorted(order):
            chaos.wrongs.append(f"{talk.session_id}: events were heard out of order: {_around_inversion(order, found)}")


def _around_inversion(order: list[int], found: dict[str, Any]) -> str:
    """Name the kept events heard about the first one that was heard too early, each with its place in the history."""
    first = next(at for at in range(1, len(order)) if order[at] < order[at - 1])
    around = order[max(0, first - 6) : first + 6]
    return " ".join(f"{place}:{found['events'][place]['type']}" for place in around)


def verify_links(worker: Worker, chaos: Chaos) -> None:
    """No answer came twice or to nobody, and no event twice."""
    for line in worker.lines:
        if line.peer.stray:
            chaos.wrongs.append(f"{worker.name}: answers to nobody: {line.peer.stray}")
        for session_id, events in line.ears.events.items():
            twice = [found for found, times in Counter(event.event_id for event in events).items() if times > 1]
            if twice:
                kinds = Counter(event.kind for event in events if event.event_id in twice)
                chaos.wrongs.append(f"{session_id}: events came twice: {kinds}")


def report(chaos: Chaos, seconds: float) -> None:
    print(f"{sum(chaos.strokes.values())} faults in {seconds:.1f} s: {dict(chaos.strokes)}")
    print(f"turns: {dict(chaos.turns)}")
    print(
        f"requests answered: {chaos.answered}, the slowest after {chaos.slowest:.2f} s; failed: {dict(chaos.failures)}"
    )
    for wrong in chaos.wrongs[:20]:
        print("wrong:", wrong)
