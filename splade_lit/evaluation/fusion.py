"""Several rankings of the same queries made into one: by ranks, or by scores brought to one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.layout import model_folder
from splade_lit.evaluation.measures import search_depth
from splade_lit.evaluation.metrics import DEPTH, Run, rank_metrics
from splade_lit.evaluation.results import TaskResult
from splade_lit.evaluation.task_evaluation import judged_query_ids
from splade_lit.teachers.sentence_encoder import SentenceEncoder

Fusion = Literal["rrf", "sum"]
RRF_K = 60


def reciprocal_rank_fusion(runs: Sequence[Run], k: int = RRF_K) -> dict[str, dict[str, float]]:
    """The score of a document is the sum of `1 / (k + rank)` over the rankings that have it, ranks from 1.

    Cormack, Clarke and Buettcher (2009), "Reciprocal Rank Fusion outperforms Condorcet and individual rank learning
    methods", with its k of 60.

    >>> fused = reciprocal_rank_fusion([{"q": {"a": 9.0, "b": 8.0}}, {"q": {"b": 0.3, "c": 0.2}}], k=1)
    >>> {id: round(score, 3) for id, score in fused["q"].items()}
    {'b': 0.833, 'a': 0.5, 'c': 0.333}
    """
    return _fused([{query: _by_rank(hits, k) for query, hits in run.items()} for run in runs])


def weighted_sum(runs: Sequence[Run], weights: Sequence[float]) -> dict[str, dict[str, float]]:
    """The weighted sum of the rankings' scores, those of each query and ranking brought to 0 to 1 by its ends.

    What a ranking does not have counts 0 there, as its last document does.

    >>> weighted_sum([{"q": {"a": 9.0, "b": 5.0, "c": 1.0}}, {"q": {"c": 4.0, "b": 2.0}}], [0.5, 0.5])
    {'q': {'a': 0.5, 'c': 0.5, 'b': 0.25}}
    """
    scaled = [
        {query: {id: weight * score for id, score in _min_max(hits).items()} for query, hits in run.items()}
        for run, weight in zip(runs, weights, strict=True)
    ]
    return _fused(scaled)


def fuse(
    task: RetrievalTask, result: TaskResult, other: Run, fusion: Fusion = "rrf", weight: float = 0.5
) -> TaskResult:
    """The figures of a model's ranking and another one together; sparsity is the model's.

    Args:
        task: what both rank.
        result: the model's.
        other: another ranking of the task's queries.
        fusion: `rrf`, or `sum` of scores.
        weight: of the model in the sum, from 0 to 1; the other has the rest.
    """
    runs = [{query: _without_own(task, query, hits) for query, hits in run.items()} for run in (result.run, other)]
    run = reciprocal_rank_fusion(runs) if fusion == "rrf" else weighted_sum(runs, [weight, 1 - weight])
    return replace(result, rank_metrics=rank_metrics(run, task.qrels, task.graded, task.measures), run=run)


def dense_run(task: RetrievalTask, model: str, device: str | torch.device = "cpu") -> dict[str, dict[str, float]]:
    """The ranking of a sentence encoder, by its own similarity, as deep as the task's measures look.

    Raises:
        UserError: the model is no sentence encoder, or sentence-transformers is not installed.
    """
    encoder = SentenceEncoder(model_folder(model), device=device)
    query_ids, ids = judged_query_ids(task), sorted(task.corpus)
    documents = encoder.encode([task.corpus[id] for id in ids], "document")
    queries = encoder.encode([task.queries[id] for id in query_ids], "query")
    depth = min(search_depth(task.measures, least=DEPTH) + 1, len(ids))  # a query's own document may be left out
    run = {}
    for query_id, vector in zip(query_ids, queries, strict=True):
        scores = documents @ vector
        best = np.argsort(-scores, kind="stable")[:depth]
        run[query_id] = {ids[row]: float(scores[row]) for row in best}
    return run


def _without_own(task: RetrievalTask, query: str, hits: Mapping[str, float]) -> dict[str, float]:
    return {id: score for id, score in hits.items() if not (id == query and query in task.left_out)}


def _by_rank(hits: Mapping[str, float], k: int) -> dict[str, float]:
    ordered = sorted((id for id, score in hits.items() if score), key=lambda id: (-hits[id], id))
    return {id: 1 / (k + rank) for rank, id in enumerate(ordered, start=1)}


def _min_max(hits: Mapping[str, float]) -> dict[str, float]:
    """Scores from 0 to 1; those of 0, of documents that share nothing with the query, are left out."""
    found = {id: score for id, score in hits.items() if score}
    least, most = min(found.values(), default=0.0), max(found.values(), default=0.0)
    return {id: (score - least) / (most - least) if most > least else 1.0 for id, score in found.items()}


def _fused(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Scores summed, best first, and of equal ones the lower id."""
    fused: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, hits in run.items():
            scores = fused.setdefault(query, {})
            for id, score in hits.items():
                scores[id] = scores.get(id, 0.0) + score
    return {
        query: dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))) for query, scores in fused.items()
    }
