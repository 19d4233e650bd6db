"""Re-ranking: a model puts the first candidates of another ranking, such as BM25's, in a better order.

Measured twice: with the metrics of any ranking, for which a relevant document that is no candidate is missed, and as
the re-ranking evaluators of sentence-transformers measure, by MAP, MRR@10 and nDCG@10 of each query's list.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from splade_lit.core.errors import UserError
from splade_lit.core.progress import WorkProgress
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.metric_names import LIST_METRICS
from splade_lit.evaluation.metrics import Run, rank_metrics, without_queries
from splade_lit.evaluation.results import TaskResult, flat_metrics
from splade_lit.evaluation.sparsity import SparsityMetrics
from splade_lit.evaluation.task_evaluation import Encoder, judged_query_ids

CUT = 10

logger = logging.getLogger(__name__)


class ListMetrics(NamedTuple):
    """How well a list of documents is ordered: average precision, reciprocal rank and nDCG, both of the first ten."""

    average_precision: float
    reciprocal_rank: float
    ndcg: float


@dataclass(frozen=True)
class Lists:
    """The metrics of the lists of all queries of a task, `[queries, 3]`, each row a `ListMetrics`.

    Attributes:
        candidates: before, in the order of the first ranking. Relevant documents that it lacks stand at the end.
        reranked: in the model's order; to be found are the relevant documents among the candidates.
        with_positives: in the model's order, with all relevant documents put among the candidates.
    """

    candidates: Float[np.ndarray, "queries metrics"]
    reranked: Float[np.ndarray, "queries metrics"]
    with_positives: Float[np.ndarray, "queries metrics"]


@dataclass(frozen=True)
class Reranked:
    """A task before and after re-ranking.

    Attributes:
        candidates: the candidates as a ranking; its sparsity is the model's.
        result: the candidates in the model's order; sparsity is that of what was encoded.
        lists: as sentence-transformers measures.
    """

    candidates: TaskResult
    result: TaskResult
    lists: Lists


def list_metrics(
    relevant: Bool[np.ndarray, " documents"], scores: Float[np.ndarray, " documents"], k: int = CUT
) -> ListMetrics:
    """The metrics of one list, all 0 if no document of it is relevant.

    Average precision and nDCG treat documents of equal score alike, whatever their order (McSherry and Najork 2008,
    "Computing information retrieval performance measures efficiently in the presence of tied scores"). For the
    reciprocal rank, those that come first in the list come first.

    Args:
        relevant: which documents are.
        scores: of each.
        k: the cut-off of reciprocal rank and nDCG; average precision looks at the whole list.

    >>> list_metrics(np.array([False, True, True]), np.array([3.0, 2.0, 1.0]))._asdict()
    {'average_precision': 0.5833333333333333, 'reciprocal_rank': 0.5, 'ndcg': 0.6934264036172708}
    """
    if not relevant.any():
        return ListMetrics(0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    gains, ranked = relevant[order].astype(np.float64), scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1) + 1  # one past the last of each equal score
    starts = np.append(0, ends[:-1])
    found = np.add.reduceat(gains, starts)
    precisions = np.cumsum(found) / ends
    discounts = np.where(np.arange(len(gains)) < k, 1 / np.log2(np.arange(len(gains)) + 2), 0.0)
    gained = float(found / (ends - starts) @ np.add.reduceat(discounts, starts))
    first = int(gains.argmax())
    return ListMetrics(
        float(found @ precisions / found.sum()),
        1 / (first + 1) if first < k else 0.0,
        gained / float(discounts[: int(found.sum())].sum()),
    )


def rerank(
    encoder: Encoder, task: RetrievalTask, run: Run, top: int = 100, *, show_progress_bar: bool = False
) -> Reranked:
    """Score the first candidates of each query with a model, and measure both orders.

    Only candidates and relevant documents are encoded. What is missing is told in the log: queries without candidates,
    which count 0, relevant documents that are no candidates, and candidates that the corpus lacks.

    Args:
        encoder: the model.
        task: gives texts and judgements; documents with a grade above 0 are relevant.
        run: the first ranking; of equal scores the lower id comes first.
        top: candidates a query.
        show_progress_bar: show how many documents are encoded.

    Raises:
        UserError: no query has a candidate or none is judged, or the model's vectors are not finite.
    """
    query_ids = judged_query_ids(task)
    candidates = _candidates(task, run, top, query_ids)
    positives = {
        query: [id for id, grade in task.qrels[query].items() if grade > 0 and id in task.corpus] for query in query_ids
    }
    _report(task, candidates, positives, top)
    needed = {id for lists in (candidates, positives) for ids in lists.values() for id in ids}
    ids = [id for id in task.corpus if id in needed]
    queries = encoder.encode_query_tokens(encoder.tokenisation.queries([task.queries[query] for query in query_ids]))
    tokens = encoder.tokenisation.documents([task.corpus[id] for id in ids])
    with WorkProgress(f"encoding candidates of {task.name}", "documents", len(ids), show=show_progress_bar) as progress:
        documents = encoder.encode_document_tokens(tokens, on_batch=progress.advance)
    if not (np.isfinite(queries.data).all() and np.isfinite(documents.data).all()):
        raise UserError("The vectors hold values that are not finite; the model that made them diverged.")
    rows = {id: row for row, id in enumerate(ids)}
    before, after, measured = {}, {}, []
    for number, query in enumerate(query_ids):
        listed = [*candidates[query], *(id for id in positives[query] if id not in candidates[query])]
        places = [rows[id] for id in listed]
        scores = (documents[places] @ queries[[number]].toarray()[0]).astype(np.float64) if places else np.empty(0)
        count = len(candidates[query])
        measured.append(_of_lists(listed, count, set(positives[query]), scores))
        before[query] = candidates[query]
        pairs = sorted(zip(listed[:count], scores[:count].tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))
        after[query] = dict(pairs)
    lists = Lists(*np.array(measured, dtype=np.float64).transpose(1, 0, 2))
    sparsity = SparsityMetrics(queries.shape[1])
    sparsity.update(queries, documents)
    first, result = (
        TaskResult(
            task.name, task.group, rank_metrics(run, task.qrels, task.graded, task.measures), sparsity.statistics, run
        )
        for run in (before, after)
    )
    return Reranked(first, result, lists)


def _candidates(task: RetrievalTask, run: Run, top: int, query_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """The first candidates of each judged query, best first, with their scores."""
    run = without_queries({query: run.get(query, {}) for query in query_ids}, task.left_out)
    known = {query: {id: score for id, score in hits.items() if id in task.corpus} for query, hits in run.items()}
    if lacking := sum(map(len, run.values())) - sum(map(len, known.values())):
        logger.warning("%s: %s candidates are not in the corpus and are left out.", task.name, f"{lacking:,}")
    if not any(known.values()):
        raise UserError(
            f"{task.name}: no query has a candidate; give a ranking of this task, with the ids of its queries (such as "
            f"{query_ids[0]!r}) and of its documents (such as {next(iter(task.corpus))!r})."
        )
    return {query: dict(sorted(hits.items(), key=lambda hit: (-hit[1], hit[0]))[:top]) for query, hits in known.items()}


def _report(
    task: RetrievalTask, candidates: Mapping[str, Mapping[str, float]], positives: Mapping[str, list[str]], top: int
) -> None:
    without = sum(not hits for hits in candidates.values())
    if without:
        logger.warning("%s: %d of %d queries have no candidates and count 0.", task.name, without, len(candidates))
    relevant = sum(map(len, positives.values()))
    missed = sum(id not in candidates[query] for query, ids in positives.items() for id in ids)
    if missed:
        logger.warning(
            "%s: %d of %d relevant documents are not among the first %d candidates; no order of these finds them.",
            task.name,
            missed,
            relevant,
            top,
        )


def _of_lists(
    listed: Sequence[str], count: int, positives: set[str], scores: Float[np.ndarray, " documents"]
) -> tuple[ListMetrics, ListMetrics, ListMetrics]:
    """Before, after, and after with all relevant documents; `count` of the list are candidates, the best first."""
    relevant = np.array([id in positives for id in listed], dtype=bool)
    if not count:
        return (ListMetrics(0.0, 0.0, 0.0),) * 3
    in_order = np.arange(len(listed), 0, -1, dtype=np.float64)
    before = list_metrics(relevant, in_order) if relevant[:count].any() else ListMetrics(0.0, 0.0, 0.0)
    return before, list_metrics(relevant[:count], scores[:count]), list_metrics(relevant, scores)


def reranking_stages(reranked: Sequence[Reranked], top: int) -> dict[str, dict[str, float]]:
    """The figures of tasks as stages: `candidates`, `reranked`, `reranked_with_positives`.

    Metrics of rankings have their usual names, `NanoNQ_dot_ndcg@10`; those of lists the names that
    sentence-transformers gives them, `NanoNQ_R100_ndcg@10` and, for a group, `NanoBEIR_R100_mean_ndcg@10`. Sparsity is
    that of the stage `reranked`.
    """
    before = flat_metrics([one.candidates for one in reranked])
    stages = {
        "candidates": {name: value for name, value in before.items() if "_dot_" in name},
        "reranked": flat_metrics([one.result for one in reranked]),
        "reranked_with_positives": {},
    }
    for stage, part in zip(stages, ("candidates", "reranked", "with_positives"), strict=True):
        means = [getattr(one.lists, part).mean(axis=0) for one in reranked]
        groups = [one.result.group for one in reranked]
        named = {f"{one.result.name}_R{top}": mean for one, mean in zip(reranked, means, strict=True)}
        for group in dict.fromkeys(group for group in groups if group is not None):
            members = [mean for mean, of in zip(means, groups, strict=True) if of == group]
            named[f"{group}_R{top}_mean"] = np.mean(members, axis=0)
        stages[stage] |= {
            f"{name}_{metric}": float(value)
            for name, mean in named.items()
            for metric, value in zip(LIST_METRICS, mean, strict=True)
        }
    return stages
