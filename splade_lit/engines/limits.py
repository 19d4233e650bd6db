"""What engines can hold of a vector: what does not fit is clipped, left out or rounded, and counted aloud."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.encoder.rows import keep_largest

logger = logging.getLogger(__name__)

_FLOAT32_MANTISSA_BITS = 23


@dataclass(frozen=True)
class EngineLimits:
    """What an engine can hold; None where it has no limit that a vector could reach.

    Attributes:
        engine: its name.
        max_vocab_size: dims of a vector.
        max_active_dims: weights of a document; the largest are kept.
        max_weight: weights above it are clipped.
        levels: weights are rounded to multiples of `max_weight / levels`, and those that become 0 are left out.
        mantissa_bits: bits of a float32 weight that are kept behind its leading one; the others are cut off, as Lucene
            does with features, so that a weight loses `2 ** -mantissa_bits` of itself at most.
    """

    engine: str
    max_vocab_size: int | None = None
    max_active_dims: int | None = None
    max_weight: float | None = None
    levels: int | None = None
    mantissa_bits: int | None = None


class LimitGuard:
    """Makes vectors fit an engine, and counts what that takes from them.

    Args:
        limits: of the engine.
        vocab_size: dims of a vector.

    Raises:
        UserError: the engine cannot hold vectors of so many dims.

    >>> guard = LimitGuard(EngineLimits("small", max_weight=3.0), vocab_size=2)
    >>> guard.fit(["a"], csr_array(np.array([[5.0, 1.0]], np.float32))).toarray()
    array([[3., 1.]], dtype=float32)
    >>> guard.losses
    ['1 of 2 weights is above 3 and is clipped']
    """

    def __init__(self, limits: EngineLimits, vocab_size: int) -> None:
        if limits.max_vocab_size is not None and vocab_size > limits.max_vocab_size:
            most = f"at most {limits.max_vocab_size:,} dims"
            raise UserError(f"{limits.engine} holds vectors of {most}, not {vocab_size:,}; choose another engine.")
        self.limits, self.vocab_size = limits, vocab_size
        self.num_documents = self.num_postings = 0
        """What has come so far: documents, and weights that are not 0."""
        self._clipped = self._left_out = self._too_long = self._rounded = self._vanished = 0
        self._error = 0.0

    def fit(self, ids: Sequence[str], vectors: csr_array) -> csr_array:
        """The vectors, float32 `[documents, vocab]`, as the engine can hold them, without zeros.

        A UserError is that of `check_vectors`.
        """
        check_vectors(ids, vectors, self.vocab_size)
        limits, fitted = self.limits, csr_array(vectors, dtype=np.float32, copy=True)
        fitted.sum_duplicates()
        fitted.eliminate_zeros()
        self.num_documents, self.num_postings = self.num_documents + len(ids), self.num_postings + fitted.nnz
        if limits.max_active_dims is not None:
            longer = int((np.diff(fitted.indptr) > limits.max_active_dims).sum())
            if longer:
                before = fitted.nnz
                fitted = keep_largest(fitted, limits.max_active_dims)
                self._too_long, self._left_out = self._too_long + longer, self._left_out + before - fitted.nnz
        if limits.max_weight is not None:
            self._clipped += int((fitted.data > limits.max_weight).sum())
            np.minimum(fitted.data, np.float32(limits.max_weight), out=fitted.data)
        if limits.levels is not None or limits.mantissa_bits is not None:
            exact = fitted.data
            fitted.data = _rounded(exact, limits)
            changes = np.abs(fitted.data - exact)
            self._rounded += int((changes > 0).sum())
            self._vanished += int((fitted.data == 0).sum())
            self._error = max(self._error, float(changes.max(initial=0)))
            fitted.eliminate_zeros()
        return fitted

    @property
    def losses(self) -> list[str]:
        """A clause on each kind of loss so far."""
        said, of = [], f"of {self.num_postings:,} weights"
        if self._too_long:
            longer = f"{_count(self._too_long, 'document has', 'documents have')} more than"
            left_out = f"{_count(self._left_out, 'smaller weight is', 'smaller weights are')} left out"
            said.append(f"{longer} {self.limits.max_active_dims:,} active dims, of which {left_out}")
        if self._clipped:
            verbs = ("is above {0:g} and is clipped", "are above {0:g} and are clipped")
            said.append(f"{self._clipped:,} {of} {verbs[self._clipped > 1].format(self.limits.max_weight)}")
        if self._rounded:
            vanished = f", {self._vanished:,} of them to 0" if self._vanished else ""
            said.append(f"{self._rounded:,} {of} are rounded, by {self._error:.2g} at most{vanished}")
        return said

    def report(self) -> None:
        """Warn of each kind of loss."""
        for loss in self.losses:
            logger.warning("%s: %s.", self.limits.engine, loss)


def check_vectors(ids: Sequence[str], vectors: csr_array, vocab_size: int) -> None:
    """Raise a UserError if vectors are not `[ids, vocab_size]`, a weight is negative or not finite, or ids repeat."""
    if vectors.shape != (len(ids), vocab_size):
        raise UserError(
            f"There are {len(ids)} ids for vectors of shape {vectors.shape}; [ids, {vocab_size}] is needed."
        )
    if not np.isfinite(vectors.data).all() or (vectors.data < 0).any():
        raise UserError("Weights of documents must be finite and not negative; the model that made them diverged.")
    if len(set(ids)) < len(ids):
        (twice, _), *_ = Counter(ids).most_common(1)
        raise UserError(f"Two documents have the id {twice!r}; make ids unique.")


def check_queries(queries: csr_array, vocab_size: int) -> None:
    """Raise a UserError if queries have other dims than documents, or a weight is not finite."""
    if queries.shape[1] != vocab_size:
        sizes = f"Queries have {queries.shape[1]} dims, documents {vocab_size}"
        raise UserError(f"{sizes}; search with the model that the index was made with.")
    if not np.isfinite(queries.data).all():
        raise UserError("Weights of queries must be finite; the model that made them diverged.")


def _rounded(weights: Float32[np.ndarray, " postings"], limits: EngineLimits) -> Float32[np.ndarray, " postings"]:
    if limits.levels is not None:
        step = np.float32((limits.max_weight or 1.0) / limits.levels)
        weights = np.round(weights / step).astype(np.float32) * step
    if limits.mantissa_bits is not None:
        bits = weights.view(np.uint32)
        dropped = _FLOAT32_MANTISSA_BITS - limits.mantissa_bits
        weights = (bits >> dropped << dropped).view(np.float32)
    return weights


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
