"""The charts of a report, each with a title that says what it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from splade_lit.evaluation.paired_tests import ALPHA, Difference
from splade_lit.report.charts import Interval, Line, Point, Series, curves, intervals, legend_mark, scatter, sorted_bars
from splade_lit.report.comparison import QUANTITIES, Comparison, Quantity
from splade_lit.report.system import System

_LONGEST_NAME = 28
_LONGEST_QUERY = 160

# Optimizer steps and values.
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Legend:
    """A line of a legend."""

    mark: Markup
    text: str


@dataclass(frozen=True)
class CaptionedChart:
    """A chart as SVG, its title, its legend, and what must be said under it."""

    title: str
    svg: Markup
    legend: Sequence[Legend]
    note: str = ""


def series_of(comparison: Comparison) -> dict[str, Series]:
    """How each system is drawn."""
    return {
        system.name: Series(number, reference=system.kind == "bm25") for number, system in enumerate(comparison.systems)
    }


def trade_offs(comparison: Comparison) -> list[CaptionedChart]:
    """Quality against each cost that is known of a system."""
    charts = [_trade_off(comparison, quantity) for quantity in QUANTITIES]
    return [chart for chart in charts if chart is not None]


def learning_curves(comparison: Comparison) -> list[CaptionedChart]:
    """Quality, active dims and ranking loss over the optimizer steps of the runs."""
    one, metric = comparison.headline, comparison.metric

    def quality(system: System) -> Points:
        return _with_start(system, one, metric, f"val/{one}_dot_{metric}")

    def active_dims(system: System) -> Points:
        evaluated = _with_start(system, one, "corpus_active_dims", f"val/{one}_corpus_active_dims")
        return evaluated or system.logged("sparsity/document_active_dims")

    def ranking_loss(system: System) -> Points:
        return system.logged("train/ranking_loss")

    charts = [
        _curves(comparison, quality, f"{comparison.metric_name} of {one}", higher_is_better=True),
        _curves(comparison, active_dims, "active dims of a document"),
        _curves(comparison, ranking_loss, "ranking loss of a batch", noisy=True),
    ]
    return [chart for chart in charts if chart is not None]


def tests_chart(comparison: Comparison) -> CaptionedChart | None:
    """The mean difference of each pair with its interval; None where no two systems have figures of queries."""
    pairs = [(pair, pair.interval) for pair in comparison.differences if pair.interval is not None]
    if not pairs:
        return None
    rows = [
        Interval(
            label=f"{short(pair.first, 20)} minus {short(pair.second, 20)}",
            text=f"{pair.first} minus {pair.second}: {pair.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}",
            value=pair.mean,
            low=low,
            high=high,
            significant=pair.significant,
        )
        for pair, (low, high) in pairs
    ]
    marks = {
        True: Legend(legend_mark(Series(0)), f"p < {ALPHA} (randomisation test, Holm)"),
        False: Legend(legend_mark(Series(0, reference=True)), "could be chance"),
    }
    legend = [line for significant, line in marks.items() if any(row.significant == significant for row in rows)]
    label = f"mean difference in {comparison.metric_name}, with 95 % interval"
    count = sum(row.significant for row in rows)
    title = f"{count} of {len(rows)} differences in {comparison.metric_name} are more than chance (p < {ALPHA})"
    if len(pairs) == 1:
        pair = pairs[0][0]
        title = (
            f"{short(pair.first)} above {short(pair.second)}: {pair.mean:.4f} {comparison.metric_name}, {pair.verdict}"
        )
    return CaptionedChart(title, intervals(rows, label), legend)


def pair_chart(pair: Difference, comparison: Comparison) -> CaptionedChart:
    """The difference at each query."""
    texts = [
        f"{short_query(text)} ({task}/{query_id}): {value:+.4f}"
        for (task, query_id), text, value in zip(pair.keys, pair.queries, pair.values.tolist(), strict=True)
    ]
    legend = [
        Legend(Markup('<span class="box win"></span>'), f"{short(pair.first)} is better: {pair.wins}"),
        Legend(Markup('<span class="box loss"></span>'), f"{short(pair.second)} is better: {pair.losses}"),
        Legend(Markup('<span class="box"></span>'), f"equal: {pair.ties}"),
    ]
    title = (
        f"{short(pair.first)} is better at {pair.wins} of {len(pair.values)} queries, "
        f"{short(pair.second)} at {pair.losses}"
    )
    svg = sorted_bars(pair.values.tolist(), texts, f"difference in {comparison.metric_name}")
    return CaptionedChart(title, svg, legend)


def short(name: str, length: int = _LONGEST_NAME) -> str:
    """The name, its middle left out where it is long.

    >>> short("a" * 20 + "b" * 20, 9)
    'aaaa…bbbb'
    """
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[-(length - 1) // 2 :]}"


def short_query(text: str) -> str:
    """The query, its end left out where it is long.

    >>> len(short_query("word " * 100)), short_query("a short one")
    (160, 'a short one')
    """
    return text if len(text) <= _LONGEST_QUERY else f"{text[: _LONGEST_QUERY - 1]}…"


@dataclass(frozen=True)
class _Shown:
    """A system in a chart of quality against a cost."""

    system: System
    cost: float
    quality: float
    on_front: bool


def _trade_off(comparison: Comparison, quantity: Quantity) -> CaptionedChart | None:
    series = series_of(comparison)
    shown, levels, legend, missing = [], [], [], []
    for system, on_front in zip(comparison.systems, comparison.front(quantity), strict=True):
        quality, cost = comparison.quality(system), quantity.value(system, comparison.headline)
        name = f"{system.name} (other system)" if system.kind == "other" else system.name
        if quality is not None and cost is not None:
            shown.append(_Shown(system, cost, quality, on_front))
            legend.append(Legend(legend_mark(series[system.name]), name))
        elif quality is not None and system.kind != "run":
            drawn = series[system.name]
            levels.append((drawn, quality, f"{system.name}: {comparison.metric_name} {quality:.4f}"))
            legend.append(Legend(Markup('<span class="dash {}"></span>').format(drawn.css), name))
        elif system.kind == "run":
            missing.append(short(system.name))
    if not shown:
        return None
    if any(one.on_front for one in shown):
        ring = Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true"><circle class="ring" r="7"/></svg>')
        legend.append(Legend(ring, "on the Pareto front"))
    points = [
        Point(
            series[one.system.name],
            one.cost,
            one.quality,
            f"{one.system.name}: {comparison.metric_name} {one.quality:.4f}, {quantity.label} {quantity.show(one.cost)}"
            + (", on the Pareto front" if one.on_front else ""),
            one.on_front,
        )
        for one in shown
    ]
    svg = scatter(points, quantity.label, f"{comparison.metric_name} of {comparison.headline}", levels)
    note = f"Not known of {', '.join(missing)}." if missing else ""
    return CaptionedChart(_trade_off_title(comparison, quantity, shown), svg, legend, note)


def _trade_off_title(comparison: Comparison, quantity: Quantity, shown: Sequence[_Shown]) -> str:
    def figures(one: _Shown) -> str:
        cost = f"{quantity.show(one.cost)} {quantity.unit}"
        return f"{short(one.system.name)} ({comparison.metric_name} {one.quality:.3f} at {cost})"

    on_front = sorted((one for one in shown if one.on_front), key=lambda one: (one.cost, -one.quality))
    if not on_front:
        return f"{quantity.title}: none on the front, all rank below BM25"
    cheapest, best = on_front[0], on_front[-1]
    if len(shown) == 1:
        return f"{quantity.title}: {figures(best)}"
    if len(on_front) == 1:
        return f"{quantity.title}: {figures(best)} is best, and none is cheaper"
    return (
        f"{quantity.title}: {len(on_front)} of {len(shown)} on the front, from {figures(cheapest)} to {figures(best)}"
    )


def _with_start(system: System, one: str, figure: str, column: str) -> Points:
    """A logged figure of a set, led by that before training; not where what was logged is of a sample of the corpus."""
    logged = system.logged(column)
    start = system.before.get(one, {}).get(figure)
    return logged if not logged or start is None or system.sampled else [(0, start), *logged]


def _curves(
    comparison: Comparison,
    points_of: Callable[[System], Points],
    label: str,
    higher_is_better: bool = False,
    noisy: bool = False,
) -> CaptionedChart | None:
    series = series_of(comparison)
    drawn = [(system, points) for system in comparison.systems if (points := points_of(system))]
    if not drawn:
        return None
    lines = [Line(series[system.name], system.name, list(points)) for system, points in drawn]
    sampled = [short(system.name) for system, _ in drawn if higher_is_better and system.sampled]
    note = f"Of a sample of the corpus: {', '.join(sampled)}." if sampled else ""
    ends = {line.name: _ends(line.points, noisy) for line in lines}
    best = (max if higher_is_better else min)(ends, key=lambda name: ends[name][1][0])
    (start, when), (value, then) = ends[best]
    if len(lines) == 1:
        title = f"{label}: {short(best)} goes from {start:.4g} {when} to {value:.4g} {then}"
    else:
        title = f"{label}: {short(best)} ends {'highest' if higher_is_better else 'lowest'}, {value:.4g} {then}"
    legend = [Legend(legend_mark(line.series), line.name) for line in lines]
    return CaptionedChart(title, curves(lines, "optimizer steps", label), legend, note)


def _ends(points: Points, noisy: bool) -> tuple[tuple[float, str], tuple[float, str]]:
    """Value at the start and at the end with words that say when: means of quarters where single points are chance."""
    quarter = len(points) // 4
    if noisy and quarter > 1:
        first, last = ([value for _, value in part] for part in (points[:quarter], points[-quarter:]))
        return (mean(first), "in the first quarter"), (mean(last), "in the last")
    (first_step, start), (last_step, end) = points[0], points[-1]
    return (start, f"at step {first_step:g}"), (end, f"at step {last_step:g}")
