"""From vectors of a retrieval task to its figures, under the names that sentence-transformers' evaluators give them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.exact_search import TopK, exact_search, string_order
from splade_lit.evaluation.metrics import DEPTH, RankMetrics, rank_metrics
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityStatistics, pooled_sparsity


@dataclass(frozen=True)
class TaskResult:
    """What was measured on a task.

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
) -> TaskResult:
    """Search the documents' vectors with the queries' and measure the ranking by dot product.

    Args:
        task: gives name and judgements.
        query_ids: id of each row of `queries`.
        queries: `[queries, vocab]`.
        document_ids: id of each row of `documents`.
        documents: `[documents, vocab]`.

    Raises:
        UserError: the vectors differ in vocabulary, or a value is not finite.
    """
    top = exact_search(queries, documents, DEPTH, string_order(list(document_ids)))
    run = ranked_run(query_ids, document_ids, top)
    return TaskResult(
        name=task.name,
        group=task.group,
        rank_metrics=rank_metrics(run, task.qrels, task.graded),
        sparsity=RetrievalSparsity(SparsityStatistics.of(queries), SparsityStatistics.of(documents)),
        run=run,
    )


def ranked_run(query_ids: Sequence[str], document_ids: Sequence[str], top: TopK) -> dict[str, dict[str, float]]:
    """Results of a search by ids, best first.

    >>> top = TopK(np.array([[2.5, 1.0]], dtype=np.float32), np.array([[1, 0]], dtype=np.int32))
    >>> ranked_run(["q"], ["a", "b"], top)
    {'q': {'b': 2.5, 'a': 1.0}}
    """
    return {
        query_id: {document_ids[row]: score for row, score in zip(rows, scores, strict=True)}
        for query_id, rows, scores in zip(query_ids, top.documents.tolist(), top.scores.tolist(), strict=True)
    }


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


def _named(name: str, rank: dict[str, float], sparsity: dict[str, float]) -> dict[str, float]:
    return {f"{name}_dot_{metric}": value for metric, value in rank.items()} | {
        f"{name}_{metric}": value for metric, value in sparsity.items()
    }
