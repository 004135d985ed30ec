"""Gateways as processes of their own, to be attacked: transparent before a scripted runtime, and the demo with its tenants."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aerodrome.testing import bystander, demo_process

HANDSHAKE_SECONDS = 1.5
TOKEN = "the-client-token"
_LIMITS = {
    "AERODROME_LIMITS__HANDSHAKE_SECONDS": str(HANDSHAKE_SECONDS),
    "AERODROME_LIMITS__STALL_SECONDS": "30",
    # Runtimes that are spawned in advance come when they will, and hold descriptors that are no attack's.
    "AERODROME_RUNTIME__WARM_RUNTIMES": "0",
}


@dataclass
class Target:
    """A gateway under attack."""

    name: str
    pid: int
    host: str
    port: int
    #: Of a well-behaved user, and of one who is not; the same where there is one only.
    token: str
    hostile_token: str
    #: What a session must name to have turns.
    create: dict[str, Any]

    def descriptors(self) -> int:
        """Count what it has open but for its databases, whose pools grow with demand up to their limit."""
        found = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(descriptor))
        return sum(".db" not in target for target in found)

    def ran_and_waited(self) -> tuple[int, int]:
        """Return for how long its event loop has had a processor and has waited for one, in nanoseconds; 1, 0 if not told."""
        with suppress(OSError, ValueError):
            ran, waited, _ = map(int, Path(f"/proc/{self.pid}/schedstat").read_text().split())
            return ran, waited
        return 1, 0

    def reset_peak(self) -> int:
        """Forget the highest memory so far; return the present in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return the highest memory since, in bytes."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"the gateway has no {name}: it has ended")


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Poll until something about another process holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


@contextmanager
def _process(*argv: str, announces: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a program that announces its port in a line ending with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", *argv], stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )
    try:
        line = process.stdout.readline()
        assert announces in line, f"expected {announces!r}, found {line!r}"
        yield process, int(line.rsplit(None, 1)[-1].rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.communicate()


@contextmanager
def _transparent() -> Iterator[Target]:
    with (
        _process(
            "aerodrome.testing.scripted_runtime", announces="listening on port", COPILOT_CONNECTION_TOKEN="up"
        ) as upstream,
        _process(
            *("aerodrome", "serve", "--policy", "transparent", "--listen", "127.0.0.1:0"),
            *("--upstream", f"127.0.0.1:{upstream[1]}"),
            announces="listening on",
            AERODROME_CLIENT_TOKEN=TOKEN,
            AERODROME_UPSTREAM_TOKEN="up",
            **_LIMITS,
        ) as (gateway, port),
    ):
        yield Target("transparent", gateway.pid, "127.0.0.1", port, TOKEN, TOKEN, {})


@contextmanager
def _tenants() -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in _LIMITS.items():
            patch.setenv(name, value)
        demo = stack.enter_context(demo_process.running())
        host, _, port = demo.sdk.rpartition(":")
        good, bad = (tenant[0].token for tenant in demo.tenants("shared"))
        model = demo.model
        provider = {
            "type": "openai",
            "baseUrl": model["base_url"],
            "apiKey": model["api_key"],
            "wireApi": "completions",
        }
        create = {"model": model["name"], "provider": provider}
        yield Target("tenants", demo.process.pid, host, int(port), good, bad, create)


@pytest.fixture(scope="module", params=["transparent", pytest.param("tenants", marks=pytest.mark.runtime)])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A gateway to attack; one for all attacks of a module, so that what one leaves behind shows in the next."""
    with (_transparent if request.param == "transparent" else _tenants)() as opened:
        # What is made once shall be made: a runtime for the bystander, and what the first link imports.
        with bystander.watching(opened.host, opened.port, opened.token, opened.create) as first:
            assert first.leave().error == ""
        yield opened
