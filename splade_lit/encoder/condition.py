"""What tells that document vectors are of no use, whatever they were trained on: dead, in part, dense, or all alike."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Problem = Literal["dead", "partly_dead", "dense", "constant"]

MIN_ACTIVE_DIMS = 2.0
MAX_SIMILARITY = 0.99
MAX_EMPTY_SHARE = 0.03
_LEAST_EMPTY = 3  # documents: one or two of a small batch are no sign
_DENSE_SHARE = 0.05
_DENSE_OF_TARGET = 1.5
_DENSE_DIMS = 1000.0  # few enough in no vocabulary, unless they are less than half of it


@dataclass(frozen=True)
class Condition:
    """Figures of some document vectors.

    Attributes:
        active_dims: mean number of active dims.
        similarity: mean cosine similarity of two different documents that have active dims; NaN where there are no two.
        num_empty: documents without an active dim, which no query finds.
        num_documents: all documents.
    """

    active_dims: float
    similarity: float
    num_empty: float = 0.0
    num_documents: float = 1.0

    @property
    def empty_share(self) -> float:
        """Share of documents without an active dim."""
        return self.num_empty / max(self.num_documents, 1.0)

    @classmethod
    def of(cls, embeddings: Float[Tensor, "documents vocab"]) -> "Condition":
        """The condition of these vectors; waits for the device."""
        return cls(*condition_figures(embeddings).tolist())


@dataclass(frozen=True)
class Bounds:
    """What the figures of useful vectors lie between."""

    max_active_dims: float | int
    min_active_dims: float | int = MIN_ACTIVE_DIMS
    max_similarity: float | int = MAX_SIMILARITY
    max_empty_share: float | int = MAX_EMPTY_SHARE

    def problem(self, condition: Condition) -> Problem | None:
        """Which bound is broken, or None.

        >>> Bounds(1000).problem(Condition(0.5, 0.1)), Bounds(1000).problem(Condition(120.0, 0.3))
        ('dead', None)
        >>> Bounds(1000).problem(Condition(60.0, 0.3, num_empty=16.0, num_documents=32.0))
        'partly_dead'
        """
        if condition.active_dims < self.min_active_dims:
            return "dead"
        if condition.num_empty >= _LEAST_EMPTY and condition.empty_share > self.max_empty_share:
            return "partly_dead"
        if condition.active_dims > self.max_active_dims:
            return "dense"
        return "constant" if condition.similarity > self.max_similarity else None


def dense_dims(vocab_size: int, target_active_dims: int | None = None) -> float:
    """Active dims above which documents count as dense: 5% of a vocabulary, of a small one 1,000 or half of it.

    With a target it is one and a half times that at least.

    >>> [dense_dims(size) for size in (200, 4_000, 40_000)], dense_dims(40_000, 1_600)
    ([100.0, 1000.0, 2000.0], 2400.0)
    """
    of_vocabulary = max(_DENSE_SHARE * vocab_size, min(_DENSE_DIMS, vocab_size / 2.0))
    return max(of_vocabulary, _DENSE_OF_TARGET * (target_active_dims or 0))


@torch.no_grad()
def condition_figures(embeddings: Float[Tensor, "documents vocab"]) -> Float[Tensor, "4"]:
    """The four figures of a `Condition`, on the device of the vectors, without waiting for it."""
    # In fp32 also amid autocast, whose products would round away what the bounds are about.
    with torch.autocast(embeddings.device.type, enabled=False):
        return _condition_figures(embeddings.float())


def _condition_figures(embeddings: Float[Tensor, "documents vocab"]) -> Float[Tensor, "4"]:
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    # The sum over all pairs is the squared norm of the sum of unit vectors, in which each document meets itself too.
    together = torch.where(norms > 0, 1 / norms, 0.0) @ embeddings
    count = (norms > 0).sum()
    similarity = (together.square().sum() - count) / (count * (count - 1))
    active_dims = (embeddings > 0).sum() / max(len(embeddings), 1)
    num_documents = torch.full_like(similarity, len(embeddings))
    return torch.stack([active_dims, similarity, (norms == 0).sum(), num_documents])
