"""A moment of what tools/fuzz.py does for longer: whatever comes in is accepted, or refused with a documented error."""

from __future__ import annotations

import random
import time

import pytest

from aerodrome.testing import fuzz

SECONDS = 0.7


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_random_input_is_accepted_or_refused_with_a_documented_error(target):
    first = random.SystemRandom().randrange(10**9)
    seed, end = first, time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            fuzz.TARGETS[target](fuzz.Source(seed))
        except Exception as error:
            raise AssertionError(f"repeat it: python tools/fuzz.py --target {target} --seed {seed}") from error
        seed += 1
    assert seed > first
