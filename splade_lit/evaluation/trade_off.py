"""What pruning documents saves and what it costs: a model at many limits, from vectors that are made once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splade_lit.core.progress import WorkProgress
from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.rows import prune_documents
from splade_lit.evaluation.paired_tests import ALPHA, paired_tests
from splade_lit.evaluation.results import TaskResult, evaluate_vectors
from splade_lit.evaluation.task_evaluation import Encoder, TokenisedTask

METRIC = "ndcg@10"
BYTES_PER_POSTING = 8  # 4 for the document, 4 for the weight, as exact search here holds them


@dataclass(frozen=True)
class PrunedFigures:
    """A task at a limit.

    Attributes:
        ndcg: mean nDCG@10.
        loss: how much less that is than with whole vectors.
        p: of the randomisation test that there is no difference to whole vectors, two-sided; of this limit alone.
        active_dims: mean active dims of a document.
        largest: active dims of the document that has most.
        flops: dims that a query and a document have in common, on average.
        postings: active dims of all documents together.
        empty: documents that have none left.
    """

    ndcg: float
    loss: float
    p: float
    active_dims: float
    largest: int
    flops: float
    postings: int
    empty: int

    @property
    def worse(self) -> bool:
        """Whether the loss is more than chance."""
        return self.loss > 0 and self.p < ALPHA

    @property
    def index_mb(self) -> float:
        """Size of an index of posting lists, in MB."""
        return self.postings * BYTES_PER_POSTING / 1e6


@dataclass(frozen=True)
class Limit:
    """A limit and its figures on each task, by name."""

    pruning: Pruning
    figures: Mapping[str, PrunedFigures]

    @property
    def postings(self) -> int:
        """Active dims of the documents of all tasks."""
        return sum(one.postings for one in self.figures.values())


def trade_off(
    encoder: Encoder,
    tasks: Sequence[RetrievalTask],
    prunings: Sequence[Pruning],
    max_corpus_documents: int | None = None,
    show_progress_bar: bool = False,
) -> list[Limit]:
    """Whole vectors, the first, and each of these limits on each task.

    Args:
        encoder: gives whole vectors of documents.
        tasks: what to measure on; only one is in memory at a time.
        prunings: limits of documents; those of queries are the encoder's.
        max_corpus_documents: take a sample of each corpus.
        show_progress_bar: show how much of each corpus is encoded.

    Raises:
        UserError: no query of a task has a relevant document, or the model's vectors are not finite.
    """
    prunings = [Pruning(), *(one for one in dict.fromkeys(prunings) if one != Pruning())]
    by_task = {}
    for task in tasks:
        tokenised = TokenisedTask.of(task, encoder, max_corpus_documents)
        by_task[task.name] = _at_limits(encoder, tokenised, prunings, show_progress_bar)
    rows = zip(*by_task.values(), strict=True)
    return [Limit(one, dict(zip(by_task, row, strict=True))) for one, row in zip(prunings, rows, strict=True)]


def choose(limits: Sequence[Limit], within: float | None) -> Limit:
    """The limit with the smallest index that costs no more than this of nDCG@10 on any task.

    Args:
        limits: whole vectors first, which cost nothing.
        within: the loss that is borne; None takes losses that could be chance, however large.
    """
    borne = [
        limit
        for limit in limits
        if all(not one.worse if within is None else one.loss <= within for one in limit.figures.values())
    ]
    return min(borne, key=lambda limit: limit.postings)


def _at_limits(
    encoder: Encoder, tokenised: TokenisedTask, prunings: Sequence[Pruning], show_progress_bar: bool
) -> list[PrunedFigures]:
    name, count = tokenised.task.name, len(tokenised.documents)
    with WorkProgress(f"encoding {name}", "documents", count, show=show_progress_bar) as progress:
        documents = encoder.encode_document_tokens(tokenised.documents, on_batch=progress.advance)
    queries, document_ids = encoder.encode_query_tokens(tokenised.queries), list(tokenised.task.corpus)
    figures, whole = [], None
    with WorkProgress(f"searching {name}", "limits", len(prunings), show=show_progress_bar) as progress:
        for pruning in prunings:
            kept = prune_documents(documents, pruning)
            result = evaluate_vectors(tokenised.task, tokenised.query_ids, queries, document_ids, kept)
            whole = whole or result
            figures.append(_figures(result, whole))
            progress.advance(1)
    return figures


def _figures(result: TaskResult, whole: TaskResult) -> PrunedFigures:
    """The figures of a ranking beside that of whole vectors, of the same queries."""
    values = result.rank_metrics.per_query[METRIC] - whole.rank_metrics.per_query[METRIC]
    sizes = result.sparsity.corpus.row_sizes
    return PrunedFigures(
        ndcg=result.metrics[METRIC],
        loss=whole.metrics[METRIC] - result.metrics[METRIC],
        p=paired_tests(values)[1],
        active_dims=result.sparsity.corpus.active_dims,
        largest=int(np.flatnonzero(sizes).max(initial=0)),
        flops=result.metrics["avg_flops"],
        postings=int(result.sparsity.corpus.row_frequencies.sum()),
        empty=int(sizes[0]),
    )
