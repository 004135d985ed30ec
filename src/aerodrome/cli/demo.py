"""`aerodrome demo`: try everything on this machine in one command. No logic: aerodrome.demo does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from aerodrome import app, observe
from aerodrome import demo as demo_module
from aerodrome.cli import examples


def demo(
    sdk_port: Annotated[int, typer.Option(help="The port SDK programs connect to; 0 takes a free one.")] = 4321,
    http_port: Annotated[int, typer.Option(help="The port of the HTTP API; 0 takes a free one.")] = 4322,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready, and nothing else.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Run a gateway with a demo model and eight users; print two programs to try. Ctrl-C ends it without a trace."""
    observe.configure_logs(log_level, as_json=as_json)

    def announce(running: demo_module.Demo) -> None:
        print(running.as_json() if as_json else examples.describe(running), flush=True)

    app.run_loop(demo_module.run(sdk_port, http_port, log_level, announce))
