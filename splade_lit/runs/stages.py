"""`metrics.json` of a run: the figures of each stage, under the full names of sentence-transformers' evaluators.

A full name is a set or a group of sets, and what was measured on it: `NanoNQ_dot_ndcg@10`, `NanoNQ_corpus_active_dims`,
`NanoBEIR_mean_dot_mrr@10`; a measure of ir_measures has its own name there, `NanoNQ_dot_R@1000`. Figures of one set
have plain names: `ndcg@10`, `corpus_active_dims`.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.text import parse_json
from splade_lit.evaluation.metric_names import LIST_METRICS, METRICS, is_measure, is_sparsity

METRICS_JSON = "metrics.json"
MAIN = "ndcg@10"
"""The figure that stands for all others."""

Stages = dict[str, dict[str, float]]

_MAIN_END = f"_dot_{MAIN}"
_LIST = re.compile(rf"_R\d+(_mean)?_({'|'.join(LIST_METRICS)})$")
_PARTS = ("dot_", "query_", "corpus_", "avg_")
_COLUMNS = {metric: (name.replace("@", " @"), "{:.4f}") for metric, name in METRICS.items()} | {
    "query_active_dims": ("query dims", "{:.1f}"),
    "corpus_active_dims": ("corpus dims", "{:.1f}"),
    "avg_flops": ("FLOPS", "{:.2f}"),
}


def read_stages(path: Path) -> Stages:
    """Stage to finite figures by full name; none if there is no file, a UserError if it is damaged.

    Figures of one model alone, without stages, are those of the stage `model`.
    """
    if not path.is_file():
        return {}
    value = read_json(path)
    if _is_figures(value) and any(name.endswith(_MAIN_END) for name in value):
        value = {"model": value}
    if not isinstance(value, dict) or not all(map(_is_figures, value.values())):
        wanted = "figures by name, such as NanoBEIR_mean_dot_ndcg@10, alone or for each stage"
        raise UserError(f"{path} holds no {wanted}; evaluate again, or move it away.")
    return {
        stage: {name: float(figure) for name, figure in figures.items() if math.isfinite(figure)}
        for stage, figures in value.items()
    }


def write_stages(path: Path, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Write a metrics.json; see `replace_text`."""
    replace_text(path, json.dumps(stages, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; a UserError if it cannot be read, or is not JSON."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}); restore it, or move it away.") from error


def by_set(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Set or group to its figures under plain names; `eval_`, which a trainer puts before full names, is passed over.

    >>> by_set({"eval_NanoNQ_dot_ndcg@10": 0.5, "NanoNQ_corpus_active_dims": 60.0, "bm25_words_ndcg@10": 0.3})
    {'NanoNQ': {'ndcg@10': 0.5, 'corpus_active_dims': 60.0}}
    """
    full = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    sets = [name.removesuffix(_MAIN_END) for name in full if name.endswith(_MAIN_END)]
    return {
        one: {
            name.removeprefix(f"{one}_").removeprefix("dot_"): value
            for name, value in full.items()
            if name.startswith(tuple(f"{one}_{part}" for part in _PARTS))
        }
        for one in sets
    }


def published_name(figure: str) -> str:
    """The name of a figure without its set, as the metadata of a card has it.

    >>> published_name("ndcg@10"), published_name("AP"), published_name("corpus_active_dims")
    ('dot_ndcg@10', 'dot_AP', 'corpus_active_dims')
    """
    return figure if is_sparsity(figure) else f"dot_{figure}"


def over_wordpieces(bm25: Mapping[str, float]) -> bool:
    """Whether the figures of BM25 are those over WordPieces; words, if both ranked equally well."""
    words, pieces = (bm25.get(f"bm25_{tokens}_{MAIN}", 0.0) for tokens in ("words", "wordpieces"))
    return pieces > words


def headline_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """nDCG@10 and active dims by full name, of the groups or else of all sets; the first one stands for all.

    >>> headline_figures({"NanoNQ_dot_ndcg@10": 0.5, "NanoNQ_dot_mrr@10": 0.4, "NanoNQ_corpus_active_dims": 90.0})
    {'NanoNQ_dot_ndcg@10': 0.5, 'NanoNQ_corpus_active_dims': 90.0}
    """
    sets = list(by_set(metrics))
    groups = [one for one in sets if one.endswith("_mean")] or sets
    names = [f"{one}{end}" for one in groups for end in (_MAIN_END, "_query_active_dims", "_corpus_active_dims")]
    return {name: metrics[name] for name in names if name in metrics}


def print_stages(stages: Stages) -> None:
    """Print the tables of stages: metrics and sparsity, then measures and re-ranked lists where there are some."""
    ranked = {stage: metrics for stage, metrics in stages.items() if by_set(metrics)}
    for table in (stages_table(ranked), measures_table(ranked), lists_table(stages)):
        if table is not None:
            Console(markup=False, emoji=False).print(table)


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


def measures_table(stages: Stages) -> Table | None:
    """A table with one row for each measure of ir_measures of each set and group; None if there are none.

    >>> table = measures_table({"before": {"NanoNQ_dot_ndcg@10": 0.25, "NanoNQ_dot_R@1000": 0.5, "NanoNQ_dot_AP": 0.3}})
    >>> [column.header for column in table.columns], table.row_count
    (['task', 'measure', 'before'], 2)
    """
    figures = {stage: by_set(metrics) for stage, metrics in stages.items()}
    names = [(one, name) for sets in figures.values() for one, of in sets.items() for name in of if is_measure(name)]
    if not names:
        return None
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("task", "measure"):
        table.add_column(heading, no_wrap=True)
    for stage in stages:
        table.add_column(stage, justify="right")
    for one, name in dict.fromkeys(names):
        values = [sets.get(one, {}).get(name) for sets in figures.values()]
        table.add_row(one, name, *("-" if value is None else f"{value:.4f}" for value in values))
    return table


def lists_table(stages: Stages) -> Table | None:
    """A table with one row for each stage of each task whose lists were re-ranked; None if none were.

    >>> names = ("NanoNQ_R100_map", "NanoNQ_R100_mrr@10", "NanoNQ_R100_ndcg@10")
    >>> table = lists_table({"candidates": dict.fromkeys(names, 0.4), "reranked": dict.fromkeys(names, 0.5)})
    >>> [column.header for column in table.columns], table.row_count
    (['re-ranked', 'stage', 'MAP', 'MRR@10', 'nDCG@10'], 2)
    """
    ends = tuple(f"_{metric}" for metric in LIST_METRICS)
    lists = {stage: metrics for stage, metrics in stages.items() if any(map(_LIST.search, metrics))}
    names = [name.rpartition("_")[0] for metrics in lists.values() for name in metrics if _LIST.search(name)]
    if not names:
        return None
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("re-ranked", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in LIST_METRICS.values():
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(names):
        for number, (stage, metrics) in enumerate(lists.items(), start=1):
            cells = [f"{metrics[name + end]:.4f}" for end in ends]
            table.add_row(name, stage, *cells, end_section=number == len(lists))
    return table


def _is_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(figure, int | float) for figure in value.values())
