"""Rank metrics over a run and its judgements, as sentence-transformers' evaluators define them.

Documents are ranked by score, largest first, and by id as a string where scores are equal. Only queries with a relevant
document count; relevant documents that were not found, or that the corpus lacks, still count in what there was to find.
With graded judgements nDCG takes the grades as gains, linearly, as trec_eval's `ndcg_cut` and BEIR do (Jarvelin and
Kekalainen 2002); for the other metrics a grade of 1 or more is relevant.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torchmetrics import Metric

Run = Mapping[str, Mapping[str, float]]
"""Query id to document id to score: what was found for each query that was asked."""

Qrels = Mapping[str, Mapping[str, int]]
"""Query id to document id to grade."""

DEPTH = 100
"""The deepest rank that a metric looks at."""


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


def rank_metrics(run: Run, qrels: Qrels, graded: bool = False) -> RankMetrics:
    """Accuracy, precision and recall at 1, 3, 5 and 10, nDCG@10, MRR@10 and MAP@100.

    Args:
        run: found documents of each query that was asked, `{}` where none was; in any order.
        qrels: judgements; a document without one is not relevant. Queries that are not in the run are left out.
        graded: whether nDCG uses the grades as gains; otherwise every relevant document counts 1.

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
    gains = np.zeros((len(relevant), DEPTH))
    ideal_gains = np.zeros((len(relevant), DEPTH))
    for row, (query_id, grades) in enumerate(relevant.items()):
        ranking = sorted(run[query_id].items(), key=lambda hit: (-hit[1], hit[0]))[:DEPTH]
        gains[row, : len(ranking)] = [grades.get(document_id, 0) for document_id, _ in ranking]
        best = sorted(grades.values(), reverse=True)[:DEPTH]
        ideal_gains[row, : len(best)] = best
    num_relevant = np.array([len(grades) for grades in relevant.values()], dtype=np.int64)
    found = gains > 0
    per_query = {f"accuracy@{k}": accuracy(found, k) for k in (1, 3, 5, 10)}
    per_query |= {f"precision@{k}": precision(found, k) for k in (1, 3, 5, 10)}
    per_query |= {f"recall@{k}": recall(found, num_relevant, k) for k in (1, 3, 5, 10)}
    per_query["ndcg@10"] = ndcg(gains, ideal_gains, 10)
    per_query["mrr@10"] = reciprocal_rank(found, 10)
    per_query["map@100"] = average_precision(found, num_relevant, 100)
    return RankMetrics(tuple(relevant), per_query)


def accuracy(found: Bool[np.ndarray, "queries depth"], k: int) -> Float64[np.ndarray, " queries"]:
    """Whether a relevant document is among the first k.

    Args:
        found: whether the document at each rank, best first, is relevant.
        k: the cut-off.

    >>> accuracy(np.array([[False, True], [False, False]]), k=2)
    array([1., 0.])
    """
    return np.asarray(found[:, :k].any(axis=1), dtype=np.float64)


def precision(found: Bool[np.ndarray, "queries depth"], k: int) -> Float64[np.ndarray, " queries"]:
    """The share of relevant documents among the first k; ranks that were not filled count as not relevant.

    >>> precision(np.array([[False, True, True]]), k=2)
    array([0.5])
    """
    return found[:, :k].sum(axis=1) / k


def recall(
    found: Bool[np.ndarray, "queries depth"], num_relevant: Int[np.ndarray, " queries"], k: int
) -> Float64[np.ndarray, " queries"]:
    """The share of all relevant documents that is among the first k.

    >>> recall(np.array([[False, True, True]]), np.array([4]), k=3)
    array([0.5])
    """
    return found[:, :k].sum(axis=1) / num_relevant


def reciprocal_rank(found: Bool[np.ndarray, "queries depth"], k: int) -> Float64[np.ndarray, " queries"]:
    """One over the rank of the first relevant document, 0 if it is not among the first k.

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
    gains: Float64[np.ndarray, "queries depth"], ideal_gains: Float64[np.ndarray, "queries ideal"], k: int
) -> Float64[np.ndarray, " queries"]:
    """The discounted gain of the first k, as a share of that of the best ranking there could be.

    Args:
        gains: gain of the document at each rank, best first.
        ideal_gains: gains of all relevant documents, largest first, then zeros.
        k: the cut-off.

    >>> ndcg(np.array([[0.0, 3.0]]), np.array([[3.0, 0.0]]), k=10).round(3)
    array([0.631])
    """
    return _dcg(gains[:, :k]) / _dcg(ideal_gains[:, :k])


def _dcg(gains: Float64[np.ndarray, "queries depth"]) -> Float64[np.ndarray, " queries"]:
    return gains @ (1 / np.log2(np.arange(gains.shape[1]) + 2))


class RetrievalMetrics(Metric):
    """Mean rank metrics of runs that come in parts: batches of queries, or one share of them a device.

    >>> metrics = RetrievalMetrics()
    >>> metrics.update({"q1": {"a": 1.0}}, {"q1": {"a": 1}})
    >>> metrics.update({"q2": {"a": 1.0}}, {"q2": {"b": 1}})
    >>> metrics.compute()["ndcg@10"]
    0.5
    """

    full_state_update = False
    sums: Tensor
    num_queries: Tensor

    def __init__(self, graded: bool = False) -> None:
        super().__init__()
        self.graded = graded
        self.names = tuple(rank_metrics({}, {}).per_query)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_queries", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, run: Run, qrels: Qrels) -> None:
        """Add the queries of a run; see `rank_metrics`."""
        metrics = rank_metrics(run, qrels, self.graded)
        sums = [values.sum() for values in metrics.per_query.values()]
        self.sums += torch.tensor(sums, dtype=torch.float64, device=self.sums.device)
        self.num_queries += len(metrics.query_ids)

    def compute(self) -> dict[str, float]:
        """Metric name to its mean over all queries so far; not a number if there are none."""
        return dict(zip(self.names, (self.sums / self.num_queries).tolist(), strict=True))
