"""`aerodrome runtime install | path | doctor`: the Copilot runtime on this machine.

Prints and picks exit codes; everything else is `adapters.distribution`. Mounted by `cli.main`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import rich.console
import rich.markup
import rich.table
import typer

from aerodrome import configuration, errors, settings
from aerodrome.adapters.distribution import cache, check, doctor, install, locate, release
from aerodrome.adapters.sandbox import probe
from aerodrome.adapters.sandbox.bubblewrap import Network
from aerodrome.cli import common, groups

app = groups.group()

CliPath = Annotated[
    Path | None, typer.Option("--cli-path", help="The Copilot CLI to use: binary or package; before COPILOT_CLI_PATH.")
]
Entry = Annotated[
    release.WantedEntry, typer.Option("--entry", help="Which entry point; auto: native where the release has it.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Hash every file instead of comparing sizes and times.")]
_COLOURS = {check.Status.OK: "green", check.Status.WARN: "yellow", check.Status.FAIL: "red"}


@app.command("install")
def install_command(
    cli_path: CliPath = None, entry: Entry = "auto", verify: Verify = False, as_json: common.AsJson = False
) -> None:
    """Find the runtime, or fetch the pinned one with npm; print the path of its entry point."""
    try:
        found = install.install(cli_path, release.Wanted(entry, verify), report=_say)
    except errors.AerodromeError as error:
        raise _stop(error) from error
    _print(found, as_json)


@app.command("path")
def path_command(
    cli_path: CliPath = None, entry: Entry = "auto", verify: Verify = False, as_json: common.AsJson = False
) -> None:
    """Print the path of the entry point that would be started; never use the network."""
    try:
        found = locate.locate(cli_path, release.Wanted(entry, verify), report=_say)
    except errors.AerodromeError as error:
        raise _stop(error) from error
    _print(found, as_json)


@app.command("doctor")
def doctor_command(
    cli_path: CliPath = None,
    listen: Annotated[str, typer.Option(help="The address the gateway will listen on.")] = "127.0.0.1:4321",
    state_directory: Annotated[Path | None, typer.Option(help="Where the gateway will keep its state.")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Check everything a new user trips over; exit with 1 if something fails."""
    try:
        host, port = check.address(listen)
        pin = release.pinned()
    except errors.AerodromeError as error:
        raise _stop(error) from error
    state = state_directory or configuration.default_state_directory(os.environ)
    machine = check.Machine(os.environ, cache.directory(), state, host, port, cli_path, pin)
    findings = [*doctor.examine(machine), _sandbox()]
    if as_json:
        common.print_json(findings)
    else:
        _table(findings)
    if not doctor.healthy(findings):
        raise typer.Exit(1)


def _sandbox() -> check.Check:
    """Say whether runtimes with host tools can be sandboxed here: one sandbox is made."""
    defaults = settings.SandboxSection()
    try:
        found = probe.find(defaults.bubblewrap, Network(defaults.network), (), defaults.first_uid)
    except errors.ConfigError as error:
        return check.warn("sandbox", error.message, "without one, tenants with host tools are refused: docs/sandbox.md")
    users = "a user id for each realm" if found.setpriv else "all as this user"
    return check.ok("sandbox", f"{found.program} made one; {users}")


def _table(findings: list[check.Check]) -> None:
    table = rich.table.Table("check", "", box=None, pad_edge=False)
    for heading in ("found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        status = f"[{_COLOURS[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, status, rich.markup.escape(finding.found), rich.markup.escape(finding.advice))
    rich.console.Console().print(table)


def _print(found: release.RuntimeRelease, as_json: bool) -> None:
    if found.warning:
        _say(found.warning)
    if as_json:
        common.print_json(_facts(found))
    else:
        typer.echo(str(found.entry))


def _facts(found: release.RuntimeRelease) -> dict[str, Any]:
    return {
        "entry": str(found.entry),
        "kind": found.kind,
        "version": found.version,
        "package_dir": str(found.package_dir),
        "schema": str(found.schema) if found.schema else None,
        "source": found.source,
    }


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _stop(error: errors.AerodromeError) -> typer.Exit:
    """Print an error on one line; return what ends the command."""
    typer.echo(f"error: {' '.join(error.message.split())}", err=True)
    return typer.Exit(1)
