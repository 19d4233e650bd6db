"""How sparse vectors are, and what that costs a search engine.

Counts of rows are all that is kept, so statistics of parts of a corpus, or of shares of it on several devices, add up
to those of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from scipy.sparse import csr_array
from torch import Tensor
from torchmetrics import Metric


@dataclass(frozen=True)
class SparsityStatistics:
    """Counts over rows of vectors; `a + b` is what both have together.

    Attributes:
        row_frequencies: rows in which each dim is active (document frequencies, where the rows are documents).
        row_sizes: rows with 0, 1, 2, ... active dims.
    """

    row_frequencies: Int64[np.ndarray, " vocab"]
    row_sizes: Int64[np.ndarray, " vocab_plus_1"]

    @classmethod
    def of(cls, vectors: csr_array) -> "SparsityStatistics":
        """Statistics of vectors `[rows, vocab]`; zeros that are stored are not active.

        >>> SparsityStatistics.of(csr_array(np.array([[0.0, 2.0], [3.0, 4.0]]))).row_frequencies
        array([1, 2])
        """
        sizes = np.bincount(vectors.count_nonzero(axis=1), minlength=vectors.shape[1] + 1)
        return cls(vectors.count_nonzero(axis=0), sizes)

    def __add__(self, other: "SparsityStatistics") -> "SparsityStatistics":
        return SparsityStatistics(self.row_frequencies + other.row_frequencies, self.row_sizes + other.row_sizes)

    @property
    def num_rows(self) -> int:
        """Rows counted."""
        return int(self.row_sizes.sum())

    @property
    def active_dims(self) -> float:
        """Mean number of active dims a row, 0 without rows.

        >>> SparsityStatistics.of(csr_array(np.array([[0.0, 2.0], [3.0, 4.0]]))).active_dims
        1.5
        """
        # In float32, as sentence-transformers takes this mean, so that published figures compare digit by digit.
        return float(np.float32(self.row_frequencies.sum()) / np.float32(max(self.num_rows, 1)))

    @property
    def sparsity_ratio(self) -> float:
        """Mean share of the dims that are not active."""
        return 1.0 - self.active_dims / max(len(self.row_frequencies), 1)

    @property
    def dead_dims_ratio(self) -> float:
        """Share of the dims that are active in no row."""
        return float((self.row_frequencies == 0).mean())

    @property
    def sorted_row_sizes(self) -> Int64[np.ndarray, " rows"]:
        """Active dims of each row, ascending."""
        return np.repeat(np.arange(len(self.row_sizes)), self.row_sizes)

    def quantile(self, share: float) -> int:
        """The smallest number of active dims that at least this share of the rows stays within; 0.5 is the median."""
        return int(np.searchsorted(np.cumsum(self.row_sizes), share * self.num_rows))

    def most_frequent(self, n: int) -> list[tuple[int, float]]:
        """The n dims that are active in most rows, with the share of the rows; lower dims first where shares are equal.

        >>> SparsityStatistics.of(csr_array(np.array([[0.0, 2.0], [3.0, 4.0]]))).most_frequent(2)
        [(1, 1.0), (0, 0.5)]
        """
        dims = np.argsort(-self.row_frequencies, kind="stable")[:n]
        return [(int(dim), float(self.row_frequencies[dim] / self.num_rows)) for dim in dims]


def expected_flops(queries: SparsityStatistics, corpus: SparsityStatistics) -> float:
    """The mean number of dims that a query and a document have in common: `sum_j p_q(j) p_d(j)`.

    `p(j)` is the share of rows in which dim j is active (Formal et al. 2021, SPLADE). Not to be confused with the FLOPS
    penalty, which is taken over activations. 0 without queries or documents.

    >>> queries = SparsityStatistics.of(csr_array(np.array([[0.0, 1.0]])))
    >>> corpus = SparsityStatistics.of(csr_array(np.array([[0.0, 2.0], [3.0, 0.0]])))
    >>> expected_flops(queries, corpus)
    0.5
    """
    # torch's float32, as in sentence-transformers: the same digits.
    shares = (torch.from_numpy(side.row_frequencies).float() / max(side.num_rows, 1) for side in (queries, corpus))
    return float(torch.dot(*shares))


@dataclass(frozen=True)
class RetrievalSparsity:
    """Both sides of a retrieval task."""

    queries: SparsityStatistics
    corpus: SparsityStatistics

    @property
    def metrics(self) -> dict[str, float]:
        """The figures under sentence-transformers' names."""
        return {
            "query_active_dims": self.queries.active_dims,
            "query_sparsity_ratio": self.queries.sparsity_ratio,
            "corpus_active_dims": self.corpus.active_dims,
            "corpus_sparsity_ratio": self.corpus.sparsity_ratio,
            "avg_flops": expected_flops(self.queries, self.corpus),
        }


def pooled_sparsity(tasks: Sequence[RetrievalSparsity]) -> dict[str, float]:
    """The figures of several tasks over one vocabulary, one at least, together: every query and document counts once.

    They are means of the tasks' figures, as in sentence-transformers: figures of the sums differ in the eighth digit.
    """
    figures = [task.metrics for task in tasks]
    rows = {"query": [task.queries.num_rows for task in tasks], "corpus": [task.corpus.num_rows for task in tasks]}
    pooled = {
        name: float(np.average([one[name] for one in figures], weights=rows[name.partition("_")[0]]))
        for name in figures[0]
        if name != "avg_flops"
    }
    queries, corpus = (sum(side[1:], side[0]) for side in ([t.queries for t in tasks], [t.corpus for t in tasks]))
    return pooled | {"avg_flops": expected_flops(queries, corpus)}


class SparsityMetrics(Metric):
    """Sparsity of queries and documents that come in parts: batches, or one share of them a device.

    Args:
        vocab_size: dims of a vector.
    """

    full_state_update = False
    queries: Tensor
    corpus: Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        for side in ("queries", "corpus"):  # rows in which each dim is active, then rows of each size
            self.add_state(side, torch.zeros(2 * vocab_size + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, queries: csr_array, documents: csr_array) -> None:
        """Add queries and documents, each `[rows, vocab]`."""
        for state, vectors in ((self.queries, queries), (self.corpus, documents)):
            counts = SparsityStatistics.of(vectors)
            state += torch.from_numpy(np.concatenate([counts.row_frequencies, counts.row_sizes]))

    def compute(self) -> dict[str, float]:
        """The figures so far, under sentence-transformers' names."""
        return self.statistics.metrics

    @property
    def statistics(self) -> RetrievalSparsity:
        """The counts so far, of this process alone unless the metric is merged (`core.distributed.merge`)."""
        sides = (np.split(state.numpy(), [len(state) // 2]) for state in (self.queries, self.corpus))
        return RetrievalSparsity(*(SparsityStatistics(*counts) for counts in sides))
