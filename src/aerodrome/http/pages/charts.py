"""Charts of the last hour, drawn here as SVG without any style of their own: lines, an area, bars. Pure.

The drawing is stretched to whatever room there is, so it has no text: labels stand beside it, a line below says what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aerodrome.http.pages import formats

WIDTH, HEIGHT = 600, 140
_LINES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of value over time; None where there is none. `style` is the number of a colour of the style sheet."""

    label: str
    values: Sequence[float | None]
    style: int


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a template lays it out. `top` is what its upper edge stands for; `summary` says it in words."""

    name: str
    title: str
    svg: Markup
    top: str
    middle: str
    rows: Sequence[Row]
    summary: str
    is_empty: bool


def lines(name: str, title: str, rows: Sequence[Row], empty: str) -> Chart:
    """Return a chart of durations, in seconds: a line for each row, broken where there is nothing."""
    highest = _highest(rows)
    top = _nice(highest) if highest else 1.0
    drawn = Markup("").join(
        Markup('<path class="line s{}" d="{}"/>').format(row.style, _path(row.values, top)) for row in rows
    )
    last = [_last(row.values) for row in rows]
    said = ", ".join(
        f"{row.label} {formats.span(value)}" for row, value in zip(rows, last, strict=True) if value is not None
    )
    return Chart(
        name=name,
        title=title,
        svg=_frame(drawn),
        top=formats.span(top),
        middle=formats.span(top / 2),
        rows=rows,
        summary=f"Latest: {said}." if said else empty,
        is_empty=not said,
    )


def area(name: str, title: str, row: Row, noun: str) -> Chart:
    """Return a chart of how much there was: one line over its area."""
    top = max(_nice(_highest([row])), 4.0)
    path = _path(row.values, top)
    known = [number for number, value in enumerate(row.values) if value is not None]
    filled = ""
    if known:
        begin, end = _x(known[0], len(row.values)), _x(known[-1], len(row.values))
        filled = f"{_path(row.values, top, bridges=True)} L{end:.1f} {HEIGHT} L{begin:.1f} {HEIGHT} Z"
    drawn = Markup('<path class="area" d="{}"/><path class="line s{}" d="{}"/>').format(filled, row.style, path)
    now, most = _last(row.values), max((value for value in row.values if value is not None), default=0)
    return Chart(
        name=name,
        title=title,
        svg=_frame(drawn),
        top=formats.number(top),
        middle=formats.number(top / 2),
        rows=[row],
        summary=f"Now {formats.number(now or 0)} {noun}, at most {formats.number(most)} in this hour.",
        is_empty=False,
    )


def bars(name: str, title: str, rows: Sequence[Row], empty: str) -> Chart:
    """Return a chart of counts: bars of several rows upon one another."""
    length = len(rows[0].values)
    sums = [sum(row.values[at] or 0 for row in rows) for at in range(length)]
    top = max(_nice(max(sums, default=0)), 4.0)
    step = WIDTH / max(length, 1)
    drawn = []
    for at in range(length):
        base = float(HEIGHT)
        for row in rows:
            value = row.values[at] or 0
            if value:
                height = value / top * HEIGHT
                base -= height
                drawn.append(
                    Markup('<rect class="f{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                        row.style, at * step + step * 0.15, base, step * 0.7, height
                    )
                )
    said = ", ".join(f"{formats.number(sum(v or 0 for v in row.values))} {row.label.lower()}" for row in rows)
    return Chart(
        name=name,
        title=title,
        svg=_frame(Markup("").join(drawn)),
        top=formats.number(top),
        middle=formats.number(top / 2),
        rows=rows,
        summary=f"In this hour: {said}; a bar is a minute." if any(sums) else empty,
        is_empty=not any(sums),
    )


def _frame(drawn: Markup) -> Markup:
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(WIDTH, y, y)
        for y in (HEIGHT * number / _LINES for number in range(_LINES + 1))
    )
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
    return Markup("{}{}{}</svg>").format(Markup(head), grid, drawn)  # noqa: S704  numbers of ours


def _path(values: Sequence[float | None], top: float, bridges: bool = False) -> str:
    """Return a path through the values; one that stands alone is a dot. `bridges`: over gaps too."""
    parts: list[str] = []
    is_open = False
    for at, value in enumerate(values):
        if value is None:
            is_open = is_open and bridges
            continue
        x, y = _x(at, len(values)), HEIGHT - min(value / top, 1.0) * HEIGHT
        parts.append(f"{'L' if is_open else 'M'}{x:.1f} {y:.1f}")
        is_next_known = at + 1 < len(values) and values[at + 1] is not None
        if not is_open and not is_next_known and not bridges:
            parts[-1] = f"M{x - 2:.1f} {y:.1f} h4"
        is_open = True
    return " ".join(parts)


def _x(at: int, length: int) -> float:
    return (at + 0.5) * WIDTH / max(length, 1)


def _highest(rows: Sequence[Row]) -> float:
    return max((value for row in rows for value in row.values if value is not None), default=0.0)


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _nice(value: float) -> float:
    """Return the next of 1, 2, 4, 10, 20 ... that is no less."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 10) if power * step >= value * 0.9999)
