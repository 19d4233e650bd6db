"""The charts of a report, each with a title that tells what it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from splade_lit.report.charts import Interval, Line, Point, Series, curves, intervals, legend_mark, scatter, sorted_bars
from splade_lit.report.comparison import QUANTITIES, Comparison, Quantity
from splade_lit.report.statistics import ALPHA, Difference
from splade_lit.report.system import System

_LONGEST_NAME = 28

# Optimizer steps and values.
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Legend:
    """A line of a legend."""

    mark: Markup
    text: str


@dataclass(frozen=True)
class Figure:
    """A chart, its title, its legend, and what must be said under it."""

    title: str
    chart: Markup
    legend: Sequence[Legend]
    note: str = ""


def series_of(comparison: Comparison) -> dict[str, Series]:
    """How each system is drawn."""
    return {
        system.name: Series(number, reference=system.kind == "bm25") for number, system in enumerate(comparison.systems)
    }


def trade_offs(comparison: Comparison) -> list[Figure]:
    """Quality against each cost that is known of a system."""
    figures = [_trade_off(comparison, quantity) for quantity in QUANTITIES]
    return [figure for figure in figures if figure is not None]


def learning_curves(comparison: Comparison) -> list[Figure]:
    """Quality, active dims and ranking loss over the optimizer steps of the runs."""
    one, metric = comparison.headline, comparison.metric

    def active_dims(system: System) -> Points:
        return _with_start(system, one, "corpus_active_dims", f"val/{one}_corpus_active_dims") or system.logged(
            "sparsity/document_active_dims"
        )

    figures = [
        _curves(
            comparison,
            lambda system: _with_start(system, one, metric, f"val/{one}_dot_{metric}"),
            f"{comparison.metric_name} of {one}",
            higher_is_better=True,
        ),
        _curves(comparison, active_dims, "active dims of a document"),
        _curves(comparison, lambda system: system.logged("train/ranking_loss"), "ranking loss of a batch", noisy=True),
    ]
    return [figure for figure in figures if figure is not None]


def tests_figure(comparison: Comparison) -> Figure | None:
    """The mean difference of each pair with its interval; None where no two systems have figures of queries."""
    pairs = [pair for pair in comparison.differences if pair.interval is not None]
    if not pairs:
        return None
    rows = [
        Interval(
            label=f"{short(pair.first, 20)} minus {short(pair.second, 20)}",
            text=f"{pair.first} minus {pair.second}: {pair.mean:+.4f}, {_interval(pair.interval)}",
            value=pair.mean,
            low=pair.interval[0],
            high=pair.interval[1],
            significant=pair.significant,
        )
        for pair in pairs
        if pair.interval is not None
    ]
    marks = (
        (True, Legend(legend_mark(Series(0)), f"p < {ALPHA} (randomisation test, Holm)")),
        (False, Legend(legend_mark(Series(0, reference=True)), "could be chance")),
    )
    drawn = {row.significant for row in rows}
    legend = [line for significant, line in marks if significant in drawn]
    label = f"mean difference in {comparison.metric_name}, with 95 % interval"
    return Figure(_tests_title(pairs, comparison), intervals(rows, label), legend)


def pair_figure(pair: Difference, comparison: Comparison) -> Figure:
    """The difference at each query."""
    texts = [
        f"{text} ({task}/{query_id}): {value:+.4f}"
        for (task, query_id), text, value in zip(pair.keys, pair.queries, pair.values.tolist(), strict=True)
    ]
    better, worse = Markup('<span class="box win"></span>'), Markup('<span class="box loss"></span>')
    legend = [
        Legend(better, f"{short(pair.first)} is better: {pair.wins}"),
        Legend(worse, f"{short(pair.second)} is better: {pair.losses}"),
        Legend(Markup('<span class="box"></span>'), f"equal: {pair.ties}"),
    ]
    title = (
        f"{short(pair.first)} is better at {pair.wins} of {len(pair.values)} queries, "
        f"{short(pair.second)} at {pair.losses}"
    )
    chart = sorted_bars(pair.values.tolist(), texts, f"difference in {comparison.metric_name}")
    return Figure(title, chart, legend)


def short(name: str, length: int = _LONGEST_NAME) -> str:
    """The name, its middle left out where it is long.

    >>> short("a" * 20 + "b" * 20, 9)
    'aaaa…bbbb'
    """
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-(length - 1) // 2 :]}"


def _trade_off(comparison: Comparison, quantity: Quantity) -> Figure | None:
    series, front = series_of(comparison), comparison.front(quantity)
    points, levels, legend, shown = [], [], [], []
    for system, on_front in zip(comparison.systems, front, strict=True):
        quality, cost = comparison.quality(system), quantity.value(system, comparison.headline)
        if quality is None:
            continue
        drawn, figure = series[system.name], f"{comparison.metric_name} {quality:.4f}"
        kind = " (other system)" if system.kind == "other" else ""
        if cost is not None:
            text = f"{system.name}: {figure}, {quantity.label} {quantity.show(cost)}"
            points.append(Point(drawn, cost, quality, text + (", on the Pareto front" if on_front else ""), on_front))
            shown.append((system.name, cost, quality, on_front))
            legend.append(Legend(legend_mark(drawn), system.name + kind))
        elif system.kind != "run":
            levels.append((drawn, quality, f"{system.name}: {figure}"))
            legend.append(Legend(Markup('<span class="dash {}"></span>').format(drawn.css), system.name + kind))
    if not points:
        return None
    if any(on_front for *_, on_front in shown):
        ring = Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true"><circle class="ring" r="7"/></svg>')
        legend.append(Legend(ring, "on the Pareto front"))
    missing = [
        system.name
        for system in comparison.systems
        if system.kind == "run" and (system.name not in {name for name, *_ in shown})
    ]
    note = f"Not known of {', '.join(map(short, missing))}." if missing else ""
    y_label = f"{comparison.metric_name} of {comparison.headline}"
    chart = scatter(points, quantity.label, y_label, levels)
    return Figure(_trade_off_title(comparison, quantity, shown), chart, legend, note)


def _trade_off_title(
    comparison: Comparison, quantity: Quantity, shown: Sequence[tuple[str, float, float, bool]]
) -> str:
    best = max(shown, key=lambda row: (row[2], -row[1]))
    cheapest = min(shown, key=lambda row: (row[1], -row[2]))

    def told(row: tuple[str, float, float, bool]) -> str:
        return f"{short(row[0])} ({comparison.metric_name} {row[2]:.3f} at {quantity.show(row[1])} {quantity.unit})"

    if len(shown) == 1:
        return f"{quantity.title}: {told(best)}"
    if best is cheapest:
        return f"{quantity.title}: {told(best)} is best, and none is cheaper"
    on_front = sum(row[3] for row in shown)
    return f"{quantity.title}: {on_front} of {len(shown)} on the front, from {told(cheapest)} to {told(best)}"


def _with_start(system: System, one: str, figure: str, column: str) -> Points:
    """A logged figure of a set, led by that before training; not where what was logged is of a sample of the corpus."""
    logged = system.logged(column)
    start = system.before.get(one, {}).get(figure)
    if not logged or start is None or system.sampled:
        return logged
    return [(0, start), *logged]


def _curves(
    comparison: Comparison,
    points_of: Callable[[System], Points],
    label: str,
    higher_is_better: bool = False,
    noisy: bool = False,
) -> Figure | None:
    series = series_of(comparison)
    lines = [
        Line(series[system.name], system.name, list(points_of(system)))
        for system in comparison.systems
        if points_of(system)
    ]
    if not lines:
        return None
    sampled = [
        system.name for system in comparison.systems if higher_is_better and points_of(system) and system.sampled
    ]
    note = f"Of a sample of the corpus: {', '.join(map(short, sampled))}." if sampled else ""
    ends = {line.name: _ends(line.points, noisy) for line in lines}
    best = (max if higher_is_better else min)(ends, key=lambda name: ends[name][1][0])
    (start, when), (value, then) = ends[best]
    if len(lines) == 1:
        title = f"{label}: {short(best)} goes from {start:.4g} {when} to {value:.4g} {then}"
    else:
        title = f"{label}: {short(best)} ends {'highest' if higher_is_better else 'lowest'}, {value:.4g} {then}"
    legend = [Legend(legend_mark(line.series), line.name) for line in lines]
    return Figure(title, curves(lines, "optimizer steps", label), legend, note)


def _ends(points: Points, noisy: bool) -> tuple[tuple[float, str], tuple[float, str]]:
    """Value at the start and at the end with words that say when: means of quarters where single points are chance."""
    quarter = len(points) // 4
    if noisy and quarter > 1:
        first, last = ([value for _, value in part] for part in (points[:quarter], points[-quarter:]))
        return (mean(first), "in the first quarter"), (mean(last), "in the last")
    (first_step, start), (last_step, end) = points[0], points[-1]
    return (start, f"at step {first_step:g}"), (end, f"at step {last_step:g}")


def _interval(ends: tuple[float, float]) -> str:
    return f"95 % interval {ends[0]:+.4f} to {ends[1]:+.4f}"


def _tests_title(pairs: Sequence[Difference], comparison: Comparison) -> str:
    if len(pairs) == 1:
        (pair,) = pairs
        names = f"{short(pair.first)} and {short(pair.second)}"
        if not pair.significant:
            return f"{names}: the difference of {pair.mean:.4f} could be chance (p = {p_value(pair.holm_random)})"
        return (
            f"{short(pair.first)} beats {short(pair.second)} by {pair.mean:.4f} {comparison.metric_name}, "
            f"more than chance (p = {p_value(pair.holm_random)})"
        )
    count = sum(pair.significant for pair in pairs)
    return f"{count} of {len(pairs)} differences in {comparison.metric_name} are more than chance (p < {ALPHA})"


def p_value(p: float | None) -> str:
    """A p value as text.

    >>> p_value(0.00012), p_value(0.2), p_value(None)
    ('0.0001', '0.2000', '-')
    """
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
