"""Rows under columns, for people. `--json` is for scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import rich.console
import rich.markup
import rich.table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns."""
    table = rich.table.Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(rich.markup.escape, row))
    # Piped output has no width of its own; a cut-off value would be worse than a long line.
    rich.console.Console(width=None if sys.stdout.isatty() else 200).print(table)
