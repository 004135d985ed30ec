"""What the pages need is in the wheel, and what is vendored has its licence beside it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
PAGES = "aerodrome/http/pages"


def test_a_wheel_has_the_templates_and_files_of_the_pages(tmp_path):
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    for kind in ("templates", "static"):
        folder = ROOT / "src" / PAGES / kind
        files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        there = {f"{PAGES}/{kind}/{name}" for name in files}
        assert len(there) >= 5
        assert there <= names


def test_htmx_is_vendored_whole_with_its_licence():
    static = ROOT / "src" / PAGES / "static"
    assert b'version:"2.' in (static / "htmx.min.js").read_bytes()
    assert "Zero-Clause BSD" in (static / "htmx.LICENSE.txt").read_text()
