"""Lengths of time as people write them: `90s`, `30m`, `12h`, `30d`."""

from __future__ import annotations

import math
import re

from aerodrome import errors

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WORD = re.compile(r"([1-9][0-9]{0,8})([smhd])\Z", re.ASCII)


def parse(name: str, text: str) -> float:
    """Return the seconds of a number with its unit.

    Raises:
        errors.ConfigError: `text`, given as `name`, is anything else.
    """
    match = _WORD.match(text)
    if match is None:
        raise errors.ConfigError(f"{name}: expected a number and s, m, h or d, found {text!r}; for example 90d")
    return float(int(match[1]) * _UNITS[match[2]])


def check(name: str, value: object) -> float:
    """Return the seconds of a configured value: a number (an environment has only the text of one), or words as for `parse`.

    Raises:
        errors.ConfigError: it is neither, or not a length of time.
    """
    if isinstance(value, str):
        return check(name, int(value)) if re.fullmatch(r"[0-9]{1,12}", value, re.ASCII) else parse(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise errors.ConfigError(f'{name}: expected seconds over 0, or words such as "30d", found {value!r}')
    return float(value)


def words(seconds: float | None) -> str:
    """Return a length of time in the largest unit that leaves it whole; `never` for None."""
    if seconds is None:
        return "never"
    unit = next((unit for unit in "dhm" if seconds % _UNITS[unit] == 0), "s")
    return f"{seconds / _UNITS[unit]:g}{unit}"
