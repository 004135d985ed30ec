"""A well-behaved client in a process of its own, that measures what others do to it.

    python -m aerodrome.testing.bystander HOST PORT   (the token comes in AERODROME_BYSTANDER_TOKEN)

Connects, makes a session, prints `ready`, then calls one thing after the other until its standard input closes. At the end it
prints one JSON line: how often it called, percentiles of the time that took, and the first error if there was one.
In a process of its own, because whoever attacks from within a test would measure their own event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aerodrome.testing import peer as peers

_TOKEN = "AERODROME_BYSTANDER_TOKEN"  # noqa: S105  the name of a variable
_PAUSE_SECONDS = 0.005
#: So many it makes at least, however soon it is to leave and however slow the machine is.
_LEAST_CALLS = 30


@dataclass(frozen=True, slots=True)
class Experience:
    """What a bystander met with; times in milliseconds. `late`: how late its own pauses ended, which is the machine's doing."""

    calls: int = 0
    p50: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    late_p99: float = 0.0
    late_longest: float = 0.0
    error: str = ""


class Bystander:
    """A running bystander, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def leave(self) -> Experience:
        """Have it stop; return what it met with."""
        out, _ = self._process.communicate(timeout=30)
        return Experience(**json.loads(out.splitlines()[-1]))


@contextmanager
def watching(host: str, port: int, token: str, create: dict[str, Any] | None = None) -> Iterator[Bystander]:
    """Run a bystander; it has made its first call when this returns."""
    command = [sys.executable, "-m", "aerodrome.testing.bystander", host, str(port), json.dumps(create or {})]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, _TOKEN: token}
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the bystander ended with code {process.wait(30)} before it was ready")
        yield Bystander(process)
    finally:
        process.kill()
        process.communicate()


async def _live(host: str, port: int, create: dict[str, Any]) -> Experience:
    client = await peers.open_client(host, port, os.environ[_TOKEN])
    session_id = str(uuid.uuid4())
    times: list[float] = []
    late: list[float] = []
    error = ""
    try:
        await client.call("session.create", {**create, "sessionId": session_id})
        print("ready", flush=True)
        while len(times) < _LEAST_CALLS or not select.select([sys.stdin], [], [], 0)[0]:
            for method, params in (("ping", {"message": "x"}), ("session.getMessages", {"sessionId": session_id})):
                started = time.perf_counter()
                await client.call(method, params, seconds=20)
                times.append((time.perf_counter() - started) * 1e3)
                due = time.perf_counter() + _PAUSE_SECONDS
                await asyncio.sleep(_PAUSE_SECONDS)
                late.append((time.perf_counter() - due) * 1e3)
        await client.call("session.delete", {"sessionId": session_id})
    except (OSError, TimeoutError, peers.RpcError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    finally:
        await client.aclose()
    if not late:
        return Experience(error=error)
    middle = sorted(times)[len(times) // 2]
    return Experience(len(times), middle, _p99(times), max(times), _p99(late), max(late), error)


def _p99(values: list[float]) -> float:
    return sorted(values)[int((len(values) - 1) * 0.99)]


if __name__ == "__main__":
    met = asyncio.run(_live(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
    print(json.dumps({name: getattr(met, name) for name in Experience.__slots__}), flush=True)
