"""What an engine costs in nDCG@10: a task's queries through an index, and over the vectors that it was made of."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.query_side import QuerySide
from splade_lit.engines.index import Hit, Index, Parts
from splade_lit.engines.segments import best_hits
from splade_lit.evaluation.exact_search import SearchIndex, string_order
from splade_lit.evaluation.metrics import rank_metrics, without_queries
from splade_lit.evaluation.task_evaluation import judged_query_ids

METRIC = "ndcg@10"
_DEPTH = 11  # one more than is counted, as a query's own document may be left out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineQuality:
    """nDCG@10 of a task, from 0 to 1.

    Attributes:
        task: its name.
        through_index: of the hits that the index gives.
        exact: of exact search over the vectors as they were made.
    """

    task: str
    through_index: float
    exact: float


def check_corpus(tasks: Sequence[RetrievalTask], ids: Iterable[str]) -> None:
    """See that a corpus is that of the tasks; reading ends where each task has met a document of its own.

    Raises:
        UserError: a task has no document among the ids.
    """
    missing = list(tasks)
    for id in ids:
        if not (missing := [task for task in missing if id not in task.corpus]):
            return
    for task in missing:
        raise UserError(f"{task.name}: none of its documents is in the index; index the task's own corpus.")


def engine_quality(index: Index, parts: Parts, task: RetrievalTask, queries: QuerySide) -> EngineQuality:
    """Measure an index on a task whose corpus it was made of.

    Raises:
        UserError: no query has a relevant document, or the index has none of the task's documents.
    """
    query_ids = judged_query_ids(task)
    check_corpus([task], (id for ids, _, _ in parts() for id in ids))
    vectors = queries.encode([task.queries[id] for id in query_ids])
    through = index.search(vectors, _DEPTH)
    exact, there = _exact_hits(parts, vectors, task)
    if there < len(task.corpus):
        logger.warning("%s: %d of %d documents are in the index.", task.name, there, len(task.corpus))
    return EngineQuality(task.name, *(_ndcg(task, query_ids, hits) for hits in (through, exact)))


def _exact_hits(parts: Parts, vectors: csr_array, task: RetrievalTask) -> tuple[list[list[Hit]], int]:
    """The best documents of each query, and how many of the task's there are."""
    best: list[list[Hit]] = [[] for _ in range(vectors.shape[0])]
    there = 0
    for ids, documents, _ in parts():
        there += sum(id in task.corpus for id in ids)
        top = SearchIndex(documents, string_order(list(ids))).search(vectors, _DEPTH)
        for row, (found, scores) in enumerate(zip(top.documents.tolist(), top.scores.tolist(), strict=True)):
            hits = [Hit(ids[place], score) for place, score in zip(found, scores, strict=True) if score > 0]
            best[row] = best_hits(best[row] + hits, _DEPTH)
    return best, there


def _ndcg(task: RetrievalTask, query_ids: tuple[str, ...], found: list[list[Hit]]) -> float:
    run = {id: dict(hits) for id, hits in zip(query_ids, found, strict=True)}
    return rank_metrics(without_queries(run, task.left_out), task.qrels, task.graded).means[METRIC]
