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
    return _tag("svg", _mark(series, 0, 0), class_="key", viewBox="-8 -8 16 16", aria_hidden="true")


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
        parts.append(_path(f"level {series.css}", f"M{_LEFT},{y(level):.1f}H{_WIDTH - _RIGHT}", text))
    front = sorted((point.x, point.y) for point in points if point.on_front)
    if front:
        steps = "".join(f"H{x(cost):.1f}V{y(quality):.1f}" for cost, quality in front[1:])
        parts.append(_path("front", f"M{x(front[0][0]):.1f},{y(front[0][1]):.1f}{steps}"))
    for point in points:
        ring = _tag("circle", class_="ring", cx=x(point.x), cy=y(point.y), r=9.5) if point.on_front else ""
        parts.append(_tag("g", ring + _mark(point.series, x(point.x), y(point.y)) + _tag("title", point.text)))
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
        points, css = _thinned(line.points), line.series.css
        outline = "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(_tag("path", class_=f"line {css}", stroke_dasharray=line.series.dash, d=f"M{outline}"))
        radius = 3.5 if len(points) <= 12 else 1.5
        for step, value in points:
            title = _tag("title", f"{line.name}, step {step:g}: {value:.4g}")
            parts.append(_tag("circle", title, class_=f"dot {css}", cx=x(step), cy=y(value), r=radius))
    return _svg(parts, _HEIGHT, f"{y_label} over {x_label}")


def intervals(rows: Sequence[Interval], x_label: str) -> Markup:
    """Values with their intervals, one below another; 0 is marked.

    Args:
        rows: one at least.
        x_label: with its unit.
    """
    height = 12 + 38 * len(rows) + _BOTTOM
    ends = [end for row in rows for end in (row.low, row.high)]
    x = make_scale([*ends, 0.0, -0.05 * max(map(abs, ends))], 16, _WIDTH - _RIGHT)
    parts = [_x_axis(x, x_label, 6, height - _BOTTOM)]
    for number, row in enumerate(rows):
        middle = 34 + 38 * number
        series = Series(0, reference=not row.significant)
        drawn = [
            _text(row.label, "name", 16, middle - 11),
            _path("zero", f"M{x(0.0):.1f},{middle - 8}v16"),
            _path(f"line {series.css}", f"M{x(row.low):.1f},{middle}H{x(row.high):.1f}"),
            _mark(series, x(row.value), middle),
            _tag("title", row.text),
        ]
        parts.append(_tag("g", Markup("").join(drawn)))
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
    width = max(0.9 * (_WIDTH - _RIGHT - _LEFT) / len(values), 0.8)
    bars = [(place, values[row], texts[row]) for place, row in enumerate(order) if values[row]]
    if len(values) <= _MOST_BARS:
        for place, value, text in bars:
            top, end = sorted((y(value), y(0.0)))
            css, title = "win" if value > 0 else "loss", _tag("title", text)
            left, height = f"{x(place):.2f}", max(end - top, 0.5)
            parts.append(_tag("rect", title, class_=css, x=left, y=top, width=f"{width:.2f}", height=height))
    else:
        for css, sign in (("win", 1), ("loss", -1)):
            side = [(place, value) for place, value, _ in bars if sign * value > 0]
            outline = "".join(f"H{x(place):.2f}V{y(value):.1f}H{x(place + 1):.2f}" for place, value in side)
            if side:
                parts.append(_path(css, f"M{x(side[0][0]):.2f},{y(0.0):.1f}{outline}V{y(0.0):.1f}Z"))
    parts.append(_path("zero", f"M{_LEFT},{y(0.0):.1f}H{_WIDTH - _RIGHT}"))
    return _svg(parts, _HEIGHT, f"{y_label} by query")


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    count = min(len(points), _MOST_POINTS)
    return [points[round(number * (len(points) - 1) / max(count - 1, 1))] for number in range(count)]


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    parts = [_x_axis(x, x_label, _TOP, _HEIGHT - _BOTTOM)]
    for tick in y.ticks:
        parts.append(_path("grid", f"M{_LEFT},{y(tick):.1f}H{_WIDTH - _RIGHT}"))
        parts.append(_text(_number(tick), "tick end", _LEFT - 6, y(tick) + 4))
    return Markup("").join([*parts, _text(y_label, "label", 2, 12)])


def _x_axis(x: Scale, label: str, top: float, bottom: float) -> Markup:
    parts = []
    for tick in x.ticks:
        parts.append(_path("grid", f"M{x(tick):.1f},{top}V{bottom}"))
        parts.append(_text(_number(tick), "tick middle", x(tick), bottom + 15))
    label += ", logarithmic" if x.log else ""
    axis = _path("axis", f"M{x.start:.1f},{bottom}H{x.end:.1f}")
    return Markup("").join([*parts, axis, _text(label, "label middle", (x.start + x.end) / 2, bottom + 33)])


def _number(value: float) -> str:
    """A tick's value.

    >>> _number(2000.0), _number(0.25), _number(-0.0)
    ('2,000', '0.25', '0')
    """
    return f"{value + 0.0:,g}" if abs(value) < 1e6 else f"{value:.0e}"


def _svg(parts: Sequence[Markup], height: float, description: str) -> Markup:
    size = f"0 0 {_WIDTH} {height}"
    return _tag("svg", Markup("").join(parts), class_="chart", viewBox=size, role="img", aria_label=description)


def _mark(series: Series, x: float, y: float) -> Markup:
    return _tag("path", class_=f"mark {series.css}", transform=f"translate({x:.1f} {y:.1f})", d=series.shape)


def _path(css: str, d: str, title: str = "") -> Markup:
    return _tag("path", _tag("title", title) if title else "", class_=css, d=d)


def _text(text: str, css: str, x: float, y: float) -> Markup:
    return _tag("text", text, class_=css, x=x, y=y)


def _tag(name: str, content: str = "", **attributes: str | float) -> Markup:
    """An element; text is escaped, numbers have one decimal, underscores in names of attributes are hyphens.

    >>> _tag("text", "<b>", class_="label", x=1.25)
    Markup('<text class="label" x="1.2">&lt;b&gt;</text>')
    """
    parts = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else f"{value:.1f}"
        )
        for key, value in attributes.items()
    ]
    return Markup("<{}{}>{}</{}>").format(name, Markup("").join(parts), content, name)
