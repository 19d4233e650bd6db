"""What pruning documents saves and costs: in a sentence, as tables, and as a page with its charts."""

from collections.abc import Sequence

from splade_lit.encoder.pruning import Pruning
from splade_lit.evaluation.paired_tests import p_value
from splade_lit.evaluation.trade_off import Limit, PrunedFigures
from splade_lit.report import charts
from splade_lit.report.captioned_charts import RING, CaptionedChart
from splade_lit.report.charts import PAGES, Line, Point, Series, legend_mark
from splade_lit.report.rows import Rows

_WHOLE = Series(0, reference=True)
_CURVES = {
    "the largest weights": Series(0),
    "weights from a size on": Series(1),
    "weights from a share of the largest on": Series(2),
    "several limits": Series(3),
}


def finding(limits: Sequence[Limit], chosen: Limit | None) -> str:
    """What the chosen limit comes to, or what there is to choose from, in a sentence without its stop."""
    whole = limits[0]
    if chosen is None:
        tasks = ", ".join(f"{name} {one.ndcg:.4f}" for name, one in whole.figures.items())
        return f"nDCG@10 with whole vectors: {tasks}; --within 0.005 or a limit of yours chooses one"
    parts = [
        f"{name} {whole.figures[name].ndcg:.4f} to {one.ndcg:.4f} ({_verdict(one)})"
        for name, one in chosen.figures.items()
    ]
    kept, saved = chosen.pruning.documents_keep, 1 - chosen.postings / max(whole.postings, 1)
    return f"Kept of a document: {kept}; {saved:.0%} of the index saved; nDCG@10 {', '.join(parts)}"


def _verdict(one: PrunedFigures) -> str:
    if one.loss <= 0:
        return "no loss"
    return "a loss beyond chance" if one.worse else f"which may be chance, p {p_value(one.p)}"


def task_rows(limits: Sequence[Limit], task: str, chosen: Limit | None, saved: Pruning) -> Rows:
    """Each limit on a task; `saved` is what the model has."""
    rows = []
    for limit in limits:
        one = limit.figures[task]
        notes = ["chosen"] * (limit is chosen) + ["as saved"] * (limit.pruning == saved)
        notes += ["worse"] * one.worse + [f"{one.empty:,} empty"] * bool(one.empty)
        rows.append(
            [
                limit.pruning.documents_keep,
                f"{one.ndcg:.4f}",
                *(["-", "-"] if limit is limits[0] else [f"{one.loss + 0.0:.4f}", p_value(one.p)]),
                f"{one.active_dims:,.1f}",
                f"{one.largest:,}",
                f"{one.flops:.2f}",
                f"{one.index_mb:,.2f}",
                ", ".join(notes),
            ]
        )
    columns = ["kept of a document", "nDCG@10", "loss", "p", "mean dims", "most dims", "FLOPS", "index MB", "note"]
    return Rows(task, columns, rows)


def html(limits: Sequence[Limit], chosen: Limit | None, saved: Pruning, model: str) -> str:
    """The page; `model` is its name."""
    tasks = list(limits[0].figures)
    page = PAGES.get_template("pruning.html").render(
        finding=finding(limits, chosen),
        model=model,
        parts=[(task, _charts(limits, task, chosen), task_rows(limits, task, chosen, saved)) for task in tasks],
    )
    return page.rstrip() + "\n"


def _charts(limits: Sequence[Limit], task: str, chosen: Limit | None) -> list[CaptionedChart]:
    whole = limits[0].figures[task]
    shown = limits[0] if chosen is None else chosen
    figures = shown.figures[task]
    kept = "Whole vectors" if shown is limits[0] else f"Kept {shown.pruning.documents_keep}"
    return [
        _chart(limits, task, chosen, cost, f"{kept}: nDCG@10 {figures.ndcg:.4f} of {whole.ndcg:.4f} at {text}", label)
        for cost, text, label in (
            ("active_dims", f"{figures.active_dims:,.1f} dims", "mean active dims of a document"),
            ("flops", f"{figures.flops:.2f} FLOPS", "expected FLOPS: dims that match"),
        )
    ]


def _chart(
    limits: Sequence[Limit], task: str, chosen: Limit | None, cost: str, title: str, label: str
) -> CaptionedChart:
    points = [
        Point(_series(limit.pruning), limit.pruning.documents_keep, getattr(one, cost), one.ndcg, text, limit is chosen)
        for limit in limits
        for one in [limit.figures[task]]
        for text in [f"{limit.pruning.documents_keep}: nDCG@10 {one.ndcg:.4f}, {one.active_dims:,.1f} dims"]
    ]
    # Each curve ends at the whole vectors.
    curves = {name: [one for one in points if one.series in (series, _WHOLE)] for name, series in _CURVES.items()}
    lines = [
        Line(series, name, sorted((one.x, one.y) for one in curves[name]))
        for name, series in list(_CURVES.items())[:3]
        if len(curves[name]) > 1
    ]
    drawn = {one.series for one in points}
    legend = [(legend_mark(_WHOLE), "whole vectors")]
    legend += [(legend_mark(series), name) for name, series in _CURVES.items() if series in drawn]
    legend += [(RING, "chosen")] * (chosen is not None)
    return CaptionedChart(title, charts.scatter(points, label, f"nDCG@10 of {task}", lines=lines), legend)


def _series(pruning: Pruning) -> Series:
    given = [pruning.max_document_active_dims, pruning.min_document_weight, pruning.min_document_weight_share]
    kinds = [number for number, value in enumerate(given) if value]
    if not kinds:
        return _WHOLE
    return Series(kinds[0] if len(kinds) == 1 else 3)
