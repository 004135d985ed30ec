"""The `copilot`-shaped program: what an SDK starts as its runtime, and is a way to the gateway instead.

Understands the arguments the published SDKs pass (measured: Python 1.0.27 and npm 1.0.27), ignores those that tell a runtime how
to be, because the gateway decides that, and refuses to be anything but a server. Configuration comes from the environment only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from aerodrome import errors
from aerodrome.forward import dialing, server, stdio
from aerodrome.forward.carrier import Carrier, Limits, Upstream
from aerodrome.forward.server import Forwarder

_log = structlog.get_logger()
_HANDSHAKE_FRAME_BYTES = 64 * 1024
_PARENT_SECONDS = 1.0
_SERVER_FLAGS = ("--headless", "--server")
#: Options of a runtime with a value of their own; the next argument is no option.
_WITH_VALUE = ("--auth-token-env", "--host", "--log-dir", "--log-level", "--session-idle-timeout")

USAGE = """\
aerodrome-copilot: stands in for the Copilot CLI and takes an SDK program to an Aerodrome gateway.
Set COPILOT_CLI_PATH to its path, and:
  AERODROME_URL         tls://HOST:PORT of the gateway
  AERODROME_TOKEN_FILE  a file with your connection token (or AERODROME_TOKEN)
  AERODROME_CA          the authority of the gateway's certificate, unless the system trusts it
SDKs start it with --headless --stdio or --headless --port N; nothing else is served."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What an SDK asks of its runtime; a port of None means standard input and output."""

    port: int | None
    host: str = "127.0.0.1"


def parse(arguments: Sequence[str]) -> Arguments:
    """Return what is asked for.

    Raises:
        errors.ConfigError: it is not to serve an SDK.
    """
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not equals and name in (*_WITH_VALUE, "--port"):
            value = rest.pop(0) if rest else ""
        options[name] = value
    if not options.keys() & set(_SERVER_FLAGS):
        raise errors.ConfigError("expected --headless, as SDKs pass it; this is no interactive Copilot (see --help)")
    if "--stdio" in options:
        return Arguments(None)
    port = options.get("--port", "0")
    if not port.isdigit() or int(port) > 65535:
        raise errors.ConfigError(f"--port: expected 0 to 65535, found {port!r}")
    return Arguments(int(port), options.get("--host", "127.0.0.1"))


async def run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Serve the program that started us until it leaves, or a signal.

    Raises:
        errors.ConfigError: something is missing or wrong.
    """
    asked = parse(arguments)
    upstream = dialing.open_upstream(dialing.from_environment(environment))
    if environment.get("COPILOT_SDK_AUTH_TOKEN"):
        _log.warning(
            "credential.ignored", reason="the program's GitHub token stays here; credentials are the gateway's"
        )
    leaving = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, leaving.set)
    # What the SDK made for this process alone; it is the local token, and goes no further.
    local_token = environment.get("COPILOT_CONNECTION_TOKEN") or None
    if asked.port is None:
        await _serve_stdio(upstream, local_token, leaving)
    else:
        await _serve_port(asked, upstream, local_token, leaving)


async def _serve_stdio(upstream: Upstream, local_token: str | None, leaving: asyncio.Event) -> None:
    link = await stdio.open_link(_HANDSHAKE_FRAME_BYTES)
    carrier = Carrier(link, upstream, Limits(), local_token, is_sole=True)
    serving = asyncio.create_task(server.serve(carrier, link), name="program")
    stopping = asyncio.create_task(leaving.wait(), name="signal")
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    for task in (serving, stopping):
        task.cancel()
    await asyncio.wait((serving, stopping))


async def _serve_port(asked: Arguments, upstream: Upstream, local_token: str | None, leaving: asyncio.Event) -> None:
    forwarder = Forwarder(upstream, Limits(), local_token, is_sole=True)
    parent = os.getppid()  # before the line that lets it go on, and so end: afterwards it could be another's already
    try:
        address = await forwarder.start(f"{asked.host}:{asked.port}")
        print(f"CLI server listening on port {address.rpartition(':')[2]}", flush=True)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch_parent(parent, leaving), name="parent watch")
            await leaving.wait()
            watching.cancel()
    finally:
        await forwarder.aclose()


async def _watch_parent(parent: int, leaving: asyncio.Event) -> None:
    """Leave when the program that started us is gone: nobody else has the local token, and ours must not lie about."""
    while os.getppid() == parent:  # noqa: ASYNC110  the kernel tells only the thread that spawned, by its death
        await asyncio.sleep(_PARENT_SECONDS)
    leaving.set()
