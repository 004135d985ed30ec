"""Draw the state tables of `core` into docs/states.md: `python tools/draw_states.py [--check]`.

The tables are the truth; the page is made from them, and `--check` (a test runs it) exits 1 when it is not current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from aerodrome.core import attachment, runtime

PAGE = Path(__file__).parents[1] / "docs" / "states.md"
TABLES: dict[str, tuple[str, Mapping[Enum, frozenset[Enum]]]] = {
    "Runtime": ("`core/runtime.py`, moved by `fleet/supervisor.py`", runtime.TRANSITIONS),  # type: ignore[dict-item]
    "Attachment": ("`core/attachment.py`: one link's hold on one session", attachment.TRANSITIONS),  # type: ignore[dict-item]
}


def draw() -> str:
    """Return the whole page."""
    parts = ["# States", "", "Made from the tables by `tools/draw_states.py`; change the tables, then run it."]
    for name, (where, table) in TABLES.items():
        parts += [
            "",
            f"## {name}",
            "",
            f"{where}",
            "",
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {_first(table).value}",
        ]
        for state in table:
            parts += [f"    {state.value} --> {following.value}" for following in _ordered(table[state])]
            if not table[state]:
                parts.append(f"    {state.value} --> [*]")
        parts.append("```")
    return "\n".join(parts) + "\n"


def _first(table: Mapping[Enum, frozenset[Enum]]) -> Enum:
    return next(iter(table))


def _ordered(states: frozenset[Enum]) -> list[Enum]:
    return sorted(states, key=lambda state: str(state.value))


def main() -> int:
    """Write the page, or say whether it is current."""
    parser = argparse.ArgumentParser(description="Draw the state tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not current")
    if not parser.parse_args().check:
        PAGE.write_text(draw(), "utf-8")
        return 0
    if PAGE.read_text("utf-8") == draw():
        return 0
    print("docs/states.md is not current: run python tools/draw_states.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
