"""An exact index whose documents are cut to their largest weights as it is searched: any cap, and no other index."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt16
from scipy.sparse import csr_array

from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit
from splade_lit.engines.limits import check_queries
from splade_lit.engines.segments import Segment, best_hits

_POSTINGS_AT_ONCE = 1 << 22
_PARTS = 16  # at most some twice as many: each looks through all postings
_MOST_RANKS = (1 << 16) - 1


class CappedIndex:
    """Searches as an index of `keep_largest(vectors, cap)` would, to the last bit, for any cap.

    The rank of each posting within its document, 0 for the largest weight, is computed once; from then on a cap is a
    comparison. Ranks take 2 bytes a posting in memory, beside the 8 that are mapped from the disk; making those of 12
    million postings takes 1.7 CPU seconds, and some 200 MB for that while; of more than 64 million, some 3 bytes a
    posting. Ranks from 65,535 on count as one: no cap reaches them.

    Args:
        index: the index as it is now; later changes of it are not seen.
    """

    def __init__(self, index: ExactIndex) -> None:
        self._index, self._segments = index, tuple(index.segments)
        self._ranks = [posting_ranks(segment) for segment in self._segments]
        counts = np.zeros(_MOST_RANKS + 1, np.int64)
        for segment, ranks in zip(self._segments, self._ranks, strict=True):
            there = ranks[~segment.deleted[segment.documents]] if segment.deleted.any() else ranks
            counts += np.bincount(there, minlength=len(counts))
        self._kept = np.concatenate([[0], counts.cumsum()])
        self.max_active_dims = int(np.searchsorted(self._kept, self._kept[-1]))
        """Active dims of the document that has most."""

    @property
    def nbytes(self) -> int:
        """Memory that the ranks take."""
        return sum(ranks.nbytes for ranks in self._ranks)

    def num_postings(self, cap: int | None = None) -> int:
        """Weights of all documents that a cap leaves."""
        return int(self._kept[-1 if cap is None else min(cap, len(self._kept) - 1)])

    def search(self, query: csr_array, k: int, cap: int | None = None) -> list[Hit]:
        """The best k documents of one query, `[1, vocab]`, as of `ExactIndex.search`."""
        if cap is None or cap >= self.max_active_dims:
            return self._index.search(query, k)[0]
        check_queries(query, self._index.vocab_size)
        query = query.sorted_indices()
        terms = list(zip(query.indices.tolist(), query.data.astype(np.float32), strict=True))
        hits: list[Hit] = []
        for segment, ranks in zip(self._segments, self._ranks, strict=True):
            scores = np.zeros(segment.num_documents, np.float32)
            for dim, weight in terms:
                postings = slice(int(segment.starts[dim]), int(segment.starts[dim + 1]))
                kept = ranks[postings] < cap
                scores[segment.documents[postings][kept]] += weight * segment.values[postings][kept]
            hits += segment.best(scores, k, segment.left_out(None))
        return best_hits(hits, k)

    def weights(self, id: str, dims: Sequence[int], cap: int | None = None) -> list[float]:
        """The weights of some dims of a document; 0 where it has none, or the cap leaves none."""
        for segment, ranks, row in self._places(id):
            postings = [segment.posting(row, dim) for dim in dims]
            return [
                float(segment.values[place]) if place is not None and (cap is None or ranks[place] < cap) else 0.0
                for place in postings
            ]
        return [0.0] * len(dims)

    def vector(self, id: str, cap: int | None = None) -> csr_array:
        """The vector of a document, float32 `[1, vocab]`; without dims if there is no such document.

        All postings are looked through, which takes some milliseconds for ten millions of them.
        """
        dims, values = np.zeros(0, np.int32), np.zeros(0, np.float32)
        for segment, ranks, row in self._places(id):
            postings = np.flatnonzero(segment.documents == np.uint32(row))
            if cap is not None:
                postings = postings[ranks[postings] < cap]
            dims = (np.searchsorted(segment.starts, postings, side="right") - 1).astype(np.int32)
            values = np.asarray(segment.values[postings])
        return csr_array((values, dims, np.array([0, len(dims)], np.int32)), shape=(1, self._index.vocab_size))

    def _places(self, id: str) -> Iterator[tuple[Segment, np.ndarray, int]]:
        for segment, ranks in zip(self._segments, self._ranks, strict=True):
            for row in segment.rows([id]).tolist():
                if not segment.deleted[row]:
                    yield segment, ranks, row


def posting_ranks(segment: Segment) -> UInt16[np.ndarray, " postings"]:
    """Rank of each posting among those of its document, by weight; of equal weights the smaller dim comes first."""
    documents = np.asarray(segment.documents)
    ranks = np.zeros(len(documents), np.uint16)
    lengths = np.bincount(documents, minlength=segment.num_documents)
    ends = lengths.cumsum()
    at_once = max(_POSTINGS_AT_ONCE, len(documents) // _PARTS)
    first = 0
    while first < segment.num_documents:  # some documents at a time, so that memory has a bound
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + at_once)))
        postings = np.flatnonzero((documents >= first) & (documents < last))
        # Bits of floats from 0 on are ordered as they are; adding 0 makes -0 one of them.
        bits = (np.asarray(segment.values)[postings] + np.float32(0)).view(np.uint32)
        keys = documents[postings].astype(np.uint64) << np.uint64(32) | ~bits
        order = np.argsort(keys, kind="stable")  # postings come in the order of dims
        here = lengths[first:last]
        numbers = np.arange(len(postings)) - np.repeat(here.cumsum() - here, here)
        ranks[postings[order]] = np.minimum(numbers, _MOST_RANKS)
        first = last
    return ranks
