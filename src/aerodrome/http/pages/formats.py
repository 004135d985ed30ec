"""Numbers and times as people read them. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any


def size(count: int | None) -> str:
    """Return bytes, in the unit that suits."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return "–"


def span(seconds: float | None) -> str:
    """Return a length of time, as exact as its size asks for."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def moment(at: float | None) -> str:
    """Return a time in UTC."""
    return "–" if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(at: float) -> str:
    """Return a time of day in UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%H:%M:%S")


def number(value: float | None) -> str:
    """Return a count, with its thousands apart."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


FILTERS: Mapping[str, Callable[..., Any]] = {
    "size": size,
    "span": span,
    "moment": moment,
    "clock": clock,
    "number": number,
}
