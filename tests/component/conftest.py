"""What tests of real processes share."""

from __future__ import annotations

import os
import secrets
import signal
from contextlib import suppress

import pytest

from aerodrome.testing.process_table import find


@pytest.fixture
def mark():
    """A word that only this test's processes have in their command lines; none may be left at its end."""
    word = f"1000.{secrets.randbelow(10**9):09d}"
    yield word
    left = find(word)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
