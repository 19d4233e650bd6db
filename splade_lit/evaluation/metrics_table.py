"""Figures as tables for the terminal."""

from collections.abc import Mapping

from rich.box import SIMPLE
from rich.table import Table

_COLUMNS = {
    "ndcg@10": ("nDCG @10", "{:.4f}"),
    "mrr@10": ("MRR @10", "{:.4f}"),
    "recall@10": ("recall @10", "{:.4f}"),
    "map@100": ("MAP @100", "{:.4f}"),
    "query_active_dims": ("query dims", "{:.1f}"),
    "corpus_active_dims": ("corpus dims", "{:.1f}"),
    "avg_flops": ("FLOPS", "{:.2f}"),
}
_HEADLINE = "_dot_ndcg@10"


def metrics_table(rows: Mapping[str, Mapping[str, float]], title: str | None = None) -> Table:
    """A table with one row for each stage of each task.

    Args:
        rows: stage (`bm25`, `before`, `after`) to figures, by full name (`NanoNQ_dot_ndcg@10`, as `evaluate_tasks`
            gives them) or by plain name (`ndcg@10`).
        title: text above the table.

    >>> table = metrics_table({"before": {"ndcg@10": 0.25}, "after": {"ndcg@10": 0.5}})
    >>> [column.header for column in table.columns], table.row_count
    (['stage', 'nDCG @10'], 2)
    """
    tasks = list(
        dict.fromkeys(name.removesuffix(_HEADLINE) for row in rows.values() for name in row if name.endswith(_HEADLINE))
    )
    lines = [
        (task, stage, {name: _figure(row, task, name) for name in _COLUMNS})
        for task in tasks or [""]
        for stage, row in rows.items()
    ]
    shown = [name for name in _COLUMNS if any(figures[name] is not None for _, _, figures in lines)]
    # Narrow enough for a terminal of 80 columns.
    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    if tasks:
        table.add_column("task", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    for name in shown:
        table.add_column(_COLUMNS[name][0], justify="right")
    for number, (task, stage, figures) in enumerate(lines, start=1):
        cells = [_COLUMNS[name][1].format(value) if (value := figures[name]) is not None else "-" for name in shown]
        table.add_row(*([task] if tasks else []), stage, *cells, end_section=number % len(rows) == 0)
    return table


def headline_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """nDCG@10 and active dims of the groups of tasks, or of each task where there is no group.

    >>> headline_figures({"NanoNQ_dot_ndcg@10": 0.5, "NanoNQ_dot_mrr@10": 0.4, "NanoNQ_corpus_active_dims": 90.0})
    {'NanoNQ_dot_ndcg@10': 0.5, 'NanoNQ_corpus_active_dims': 90.0}
    """
    tasks = [name.removesuffix(_HEADLINE) for name in metrics if name.endswith(_HEADLINE)]
    tasks = [task for task in tasks if task.endswith("_mean")] or tasks
    names = [f"{task}{end}" for task in tasks for end in (_HEADLINE, "_query_active_dims", "_corpus_active_dims")]
    return {name: metrics[name] for name in names if name in metrics}


def _figure(row: Mapping[str, float], task: str, name: str) -> float | None:
    """A figure by plain or full name, None if the row lacks it."""
    if not task:
        return row.get(name)
    return row.get(f"{task}_dot_{name}", row.get(f"{task}_{name}"))
