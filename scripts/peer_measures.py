"""What `compare_with_peer.py` measures of trained models: rankings as they are and cut to one number of active dims."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy.sparse import csr_array, load_npz, save_npz

from splade_lit.core.files import whole_file
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.paired_tests import Difference, differences, p_value
from splade_lit.evaluation.per_query import QueryFigures, query_figures
from splade_lit.evaluation.results import TaskResult

METRIC = "ndcg@10"


def cut_to(documents: csr_array, active_dims: float, how: str) -> csr_array:
    """Vectors with this many active dims on average, or as many as there are if that is fewer.

    Args:
        documents: non-negative vectors, `[documents, vocab]`.
        active_dims: mean active dims of a document wanted.
        how: `threshold` leaves out the smallest weights of all documents together; `cap` all but the k largest of each
            document, for the largest k whose mean does not exceed what is wanted.

    >>> vectors = csr_array(np.array([[5.0, 4.0, 3.0, 0.0], [2.0, 1.0, 0.0, 0.0]]))
    >>> cut_to(vectors, 1.5, "threshold").toarray().tolist()
    [[5.0, 4.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    >>> cut_to(vectors, 1.5, "cap").toarray().tolist()
    [[5.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]
    """
    from splade_lit.encoder.rows import keep_largest

    documents = csr_array(documents, copy=True)
    documents.eliminate_zeros()
    wanted = int(active_dims * documents.shape[0])
    if documents.nnz <= wanted:
        return documents
    if how == "cap":
        sizes = np.diff(documents.indptr)
        low, high = 1, int(sizes.max())
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if np.minimum(sizes, middle).sum() <= wanted else (low, middle - 1)
        return keep_largest(documents, low)
    order = np.argsort(-documents.data, kind="stable")
    documents.data[order[wanted:]] = 0
    documents.eliminate_zeros()
    return documents


class Measures:
    """Rankings of tasks with the models of runs, whole and cut; vectors are kept in the folder of a run."""

    def __init__(self, tasks: Sequence[RetrievalTask], cut: str) -> None:
        self.tasks, self.how = tasks, cut

    def active_dims(self, run: Path, task: RetrievalTask) -> float:
        """Mean active dims of a document of the task."""
        documents = self._vectors(run, task)[2]
        return documents.count_nonzero() / documents.shape[0]

    def result(self, run: Path, task: RetrievalTask, active_dims: float | None = None) -> TaskResult:
        """The ranking of a task; with vectors cut, if a number of active dims is given."""
        from splade_lit.evaluation.results import evaluate_vectors

        query_ids, queries, documents = self._vectors(run, task)
        if active_dims is not None:
            documents = cut_to(documents, active_dims, self.how)
        return evaluate_vectors(task, query_ids, queries, list(task.corpus), documents)

    def _vectors(self, run: Path, task: RetrievalTask) -> tuple[tuple[str, ...], csr_array, csr_array]:
        from splade_lit.evaluation.task_evaluation import judged_query_ids

        places = [run / "vectors" / f"{task.name}-{side}.npz" for side in ("queries", "documents")]
        if not all(place.is_file() for place in places):
            self._encode(run, task, places)
        queries, documents = (csr_array(load_npz(place)) for place in places)
        query_ids = judged_query_ids(task)
        if queries.shape[0] != len(query_ids) or documents.shape[0] != len(task.corpus):
            sys.exit(f"error: {places[1].parent} has vectors of another {task.name}; delete that folder.")
        return query_ids, queries, documents

    def _encode(self, run: Path, task: RetrievalTask, places: Sequence[Path]) -> None:
        from splade_lit.encoder.model import AsymmetricSparseEncoder
        from splade_lit.evaluation.task_evaluation import TokenisedTask

        print(f"encoding {task.name} with {run.name}", flush=True)
        encoder = AsymmetricSparseEncoder.load(run / "model")
        tokenised = TokenisedTask.of(task, encoder)
        places[0].parent.mkdir(exist_ok=True)
        vectors = encoder.encode_query_tokens(tokenised.queries), encoder.encode_document_tokens(tokenised.documents)
        for place, matrix in zip(places, vectors, strict=True):
            with whole_file(place) as temporary:
                save_npz(temporary, matrix)


@dataclass(frozen=True)
class Row:
    """A line of the table: a system on a task, as it is and cut."""

    task: str
    system: str
    dims: float
    ndcg: float
    cut_dims: float
    cut_ndcg: float


def mean_figures(figures: Sequence[QueryFigures]) -> QueryFigures:
    """The figures of each query, means over seeds."""
    values = {name: np.mean([one.metrics[name] for one in figures], axis=0).tolist() for name in figures[0].metrics}
    return replace(figures[0], metrics=values)


def measure_task(
    measures: Measures,
    task: RetrievalTask,
    ours: Sequence[Path],
    peer: Sequence[Path],
    start: Path,
    wanted: float | None,
) -> tuple[list[Row], Difference]:
    """The lines of a task, and the difference of the sides at the same number of active dims."""
    runs = [*ours, *peer]
    dims = {run: measures.active_dims(run, task) for run in [start, *runs]}
    target = min([*(dims[run] for run in runs), *([wanted] if wanted else [])])
    rows, figures = [], {}
    for run in [start, *runs]:
        whole, cut = measures.result(run, task), measures.result(run, task, target)
        figures[run] = query_figures(task, cut.rank_metrics)
        cut_dims = cut.metrics["corpus_active_dims"]
        row = Row(task.name, run.name, dims[run], whole.metrics[METRIC], cut_dims, cut.metrics[METRIC])
        rows.append(row)
    sides = {"ours": [mean_figures([figures[run] for run in ours])]}
    sides["peer"] = [mean_figures([figures[run] for run in peer])]
    (difference,) = differences(sides, frozenset([task.name]), METRIC)
    return rows, difference


def shown(rows: Sequence[Row], bm25: Mapping[str, float], found: Mapping[str, Difference]) -> Iterator[Table]:
    """The tables of the report."""
    table = Table("task", "system", "active dims", METRIC, "dims, cut", f"{METRIC}, cut", box=None, pad_edge=False)
    last = None
    for row in rows:
        if row.task != last and row.task in bm25:
            table.add_row(row.task, "BM25", "", f"{bm25[row.task]:.4f}", "", "")
        last = row.task
        table.add_row(
            row.task, row.system, f"{row.dims:.1f}", f"{row.ndcg:.4f}", f"{row.cut_dims:.1f}", f"{row.cut_ndcg:.4f}"
        )
    yield table
    table = Table(
        "task", "ours - peer", "95 % interval", "won/equal/lost", "p (t)", "p (randomisation)", box=None, pad_edge=False
    )
    for task, one in found.items():
        sign = 1 if one.first == "ours" else -1
        low, high = sorted(sign * end for end in one.interval or (np.nan, np.nan))
        counts = f"{one.wins}/{one.ties}/{one.losses}" if sign > 0 else f"{one.losses}/{one.ties}/{one.wins}"
        tests = (p_value(one.p_t), p_value(one.p_random))
        table.add_row(task, f"{sign * one.mean:+.4f}", f"{low:+.4f} to {high:+.4f}", counts, *tests)
    yield table
