"""`aerodrome serve`: the gateway in the foreground until a signal. No logic: settings and app do the work."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from aerodrome import app, observe, settings


def serve(
    config: Annotated[Path | None, typer.Option(help="A TOML file; see docs/configuration.md.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT to accept links on; port 0 takes a free one.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="'tenants': keys and isolation. 'transparent': one trusted tenant, as thin as can be."),
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="HOST:PORT of a runtime of your own (transparent only); else one is spawned.")
    ] = None,
    state_directory: Annotated[Path | None, typer.Option(help="Where sessions, tenants and keys are kept.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the gateway; print `listening on HOST:PORT` once it accepts links.

    Tokens for the transparent policy come from AERODROME_CLIENT_TOKEN and AERODROME_UPSTREAM_TOKEN.
    """
    load = functools.partial(
        settings.load,
        config,
        listen=listen,
        policy=policy,
        upstream=upstream,
        state_directory=state_directory,
        log_level=log_level,
    )
    loaded = load()
    observe.configure_logs(loaded.log_level, loaded.log_json)
    app.run_loop(app.run(loaded, _announce, load))


async def _announce(application: app.Application) -> None:
    host = f"[{application.host}]" if ":" in application.host else application.host
    print(f"listening on {host}:{application.port}", flush=True)
