"""`aerodrome token mint`: a connection token for one user, from the running gateway. No logic: aerodrome.admin does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from aerodrome.cli import common, groups
from aerodrome.core import duration

app = groups.group()


@app.callback()
def tokens() -> None:
    """Connection tokens: short-lived, for one user."""


@app.command()
def mint(
    tenant: str,
    user: str,
    expires: Annotated[str, typer.Option(help="Lifetime such as 30s, 10m or 1h; links end with it.")] = "10m",
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Print a connection token for a user of a tenant; the user need not exist before."""
    seconds = duration.parse("--expires", expires)
    minted = common.with_gateway(
        config,
        state_directory,
        lambda client: client.call("token.mint", tenant=tenant, user=user, expires_seconds=seconds),
    )
    typer.echo(minted["token"])
