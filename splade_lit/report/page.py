"""A comparison as one HTML page that needs nothing else: style and charts are inside, and there is no script."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from splade_lit.evaluation.paired_tests import Difference
from splade_lit.report import captioned_charts as charts
from splade_lit.report import rows as tables
from splade_lit.report.charts import legend_mark
from splade_lit.report.comparison import Comparison
from splade_lit.report.system import System

_EXTREMES = 5


@dataclass(frozen=True)
class Pair:
    """The queries that a pair of systems differs at."""

    summary: str
    chart: charts.CaptionedChart
    first: str
    second: str
    wins: list[tuple[str, str, str]]
    losses: list[tuple[str, str, str]]


def html(comparison: Comparison, machine: str) -> str:
    """The page.

    Args:
        comparison: what it shows.
        machine: where search was measured.
    """
    environment = Environment(
        loader=PackageLoader("splade_lit.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    series = charts.series_of(comparison)
    page = environment.get_template("report.html").render(
        style=Markup(environment.get_template("report.css").render()),
        comparison=comparison,
        finding=finding(comparison),
        machine=machine,
        marks=[*(legend_mark(series[system.name]) for system in comparison.systems), *("" for _ in comparison.starts)],
        quality=tables.quality_rows(comparison),
        cost=tables.cost_rows(comparison),
        sets=tables.set_rows(comparison),
        tests=tables.test_rows(comparison),
        trade_offs=charts.trade_offs(comparison),
        curves=charts.learning_curves(comparison),
        tests_chart=charts.tests_chart(comparison),
        pairs=[_pair(pair, comparison) for pair in comparison.differences],
    )
    return page.rstrip() + "\n"


def finding(comparison: Comparison) -> str:
    """What the whole comparison comes to, in a sentence without its stop.

    A system ranks best only where it is above the second best by more than chance.
    """
    known = [(quality, system) for system in comparison.systems if (quality := comparison.quality(system)) is not None]
    if not known:
        return "No system has retrieval figures yet"
    ranked = sorted(known, key=lambda row: -row[0])
    quality, best = ranked[0]
    task = "its task" if comparison.headline == best.name else comparison.headline
    rivals = [system for _, system in ranked[1:2]]
    rivals += [system for _, system in ranked[2:] if system.kind == "bm25" and rivals[0].kind != "bm25"][:1]
    pairs = [comparison.difference(best, rival) for rival in rivals]
    leads = bool(pairs) and pairs[0] is not None and pairs[0].significant and pairs[0].first == best.name
    verb = "ranks best on" if leads else "has the highest figure on" if rivals else "on"
    parts = [f"{charts.short(best.name)} {verb} {task}: {comparison.metric_name} {quality:.4f}"]
    parts += [_lead(comparison, best, rival, pair) for rival, pair in zip(rivals, pairs, strict=True)]
    start = best.before.get(comparison.headline, {}).get(comparison.metric)
    ending = "" if start is None or best.stage == "before" else f"; {start:.4f} before training"
    return ", ".join(parts) + ending


def _lead(comparison: Comparison, best: System, rival: System, pair: Difference | None) -> str:
    ahead = (comparison.quality(best) or 0.0) - (comparison.quality(rival) or 0.0)
    verdict = pair.verdict if pair else "not tested"
    if (
        pair and pair.significant and pair.first != best.name
    ):  # the mean of a group counts its sets alike, large or small
        verdict = "though below it query by query"
    return f"{ahead:.4f} above {charts.short(rival.name)}, {verdict}"


def _pair(pair: Difference, comparison: Comparison) -> Pair:
    wins, losses = pair.extremes(_EXTREMES)

    def listed(rows: Sequence[int]) -> list[tuple[str, str, str]]:
        return [
            (charts.short_query(pair.queries[row]), "/".join(pair.keys[row]), f"{pair.values[row]:+.4f}")
            for row in rows
        ]

    summary = f"{charts.short(pair.first)} against {charts.short(pair.second)}: {pair.mean:+.4f}"
    return Pair(summary, charts.pair_chart(pair, comparison), pair.first, pair.second, listed(wins), listed(losses))
