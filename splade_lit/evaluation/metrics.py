"""Rank metrics over a run and its judgements, as sentence-transformers' evaluators define them.

Documents are ranked by score, largest first, and by id as a string where scores are equal. Only queries with a relevant
document count; relevant documents that were not found, or that the corpus lacks, still count in what there was to find.
With graded judgements nDCG takes the grades as gains, linearly, as trec_eval's `ndcg_cut` and BEIR do (Jarvelin and
Kekalainen 2002); for the other metrics a grade of 1 or more is relevant.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int
from torch import Tensor
from torchmetrics import Metric

from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.measures import measure_values, search_depth

Run = Mapping[str, Mapping[str, float]]
"""Query id to document id to score: what was found for each query that was asked."""

Qrels = Mapping[str, Mapping[str, int]]
"""Query id to document id to grade."""

DEPTH = 100
"""The deepest rank that a metric looks at, but for measures that a task asks for."""


@dataclass(frozen=True)
class RankMetrics:
    """Metrics of each query.

    Attributes:
        query_ids: the queries that have a relevant document.
        per_query: metric name to one value a query.
    """

    query_ids: tuple[str, ...]
    per_query: dict[str, Float64[np.ndarray, " queries"]]

    @property
    def means(self) -> dict[str, float]:
        """Metric name to its mean over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}


def rank_metrics(run: Run, qrels: Qrels, graded: bool = False, measures: Sequence[str] = ()) -> RankMetrics:
    """Accuracy, precision and recall at 1, 3, 5 and 10, nDCG@10, MRR@10 and MAP@100, and measures by name.

    Args:
        run: found documents of each query that was asked, `{}` where none was; in any order.
        qrels: judgements; a document without one is not relevant. Queries that are not in the run are left out.
        graded: whether nDCG uses the grades as gains; otherwise every relevant document counts 1.
        measures: of the library ir_measures (see `measures`), computed on the whole run and all grades.

    >>> run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    >>> metrics = rank_metrics(run, {"q": {"b": 1, "not in the corpus": 1}})
    >>> metrics.means["mrr@10"], metrics.means["recall@3"], metrics.means["map@100"]
    (0.5, 0.5, 0.25)
    """
    relevant = {
        query_id: {document_id: grade if graded else 1 for document_id, grade in grades.items() if grade > 0}
        for query_id, grades in ((query_id, qrels.get(query_id, {})) for query_id in run)
        if any(grade > 0 for grade in grades.values())
    }
    gains, ideal_gains = np.zeros((2, len(relevant), DEPTH))
    for row, (query_id, grades) in enumerate(relevant.items()):
        ranking = sorted(run[query_id].items(), key=lambda hit: (-hit[1], hit[0]))[:DEPTH]
        gains[row, : len(ranking)] = [grades.get(document_id, 0) for document_id, _ in ranking]
        best = sorted(grades.values(), reverse=True)[:DEPTH]
        ideal_gains[row, : len(best)] = best
    num_relevant = np.array([len(grades) for grades in relevant.values()], dtype=np.int64)
    found = gains > 0
    hits = {k: found[:, :k].sum(axis=1) for k in (1, 3, 5, 10)}
    per_query = {f"accuracy@{k}": (count > 0).astype(np.float64) for k, count in hits.items()}
    per_query |= {f"precision@{k}": count / k for k, count in hits.items()}
    per_query |= {f"recall@{k}": count / num_relevant for k, count in hits.items()}
    per_query["ndcg@10"] = ndcg(gains, ideal_gains, 10)
    per_query["mrr@10"] = reciprocal_rank(found, 10)
    per_query["map@100"] = average_precision(found, num_relevant, 100)
    per_query |= measure_values(run, qrels, measures, tuple(relevant))
    return RankMetrics(tuple(relevant), per_query)


def reciprocal_rank(found: Bool[np.ndarray, "queries depth"], k: int) -> Float64[np.ndarray, " queries"]:
    """One over the rank of the first relevant document, 0 if it is not among the first k.

    Args:
        found: whether the document at each rank, best first, is relevant.
        k: the cut-off.

    >>> reciprocal_rank(np.array([[False, True, True], [False, False, False]]), k=10)
    array([0.5, 0. ])
    """
    found = found[:, :k]
    return found.any(axis=1) / (1.0 + found.argmax(axis=1))


def average_precision(
    found: Bool[np.ndarray, "queries depth"], num_relevant: Int[np.ndarray, " queries"], k: int
) -> Float64[np.ndarray, " queries"]:
    """The mean of the precision at each relevant document, over as many as could be among the first k.

    trec_eval's `map_cut` divides by all relevant documents, so that more than k of them cannot reach 1.

    >>> average_precision(np.array([[True, False, True, False]]), np.array([2]), k=100).round(3)
    array([0.833])
    """
    found = found[:, :k]
    precisions = found.cumsum(axis=1) / np.arange(1, found.shape[1] + 1)
    return (precisions * found).sum(axis=1) / np.minimum(num_relevant, k)


def ndcg(
    gains: Float64[np.ndarray, "queries depth"], ideal_gains: Float64[np.ndarray, "queries depth"], k: int
) -> Float64[np.ndarray, " queries"]:
    """The discounted gain of the first k, as a share of that of the best ranking there could be.

    Args:
        gains: gain of the document at each rank, best first.
        ideal_gains: gains of all relevant documents, largest first, then zeros.
        k: the cut-off.

    >>> ndcg(np.array([[0.0, 3.0]]), np.array([[3.0, 0.0]]), k=10).round(3)
    array([0.631])
    """
    discounts = 1 / np.log2(np.arange(gains[:, :k].shape[1]) + 2)
    return (gains[:, :k] @ discounts) / (ideal_gains[:, :k] @ discounts)


def without_queries(run: Run, left_out: Collection[str]) -> Run:
    """The run without the documents that are queries themselves, under the same id (see `RetrievalTask.left_out`).

    >>> without_queries({"a": {"a": 9.0, "b": 1.0}, "b": {"b": 9.0}}, left_out={"a"})
    {'a': {'b': 1.0}, 'b': {'b': 9.0}}
    """
    return {
        query_id: {id: score for id, score in hits.items() if id != query_id} if query_id in left_out else hits
        for query_id, hits in run.items()
    }


class RetrievalMetrics(Metric):
    """Rank metrics over a corpus that comes in parts: batches of documents, or a share of them in each process.

    The state holds the best documents of each query so far, so that parts add up to the figures of the whole corpus.
    Where all documents score 0 for all queries, as those of a dead model do, nothing has been found.

    Args:
        task: gives judgements, and which queries are left out of their own ranking.
        query_ids: the queries.
        document_ids: ids of the whole corpus in the order of strings, in which documents of equal score are ranked.

    >>> metrics = RetrievalMetrics(RetrievalTask("small", {}, {}, {"q": {"a": 1}}), ["q"], ["a", "b"])
    >>> metrics.update(np.array([[2.0]], dtype=np.float32), np.array([[1]]))
    >>> metrics.update(np.array([[1.0]], dtype=np.float32), np.array([[0]]))
    >>> metrics.compute()["mrr@10"]
    0.5
    """

    full_state_update = False
    best: Tensor

    def __init__(self, task: RetrievalTask, query_ids: Sequence[str], document_ids: Sequence[str]) -> None:
        super().__init__()
        self.task, self.query_ids, self.document_ids = task, query_ids, document_ids
        self.depth = search_depth(task.measures, DEPTH)
        # Score and number of each document; one more than metrics look at, as one may be left out.
        empty = torch.full((len(query_ids), self.depth + 1, 2), -torch.inf, dtype=torch.float64)
        self.add_state("best", empty, dist_reduce_fx=_best)

    def update(self, scores: Float32[np.ndarray, "queries k"], documents: Int[np.ndarray, "queries k"]) -> None:
        """Add the best documents of each query in a part of the corpus, by their numbers in `document_ids`."""
        found = torch.from_numpy(np.stack([scores, documents], axis=-1).astype(np.float64))
        self.best = _best([self.best, found])

    def compute(self) -> dict[str, float]:
        """Metric name to its mean over the queries."""
        return self.rank_metrics.means

    @property
    def run(self) -> dict[str, dict[str, float]]:
        """Query id to the scores of its best documents so far, best first."""
        run = {
            query_id: {self.document_ids[int(number)]: score for score, number in hits if score > -np.inf}
            for query_id, hits in zip(self.query_ids, self.best.tolist(), strict=True)
        }
        if not any(any(found.values()) for found in run.values()):
            return {query_id: {} for query_id in run}
        kept = without_queries(run, self.task.left_out)
        return {query_id: dict(list(found.items())[: self.depth]) for query_id, found in kept.items()}

    @property
    def rank_metrics(self) -> RankMetrics:
        """Metrics of each query so far."""
        return rank_metrics(self.run, self.task.qrels, self.task.graded, self.task.measures)


def _best(parts: Iterable[Tensor]) -> Tensor:
    """The best documents of each query from all parts, as many as the first has: score and number."""
    first, *others = parts
    hits, count = torch.cat([first, *others], dim=1), first.shape[1]
    order = np.lexsort((hits[..., 1].numpy(), -hits[..., 0].numpy()))[:, :count]
    return torch.take_along_dim(hits, torch.from_numpy(order)[..., None], dim=1)
