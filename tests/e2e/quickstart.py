"""The programs of docs/quickstart.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text("utf-8")


def program(heading: str) -> str:
    """Return the code under a heading."""
    _, _, after = TEXT.partition(f"\n## {heading}\n")
    found = re.search(r"^```\w+\n(.*?)^```$", after.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]
