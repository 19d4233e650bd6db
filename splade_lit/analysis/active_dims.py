"""How many dims are active, which ones, and what quality they buy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array

from splade_lit.analysis.encoded import EncodedTask
from splade_lit.encoder.rows import keep_largest
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityStatistics, expected_flops

OVERUSED_SHARE = 0.2
LIMITS = (4, 8, 16, 32, 64, 128, 256)


def row_sizes(vectors: csr_array) -> Int64[np.ndarray, " rows"]:
    """Active dims of each row of vectors without stored zeros, `[rows, vocab]`."""
    return np.diff(vectors.indptr).astype(np.int64)


@dataclass(frozen=True)
class LengthBin:
    """Documents of like length, in tokens, and active dims that 10, 50 and 90 % of them stay within."""

    shortest: int
    longest: int
    num_documents: int
    p10: float
    median: float
    p90: float


def active_dims_by_length(
    lengths: Int64[np.ndarray, " documents"], sizes: Int64[np.ndarray, " documents"], bins: int = 8
) -> list[LengthBin]:
    """Quantiles of active dims (`sizes`) by document length, in bins of about as many documents each.

    Documents of one length stay in one bin, so there may be fewer bins.

    >>> active_dims_by_length(np.array([5, 9]), np.array([10, 40]), bins=2)[1]
    LengthBin(shortest=9, longest=9, num_documents=1, p10=40.0, median=40.0, p90=40.0)
    """
    if not len(lengths):
        return []
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    # A cut falls on the first document of its length.
    cuts = np.unique(np.searchsorted(ordered, ordered[np.arange(bins) * len(ordered) // bins]))
    result = []
    for rows in np.split(order, cuts[1:]):
        shortest, longest = int(lengths[rows[0]]), int(lengths[rows[-1]])
        quantiles = np.quantile(sizes[rows], (0.1, 0.5, 0.9)).tolist()
        result.append(LengthBin(shortest, longest, len(rows), *quantiles))
    return result


def unanswered(sparsity: RetrievalSparsity) -> Int64[np.ndarray, " dims"]:
    """Dims that are active in a query and in no document, those of most queries first."""
    queries = sparsity.queries.row_frequencies
    dims = np.flatnonzero((sparsity.corpus.row_frequencies == 0) & (queries > 0))
    return dims[np.argsort(-queries[dims], kind="stable")]


def overused(documents: SparsityStatistics, share: float = OVERUSED_SHARE) -> int:
    """How many dims are active in more than this share of the documents."""
    return int((documents.row_frequencies > share * documents.num_rows).sum())


def postings_per_query(sparsity: RetrievalSparsity) -> float:
    """Postings that the average query reads."""
    return expected_flops(sparsity.queries, sparsity.corpus) * sparsity.corpus.num_rows


@dataclass(frozen=True)
class CurvePoint:
    """nDCG@10 where a document keeps `max_active_dims` weights at most (None: all), with its mean active dims.

    `flops` is the mean number of dims that a query and a document have in common.
    """

    max_active_dims: int | None
    active_dims: float
    ndcg: float
    flops: float


def pruning_curve(encoded: EncodedTask, limits: Sequence[int] = LIMITS) -> list[CurvePoint]:
    """Quality at each limit of active dims that cuts a document, in ascending order, and that of the whole vectors."""
    largest = int(row_sizes(encoded.documents).max(initial=0))
    points = []
    for limit in [*sorted(limit for limit in limits if limit < largest), None]:
        metrics = encoded.evaluate(keep_largest(encoded.documents, limit)).metrics
        points.append(CurvePoint(limit, metrics["corpus_active_dims"], metrics["ndcg@10"], metrics["avg_flops"]))
    return points


def cheapest_point(points: Sequence[CurvePoint], kept: float = 0.99) -> CurvePoint:
    """The first point that keeps this share of the quality of the whole vectors, the last point."""
    return next(point for point in points if point.ndcg >= kept * points[-1].ndcg)
