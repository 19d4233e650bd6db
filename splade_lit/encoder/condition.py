"""What tells that document vectors are of no use, whatever they were trained on: dead, dense, or all alike."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Problem = Literal["dead", "dense", "constant"]

MIN_ACTIVE_DIMS = 2.0
MAX_SIMILARITY = 0.99
_DENSE_SHARE = 0.05
_DENSE_DIMS = 1000.0  # few enough in no vocabulary, unless they are less than half of it


@dataclass(frozen=True)
class Condition:
    """Figures of some document vectors.

    Attributes:
        active_dims: mean number of active dims.
        similarity: mean cosine similarity of two different documents that have active dims; NaN where there are no two.
    """

    active_dims: float
    similarity: float

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

    def problem(self, condition: Condition) -> Problem | None:
        """Which bound is broken, or None.

        >>> Bounds(1000).problem(Condition(0.5, 0.1)), Bounds(1000).problem(Condition(120.0, 0.3))
        ('dead', None)
        """
        if condition.active_dims < self.min_active_dims:
            return "dead"
        if condition.active_dims > self.max_active_dims:
            return "dense"
        return "constant" if condition.similarity > self.max_similarity else None


def dense_dims(vocab_size: int) -> float:
    """Active dims above which documents count as dense: 5% of a vocabulary, of a small one 1,000 or half of it.

    >>> [dense_dims(size) for size in (200, 4_000, 40_000)]
    [100.0, 1000.0, 2000.0]
    """
    return max(_DENSE_SHARE * vocab_size, min(_DENSE_DIMS, vocab_size / 2.0))


@torch.no_grad()
def condition_figures(embeddings: Float[Tensor, "documents vocab"]) -> Float[Tensor, "2"]:
    """The two figures of a `Condition`, on the device of the vectors, without waiting for it."""
    # In fp32 also amid autocast, whose products would round away what the bounds are about.
    with torch.autocast(embeddings.device.type, enabled=False):
        return _condition_figures(embeddings.float())


def _condition_figures(embeddings: Float[Tensor, "documents vocab"]) -> Float[Tensor, "2"]:
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    # The sum over all pairs is the squared norm of the sum of unit vectors, in which each document meets itself too.
    together = torch.where(norms > 0, 1 / norms, 0.0) @ embeddings
    count = (norms > 0).sum()
    similarity = (together.square().sum() - count) / (count * (count - 1))
    return torch.stack([(embeddings > 0).sum() / max(len(embeddings), 1), similarity])
