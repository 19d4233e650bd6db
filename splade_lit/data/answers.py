"""Which documents of a batch answer which query: all that the data set knows of, not only those of the query's row."""

import numpy as np
from jaxtyping import Int64, UInt64

NO_TEXT = 0
"""The fingerprint of a text that is not there."""


class KnownAnswers:
    """The queries and documents of a data set as numbers, and which of its documents answer which query.

    A query may stand in several rows, with an answer in each, and have several answers in one row. Wherever one of them
    comes into a batch with the query, it is an answer of it and no negative.

    Args:
        fingerprints: the hash of each text, `NO_TEXT` where there is none: queries in the first column, then
            `num_positives` columns of documents that answer them, then hard negatives.
        num_positives: columns of answers.
    """

    def __init__(self, fingerprints: UInt64[np.ndarray, "rows columns"], num_positives: int = 1) -> None:
        documents = fingerprints[:, 1:]
        self._present = documents != NO_TEXT
        queries, self._queries = np.unique(fingerprints[:, 0], return_inverse=True)
        texts, numbers = np.unique(documents, return_inverse=True)
        self._documents = numbers.reshape(documents.shape)
        self.num_positives, self._num_texts = num_positives, len(texts)
        answers = np.s_[:, :num_positives]
        self._pairs = np.unique(self._keys(answers)[self._present[answers]])
        owner, self._answers = np.divmod(self._pairs, max(self._num_texts, 1))
        self._starts = np.searchsorted(owner, np.arange(len(queries) + 1))

    def _keys(self, part: tuple[slice, slice]) -> Int64[np.ndarray, "rows columns"]:
        """A number for each pair of a query with a document."""
        return self._queries[:, None] * self._num_texts + self._documents[part]

    @property
    def answers_per_query(self) -> Int64[np.ndarray, " queries"]:
        """How many different answers each different query has."""
        return np.diff(self._starts)

    @property
    def num_contradictions(self) -> int:
        """Hard negatives that answer the query of their own row, by another column or another row."""
        negatives = np.s_[:, self.num_positives :]
        return int(np.isin(self._keys(negatives)[self._present[negatives]], self._pairs).sum())

    def present(self, rows: Int64[np.ndarray, " queries"]) -> np.ndarray:
        """Bool `[queries, columns]`: which documents these rows have."""
        return self._present[rows]

    def places(self, rows: Int64[np.ndarray, " queries"]) -> Int64[np.ndarray, "queries columns"]:
        """The number that each document of these rows has in a batch, in the order of `PairBatch`; -1 for none.

        >>> KnownAnswers(np.array([[1, 5, 6], [2, 7, 0], [3, 8, 9]], dtype=np.uint64)).places(np.array([0, 1, 2]))
        array([[ 0,  3],
               [ 1, -1],
               [ 2,  4]])
        """
        present = self._present[rows]
        places = np.full(present.shape, -1)
        places.T[present.T] = np.arange(present.sum())
        return places

    def among(self, rows: Int64[np.ndarray, " queries"]) -> Int64[np.ndarray, "answers 2"]:
        """The answers in a batch of these rows, `PairBatch.answers`, in the order of queries, then of documents.

        Row 1 has a negative which is, by row 2, an answer of it, and which row 0 has for a negative too:

        >>> fingerprints = np.array([[1, 5, 6], [2, 7, 6], [2, 6, 8]], dtype=np.uint64)
        >>> KnownAnswers(fingerprints).among(np.array([0, 1]))
        array([[0, 0],
               [1, 1],
               [1, 2],
               [1, 3]])
        """
        documents = self._documents[rows].T[self._present[rows].T]
        order = np.argsort(documents, kind="stable")
        starts = self._starts[self._queries[rows]]
        counts = self._starts[self._queries[rows] + 1] - starts
        queries = np.repeat(np.arange(len(rows)), counts)
        answers = self._answers[ranges(starts, counts)]
        first, last = (np.searchsorted(documents[order], answers, side) for side in ("left", "right"))
        found = np.repeat(queries, last - first), order[ranges(first, last - first)]
        return np.stack(found, axis=1)[np.lexsort(found[::-1])]


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranges one after another, `counts` numbers from each of `starts`."""
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
