"""The figures of stages as a table for the terminal."""

from rich.box import SIMPLE
from rich.table import Table

from splade_lit.evaluation.metric_names import METRICS
from splade_lit.runs.stages import Stages, by_set

_COLUMNS = {metric: (name.replace("@", " @"), "{:.4f}") for metric, name in METRICS.items()} | {
    "query_active_dims": ("query dims", "{:.1f}"),
    "corpus_active_dims": ("corpus dims", "{:.1f}"),
    "avg_flops": ("FLOPS", "{:.2f}"),
}


def stages_table(stages: Stages) -> Table:
    """A table with one row for each stage of each set and group.

    >>> table = stages_table({"before": {"NanoNQ_dot_ndcg@10": 0.25}, "after": {"NanoNQ_dot_ndcg@10": 0.5}})
    >>> [column.header for column in table.columns], table.row_count
    (['task', 'stage', 'nDCG @10'], 2)
    """
    figures = {stage: by_set(metrics) for stage, metrics in stages.items()}
    sets = list(dict.fromkeys(one for of_stage in figures.values() for one in of_stage))
    rows = [(one, stage, of_stage.get(one, {})) for one in sets for stage, of_stage in figures.items()]
    shown = [name for name in _COLUMNS if any(name in row for _, _, row in rows)]
    # Narrow enough for a terminal of 80 columns.
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("task", "stage"):
        table.add_column(heading, no_wrap=True)
    for name in shown:
        table.add_column(_COLUMNS[name][0], justify="right")
    for number, (one, stage, row) in enumerate(rows, start=1):
        cells = [_COLUMNS[name][1].format(row[name]) if name in row else "-" for name in shown]
        table.add_row(one, stage, *cells, end_section=number % len(stages) == 0)
    return table
