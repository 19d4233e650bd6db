"""The charts of a report, each with a title that says what it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from splade_lit.evaluation.paired_tests import ALPHA, Difference
from splade_lit.report import charts
from splade_lit.report.charts import Point, Series, legend_mark, short, short_query
from splade_lit.report.comparison import QUANTITIES, Comparison, Quantity
from splade_lit.report.system import System

RING = Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true"><circle class="ring" r="7"/></svg>')

# Optimizer steps and values.
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class CaptionedChart:
    """A chart as SVG, its title, its legend (marks and texts), and a note below it."""

    title: str
    svg: Markup
    legend: Sequence[tuple[Markup, str]]
    note: str = ""


def trade_offs(comparison: Comparison) -> list[CaptionedChart]:
    """Quality against each cost that is known of a system."""
    return [chart for quantity in QUANTITIES if (chart := _trade_off(comparison, quantity))]


def learning_curves(comparison: Comparison) -> list[CaptionedChart]:
    """Quality, active dims, the penalty's weight and the ranking loss over the optimizer steps of the runs."""
    one, metric, systems = comparison.headline, comparison.metric, comparison.systems
    quality = [_with_start(system, one, metric, f"val/{one}_dot_{metric}") for system in systems]
    dims = [
        _with_start(system, one, "corpus_active_dims", f"val/{one}_corpus_active_dims")
        or system.logged("sparsity/document_active_dims")
        for system in systems
    ]
    weight, loss = ([system.logged(f"train/{name}") for system in systems] for name in ("lambda_d", "ranking_loss"))
    drawn = [
        _curves(comparison, quality, f"{comparison.metric_name} of {one}", higher_is_better=True),
        _curves(comparison, dims, "active dims of a document"),
        _curves(comparison, weight, "lambda_d, weight of the penalty"),
        _curves(comparison, loss, "ranking loss of a batch", noisy=True),
    ]
    return [chart for chart in drawn if chart]


def tests_chart(comparison: Comparison) -> CaptionedChart | None:
    """The mean difference of each pair with its interval; None where no two systems have figures of queries."""
    certain, uncertain = Series(0), Series(0, reference=True)
    rows = [(certain if pair.significant else uncertain, pair) for pair in comparison.differences if pair.interval]
    if not rows:
        return None
    drawn = [series for series, _ in rows]
    marks = {certain: f"p < {ALPHA} (randomisation test, Holm)", uncertain: "could be chance"}
    legend = [(legend_mark(series), text) for series, text in marks.items() if series in drawn]
    metric, pair = comparison.metric_name, rows[0][1]
    title = f"{drawn.count(certain)} of {len(rows)} differences in {metric} are more than chance (p < {ALPHA})"
    if len(rows) == 1:
        title = f"{short(pair.first)} above {short(pair.second)}: {pair.mean:.4f} {metric}, {pair.verdict}"
    return CaptionedChart(title, charts.intervals(rows, f"mean difference in {metric}, with 95 % interval"), legend)


def pair_chart(pair: Difference, comparison: Comparison) -> CaptionedChart:
    """The difference at each query."""
    values, first, second = pair.values.tolist(), short(pair.first), short(pair.second)
    texts = [
        f"{short_query(text)} ({task}/{query_id}): {value:+.4f}"
        for (task, query_id), text, value in zip(pair.keys, pair.queries, values, strict=True)
    ]
    legend = [
        (Markup('<span class="box win"></span>'), f"{first} is better: {pair.wins}"),
        (Markup('<span class="box loss"></span>'), f"{second} is better: {pair.losses}"),
        (Markup('<span class="box"></span>'), f"equal: {pair.ties}"),
    ]
    title = f"{first} is better at {pair.wins} of {len(values)} queries, {second} at {pair.losses}"
    return CaptionedChart(title, charts.sorted_bars(values, texts, f"difference in {comparison.metric_name}"), legend)


def _trade_off(comparison: Comparison, quantity: Quantity) -> CaptionedChart | None:
    points, levels, legend, missing = [], [], [], []
    for system, on_front in zip(comparison.systems, comparison.front(quantity), strict=True):
        series = comparison.series[system.name]
        quality, cost = comparison.quality(system), system.figure(comparison.headline, quantity.figure)
        if quality is None or (cost is None and system.kind == "run"):
            missing += [short(system.name)] if system.kind == "run" else []
            continue
        text = f"{system.name}: {comparison.metric_name} {quality:.4f}"
        name = f"{system.name} (other system)" if system.kind == "other" else system.name
        if cost is None:
            levels.append((series, quality, text))
            legend.append((Markup('<span class="dash {}"></span>').format(series.css), name))
        else:
            text += f", {quantity.label} {quantity.show(cost)}{', on the Pareto front' if on_front else ''}"
            points.append(Point(series, system.name, cost, quality, text, on_front))
            legend.append((legend_mark(series), name))
    if not points:
        return None
    if any(point.on_front for point in points):
        legend.append((RING, "on the Pareto front"))
    svg = charts.scatter(points, quantity.label, f"{comparison.metric_name} of {comparison.headline}", levels)
    note = f"Not known of {', '.join(missing)}." if missing else ""
    return CaptionedChart(_trade_off_title(comparison, quantity, points), svg, legend, note)


def _trade_off_title(comparison: Comparison, quantity: Quantity, points: Sequence[Point]) -> str:
    def figures(point: Point) -> str:
        cost = f"{quantity.show(point.x)} {quantity.unit}"
        return f"{short(point.name)} ({comparison.metric_name} {point.y:.3f} at {cost})"

    on_front = sorted((point for point in points if point.on_front), key=lambda point: (point.x, -point.y))
    if not on_front:
        return f"{quantity.title}: none on the front, all rank below BM25"
    cheapest, best = figures(on_front[0]), figures(on_front[-1])
    if len(points) == 1:
        return f"{quantity.title}: {best}"
    if len(on_front) == 1:
        return f"{quantity.title}: {best} is best, and none is cheaper"
    return f"{quantity.title}: {len(on_front)} of {len(points)} on the front, from {cheapest} to {best}"


def _with_start(system: System, one: str, figure: str, column: str) -> Points:
    """A logged figure of a set, led by that before training; not where what was logged is of a sample of the corpus."""
    logged = system.logged(column)
    start = system.before.get(one, {}).get(figure)
    return logged if not logged or start is None or system.sampled else [(0, start), *logged]


def _curves(
    comparison: Comparison, points: Sequence[Points], label: str, higher_is_better: bool = False, noisy: bool = False
) -> CaptionedChart | None:
    """The curves of the systems that have points."""
    drawn = [(system, each) for system, each in zip(comparison.systems, points, strict=True) if each]
    if not drawn:
        return None
    lines = [charts.Line(comparison.series[system.name], system.name, each) for system, each in drawn]
    sampled = [short(system.name) for system, _ in drawn if higher_is_better and system.sampled]
    note = f"On a sample of the corpus: {', '.join(sampled)}." if sampled else ""
    ends = {line.name: _ends(line.points, noisy) for line in lines}
    best = (max if higher_is_better else min)(ends, key=lambda name: ends[name][1][0])
    (start, when), (value, then) = ends[best]
    title = f"{label}: {short(best)} ends {'highest' if higher_is_better else 'lowest'}, {value:.4g} {then}"
    if len(lines) == 1:
        title = f"{label}: {short(best)} goes from {start:.4g} {when} to {value:.4g} {then}"
    legend = [(legend_mark(line.series), line.name) for line in lines]
    return CaptionedChart(title, charts.curves(lines, "optimizer steps", label), legend, note)


def _ends(points: Points, noisy: bool) -> tuple[tuple[float, str], tuple[float, str]]:
    """Value at the start and at the end with words that say when: means of quarters where single points are chance."""
    quarter = len(points) // 4
    if noisy and quarter > 1:
        first, last = ([value for _, value in part] for part in (points[:quarter], points[-quarter:]))
        return (mean(first), "in the first quarter"), (mean(last), "in the last")
    (first_step, start), (last_step, end) = points[0], points[-1]
    return (start, f"at step {first_step:g}"), (end, f"at step {last_step:g}")
