"""`aerodrome connect`: a local way to a gateway behind TLS. No logic: aerodrome.forward does the work."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from aerodrome import observe
from aerodrome.forward import dialing, loop
from aerodrome.forward.dialing import GatewayOptions
from aerodrome.forward.server import Forwarder


def connect(
    url: Annotated[
        str | None, typer.Argument(help="tls://HOST:PORT of the gateway; default: AERODROME_URL.", show_default=False)
    ] = None,
    listen: Annotated[str, typer.Option(help="Loopback HOST:PORT (0: a free port), or unix:PATH.")] = "127.0.0.1:4320",
    ca: Annotated[Path | None, typer.Option(help="Authorities that may vouch for the gateway (AERODROME_CA).")] = None,
    cert: Annotated[Path | None, typer.Option(help="Your certificate, where the gateway wants one.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    server_name: Annotated[str | None, typer.Option(help="The name in the gateway's certificate, if another.")] = None,
) -> None:
    """Let local SDK programs use a gateway by TLS, and keep their links open when it goes away.

    Your token comes from AERODROME_TOKEN_FILE or AERODROME_TOKEN. Programs of your own user need none; with
    AERODROME_LOCAL_TOKEN_FILE set, every program must show that one.
    """
    observe.configure_logs(os.environ.get("AERODROME_LOG_LEVEL", "info"), as_json=False)
    given = GatewayOptions(url, ca, cert, key, server_name)
    loop.run(_run(dialing.from_environment(os.environ, given), listen))


async def _run(options: GatewayOptions, listen: str) -> None:
    local_token_file = os.environ.get("AERODROME_LOCAL_TOKEN_FILE")
    local_token = (
        dialing.read_secret("AERODROME_LOCAL_TOKEN_FILE", Path(local_token_file)) if local_token_file else None
    )
    forwarder = Forwarder(dialing.open_upstream(options), local_token=local_token)
    leaving = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leaving.set)
    try:
        print(f"listening on {await forwarder.start(listen)}", flush=True)
        await leaving.wait()
    finally:
        await forwarder.aclose()
