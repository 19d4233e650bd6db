"""Weights as whole numbers, as engines want them whose impacts stand where counts of words did."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError

MOST_IMPACT = 2**31 - 1


def to_impacts(weights: Float32[np.ndarray, " weights"], scale: float) -> Int64[np.ndarray, " weights"]:
    """The nearest whole numbers of weights times a scale.

    A UserError says that a number is too large for 32 bits, or that a weight is negative.

    >>> to_impacts(np.array([0.004, 1.234], np.float32), 100).tolist()
    [0, 123]
    """
    if (weights < 0).any():
        raise UserError("Weights of documents must not be negative here; prune them or train with a nonnegative table.")
    impacts = np.rint(weights.astype(np.float64) * scale)
    if impacts.max(initial=0) > MOST_IMPACT:
        raise UserError(
            f"A weight of {weights.max():g} times {scale:g} has no room in 32 bits; give a smaller --scale."
        )
    return impacts.astype(np.int64)


def scaled_back(vectors: csr_array, scale: float) -> csr_array:
    """Vectors as their impacts have them, float32, without those that have become 0 and without negative ones."""
    kept = csr_array(vectors, dtype=np.float32, copy=True)
    kept.data = (np.rint(np.maximum(kept.data, 0).astype(np.float64) * scale) / scale).astype(np.float32)
    kept.eliminate_zeros()
    return kept


@dataclass
class Counts:
    """What has been written so far: documents, weights, and weights that became 0 or were left out."""

    documents: int = 0
    postings: int = 0
    vanished: int = 0

    def add(self, documents: int, weights: int, impacts: Int64[np.ndarray, " weights"]) -> None:
        """So many documents with so many weights, of which these impacts came."""
        written = int(np.count_nonzero(impacts))
        self.documents += documents
        self.postings += written
        self.vanished += weights - written


def repeated(tokens: Iterable[str], impacts: Iterable[int]) -> str:
    """A query as a text that holds each token as often as its impact says.

    >>> repeated(["song", "river"], [2, 1])
    'song song river'
    """
    return " ".join(token for token, impact in zip(tokens, impacts, strict=True) for _ in range(impact))
