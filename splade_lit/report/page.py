"""A comparison as one HTML page that needs nothing else: style and charts are inside, and there is no script."""

from splade_lit.evaluation.paired_tests import Difference
from splade_lit.report import captioned_charts as charts
from splade_lit.report import rows as tables
from splade_lit.report.charts import PAGES, legend_mark, short
from splade_lit.report.comparison import Comparison
from splade_lit.report.system import System

_EXTREMES = 5


def html(comparison: Comparison, machine: str) -> str:
    """The page.

    Args:
        comparison: what it shows.
        machine: where search was measured.
    """
    pairs = [(pair, charts.pair_chart(pair, comparison), pair.extremes(_EXTREMES)) for pair in comparison.differences]
    page = PAGES.get_template("report.html").render(
        comparison=comparison,
        finding=finding(comparison),
        machine=machine,
        marks=[*map(legend_mark, comparison.series.values()), *("" for _ in comparison.starts)],
        quality=tables.quality_rows(comparison),
        measures=tables.measure_rows(comparison),
        cost=tables.cost_rows(comparison),
        sets=tables.set_rows(comparison),
        tests=tables.test_rows(comparison),
        trade_offs=charts.trade_offs(comparison),
        curves=charts.learning_curves(comparison),
        tests_chart=charts.tests_chart(comparison),
        pairs=pairs,
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
    tied = bool(rivals) and f"{ranked[1][0]:.4f}" == f"{quality:.4f}"
    highest = f"{'shares' if tied else 'has'} the highest figure on"
    verb = "ranks best on" if leads else highest if rivals else "on"
    parts = [f"{short(best.name)} {verb} {task}: {comparison.metric_name} {quality:.4f}"]
    parts += [_lead(comparison, best, rival, pair) for rival, pair in zip(rivals, pairs, strict=True)]
    start = best.before.get(comparison.headline, {}).get(comparison.metric)
    ending = "" if start is None or best.stage == "before" else f"; {start:.4f} before training"
    return ", ".join(parts) + ending


def _lead(comparison: Comparison, best: System, rival: System, pair: Difference | None) -> str:
    ahead = (comparison.quality(best) or 0.0) - (comparison.quality(rival) or 0.0)
    verdict = pair.verdict if pair else "not tested"
    # The mean of a group counts its sets alike, large or small.
    if pair and pair.significant and pair.first != best.name:
        verdict = "though below it query by query"
    distance = f"{ahead:.4f} above" if f"{ahead:.4f}" != "0.0000" else "level with"
    return f"{distance} {short(rival.name)}, {verdict}"
