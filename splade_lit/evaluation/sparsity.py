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
        active = vectors.data != 0
        rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))[active]
        return cls(
            np.bincount(vectors.indices[active], minlength=vectors.shape[1]).astype(np.int64),
            np.bincount(np.bincount(rows, minlength=vectors.shape[0]), minlength=vectors.shape[1] + 1).astype(np.int64),
        )

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
        """Share of the dims that are active in no row.

        >>> SparsityStatistics.of(csr_array(np.array([[0.0, 2.0], [0.0, 4.0]]))).dead_dims_ratio
        0.5
        """
        return float((self.row_frequencies == 0).mean())

    @property
    def sorted_row_sizes(self) -> Int64[np.ndarray, " rows"]:
        """Active dims of each row, ascending.

        >>> SparsityStatistics.of(csr_array(np.array([[3.0, 4.0], [0.0, 2.0]]))).sorted_row_sizes
        array([1, 2])
        """
        return np.repeat(np.arange(len(self.row_sizes)), self.row_sizes)

    def quantile(self, share: float) -> int:
        """The smallest number of active dims that at least this share of the rows stays within; 0.5 is the median."""
        return int(np.searchsorted(np.cumsum(self.row_sizes), share * self.num_rows))

    def histogram(self, bins: int = 20) -> tuple[Int64[np.ndarray, " bins"], np.ndarray]:
        """`numpy.histogram` of the rows' active dims: counts `[bins]` and edges `[bins + 1]`."""
        sizes = np.flatnonzero(self.row_sizes)
        counts, edges = np.histogram(sizes, bins=bins, weights=self.row_sizes[sizes])
        return counts.astype(np.int64), edges

    def most_frequent(self, n: int) -> list[tuple[int, float]]:
        """The n dims that are active in most rows, with the share of the rows; of equal ones the lower dim first.

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
    shares = [
        torch.from_numpy(side.row_frequencies.astype(np.float32)) / max(side.num_rows, 1) for side in (queries, corpus)
    ]
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
    """The figures of several tasks together, every query and document counted once.

    Args:
        tasks: at least one, all over one vocabulary.
    """
    queries = sum((task.queries for task in tasks[1:]), tasks[0].queries)
    corpus = sum((task.corpus for task in tasks[1:]), tasks[0].corpus)
    weights = {
        "query": [task.queries.num_rows for task in tasks],
        "corpus": [task.corpus.num_rows for task in tasks],
    }
    # Means of the tasks' figures, as sentence-transformers takes them: figures of the sums differ in the eighth digit.
    pooled = {
        name: float(np.average([task.metrics[name] for task in tasks], weights=weights[name.partition("_")[0]]))
        for name in tasks[0].metrics
        if name != "avg_flops"
    }
    return pooled | {"avg_flops": expected_flops(queries, corpus)}


class SparsityMetrics(Metric):
    """Sparsity of queries and documents that come in parts: batches, or one share of them a device.

    Args:
        vocab_size: dims of a vector.
    """

    full_state_update = False

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        for side in ("queries", "corpus"):
            self.add_state(f"{side}_frequencies", torch.zeros(vocab_size, dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sizes", torch.zeros(vocab_size + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, queries: csr_array | None = None, documents: csr_array | None = None) -> None:
        """Add queries, documents or both, each `[rows, vocab]`."""
        for side, vectors in (("queries", queries), ("corpus", documents)):
            if vectors is not None:
                statistics = SparsityStatistics.of(vectors)
                self._state(f"{side}_frequencies").add_(torch.from_numpy(statistics.row_frequencies).to(self.device))
                self._state(f"{side}_sizes").add_(torch.from_numpy(statistics.row_sizes).to(self.device))

    def compute(self) -> dict[str, float]:
        """The figures so far, under sentence-transformers' names."""
        return self.statistics.metrics

    @property
    def statistics(self) -> RetrievalSparsity:
        """The counts so far, of this process alone unless the metric is merged (`core.distributed.merge`)."""
        queries, corpus = (
            SparsityStatistics(
                self._state(f"{side}_frequencies").cpu().numpy(), self._state(f"{side}_sizes").cpu().numpy()
            )
            for side in ("queries", "corpus")
        )
        return RetrievalSparsity(queries, corpus)

    def _state(self, name: str) -> Tensor:
        state = getattr(self, name)
        assert isinstance(state, Tensor)
        return state
