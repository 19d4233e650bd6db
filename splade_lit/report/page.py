"""A comparison as one HTML page that needs nothing else: style and charts are inside, and there is no script."""

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from splade_lit.report import captioned_charts as figures
from splade_lit.report import rows as tables
from splade_lit.report.charts import legend_mark
from splade_lit.report.comparison import Comparison
from splade_lit.report.statistics import Difference

_EXTREMES = 5


@dataclass(frozen=True)
class Pair:
    """The queries that a pair of systems differs at."""

    summary: str
    figure: figures.Figure
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
    style = Markup(environment.get_template("report.css").render())
    series = figures.series_of(comparison)
    page = environment.get_template("report.html").render(
        style=style,
        comparison=comparison,
        finding=finding(comparison),
        machine=machine,
        marks=[legend_mark(series[system.name]) for system in comparison.systems],
        quality=tables.quality_rows(comparison),
        cost=tables.cost_rows(comparison),
        sets=tables.set_rows(comparison),
        tests=tables.test_rows(comparison),
        trade_offs=figures.trade_offs(comparison),
        curves=figures.learning_curves(comparison),
        tests_figure=figures.tests_figure(comparison),
        pairs=[_pair(pair, comparison) for pair in comparison.differences],
    )
    return page.rstrip() + "\n"


def finding(comparison: Comparison) -> str:
    """What the whole comparison comes to, in a sentence."""
    known = [(quality, system) for system in comparison.systems if (quality := comparison.quality(system)) is not None]
    if not known:
        return "No system has retrieval figures yet"
    quality, best = max(known, key=lambda row: row[0])
    task = "its task" if comparison.headline == best.name else comparison.headline
    sentence = f"{figures.short(best.name)} ranks best on {task}: {comparison.metric_name} {quality:.4f}"
    others = [(quality, system) for quality, system in known if system.kind == "bm25" and system is not best]
    if others:
        bm25_quality, bm25 = max(others, key=lambda row: row[0])
        sentence += f", {quality - bm25_quality:.4f} above {bm25.name}"
    start = best.before.get(comparison.headline, {}).get(comparison.metric)
    if start is not None and best.stage != "before":
        sentence += f"; {start:.4f} before training"
    return sentence


def _pair(pair: Difference, comparison: Comparison) -> Pair:
    wins, losses = pair.extremes(_EXTREMES)

    def listed(rows: list[int]) -> list[tuple[str, str, str]]:
        return [(pair.queries[row], "/".join(pair.keys[row]), f"{pair.values[row]:+.4f}") for row in rows]

    summary = f"{figures.short(pair.first)} against {figures.short(pair.second)}: {pair.mean:+.4f}"
    return Pair(summary, figures.pair_figure(pair, comparison), pair.first, pair.second, listed(wins), listed(losses))
