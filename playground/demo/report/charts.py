"""Small charts as SVG text: no library, no script, sharp at every size, readable without colour."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

INK, SOFT, GRID = "#1f2933", "#6b7785", "#e3e8ee"
SERIES = ("#0f62ac", "#d1600a", "#2b8a5f", "#8452a8")
"""Blue, orange, green, violet: told apart with every common colour deficiency."""
FLOOR = "#9aa5b1"
CLASSES = {
    "success": "#2b8a5f",
    "passed by": "#e2b13c",
    "stopped too early": "#d1600a",
    "never arrived": "#a94a5b",
    "stuck": "#6b7785",
}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its 95 % interval, all in [0, 1]."""

    label: str
    value: float
    low: float
    high: float
    is_floor: bool = False
    series: int = 0

    @property
    def colour(self) -> str:
        return FLOOR if self.is_floor else SERIES[self.series % len(SERIES)]


def text(x: float, y: float, content: str, *, anchor: str = "start", colour: str = INK, size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-size="{size}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str = GRID, width: float = 1.0) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{width:.0f}px">{"".join(parts)}</svg>'
    )


def interval_plot(rates: Sequence[Rate], label: str) -> str:
    """One line per policy: a dot for the share, a bar for its interval; floors in grey."""
    left, right, row = 118, 470, 26
    height = row * len(rates) + 34

    def at(share: float) -> float:
        return left + (right - left) * share

    parts = []
    for tick in (0, 25, 50, 75, 100):
        parts.append(line(at(tick / 100), 6, at(tick / 100), height - 24))
        parts.append(text(at(tick / 100), height - 8, f"{tick} %", anchor="middle", colour=SOFT, size=11))
    for index, rate in enumerate(rates):
        y = 18 + row * index
        parts.append(text(left - 10, y + 4, rate.label, anchor="end", colour=SOFT if rate.is_floor else INK))
        parts.append(line(at(rate.low), y, at(rate.high), y, colour=rate.colour, width=4))
        parts.append(f'<circle cx="{at(rate.value):.1f}" cy="{y}" r="5.5" fill="{rate.colour}"/>')
        parts.append(text(right + 14, y + 4, f"{100 * rate.value:.0f} %", colour=SOFT if rate.is_floor else INK))
    return svg(right + 60, height, parts, label)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high]."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(s for m in (1, 2, 2.5, 5, 10) if (high - low) / (s := step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Mean over `width` points around each one, fewer at both ends: no lag behind the curve."""
    sums, half = [0.0, *itertools.accumulate(values)], width // 2
    spans = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[high] - sums[low]) / (high - low) for low, high in spans]


def curve(points: Sequence[tuple[float, float]], label: str, *, x_name: str, series: int = 0) -> str:
    """A loss curve: thin raw values, a thick running mean, axes with round numbers."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return f'<p class="quiet">{escape(label)}: no curve yet (fewer than two points)</p>'
    left, right, top, bottom, colour = 44, 350, 12, 150, SERIES[series % len(SERIES)]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_high, y_low, y_high = max(xs) or 1.0, min(0.0, *ys), sorted(ys)[min(len(ys) - 1, int(0.995 * len(ys)))] * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        share = (min(y, y_high) - y_low) / ((y_high - y_low) or 1.0)
        return left + (right - left) * x / x_high, bottom - (bottom - top) * share

    parts = []
    for tick in nice_ticks(y_low, y_high):
        y = place(0, tick)[1]
        parts += [line(left, y, right, y), text(left - 6, y + 4, f"{tick:g}", anchor="end", colour=SOFT, size=11)]
    for tick in nice_ticks(0, x_high):
        parts.append(text(place(tick, 0)[0], bottom + 16, f"{tick:g}", anchor="middle", colour=SOFT, size=11))
    parts.append(text(right, bottom + 30, x_name, anchor="end", colour=SOFT, size=11))
    for values, width, opacity in ((ys, 1, 0.3), (smooth(ys, max(3, len(ys) // 25)), 2.2, 1)):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in zip(xs, values, strict=True)))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" opacity="{opacity}"/>'
        )
    return svg(right + 10, bottom + 36, parts, label)


def grouped_rates(groups: Mapping[str, Sequence[Rate]], label: str) -> str:
    """Columns side by side per group (a bin of path lengths), whiskers for the intervals."""
    left, top, bottom, column, gap = 44, 12, 150, 20, 26
    widest = max((len(rates) for rates in groups.values()), default=1)
    step = column * widest + gap
    width = left + step * len(groups) + 10

    def height(share: float) -> float:
        return bottom - (bottom - top) * share

    parts = []
    for tick in (0, 50, 100):
        parts.append(line(left, height(tick / 100), width - 10, height(tick / 100)))
        parts.append(text(left - 6, height(tick / 100) + 4, f"{tick} %", anchor="end", colour=SOFT, size=11))
    for index, (name, rates) in enumerate(groups.items()):
        x = left + gap / 2 + step * index
        for number, rate in enumerate(rates):
            x1, middle = x + column * number + 1, x + column * (number + 0.5)
            y = height(rate.value)
            parts.append(
                f'<rect x="{x1:.1f}" y="{y:.1f}" width="{column - 2}" height="{bottom - y:.1f}" rx="2" '
                f'fill="{rate.colour}"><title>{escape(rate.label)}: {100 * rate.value:.0f} %</title></rect>'
            )
            parts.append(line(middle, height(rate.low), middle, height(rate.high), colour=INK, width=1.2))
        parts.append(text(x + column * widest / 2, bottom + 16, name, anchor="middle", colour=SOFT, size=11))
    return svg(max(width, 220), bottom + 26, parts, label)


def stacked_bar(counts: Mapping[str, float], label: str) -> str:
    """One bar of classes that sum to all episodes; the share is written where it fits."""
    total, x, width, parts = sum(counts.values()) or 1.0, 0.0, 560.0, []
    for name in sorted(counts, key=lambda name: list(CLASSES).index(name) if name in CLASSES else 99):
        share = counts[name] / total
        colour = CLASSES.get(name, FLOOR)
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="{max(0.0, width * share - 1.5):.1f}" height="24" rx="2" fill="{colour}">'
            f"<title>{escape(name)}: {100 * share:.0f} %</title></rect>"
        )
        if share > 0.06:
            parts.append(text(x + width * share / 2, 16, f"{100 * share:.0f} %", anchor="middle", colour="#fff"))
        x += width * share
    return svg(width, 24, parts, label)


def time_bars(rows: Sequence[tuple[str, float]], label: str) -> str:
    """Seconds per phase as bars from the same zero."""
    left, right, row = 210, 500, 24
    longest = max((seconds for _, seconds in rows), default=0.0) or 1.0
    parts = []
    for index, (name, seconds) in enumerate(rows):
        y = 6 + row * index
        length = max(1.5, (right - left) * seconds / longest)
        minutes = f"{int(seconds // 60)}:{int(seconds % 60):02d}"
        parts.append(text(left - 10, y + 12, name, anchor="end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="15" rx="2" fill="{SERIES[0]}" opacity="0.75"/>'
        )
        parts.append(text(left + length + 8, y + 12, minutes, colour=SOFT, size=11))
    return svg(right + 60, row * len(rows) + 8, parts, label)
