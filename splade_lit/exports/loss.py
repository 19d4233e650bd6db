"""What a format costs: nDCG@10 of vectors as they are, and as the format has them."""

from collections.abc import Callable
from dataclasses import dataclass

from scipy.sparse import csr_array, vstack

from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query_side import QuerySide
from splade_lit.engines.documents import Documents
from splade_lit.evaluation.results import evaluate_vectors
from splade_lit.evaluation.task_evaluation import judged_query_ids

Change = Callable[[csr_array], csr_array]
"""Vectors as a format has them."""


@dataclass(frozen=True)
class TaskVectors:
    """A task with its vectors: queries and documents, in the order of these ids."""

    task: RetrievalTask
    query_ids: tuple[str, ...]
    queries: csr_array
    document_ids: list[str]
    documents: csr_array

    @classmethod
    def of_export(cls, task: RetrievalTask, side: QuerySide, documents: Documents) -> "TaskVectors | None":
        """The vectors that are exported, if they are those of the task's corpus."""
        if documents.num_documents != len(task.corpus):
            return None
        ids: list[str] = []
        parts = []
        for some, vectors, _ in documents.parts():
            if not all(id in task.corpus for id in some):
                return None
            ids += some
            parts.append(vectors)
        return cls(*_queries(task, side), ids, csr_array(vstack(parts, format="csr")))

    @classmethod
    def encoded(cls, task: RetrievalTask, side: QuerySide, encoder: AsymmetricSparseEncoder) -> "TaskVectors":
        """Vectors that an encoder makes now."""
        texts = list(task.corpus.values())
        documents = encoder.encode_document(texts, show_progress_bar=True, convert_to_csr=True)
        return cls(*_queries(task, side), list(task.corpus), documents)

    def loss(self, documents: Change, queries: Change) -> tuple[float, float]:
        """nDCG@10 with the vectors as they are, and changed; a UserError says that they are not finite."""
        before = self._ndcg(self.queries, self.documents)
        return before, self._ndcg(queries(self.queries), documents(self.documents))

    def _ndcg(self, queries: csr_array, documents: csr_array) -> float:
        result = evaluate_vectors(self.task, self.query_ids, queries, self.document_ids, documents)
        return result.metrics["ndcg@10"]


def _queries(task: RetrievalTask, side: QuerySide) -> tuple[RetrievalTask, tuple[str, ...], csr_array]:
    ids = judged_query_ids(task)
    return task, ids, side.encode([task.queries[id] for id in ids])


def loss_line(name: str, before: float, after: float) -> str:
    """A loss in words.

    >>> loss_line("NFCorpus", 0.32, 0.3195)
    'NFCorpus nDCG@10: float32 0.3200, as written 0.3195 (-0.0005)'
    """
    return f"{name} nDCG@10: float32 {before:.4f}, as written {after:.4f} ({after - before:+.4f})"
