"""Groups of commands, and how they are listed: plain text, because loading what colours it takes longer than all the rest."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

_LONG = 1000


class Group(TyperGroup):
    """Commands of one kind, listed with all that the first sentence of each one's help says."""

    def abouts(self) -> list[tuple[str, str]]:
        """Return the commands' names, each with what it is for."""
        return [(name, command.get_short_help_str(_LONG)) for name, command in self.commands.items()]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(self.abouts())


def group() -> typer.Typer:
    """Return a group of commands; `main` says what it is about."""
    return typer.Typer(cls=Group, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
