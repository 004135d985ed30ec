"""Write docs/openapi.json, the OpenAPI document of the HTTP API as the code has it.

.venv/bin/python tools/write_openapi.py
"""

from __future__ import annotations

import json
from pathlib import Path

from aerodrome.http import application

PATH = Path(__file__).parents[1] / "docs" / "openapi.json"


def main() -> None:
    """Write the document."""
    PATH.write_text(json.dumps(application.describe(), indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
