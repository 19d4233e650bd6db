"""The query table before and after learning, and against the frequencies of a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64
from scipy.stats import spearmanr

from splade_lit.analysis.encoded import EncodedTask
from splade_lit.analysis.subject import Subject, initial_encoder, query_weights, training_data
from splade_lit.core.errors import UserError
from splade_lit.evaluation.sparsity import SparsityStatistics


@dataclass(frozen=True)
class CorpusWeights:
    """The query weight of each token, and how many documents of a corpus, called `corpus`, hold it in their text."""

    weights: Float32[np.ndarray, " vocab"]
    document_frequencies: Int64[np.ndarray, " vocab"]
    num_documents: int
    corpus: str

    @property
    def seen(self) -> Bool[np.ndarray, " vocab"]:
        """Whether the corpus holds the token."""
        return self.document_frequencies > 0

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of weight and document frequency over the corpus's tokens; not a number if all are equal."""
        weights, frequencies = self.weights[self.seen], self.document_frequencies[self.seen]
        if min(len(set(weights.tolist())), len(set(frequencies.tolist()))) < 2:
            return float("nan")
        return float(spearmanr(weights, frequencies).statistic)


@dataclass(frozen=True)
class TableChange:
    """The query table of a run at its start and at its end.

    Attributes:
        before: query weights at the start.
        after: query weights at the end.
        query_frequencies: training queries that hold each token; no other weight can move.
        document_frequencies: training documents that hold each token.
        num_documents: training documents.
    """

    before: Float32[np.ndarray, " vocab"]
    after: Float32[np.ndarray, " vocab"]
    query_frequencies: Int64[np.ndarray, " vocab"]
    document_frequencies: Int64[np.ndarray, " vocab"]
    num_documents: int

    @property
    def learned(self) -> Bool[np.ndarray, " vocab"]:
        """Whether a training query holds the token."""
        return self.query_frequencies > 0

    @property
    def corpus_weights(self) -> CorpusWeights:
        """The learned weights beside the training documents' frequencies."""
        return CorpusWeights(self.after, self.document_frequencies, self.num_documents, "training documents")


@dataclass(frozen=True)
class Move:
    """The query weight of a token before and after learning; training queries and documents that hold the token."""

    token: str
    before: float
    after: float
    queries: int
    documents: int


def table_change(subject: Subject) -> TableChange:
    """The query table of a run before and after learning.

    The table that the run started from is not kept; it is made again from the run's settings and training data, and
    checked: tokens that no training query holds must have kept their weight.

    Raises:
        UserError: there is no run, its training data cannot be read any more, or they are no longer the same.
    """
    data = training_data(subject)
    vocab_size = subject.encoder.vocab_size
    change = TableChange(
        before=query_weights(initial_encoder(subject, data)),
        after=query_weights(subject.encoder),
        query_frequencies=data.queries.document_frequencies(data.train_rows, vocab_size),
        document_frequencies=data.document_frequencies(vocab_size),
        num_documents=data.num_documents,
    )
    unlearned = ~change.learned
    if not np.allclose(change.before[unlearned], change.after[unlearned], rtol=1e-4, atol=1e-6):
        raise UserError(
            f"The query weights that {subject.name} started from cannot be made again: its training data or its "
            "idf.json have changed since."
        )
    return change


def biggest_moves(change: TableChange, tokens: Sequence[str], n: int) -> tuple[list[Move], list[Move]]:
    """The n weights that have risen most and the n that have fallen most, the largest move first; none that stayed."""
    difference = change.after.astype(np.float64) - change.before
    order = np.argsort(-difference, kind="stable").tolist()
    columns = change.before, change.after, change.query_frequencies, change.document_frequencies

    def move(dim: int) -> Move:
        return Move(tokens[dim], *(column[dim].item() for column in columns))

    rises = [move(dim) for dim in order[:n] if difference[dim] > 0]
    return rises, [move(dim) for dim in order[::-1][:n] if difference[dim] < 0]


def weights_in_corpus(subject: Subject, encoded: EncodedTask) -> CorpusWeights:
    """The query table beside the frequencies of a task's corpus, as the model reads its texts."""
    statistics = SparsityStatistics.of(encoded.presence)
    frequencies = statistics.row_frequencies
    added = np.asarray(subject.encoder.tokenizer("")["input_ids"], dtype=np.int64)
    frequencies[added[added < len(frequencies)]] = 0  # special tokens, which every document has
    weights = query_weights(subject.encoder)
    return CorpusWeights(weights, frequencies, statistics.num_rows, f"documents of {encoded.task.name}")
