"""Charts as inline SVG: pure functions from values to markup, escaped whatever the names are.

Colours are those of Okabe and Ito, told apart by people who see few colours, and each series has a shape and a dash of
its own as well; they are set by the page's style, for light and dark. A point tells its exact figures as its `<title>`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from splade_lit.report.scales import Scale, make_scale

COLOURS = 6
_WIDTH, _HEIGHT = 380, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 22, 26, 42
_SHAPES = (
    "M-5,0A5,5 0 1 0 5,0A5,5 0 1 0 -5,0Z",
    "M-4.6,-4.6H4.6V4.6H-4.6Z",
    "M0,-6.4L6.4,0L0,6.4L-6.4,0Z",
    "M0,-6L6,4.8H-6Z",
    "M0,6L6,-4.8H-6Z",
)
_CROSS = "M-5,-5L5,5M-5,5L5,-5"
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2")
_MOST_POINTS = 300  # of a line
_MOST_BARS = 400  # that can be told apart


@dataclass(frozen=True)
class Series:
    """How a system is drawn in all charts.

    Attributes:
        number: 0, 1, ...; gives colour, shape and dash.
        reference: whether it is BM25: a cross in the colour of the text.
    """

    number: int
    reference: bool = False

    @property
    def css(self) -> str:
        """Class that sets its colour."""
        return "ref" if self.reference else f"s{self.number % COLOURS}"

    @property
    def shape(self) -> str:
        """Path of its mark around the origin."""
        return _CROSS if self.reference else _SHAPES[self.number % len(_SHAPES)]

    @property
    def dash(self) -> str:
        """Pattern of its lines."""
        return _DASHES[self.number % len(_DASHES)]


@dataclass(frozen=True)
class Point:
    """A point with the text that it tells; one on the Pareto front has a ring."""

    series: Series
    x: float
    y: float
    text: str
    on_front: bool = False


@dataclass(frozen=True)
class Line:
    """A line through points; `name` begins the text of each."""

    series: Series
    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """A value and where it may lie, with a label above."""

    label: str
    text: str
    value: float
    low: float
    high: float
    significant: bool


def legend_mark(series: Series) -> Markup:
    """A mark for a legend."""
    return Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>').format(_mark(series, 0, 0))


def scatter(
    points: Sequence[Point], x_label: str, y_label: str, levels: Sequence[tuple[Series, float, str]] = ()
) -> Markup:
    """Points, a stepped line through those on the front, and horizontal lines for systems that have no x.

    Args:
        points: one at least.
        x_label: with its unit.
        y_label: with its unit.
        levels: series, y and text of each horizontal line.
    """
    x = make_scale([point.x for point in points], _LEFT, _WIDTH - _RIGHT, is_cost=True)
    y = make_scale([*(p.y for p in points), *(level for _, level, _ in levels)], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_label, y_label)]
    for series, level, text in levels:
        parts.append(
            Markup('<path class="level {}" d="M{:.1f},{:.1f}H{:.1f}"><title>{}</title></path>').format(
                series.css, _LEFT, y(level), _WIDTH - _RIGHT, text
            )
        )
    front = sorted((point.x, point.y) for point in points if point.on_front)
    if front:
        steps = f"M{x(front[0][0]):.1f},{y(front[0][1]):.1f}"
        steps += "".join(f"H{x(cost):.1f}V{y(quality):.1f}" for cost, quality in front[1:])
        parts.append(Markup('<path class="front" d="{}"/>').format(steps))
    for point in points:
        ring = (
            Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="9.5"/>').format(x(point.x), y(point.y))
            if point.on_front
            else ""
        )
        mark = _mark(point.series, x(point.x), y(point.y))
        parts.append(Markup("<g>{}{}<title>{}</title></g>").format(ring, mark, point.text))
    return _svg(parts, _HEIGHT, f"{y_label} against {x_label}")


def curves(lines: Sequence[Line], x_label: str, y_label: str) -> Markup:
    """Lines; each point tells its figures, at most 300 evenly chosen ones of a line.

    Args:
        lines: one at least, each of one point at least.
        x_label: with its unit.
        y_label: with its unit.
    """
    x = make_scale([step for line in lines for step, _ in line.points], _LEFT, _WIDTH - _RIGHT)
    y = make_scale([value for line in lines for _, value in line.points], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_label, y_label)]
    for line in lines:
        points = _thinned(line.points)
        path = "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(
            Markup('<path class="line {}" stroke-dasharray="{}" d="M{}"/>').format(
                line.series.css, line.series.dash, path
            )
        )
        for step, value in points:
            radius = 3.5 if len(points) <= 12 else 1.5
            parts.append(
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
                    line.series.css, x(step), y(value), radius, f"{line.name}, step {step:g}: {value:.4g}"
                )
            )
    return _svg(parts, _HEIGHT, f"{y_label} over {x_label}")


def intervals(rows: Sequence[Interval], x_label: str) -> Markup:
    """Values with their intervals, one below another; 0 is marked.

    Args:
        rows: one at least.
        x_label: with its unit.
    """
    height = 12 + 38 * len(rows) + _BOTTOM
    bottom = height - _BOTTOM
    ends = [end for row in rows for end in (row.low, row.high)]
    x = make_scale([*ends, 0.0, -0.05 * max(map(abs, ends))], 16, _WIDTH - _RIGHT)
    parts = [_x_axis(x, x_label, 6, bottom)]
    for number, row in enumerate(rows):
        middle = 34 + 38 * number
        css = "s0" if row.significant else "ref"
        parts.append(
            Markup(
                '<g><text class="name" x="16" y="{:.1f}">{}</text><path class="zero" d="M{:.1f},{}v16"/>'
                '<path class="line {}" d="M{:.1f},{:.1f}H{:.1f}"/>{}<title>{}</title></g>'
            ).format(
                middle - 11,
                row.label,
                x(0.0),
                middle - 8,
                css,
                x(row.low),
                middle,
                x(row.high),
                _mark(Series(0, reference=not row.significant), x(row.value), middle),
                row.text,
            )
        )
    return _svg(parts, height, f"Intervals of {x_label}")


def sorted_bars(values: Sequence[float], texts: Sequence[str], y_label: str) -> Markup:
    """A bar a value, the largest first: above 0 in one colour, below in another.

    Args:
        values: one at least.
        texts: what the bar of each value tells.
        y_label: with its unit.
    """
    order = sorted(range(len(values)), key=lambda row: -values[row])
    largest = max(map(abs, values)) or 1.0
    x = Scale(0, len(values), _LEFT, _WIDTH - _RIGHT)
    y = Scale(-1.08 * largest, 1.08 * largest, _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x, y, "queries, the largest difference first", y_label)]
    width = (_WIDTH - _RIGHT - _LEFT) / len(values)
    if len(values) <= _MOST_BARS:
        for place, row in enumerate(order):
            if values[row]:
                top, end = sorted((y(values[row]), y(0.0)))
                parts.append(
                    Markup('<rect class="{}" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}">{}</rect>').format(
                        "win" if values[row] > 0 else "loss",
                        x(place),
                        top,
                        max(width * 0.9, 0.8),
                        max(end - top, 0.5),
                        Markup("<title>{}</title>").format(texts[row]),
                    )
                )
    else:
        for css, sign in (("win", 1), ("loss", -1)):
            bars = [(place, values[row]) for place, row in enumerate(order) if sign * values[row] > 0]
            if bars:
                outline = "".join(f"H{x(place):.2f}V{y(value):.1f}H{x(place + 1):.2f}" for place, value in bars)
                path = f"M{x(bars[0][0]):.2f},{y(0.0):.1f}{outline}V{y(0.0):.1f}Z"
                parts.append(Markup('<path class="{}" d="{}"/>').format(css, path))
    parts.append(Markup('<path class="zero" d="M{},{:.1f}H{}"/>').format(_LEFT, y(0.0), _WIDTH - _RIGHT))
    return _svg(parts, _HEIGHT, f"{y_label} by query")


def _mark(series: Series, x: float, y: float) -> Markup:
    return Markup('<path class="mark {}" transform="translate({:.1f} {:.1f})" d="{}"/>').format(
        series.css, x, y, series.shape
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    count = min(len(points), _MOST_POINTS)
    return [points[round(number * (len(points) - 1) / max(count - 1, 1))] for number in range(count)]


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    parts = [_x_axis(x, x_label, _TOP, _HEIGHT - _BOTTOM)]
    for tick in y.ticks:
        parts.append(
            Markup('<path class="grid" d="M{},{:.1f}H{}"/><text class="tick end" x="{}" y="{:.1f}">{}</text>').format(
                _LEFT, y(tick), _WIDTH - _RIGHT, _LEFT - 6, y(tick) + 4, _number(tick)
            )
        )
    parts.append(Markup('<text class="label" x="2" y="12">{}</text>').format(y_label))
    return Markup("").join(parts)


def _x_axis(x: Scale, label: str, top: float, bottom: float) -> Markup:
    parts = [
        Markup('<path class="grid" d="M{:.1f},{}V{}"/><text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(
            x(tick), top, bottom, x(tick), bottom + 15, _number(tick)
        )
        for tick in x.ticks
    ]
    axis = Markup('<path class="axis" d="M{:.1f},{}H{:.1f}"/>').format(x.start, bottom, x.end)
    scale = ", logarithmic" if x.log else ""
    text = Markup('<text class="label middle" x="{:.1f}" y="{}">{}</text>').format(
        (x.start + x.end) / 2, bottom + 33, label + scale
    )
    return Markup("").join([*parts, axis, text])


def _number(value: float) -> str:
    """A tick's value.

    >>> _number(2000.0), _number(0.25), _number(-0.0)
    ('2,000', '0.25', '0')
    """
    return f"{value + 0.0:,g}" if abs(value) < 1e6 else f"{value:.0e}"


def _svg(parts: Sequence[Markup], height: float, description: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, description, Markup("").join(parts)
    )
