"""What finds documents that look like answers: BM25, a sparse model, a sentence encoder; and what scores pairs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float32
from scipy.sparse import csr_array

from splade_lit.evaluation.exact_search import SearchIndex, TopK

_MAX_SCORES = 1 << 26  # of a block of queries with all documents, in memory at once


class Scorer(Protocol):
    """Scores queries with documents that it was made with."""

    def encode(self, queries: Sequence[str]) -> Any:
        """Queries in the form that the other methods take."""

    def scores(self, queries: Any, rows: np.ndarray, documents: np.ndarray) -> Float32[np.ndarray, " pairs"]:
        """The scores of pairs of a row of `queries` with a document."""


class Miner(Scorer, Protocol):
    """Finds the documents that score highest.

    Attributes:
        least: documents that do not score above this were not found.
    """

    least: float

    def search(self, queries: Any, k: int) -> TopK:
        """The k best documents of each query, best first."""


class SparseMiner:
    """Exact search of sparse vectors.

    Args:
        documents: their vectors.
        encode: gives the vectors of queries.
    """

    least = 0.0  # a document that shares no dim

    def __init__(self, documents: csr_array, encode: Callable[[Sequence[str]], csr_array]) -> None:
        self._documents, self._index, self._encode = documents, SearchIndex(documents), encode

    def encode(self, queries: Sequence[str]) -> csr_array:
        """Their vectors."""
        return self._encode(queries)

    def search(self, queries: csr_array, k: int) -> TopK:
        """The k best documents of each query, best first."""
        return self._index.search(queries, k)

    def scores(self, queries: csr_array, rows: np.ndarray, documents: np.ndarray) -> Float32[np.ndarray, " pairs"]:
        """Dot products."""
        return np.asarray(queries[rows].multiply(self._documents[documents]).sum(axis=1), np.float32).ravel()


class DenseMiner:
    """Exact search of dense vectors, a block of queries at a time.

    Args:
        documents: their vectors.
        encode: gives the vectors of queries.
        device: where products are made.
    """

    least = -np.inf

    def __init__(
        self,
        documents: Float32[np.ndarray, "documents dims"],
        encode: Callable[[Sequence[str]], np.ndarray],
        device: torch.device,
    ) -> None:
        self._documents, self._encode = torch.from_numpy(documents).to(device), encode

    def encode(self, queries: Sequence[str]) -> torch.Tensor:
        """Their vectors."""
        return torch.from_numpy(self._encode(queries)).to(self._documents)

    def search(self, queries: torch.Tensor, k: int) -> TopK:
        """The k best documents of each query, best first."""
        k = min(k, len(self._documents))
        rows = max(_MAX_SCORES // len(self._documents), 1)
        found = [torch.topk(block @ self._documents.T, k) for block in queries.split(rows)]
        scores, documents = (torch.cat(part).cpu().numpy() for part in zip(*found, strict=True))
        return TopK(scores, documents.astype(np.int32))

    def scores(self, queries: torch.Tensor, rows: np.ndarray, documents: np.ndarray) -> Float32[np.ndarray, " pairs"]:
        """Dot products."""
        chosen = self._documents[torch.from_numpy(documents.astype(np.int64))]
        return (queries[torch.from_numpy(rows)] * chosen).sum(dim=1).cpu().numpy()


class CrossEncoderScorer:
    """Scores pairs of texts one by one.

    Args:
        predict: gives the scores of pairs of a query with a document; takes an `activation_fn` to put on top.
        texts: the documents.
    """

    def __init__(self, predict: Callable[..., np.ndarray], texts: Sequence[str]) -> None:
        self._predict, self._texts = predict, texts

    def in_logits(self) -> "CrossEncoderScorer":
        """The same model without the function that it has on top."""
        return CrossEncoderScorer(partial(self._predict, activation_fn=torch.nn.Identity()), self._texts)

    def encode(self, queries: Sequence[str]) -> Sequence[str]:
        """The queries as they are."""
        return queries

    def scores(self, queries: Sequence[str], rows: np.ndarray, documents: np.ndarray) -> Float32[np.ndarray, " pairs"]:
        """What the model says of each pair."""
        pairs = [(queries[row], self._texts[one]) for row, one in zip(rows.tolist(), documents.tolist(), strict=True)]
        return np.asarray(self._predict(pairs), np.float32) if pairs else np.zeros(0, np.float32)
