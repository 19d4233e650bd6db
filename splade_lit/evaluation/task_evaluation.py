"""Evaluation of an encoder on retrieval tasks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.distributed import rank, share
from splade_lit.core.errors import UserError
from splade_lit.core.progress import WorkProgress
from splade_lit.core.tokenisation import Tokenisation
from splade_lit.data.tasks import RetrievalTask, sampled_ids
from splade_lit.evaluation.measures import check_judged, measure_names
from splade_lit.evaluation.results import TaskResult, evaluate_vectors, flat_metrics

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """An encoder as evaluation needs it, such as `AsymmetricSparseEncoder`."""

    tokenisation: Tokenisation

    def encode_query_tokens(self, token_ids: Sequence[np.ndarray]) -> csr_array:
        """Query vectors `[queries, vocab]` from distinct token ids."""

    def encode_document_tokens(
        self, token_ids: Sequence[np.ndarray], *, on_batch: Callable[[int], None] | None = None
    ) -> csr_array:
        """Document vectors `[documents, vocab]` from token ids; `on_batch` gets the size of each batch."""


@dataclass(frozen=True)
class TokenisedTask:
    """A task with its texts as token ids: made once, evaluated many times while the model changes.

    Attributes:
        task: the task, its corpus sampled if asked for.
        query_ids: the queries that have a relevant document.
        queries: distinct token ids of each.
        documents: token ids of each document, in the order of the task's corpus.
    """

    task: RetrievalTask
    query_ids: tuple[str, ...]
    queries: list[np.ndarray]
    documents: list[np.ndarray]

    @classmethod
    def of(cls, task: RetrievalTask, encoder: Encoder, max_corpus_documents: int | None = None) -> "TokenisedTask":
        """Tokenise a task, or a sample of it (see `sample_corpus`), with an encoder's tokenizer, prompts and limits.

        Raises:
            UserError: no query has a relevant document.
        """
        task = sample_corpus(task, max_corpus_documents) if max_corpus_documents is not None else task
        query_ids = judged_query_ids(task)
        queries = encoder.tokenisation.queries([task.queries[query_id] for query_id in query_ids])
        return cls(task, query_ids, queries, encoder.tokenisation.documents(list(task.corpus.values())))


def judged_query_ids(task: RetrievalTask) -> tuple[str, ...]:
    """The queries that have a relevant document, in the corpus or not.

    Raises:
        UserError: there are none.
    """
    judged = tuple(one for one in task.queries if any(grade > 0 for grade in task.qrels.get(one, {}).values()))
    if not judged:
        raise UserError(f"{task.name}: no query has a relevant document; check that its qrels name the queries' ids.")
    return judged


def sample_corpus(task: RetrievalTask, max_documents: int, seed: int = 0) -> RetrievalTask:
    """The task with all judged documents of its corpus and, up to `max_documents`, others drawn by chance.

    Figures on a sample are higher than those on the whole corpus; they compare with one another.
    """
    judged = {document_id for grades in task.qrels.values() for document_id in grades}
    kept = sampled_ids(list(task.corpus), judged, max_documents, seed)
    if len(kept) == len(task.corpus):
        return task
    return replace(task, corpus={document_id: text for document_id, text in task.corpus.items() if document_id in kept})


def without_own_documents(tasks: Sequence[RetrievalTask], setting: bool | None) -> list[RetrievalTask]:
    """The tasks, and a line in the log on each whose queries are documents too.

    Args:
        tasks: any tasks.
        setting: leave the document with a query's own id out of its ranking; as each task has it if not given.
    """
    if setting is not None:
        tasks = [replace(task, leave_out_queries=setting) for task in tasks]
    for task in tasks:
        if shared := len(task.own_ids):
            does = "is left out of its own ranking, as in BEIR" if task.leave_out_queries else "can find itself"
            logger.warning("%s: %d queries have the id of a document; each %s.", task.name, shared, does)
    return list(tasks)


def with_measures(tasks: Sequence[RetrievalTask], measures: Sequence[str]) -> list[RetrievalTask]:
    """The tasks, on which measures of these names are computed too (see `measure_names`).

    Raises:
        UserError: a measure cannot be computed here, or a task has no judgement of a grade that it counts.
    """
    names = measure_names(measures)
    measured = [replace(task, measures=names) for task in tasks]
    check_judged(measured)
    return measured


def evaluate_task(
    encoder: Encoder, task: RetrievalTask | TokenisedTask, *, show_progress_bar: bool = False
) -> TaskResult:
    """Encode queries and corpus, search exactly, and measure.

    Where a run has several processes, all must call this: each encodes its share of the corpus, and all get the result.

    Args:
        encoder: the model.
        task: a `TokenisedTask` is not tokenised again.
        show_progress_bar: show how much of the corpus is encoded.

    Raises:
        UserError: no query has a relevant document, or the model's vectors are not finite.
    """
    tokenised = task if isinstance(task, TokenisedTask) else TokenisedTask.of(task, encoder)
    name, mine = tokenised.task.name, tokenised.documents[share()]
    with WorkProgress(f"encoding {name}", "documents", len(mine), show=show_progress_bar and rank() == 0) as progress:
        documents = encoder.encode_document_tokens(mine, on_batch=progress.advance)
    queries, document_ids = encoder.encode_query_tokens(tokenised.queries), list(tokenised.task.corpus)
    return evaluate_vectors(tokenised.task, tokenised.query_ids, queries, document_ids, documents, share())


def evaluate_tasks(
    encoder: Encoder, tasks: Sequence[RetrievalTask | TokenisedTask], *, show_progress_bar: bool = False
) -> dict[str, float]:
    """Figures of tasks and of their groups by full name: `NanoNQ_dot_ndcg@10`, `NanoBEIR_mean_dot_ndcg@10`."""
    return flat_metrics([evaluate_task(encoder, task, show_progress_bar=show_progress_bar) for task in tasks])
