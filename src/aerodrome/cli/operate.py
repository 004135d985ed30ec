"""`aerodrome drain | cordon | evict | migrate | recycle | reload`: what an operator does to the running gateway.

No logic: aerodrome.admin does the work. Whoever watches with `--wait` and goes away stops nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aerodrome import errors
from aerodrome.cli import common

Wait = Annotated[
    bool, typer.Option("--wait", help="Say how far it is until it is done; Ctrl-C stops the watching only.")
]
RuntimeId = Annotated[str, typer.Argument(metavar="RUNTIME", help="As in `aerodrome show runtimes`.")]

_OUTCOMES = {
    "evicted": "is evicted: its next call brings it back",
    "absent": "is in no runtime already: its next call brings it back",
    "at_work": "is at work and stays; try again when its turn is over",
}


def drain(wait: Wait = False, config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """End the gateway as SIGTERM does: it takes no new work, lets turns finish, then stops."""

    def progress(_: str, told: dict[str, Any]) -> None:
        typer.echo(f"draining, {_at_work(told['at_work'])}")

    done = common.with_gateway(
        config, state_directory, lambda client: client.call("drain", patient=wait, wait=wait), progress
    )
    if done is None:
        typer.echo("the gateway has stopped")
    else:
        typer.echo(f"draining for at most {common.age(done['drain_seconds'])}, {_at_work(done['at_work'])}")


def cordon(
    runtime: RuntimeId,
    reason: Annotated[str, typer.Option(help="Why; shown to other operators.")] = "cordoned by the operator",
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Place nothing new on a runtime; it stops when its sessions are idle, and their next calls find them on another."""
    done = common.with_gateway(
        config, state_directory, lambda client: client.call("cordon", runtime_id=runtime, reason=reason)
    )
    was = "was cordoned already" if done["was_cordoned"] else "is cordoned"
    typer.echo(f"runtime {runtime} {was}: {done['reason']}")


def evict(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="As in `aerodrome show sessions`.")],
    tenant: Annotated[str | None, typer.Option(help="Whose, where several tenants hold one of that id.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Unload an idle session from its runtime; whoever holds it notices at most a slower next call."""
    done = common.with_gateway(
        config, state_directory, lambda client: client.call("evict", session_id=session, tenant=tenant)
    )
    said = f"session {session} {_OUTCOMES[done['outcome']]}"
    if done["outcome"] == "at_work":
        raise errors.OverCapacity(said)
    typer.echo(said)


def migrate(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="As in `aerodrome show sessions`.")],
    to: Annotated[str | None, typer.Option(metavar="RUNTIME", help="Where to; else to any other of its realm.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose, where several tenants hold one of that id.")] = None,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Move an idle session to another runtime; whoever holds it keeps the link and notices nothing."""
    done = common.with_gateway(
        config,
        state_directory,
        lambda client: client.call("migrate", patient=True, session_id=session, tenant=tenant, to_runtime_id=to),
    )
    if done["outcome"] == "at_work":
        raise errors.OverCapacity(f"session {session} {_OUTCOMES['at_work']}")
    where = f"is in runtime {done['runtime_id']} now" if done["outcome"] == "migrated" else _OUTCOMES["absent"]
    typer.echo(f"session {session} {where}")


def recycle(
    runtime: Annotated[str | None, typer.Argument(metavar="RUNTIME", help="As in `aerodrome show runtimes`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every runtime, in each realm one after another.")] = False,
    each_seconds: Annotated[float, typer.Option(help="So long a runtime is waited for before the next.")] = 300.0,
    wait: Wait = False,
    config: common.Config = None,
    state_directory: common.StateDirectory = None,
) -> None:
    """Replace runtimes by fresh ones as their sessions fall idle; no request is lost."""
    if (runtime is None) != everything:
        raise typer.BadParameter("name one runtime, or say --all")

    def progress(_: str, told: dict[str, Any]) -> None:
        said = "is gone" if told["is_gone"] else f"still serves after {common.age(each_seconds)}; it goes when it can"
        typer.echo(f"runtime {told['runtime_id']} {said}")

    done = common.with_gateway(
        config,
        state_directory,
        lambda client: client.call("recycle", patient=wait, runtime_id=runtime, each_seconds=each_seconds, wait=wait),
        progress,
    )
    if done is None:
        raise errors.Draining("the gateway has stopped meanwhile")
    if not done["runtimes"]:
        typer.echo("no runtime serves now; warm ones are left as they are")
    elif not wait:
        typer.echo(f"recycling {', '.join(done['runtimes'])}; see aerodrome show runtimes")
    elif done["left"]:
        raise typer.Exit(1)


def reload(config: common.Config = None, state_directory: common.StateDirectory = None) -> None:
    """Have the gateway read its configuration file again, as SIGHUP does; a wrong one changes nothing."""
    done = common.with_gateway(config, state_directory, lambda client: client.call("reload"))
    if done is None:
        raise errors.Draining("the gateway has stopped meanwhile")
    links = f"{done['links']} open link{'s' * (done['links'] != 1)}"
    typer.echo(f"{done['tenants']} tenants of the configuration in force, {links} changed")
    if done["needs_restart"]:
        typer.echo(f"changed, but in force only after a restart: {', '.join(done['needs_restart'])}")


def _at_work(count: int | None) -> str:
    if count is None:
        return "whatever runs ends"  # the transparent policy does not wait
    return "nothing is at work" if not count else f"{count} session{'s' * (count > 1)} at work"
