"""Charts as inline SVG. Colours are CSS variables of the page, so that they follow its light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 380, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 12, 38
_MAX_POINTS = 300  # of a line
_MAX_MARKS = 40  # of a line, if its points are marked


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: for the legend and the tooltips.
        points: (x, y), in order of x.
        colour: a class of the page's style: "c1" to "c8", "other" or "ink".
        dashed: for the second metric of the same trial.
        band: half the height of the band around each point, or None.
    """

    label: str
    points: Points
    colour: str
    dashed: bool = False
    band: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """A linear map of values to pixels, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def axis(values: Sequence[float], start: float, end: float, count: int, pad: bool = True) -> Axis:
    """An axis over all values; `pad` widens it to whole ticks."""
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) * 0.1
        low, high = (low - half, high + half) if half else (0.0, 1.0)
    step = _step((high - low) / count)
    if pad:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first = math.ceil(low / step - 1e-9)
    ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, start, end, ticks)


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def number(value: float) -> str:
    """A number in few characters: 12.5, 1,200, 30k, 1.5M, 2e-05."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g}{name}".replace("-", "−")
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
    return "0" if size < 1e-12 else text.replace("-", "−")


def line_chart(title: str, series: Sequence[Series], x_label: str, references: Sequence[tuple[str, float]] = ()) -> str:
    """Lines over steps, with horizontal dashed lines for references such as the data's return."""
    lines = [_thinned(one) for one in series if one.points]
    heights = [y for line in lines for _, y in line.points] + [value for _, value in references]
    for line in lines:
        if line.band:
            heights += [
                y + sign * half for (_, y), half in zip(line.points, line.band, strict=True) for sign in (-1, 1)
            ]
    x = axis([x for line in lines for x, _ in line.points], _LEFT, WIDTH - _RIGHT, 4, pad=False)
    y = axis(heights, HEIGHT - _BOTTOM, _TOP, 4)
    parts = [_grid(x, y, x_label)]
    parts += [_band(line, x, y) for line in lines if line.band]
    parts += [_line(line, x, y) for line in lines]
    parts += [_reference(label, value, y) for label, value in references]
    return _svg(title, WIDTH, HEIGHT, parts)


def _thinned(series: Series) -> Series:
    """At most `_MAX_POINTS` of the points, the last one among them."""
    stride = -(-len(series.points) // _MAX_POINTS)
    if stride == 1:
        return series
    keep = range((len(series.points) - 1) % stride, len(series.points), stride)
    band = series.band and [series.band[i] for i in keep]
    return Series(series.label, [series.points[i] for i in keep], series.colour, series.dashed, band)


def _grid(x: Axis, y: Axis, x_label: str) -> str:
    parts = []
    for tick in y.ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(text(_LEFT - 6, y(tick) + 4, number(tick), "end"))
    for tick in x.ticks:
        parts.append(text(x(tick), HEIGHT - _BOTTOM + 16, number(tick), "middle"))
    parts.append(text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    return "".join(parts)


def _line(series: Series, x: Axis, y: Axis) -> str:
    places = [(x(a), y(b)) for a, b in series.points]
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    parts = [f'<path class="line {series.colour}" d="M{path}"{dash}><title>{escape(series.label)}</title></path>']
    if len(places) <= _MAX_MARKS and series.colour != "other":
        for (a, b), (step, value) in zip(places, series.points, strict=True):
            tip = f"{series.label}: {number(value)} at {number(step)}"
            parts.append(_mark(a, b, 2.5, series.colour, tip))
    return "".join(parts)


def _band(series: Series, x: Axis, y: Axis) -> str:
    assert series.band is not None
    pairs = list(zip(series.points, series.band, strict=True))
    edge = [(a, b + half) for (a, b), half in pairs] + [(a, b - half) for (a, b), half in reversed(pairs)]
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge)
    return f'<polygon class="band {series.colour}" points="{points}"/>'


def _reference(label: str, value: float, y: Axis) -> str:
    height = y(value)
    above = height - 5 if height > _TOP + 16 else height + 14
    line = f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
    shown = f"{label} {number(value)}"
    return line + _plate(WIDTH - _RIGHT - _room(shown) / 2, above - 4, shown)


def ranges(title: str, rows: Sequence[tuple[str, str, Sequence[float]]], x_label: str) -> str:
    """A row a distribution: label, colour, and (mean, std) or (mean, std, min, max)."""
    row_height, left = 28, 110
    height = _TOP + row_height * len(rows) + _BOTTOM
    values = [edge for _, _, (mean, std, *ends) in rows for edge in (mean - std, mean + std, *ends)]
    x = axis(values, left, WIDTH - _RIGHT, 4)
    bottom = height - _BOTTOM
    parts = [f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{_TOP}" y2="{bottom}"/>' for t in x.ticks]
    parts += [text(x(t), bottom + 16, number(t), "middle") for t in x.ticks]
    parts.append(text((left + WIDTH - _RIGHT) / 2, height - 6, x_label, "middle"))
    for index, (label, colour, (mean, std, *ends)) in enumerate(rows):
        middle = _TOP + row_height * (index + 0.5)
        tip = f"{label}: mean {number(mean)}, standard deviation {number(std)}"
        if ends:
            tip += f", {number(ends[0])} to {number(ends[1])}"
            parts.append(_bar(x(ends[0]), x(ends[1]), middle, 1.5, colour))
        parts.append(_bar(x(mean - std), x(mean + std), middle, 5, colour))
        parts.append(_mark(x(mean), middle, 5, colour, tip))
        parts.append(text(left - 10, middle + 4, _short(label, 16), "end", "strong"))
    return _svg(title, WIDTH, height, parts)


def _bar(start: float, end: float, middle: float, width: float, colour: str) -> str:
    place = f'x1="{start:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}"'
    return f'<line class="bar {colour}" {place} stroke-width="{width}"/>'


def _mark(x: float, y: float, radius: float, colour: str, tip: str) -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return f'<circle class="mark {colour}" {place}><title>{escape(tip)}</title></circle>'


def heat_map(
    title: str, x_label: str, columns: Sequence[str], y_label: str, rows: Sequence[str],
    cells: Sequence[Sequence[float | str]],
) -> str:  # fmt: skip
    """A cell for each pair of settings, the darker the higher; empty where `cells` has a text, which says why."""
    longest = max(len(_short(name, 11)) for name in columns)
    cell_width, cell_height, left, top = max(60.0, 6.5 * longest + 10), 34, 92, 12
    width, height = left + cell_width * len(columns) + 10, top + cell_height * len(rows) + 44
    known = [value for row in cells for value in row if not isinstance(value, str)]
    low, high = min(known), max(known)
    parts = []
    for i, row in enumerate(cells):
        y = top + cell_height * i
        parts.append(text(left - 8, y + cell_height / 2 + 4, _short(rows[i], 11), "end", "strong"))
        for j, value in enumerate(row):
            x = left + cell_width * j
            if isinstance(value, str):
                share, shown, meaning = 0.0, "–", value
            else:
                share = 0.12 + 0.58 * ((value - low) / (high - low) if high > low else 1.0)
                shown = meaning = number(value)
            tip = f"{y_label} {rows[i]}, {x_label} {columns[j]}: {meaning}"
            parts.append(
                f'<rect class="cell" x="{x + 1}" y="{y + 1}" width="{cell_width - 2}" height="{cell_height - 2}" '
                f'rx="3" fill-opacity="{share:.2f}"><title>{escape(tip)}</title></rect>'
            )
            parts.append(text(x + cell_width / 2, y + cell_height / 2 + 4, shown, "middle", "strong"))
    bottom = top + cell_height * len(rows)
    parts += [
        text(left + cell_width * (j + 0.5), bottom + 17, _short(name, 11), "middle", "strong")
        for j, name in enumerate(columns)
    ]
    parts.append(text(left + cell_width * len(columns) / 2, bottom + 36, x_label, "middle"))
    middle = top + cell_height * len(rows) / 2
    parts.append(text(12, middle, y_label, "middle", turn=True))
    return _svg(title, width, height, parts)


def parallel_coordinates(
    title: str, names: Sequence[str], lines: Sequence[Series], ticks: Sequence[Sequence[str]]
) -> str:
    """A vertical axis a setting, and a line a trial through all of them.

    Args:
        title: for readers of the screen.
        names: of the axes.
        lines: the points' y are heights in [0, 1], their x the axes' numbers.
        ticks: the texts of each axis, evenly spaced from its lower end.
    """
    gap, left, top, bottom = max(130.0, 600 / max(len(names) - 1, 1)), 70, 34, 250
    width, height = 2 * left + gap * (len(names) - 1), bottom + 14
    parts = []
    for line in lines:
        places = [f"{left + gap * a:.1f} {bottom - b * (bottom - top):.1f}" for a, b in line.points]
        parts.append(
            f'<path class="line {line.colour}" d="M{"L".join(places)}"><title>{escape(line.label)}</title></path>'
        )
    for index, name in enumerate(names):
        x, texts = left + gap * index, ticks[index]
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        parts.append(text(x, 16, _short(name, 22), "middle", "strong"))
        for place, shown in enumerate(texts):
            y = bottom - (place / (len(texts) - 1) if len(texts) > 1 else 0.5) * (bottom - top)
            parts.append(_plate(x, y, _short(shown, 14)))
    return _svg(title, width, height, parts)


def text(x: float, y: float, shown: str, anchor: str, style: str = "", turn: bool = False) -> str:
    """A label; `turn` writes it upwards."""
    rotated = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    named = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}{rotated}>{escape(shown)}</text>'


def _plate(x: float, y: float, shown: str) -> str:
    """A label around a point, on a plate that hides the lines behind it."""
    width = _room(shown)
    plate = f'<rect class="plate" x="{x - width / 2:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="15"/>'
    return plate + text(x, y + 4, shown, "middle", "strong")


def _room(shown: str) -> float:
    """The width of a text in pixels, about."""
    return 6.5 * len(shown) + 4


def _short(shown: str, length: int) -> str:
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="--width:{width}px" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
