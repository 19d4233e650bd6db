"""Reading what other systems left: metrics as JSON or CSV, figures of queries, rankings in TREC's run format."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.text import read_trec_run
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.metrics import rank_metrics, without_queries
from splade_lit.evaluation.per_query import QueryFigures, query_figures, read_per_query
from splade_lit.report.system import FINAL, System, bm25_of, systems_of_run
from splade_lit.runs.csv_file import read_csv
from splade_lit.runs.run import read_run
from splade_lit.runs.stages import by_set, read_stages

_TREC = (".trec", ".run", ".txt")
_KINDS = "metrics as .json or .csv, figures of queries as .jsonl, rankings as .trec, or a folder of such rankings"


def read_results(path: Path, name: str, tasks: Sequence[RetrievalTask]) -> list[System]:
    """The system that a file or a folder is of and, if it was evaluated beside it, BM25.

    Args:
        path: figures by full name as JSON (as sentence-transformers' evaluators return them, or by stage as
            metrics.json), the CSV file that its evaluators write, `per_query.jsonl`, a TREC run named after its task,
            a folder of such runs, or a folder with the metrics.json of `evaluate`.
        name: how the system is shown.
        tasks: with the judgements that rankings need.

    Raises:
        UserError: there is no such file, or it is none of these.
    """
    if path.is_dir():
        rankings = sorted(file for file in path.iterdir() if file.suffix in _TREC)
        return [_of_rankings(rankings, name, tasks)] if rankings else systems_of_run(read_run(path), name)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of results; give {_KINDS}.")
    if path.suffix == ".json":
        stages = read_stages(path)
        final = _final(stages)
        if not (figures := by_set(stages.get(final, {}))):
            raise UserError(f"{path} has no figure that ends in _dot_ndcg@10, so what it was measured on is not known.")
        return [System(name, "other", figures=figures), *(bm25_of(stages, {}) if final != "bm25" else [])]
    if path.suffix == ".csv":
        return [System(name, "other", figures=by_set(_read_evaluator_csv(path)))]
    if path.suffix == ".jsonl":
        if not (per_query := read_per_query(path)):
            raise UserError(f"{path} holds no figures of queries.")
        return [_of_figures(name, per_query[_final(per_query)])]
    if path.suffix in _TREC:
        return [_of_rankings([path], name, tasks)]
    raise UserError(f"{path}: a file {path.suffix or 'without an ending'} is not known; give {_KINDS}.")


def needs_tasks(path: Path) -> bool:
    """Whether what is there are rankings, which say nothing without judgements."""
    return path.suffix in _TREC or (path.is_dir() and any(file.suffix in _TREC for file in path.iterdir()))


def _final(stages: dict[str, Any]) -> str:
    """The stage that a system is shown at."""
    return next((stage for stage in FINAL if stage in stages), next(reversed(stages), ""))


def _read_evaluator_csv(path: Path) -> dict[str, float]:
    """The last row of a file that an evaluator of sentence-transformers wrote, by full names."""
    found = re.search(r"(?:^|_)evaluation_(?P<name>.+)_results$", path.stem)
    try:
        last = {column: float(value) for column, value in read_csv(path)[-1].items() if value}
    except (OSError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a table of figures; give the CSV that an evaluator wrote.") from error
    if found is None or "dot-NDCG@10" not in last:
        raise UserError(
            f"{path} is not a CSV that SparseNanoBEIREvaluator or its like wrote (..._evaluation_SET_results.csv with "
            "a column dot-NDCG@10)."
        )
    group = "NanoBEIR_" if path.stem.startswith("NanoBEIR_evaluation_") else ""
    return {f"{group}{found['name']}_{column.replace('dot-', 'dot_').lower()}": last[column] for column in last}


def _of_rankings(paths: Sequence[Path], name: str, tasks: Sequence[RetrievalTask]) -> System:
    by_name = {task.name: task for task in tasks}
    figures, notes = [], []
    for path in paths:
        if path.stem not in by_name:
            known = f"; known are {', '.join(by_name)}" if by_name else ""
            raise UserError(
                f"{path}: there are no judgements for {path.stem!r}; name the file after its task and give the task "
                f"with --tasks{known}."
            )
        task = by_name[path.stem]
        ranked = read_trec_run(path)
        run = {query_id: scores for query_id, scores in ranked.items() if query_id in task.queries}
        if ranked and not run:
            raise UserError(f"{path}: none of its queries is one of {task.name}; check the ids.")
        if missing := len(task.queries) - len(run):
            notes.append(
                f"{name} ranks nothing for {missing} of {len(task.queries)} queries of {task.name}: they are 0."
            )
        asked = without_queries({query_id: run.get(query_id, {}) for query_id in task.queries}, task.left_out)
        figures.append(query_figures(task, rank_metrics(asked, task.qrels, task.graded, task.measures)))
    return _of_figures(name, figures, tasks, notes)


def _of_figures(
    name: str, figures: Sequence[QueryFigures], tasks: Sequence[RetrievalTask] = (), notes: Sequence[str] = ()
) -> System:
    """The system with the means of its tasks, and those of the groups of tasks that it has whole."""
    means = {one.task: one.means for one in figures}
    for group in dict.fromkeys(task.group for task in tasks if task.group is not None):
        names = [task.name for task in tasks if task.group == group]
        if set(names) <= means.keys():
            shared = [key for key in means[names[0]] if all(key in means[one] for one in names)]
            means[f"{group}_mean"] = {key: float(np.mean([means[one][key] for one in names])) for key in shared}
    return System(name, "other", figures=means, per_query=list(figures), notes=tuple(notes))
