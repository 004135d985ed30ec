"""The processes that the overhead benchmark measures: a runtime, the gateway before it, plain TCP proxies beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aerodrome.adapters.distribution import install

TOKEN = "bench-client"
UPSTREAM_TOKEN = "bench-upstream"


@asynccontextmanager
async def process(
    *argv: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process with its output piped; end it at the exit."""
    started = await asyncio.create_subprocess_exec(
        *argv,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    async with ending(started):
        yield started


@asynccontextmanager
async def ending(started: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """End a process at the exit: TERM, ten seconds, KILL."""
    try:
        yield
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(10):
                await started.wait()
        except TimeoutError:
            started.kill()
            await started.wait()


async def port_of(started: asyncio.subprocess.Process) -> int:
    """Read the port at the end of the first line that has one."""
    assert started.stdout is not None
    async with asyncio.timeout(30):
        while line := await started.stdout.readline():
            digits = line.decode().strip().rpartition(" ")[2].rpartition(":")[2]
            if digits.isdigit():
                return int(digits)
    raise RuntimeError("the process ended before it named its port")


@dataclass(frozen=True, slots=True)
class RuntimeProcess:
    """A runtime that runs."""

    port: int
    pid: int
    entry: str


@asynccontextmanager
async def runtime_process() -> AsyncIterator[RuntimeProcess]:
    """Run the real Copilot runtime in a home of its own."""
    found = await asyncio.to_thread(install.install)
    with tempfile.TemporaryDirectory(prefix="aerodrome-bench-") as home:
        environment = {
            "HOME": home,
            "COPILOT_HOME": home,
            "COPILOT_OFFLINE": "true",
            "COPILOT_DISABLE_KEYTAR": "1",
            "COPILOT_CONNECTION_TOKEN": UPSTREAM_TOKEN,
        }
        argv = (str(found.entry), "--headless", "--port", "0", "--no-auto-update", "--log-level", "none")
        async with process(*argv, environment=environment) as started:
            yield RuntimeProcess(await port_of(started), started.pid, str(found.entry))


@asynccontextmanager
async def runtime() -> AsyncIterator[int]:
    """Run the real Copilot runtime; yield its port."""
    async with runtime_process() as started:
        yield started.port


@asynccontextmanager
async def gateway(upstream_port: int) -> AsyncIterator[int]:
    """Run the gateway transparently before an upstream; yield its port."""
    argv = ("-m", "aerodrome", "serve", "--listen", "127.0.0.1:0", "--upstream", f"127.0.0.1:{upstream_port}")
    environment = {"AERODROME_CLIENT_TOKEN": TOKEN, "AERODROME_UPSTREAM_TOKEN": UPSTREAM_TOKEN}
    async with process(sys.executable, *argv, "--policy", "transparent", environment=environment) as started:
        yield await port_of(started)


@asynccontextmanager
async def demo() -> AsyncIterator[dict[str, Any]]:
    """Run the demo (tenant gateway, model, users); yield what it says of itself."""
    async with process(
        sys.executable, "-m", "aerodrome", "demo", "--json", "--sdk-port", "0", "--http-port", "0"
    ) as started:
        assert started.stdout is not None
        async with asyncio.timeout(60):
            described: dict[str, Any] = msgspec.json.decode(await started.stdout.readline())
        yield described


@asynccontextmanager
async def null_runtime() -> AsyncIterator[int]:
    """Run the null runtime; yield its port."""
    async with process(sys.executable, str(Path(__file__).with_name("null_runtime.py"))) as started:
        yield await port_of(started)


@asynccontextmanager
async def plain_proxy(upstream_port: int) -> AsyncIterator[tuple[str, int] | None]:
    """Run HAProxy or nginx as a plain TCP proxy; None if neither is installed."""
    name = next((name for name in ("haproxy", "nginx") if shutil.which(name)), None)
    if name is None:
        yield None
        return
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="aerodrome-bench-") as directory:
        config = Path(directory) / "proxy.conf"
        config.write_text(_HAPROXY if name == "haproxy" else _NGINX % {"directory": directory})
        config.write_text(config.read_text().replace("@LISTEN@", str(port)).replace("@UPSTREAM@", str(upstream_port)))
        argv = (
            ("haproxy", "-db", "-f", str(config))
            if name == "haproxy"
            else ("nginx", "-c", str(config), "-p", directory)
        )
        async with process(*argv):
            await _until_open(port)
            yield name, port


async def _until_open(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


_HAPROXY = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend in
  bind 127.0.0.1:@LISTEN@
  default_backend out
backend out
  server one 127.0.0.1:@UPSTREAM@
"""

_NGINX = """
daemon off;
pid %(directory)s/nginx.pid;
error_log stderr;
include /etc/nginx/modules-enabled/*.conf;
events {}
stream {
  server { listen 127.0.0.1:@LISTEN@; proxy_pass 127.0.0.1:@UPSTREAM@; tcp_nodelay on; }
}
"""
