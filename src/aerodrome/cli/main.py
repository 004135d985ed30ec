"""The `aerodrome` command: its parts are mounted here, errors become one line and exit code 1.

No logic: what a command does is in app, demo, or the adapters. A command's module is imported when the command is asked for: the
gateway's libraries take more than a second to load, and `--help` needs none of them.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

from aerodrome import errors
from aerodrome.cli.groups import Group

#: name -> the module of this package and the command or group in it, and what it is for.
COMMANDS = {
    "serve": ("serve:serve", "Run the gateway; print `listening on HOST:PORT` once it accepts links."),
    "connect": ("connect:connect", "Let local SDK programs use a gateway by TLS."),
    "demo": ("demo:demo", "Run a gateway with a demo model and eight users; print two programs to try."),
    "show": ("show:app", "What the running gateway holds now."),
    "drain": ("operate:drain", "End the gateway as SIGTERM does: it takes no new work, lets turns finish, then stops."),
    "cordon": ("operate:cordon", "Place nothing new on a runtime; it stops when its sessions are idle."),
    "evict": ("operate:evict", "Unload an idle session from its runtime."),
    "recycle": ("operate:recycle", "Replace runtimes by fresh ones as their sessions fall idle; no request is lost."),
    "reload": ("operate:reload", "Have the gateway read its configuration file again, as SIGHUP does."),
    "tenant": ("tenant:app", "Tenants and their policies."),
    "key": ("key:app", "Keys: connection tokens for users of tenants."),
    "github-token": ("github_token:app", "Users' stored GitHub tokens, encrypted."),
    "token": ("token:app", "Connection tokens: short-lived, for one user."),
    "policy": ("policy:app", "Policies: what holds for a tenant or a user, and why."),
    "session": ("session:app", "Sessions: whose they are, and which have expired."),
    "audit": ("audit:app", "The audit log: who did what, decided how."),
    "runtime": ("runtime:app", "Find, install and check the Copilot runtime."),
}


class Commands(Group):
    """All commands, each loaded when it is used."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        not_loaded: Any = None
        self.commands.update(dict.fromkeys(COMMANDS, not_loaded))  # a name that is none is compared with these

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command; None if there is none of that name."""
        return load(cmd_name) if cmd_name in COMMANDS else None

    def abouts(self) -> list[tuple[str, str]]:
        """Return the commands' names, each with what it is for; none is loaded."""
        return [(name, about) for name, (_, about) in COMMANDS.items()]


app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def load(name: str) -> Any:
    """Import a command or a group, as typer runs it."""
    path, about = COMMANDS[name]
    module, _, attribute = path.partition(":")
    found = getattr(importlib.import_module(f"aerodrome.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        found.info.help = about
        return get_command(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(found)
    return get_command(alone)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # noqa: PLC0415  costs more than all the rest

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
