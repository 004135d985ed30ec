"""core.duration: lengths of time as people write them, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1.0), ("90s", 90.0), ("30m", 1800.0), ("12h", 43200.0), ("90d", 7776000.0)]
)
def test_a_number_with_its_unit_is_read(text, seconds):
    assert duration.parse("--expires", text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "0d", "-1d", "1", "1y", "1.5h", "1d ", " 1d", "1D", "1d1h", "٣d", "1d\n", "9" * 10 + "d"]
)
def test_anything_else_is_refused_by_name(text):
    with pytest.raises(errors.ConfigError, match="--expires: expected a number and s, m, h or d"):
        duration.parse("--expires", text)


@given(st.integers(1, 999_999), st.sampled_from("smhd"))
def test_what_is_said_of_a_length_of_time_reads_as_the_same(number, unit):
    seconds = duration.parse("--x", f"{number}{unit}")

    said = duration.words(seconds)

    assert duration.parse("--x", said) == seconds


def test_no_length_of_time_is_never():
    assert duration.words(None) == "never"
