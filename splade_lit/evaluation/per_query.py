"""Figures query by query as a file, so that two systems can be compared on the same queries.

A line a query of a task at a stage:

    {"stage": "after", "task": "NanoNQ", "query_id": "7", "query": "who wrote ...", "ndcg@10": 0.63, ...}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.text import parse_json
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.metric_names import METRICS
from splade_lit.evaluation.metrics import RankMetrics
from splade_lit.evaluation.results import TaskResult

PER_QUERY = "per_query.jsonl"
_ABOUT = ("stage", "task", "query_id", "query")


@dataclass(frozen=True)
class QueryFigures:
    """Ids, texts and figures of the queries of a task that have a relevant document.

    `metrics` has a value of each of `METRICS`, then of each measure that was asked for.
    """

    task: str
    query_ids: list[str]
    queries: list[str]
    metrics: dict[str, list[float]]

    @property
    def means(self) -> dict[str, float]:
        """Metric name to its mean over the queries."""
        return {name: float(np.mean(values)) for name, values in self.metrics.items()}


def query_figures(task: RetrievalTask, metrics: RankMetrics) -> QueryFigures:
    """The figures of a task that a file keeps, from its rank metrics."""
    texts = [task.queries[query_id] for query_id in metrics.query_ids]
    kept = {name: metrics.per_query[name].tolist() for name in (*METRICS, *task.measures)}
    return QueryFigures(task.name, list(metrics.query_ids), texts, kept)


def figures_of_results(tasks: Sequence[RetrievalTask], results: Sequence[TaskResult]) -> list[QueryFigures]:
    """The figures of tasks that a file keeps, in the order of the tasks."""
    return [query_figures(task, result.rank_metrics) for task, result in zip(tasks, results, strict=True)]


def write_per_query(path: Path, stages: Mapping[str, Iterable[QueryFigures]]) -> None:
    """Write the figures of stages.

    Raises:
        UserError: the file cannot be written.
    """
    lines = [
        {"stage": stage, "task": figures.task, "query_id": query_id, "query": query}
        | {name: values[row] for name, values in figures.metrics.items()}
        for stage, tasks in stages.items()
        for figures in tasks
        for row, (query_id, query) in enumerate(zip(figures.query_ids, figures.queries, strict=True))
    ]
    replace_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_per_query(path: Path) -> dict[str, list[QueryFigures]]:
    """Stage to the figures of its tasks; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away.") from error
    stages: dict[str, dict[str, QueryFigures]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            stage, task, query_id, query = (str(row[name]) for name in _ABOUT)
            names = (*METRICS, *(name for name in row if name not in (*_ABOUT, *METRICS)))
            values = [float(row[name]) for name in names]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: not figures of a query as an evaluation writes them; move the file away."
            ) from error
        new = QueryFigures(task, [], [], {name: [] for name in names})
        figures = stages.setdefault(stage, {}).setdefault(task, new)
        if tuple(figures.metrics) != names:
            raise UserError(f"{path}, line {number}: not the metrics of the lines before it; move the file away.")
        figures.query_ids.append(query_id)
        figures.queries.append(query)
        for name, value in zip(names, values, strict=True):
            figures.metrics[name].append(value)
    return {stage: list(tasks.values()) for stage, tasks in stages.items()}
