"""A retrieval task as a model sees it: token ids and vectors of both sides, and which weights are on whose words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array

from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.explain import TermShare, term_shares
from splade_lit.evaluation.results import TaskResult, evaluate_vectors
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityStatistics
from splade_lit.evaluation.task_evaluation import Encoder, TokenisedTask


@dataclass(frozen=True)
class EncodedTask:
    """A task and its token ids with its vectors, `[queries, vocab]` and `[documents, vocab]`."""

    tokenised: TokenisedTask
    queries: csr_array
    documents: csr_array

    @property
    def task(self) -> RetrievalTask:
        """The task, its corpus sampled if that was asked for."""
        return self.tokenised.task

    @cached_property
    def document_ids(self) -> list[str]:
        """The id of each row of `documents`."""
        return list(self.task.corpus)

    @property
    def document_lengths(self) -> Int64[np.ndarray, " documents"]:
        """Tokens of each document as the model reads it, special tokens among them."""
        return np.array([len(ids) for ids in self.tokenised.documents], dtype=np.int64)

    @cached_property
    def presence(self) -> csr_array:
        """1 where a document's text, cut to the model's limit, holds a token: `[documents, vocab]`."""
        return token_presence(self.tokenised.documents, self.documents.shape[1])

    @property
    def sparsity(self) -> RetrievalSparsity:
        """In how many queries and in how many documents each dim is active."""
        return RetrievalSparsity(SparsityStatistics.of(self.queries), SparsityStatistics.of(self.documents))

    def is_relevant(self, query_id: str, document_id: str) -> bool:
        """Whether a document answers a query."""
        return self.task.qrels[query_id].get(document_id, 0) > 0

    def explain(self, tokens: Sequence[str], query: int, document: int) -> list[TermShare]:
        """All terms of a query with what they add to the score of a document, the largest share first.

        Query and document are given by their rows; `tokens` has the token of each dim.
        """
        vector = self.queries[[query]]
        weights = self.documents[[document]].toarray()[0, vector.indices]
        names = [tokens[dim] for dim in vector.indices.tolist()]
        return term_shares(vector, weights, names, self.tokenised.documents[document])

    def evaluate(self, documents: csr_array | None = None) -> TaskResult:
        """Figures and ranking of these document vectors, or of others in their place."""
        vectors = self.documents if documents is None else documents
        return evaluate_vectors(self.task, self.tokenised.query_ids, self.queries, self.document_ids, vectors)


def encode_task(encoder: Encoder, task: RetrievalTask, max_documents: int | None = None) -> EncodedTask:
    """Tokenise and encode a task, or a sample of its corpus that keeps all judged documents.

    Raises:
        UserError: no query has a relevant document.
    """
    tokenised = TokenisedTask.of(task, encoder, max_documents)
    queries, documents = tokenised.queries, tokenised.documents
    return EncodedTask(tokenised, encoder.encode_query_tokens(queries), encoder.encode_document_tokens(documents))


def token_presence(token_ids: Sequence[np.ndarray], vocab_size: int) -> csr_array:
    """Which tokens each text holds: float32 ones, `[texts, vocab]`.

    >>> token_presence([np.array([2, 0, 2]), np.array([], dtype=int)], vocab_size=3).toarray()
    array([[1., 0., 1.],
           [0., 0., 0.]], dtype=float32)
    """
    rows = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    columns = np.concatenate([*token_ids, np.empty(0, np.int64)]).astype(np.int64)
    held = csr_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(token_ids), vocab_size))
    return held.astype(np.float32)


def lexical_part(documents: csr_array, presence: csr_array) -> csr_array:
    """The weights on terms of the text, without the expansions: `[documents, vocab]`.

    >>> vectors = csr_array(np.array([[3.0, 1.0, 0.0]], dtype=np.float32))
    >>> lexical_part(vectors, token_presence([np.array([0, 2])], vocab_size=3)).toarray()
    array([[3., 0., 0.]], dtype=float32)
    """
    return csr_array(documents.multiply(presence))


@dataclass(frozen=True)
class MassSplit:
    """Sums of the weights and numbers of the active dims of each document, by whether its text holds the term.

    What is on terms of the text is lexical, the rest expansion; `text_terms` counts the distinct terms of the text.
    """

    lexical_mass: Float64[np.ndarray, " documents"]
    expansion_mass: Float64[np.ndarray, " documents"]
    lexical_dims: Int64[np.ndarray, " documents"]
    expansion_dims: Int64[np.ndarray, " documents"]
    text_terms: Int64[np.ndarray, " documents"]

    @property
    def lexical_mass_share(self) -> Float64[np.ndarray, " active"]:
        """Share of the weight that is on terms of the text, of each document that has any weight."""
        total = self.lexical_mass + self.expansion_mass
        return self.lexical_mass[total > 0] / total[total > 0]

    @property
    def lexical_dims_share(self) -> Float64[np.ndarray, " active"]:
        """Share of the active dims that are terms of the text, of each document that has any."""
        total = self.lexical_dims + self.expansion_dims
        return self.lexical_dims[total > 0] / total[total > 0]

    @property
    def kept_share(self) -> float:
        """Share of the terms of all texts that are active in their document."""
        return float(self.lexical_dims.sum() / max(self.text_terms.sum(), 1))


def split_mass(documents: csr_array, presence: csr_array) -> MassSplit:
    """Split the weights of documents `[documents, vocab]` by whether their text holds the term (`token_presence`)."""
    lexical = lexical_part(documents, presence)
    mass, lexical_mass = (vectors.sum(axis=1).astype(np.float64) for vectors in (documents, lexical))
    dims, lexical_dims, text_terms = (np.diff(rows.indptr).astype(np.int64) for rows in (documents, lexical, presence))
    expansion_mass = np.maximum(mass - lexical_mass, 0.0)
    return MassSplit(lexical_mass, expansion_mass, lexical_dims, dims - lexical_dims, text_terms)
