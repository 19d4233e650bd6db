"""Charts as inline SVG: from values to markup, escaped whatever the names are; `templates/charts.html` draws them.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; the page's style sets them, light
or dark. Each series has a shape and a dash of its own as well. The `<title>` of a point has its exact figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from splade_lit.evaluation.paired_tests import Difference
from splade_lit.report.scales import Scale, make_scale

COLOURS = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 358, 26, 228
_SHAPES = (
    "M-5,0A5,5 0 1 0 5,0A5,5 0 1 0 -5,0Z",
    "M-4.6,-4.6H4.6V4.6H-4.6Z",
    "M0,-6.4L6.4,0L0,6.4L-6.4,0Z",
    "M0,-6L6,4.8H-6Z",
    "M0,6L6,-4.8H-6Z",
)
_CROSS = "M-5,-5L5,5M-5,5L5,-5"
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2")
_LONGEST_QUERY = 160
_MOST_POINTS = 300  # of a line
_MOST_BARS = 400  # more become one outline


def number(value: float) -> str:
    """The value at a tick.

    >>> number(2000.0), number(0.25), number(-0.0)
    ('2,000', '0.25', '0')
    """
    return f"{value + 0.0:,g}" if abs(value) < 1e6 else f"{value:.0e}"


def short(name: str, length: int = 28) -> str:
    """The name, its middle left out where it is long.

    >>> short("a" * 20 + "b" * 20, 9)
    'aaaa…bbbb'
    """
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length - 1) // 2 :]}"


def short_query(text: str) -> str:
    """The query, its end left out where it is long."""
    return text if len(text) <= _LONGEST_QUERY else f"{text[: _LONGEST_QUERY - 1]}…"


PAGES = Environment(
    loader=PackageLoader("splade_lit.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
PAGES.filters |= {"px": "{:.1f}".format, "number": number, "short": short, "short_query": short_query}


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
    """The quality of a system (y) at a cost (x), with the text of its `<title>`; on the Pareto front it has a ring."""

    series: Series
    name: str
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


def legend_mark(series: Series) -> Markup:
    """A mark for a legend."""
    return _draw("key", series=series)


def scatter(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    levels: Sequence[tuple[Series, float, str]] = (),
    lines: Sequence[Line] = (),
) -> Markup:
    """Points, a stepped line through those on the front, and horizontal lines for systems that have no x.

    Args:
        points: one at least.
        x_label: with its unit.
        y_label: with its unit.
        levels: series, y and text of each horizontal line.
        lines: lines that join some of the points.
    """
    x = make_scale([point.x for point in points], _LEFT, _RIGHT, is_cost=True)
    y = make_scale([*(point.y for point in points), *(level for _, level, _ in levels)], _BOTTOM, _TOP)
    return _draw("scatter", x=x, y=y, x_label=x_label, y_label=y_label, points=points, levels=levels, lines=lines)


def curves(lines: Sequence[Line], x_label: str, y_label: str) -> Markup:
    """Lines, one at least; at most 300 points of each, evenly chosen, have titles with their figures."""
    x = make_scale([step for line in lines for step, _ in line.points], _LEFT, _RIGHT)
    y = make_scale([value for line in lines for _, value in line.points], _BOTTOM, _TOP)
    thinned = [replace(line, points=_thinned(line.points)) for line in lines]
    return _draw("curves", x=x, y=y, x_label=x_label, y_label=y_label, lines=thinned)


def intervals(rows: Sequence[tuple[Series, Difference]], x_label: str) -> Markup:
    """Mean differences with their intervals, one at least, one below another; 0 is marked."""
    ends = [end for _, pair in rows for end in pair.interval or ()]
    x = make_scale([*ends, 0.0, -0.05 * max(map(abs, ends))], 16, _RIGHT)
    return _draw("intervals", x=x, x_label=x_label, rows=rows)


def sorted_bars(values: Sequence[float], texts: Sequence[str], y_label: str) -> Markup:
    """A bar a value, one at least, the largest first: above 0 in one colour, below in another; 0 has none.

    Args:
        values: how high the bars are.
        texts: titles of the bars, where there are 400 at most.
        y_label: with its unit.
    """
    largest = max(map(abs, values)) or 1.0
    x = Scale(0, len(values), _LEFT, _RIGHT)
    y = Scale(-1.08 * largest, 1.08 * largest, _BOTTOM, _TOP)
    ranked = sorted(zip(values, texts, strict=True), key=lambda bar: -bar[0])
    bars = [(place, value, text) for place, (value, text) in enumerate(ranked)]
    sides = {"win": [bar for bar in bars if bar[1] > 0], "loss": [bar for bar in bars if bar[1] < 0]}
    width = max(0.9 * (_RIGHT - _LEFT) / len(values), 0.8) if len(values) <= _MOST_BARS else None
    x_label = "queries, the largest difference first"
    return _draw("bars", x=x, y=y, x_label=x_label, y_label=y_label, sides=sides, width=width)


def _draw(macro: str, **values: Any) -> Markup:
    return getattr(PAGES.get_template("charts.html").module, macro)(**values)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    count = min(len(points), _MOST_POINTS)
    return [points[round(number * (len(points) - 1) / max(count - 1, 1))] for number in range(count)]
