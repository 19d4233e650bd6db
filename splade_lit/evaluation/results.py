"""From vectors of a retrieval task to its figures, under the names that sentence-transformers' evaluators give them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.distributed import merge, share
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.exact_search import SearchIndex, string_order
from splade_lit.evaluation.measures import search_depth
from splade_lit.evaluation.metric_names import shown_name
from splade_lit.evaluation.metrics import RankMetrics, RetrievalMetrics, rank_metrics
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityMetrics, pooled_sparsity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskResult:
    """The ranking of a task and all figures of it.

    Attributes:
        name: the task's name.
        group: the task's group.
        rank_metrics: rank metrics, query by query.
        sparsity: counts of active dims of queries and corpus.
        run: query id to the scores of its best documents, best first.
    """

    name: str
    group: str | None
    rank_metrics: RankMetrics
    sparsity: RetrievalSparsity
    run: dict[str, dict[str, float]]

    @property
    def metrics(self) -> dict[str, float]:
        """All figures under plain names: `ndcg@10`, `corpus_active_dims`."""
        return self.rank_metrics.means | self.sparsity.metrics

    @property
    def named_metrics(self) -> dict[str, float]:
        """All figures under full names: `NanoNQ_dot_ndcg@10`, `NanoNQ_corpus_active_dims`."""
        return _named(self.name, self.rank_metrics.means, self.sparsity.metrics)


def evaluate_vectors(
    task: RetrievalTask,
    query_ids: Sequence[str],
    queries: csr_array,
    document_ids: Sequence[str],
    documents: csr_array,
    rows: slice = slice(None),
) -> TaskResult:
    """Search the documents' vectors with the queries' and measure the ranking by dot product.

    Where a run has several processes, each calls this with its share of the documents, and all get the same result.

    Args:
        task: gives name, judgements, and which queries are left out of their own ranking.
        query_ids: id of each row of `queries`.
        queries: `[queries, vocab]`.
        document_ids: ids of the whole corpus.
        documents: `[documents, vocab]`, those of `document_ids[rows]`.
        rows: which documents these are.

    Raises:
        UserError: the vectors differ in vocabulary, or a value is not finite.
    """
    order = string_order(list(document_ids))[rows]
    ranking = RetrievalMetrics(task, query_ids, sorted(document_ids))
    sparsity = SparsityMetrics(queries.shape[1])
    top = SearchIndex(documents, order).search(queries, ranking.depth + 1)
    ranking.update(top.scores, order[top.documents])
    sparsity.update(queries[share()], documents)
    for metric in (ranking, sparsity):
        merge(metric)
    run = ranking.run
    metrics = rank_metrics(run, task.qrels, task.graded, task.measures)
    result = TaskResult(task.name, task.group, metrics, sparsity.statistics, run)
    _warn_of_unmatched(task, result)
    return result


def _warn_of_unmatched(task: RetrievalTask, result: TaskResult) -> None:
    """Say where a relevant document that shares no term with its query is found by its id alone.

    Looked at are the first ten documents, and as many as measures look at.
    """
    run, query_ids = result.run, result.rank_metrics.query_ids
    depth = search_depth(task.measures, least=10)
    credited = sum(
        any(score == 0 and task.qrels[query_id].get(id, 0) > 0 for id, score in list(run[query_id].items())[:depth])
        for query_id in query_ids
    )
    if not credited:
        return
    matched = {query_id: {id: score for id, score in hits.items() if score} for query_id, hits in run.items()}
    without, found = rank_metrics(matched, task.qrels, task.graded, task.measures).means, result.metrics
    looked_at = ("ndcg@10", *task.measures)
    changed = [name for name in looked_at if f"{without[name]:.4f}" != f"{found[name]:.4f}"] or ["ndcg@10"]
    logger.warning(
        "%s: for %d of %d queries a relevant document counts as found that shares no term with the query: it "
        "scores 0 and comes early by its id, as in sentence-transformers. Without these %s.",
        task.name,
        credited,
        len(query_ids),
        ", ".join(f"{shown_name(name)} is {without[name]:.4f}, not {found[name]:.4f}" for name in changed),
    )


def flat_metrics(results: Sequence[TaskResult], one_vocabulary: bool = True) -> dict[str, float]:
    """The figures of all tasks and, for each group, `{group}_mean_...`.

    A group's rank metrics are the plain means of its tasks; its sparsity counts every query and document once, and is
    left out where the tasks' vectors have different vocabularies.

    Args:
        results: of one encoder.
        one_vocabulary: whether a dim means the same in all tasks; if not, vectors of like size are different too.
    """
    flat: dict[str, float] = {}
    for result in results:
        flat |= result.named_metrics
    for group in dict.fromkeys(result.group for result in results if result.group is not None):
        members = [result for result in results if result.group == group]
        means = [member.rank_metrics.means for member in members]
        sizes = {len(member.sparsity.corpus.row_frequencies) for member in members}
        flat |= _named(
            f"{group}_mean",
            {metric: float(np.mean([mean[metric] for mean in means])) for metric in means[0]},
            pooled_sparsity([member.sparsity for member in members]) if one_vocabulary and len(sizes) == 1 else {},
        )
    return flat


def figure_names(tasks: Sequence[RetrievalTask]) -> set[str]:
    """The full names of all figures that `flat_metrics` gives of tasks, before they are measured."""
    names = set()
    for task in tasks:
        rank = rank_metrics({}, {}, measures=task.measures).per_query
        figures = _named("", rank, SparsityMetrics(1).statistics.metrics)
        of = [task.name, *([f"{task.group}_mean"] if task.group else [])]
        names |= {f"{name}{figure}" for name in of for figure in figures}
    return names


def _named(name: str, rank: Mapping[str, Any], sparsity: Mapping[str, float]) -> dict[str, Any]:
    return {f"{name}_dot_{metric}": value for metric, value in rank.items()} | {
        f"{name}_{metric}": value for metric, value in sparsity.items()
    }
