"""What unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aerodrome.adapters.distribution import cache
from aerodrome.testing.fake_release import FakeRelease


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeRelease]:
    """Stand-ins for a release, whose read-only parts are removed at the end."""
    yield FakeRelease(tmp_path)
    cache.discard(tmp_path)
