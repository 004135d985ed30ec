"""The `aerodrome` command: its parts are mounted here, errors become one line and exit code 1.

No logic: what a command does is in app, demo, or the adapters.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from aerodrome import errors
from aerodrome.cli import (
    audit,
    connect,
    demo,
    github_token,
    key,
    operate,
    policy,
    runtime,
    serve,
    session,
    show,
    tenant,
    token,
)

app = typer.Typer(
    name="aerodrome",
    help="Multi-tenant gateway and fleet manager for GitHub Copilot runtimes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("connect")(connect.connect)
app.command("demo")(demo.demo)
app.add_typer(show.app, name="show")
app.command("drain")(operate.drain)
app.command("cordon")(operate.cordon)
app.command("evict")(operate.evict)
app.command("migrate")(operate.migrate)
app.command("recycle")(operate.recycle)
app.command("reload")(operate.reload)
app.add_typer(tenant.app, name="tenant")
app.add_typer(key.app, name="key")
app.add_typer(github_token.app, name="github-token")
app.add_typer(token.app, name="token")
app.add_typer(policy.app, name="policy")
app.add_typer(session.app, name="session")
app.add_typer(audit.app, name="audit")
app.add_typer(runtime.app, name="runtime")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aerodrome {metadata.version('aerodrome')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multi-tenant gateway and fleet manager for GitHub Copilot runtimes."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except errors.AerodromeError as error:
        sys.stderr.write(f"aerodrome: {error.message}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
