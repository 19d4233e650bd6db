"""BM25 over the texts of an index, beside it on the page."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from typing_extensions import override

from splade_lit.core.bm25 import read_words, word_counts, word_weights
from splade_lit.core.tokenisation import ReadText
from splade_lit.engines.index import Hit
from splade_lit.evaluation.exact_search import SearchIndex, string_order
from splade_lit.web.systems import MAX_TEXT_CHARACTERS, KeptReads, System


class Bm25System(System):
    """BM25 over words, as `evaluate` has it: lower-cased, singular, without English stop words.

    Args:
        ids: of the documents.
        texts: the documents.
        source: what an error calls them.

    Raises:
        UserError: no document has a word.
    """

    kind = "bm25"

    def __init__(self, ids: Sequence[str], texts: Sequence[str], source: str) -> None:
        self.name, self.num_documents = "BM25", len(ids)
        self._ids, self._texts = list(ids), list(texts)
        self._rows = {id: row for row, id in enumerate(self._ids)}
        self._weights, self._numbers = word_weights(source, self._texts)
        self._search = SearchIndex(self._weights, string_order(self._ids))
        self._search.search(self._weights[[0]], 1)  # compiles the loops
        self._reads = KeptReads()

    @cached_property
    def _words(self) -> list[str]:
        return list(self._numbers)

    @override
    def encode(self, query: str) -> csr_array:
        return word_counts([query], self._numbers)

    @override
    def search(self, vector: csr_array, k: int, cap: int | None = None) -> list[Hit]:
        top = self._search.search(vector, k, num_threads=1)
        pairs = zip(top.documents[0].tolist(), top.scores[0].tolist(), strict=True)
        return [Hit(self._ids[row], score) for row, score in pairs if score > 0]

    @override
    def tokens(self, dims: np.ndarray) -> list[str]:
        return [self._words[dim] for dim in dims.tolist()]

    @override
    def text(self, id: str) -> str | None:
        row = self._rows.get(id)
        return None if row is None else self._texts[row]

    @override
    def weights(self, id: str, dims: Sequence[int], cap: int | None = None) -> list[float]:
        return self.vector(id).toarray()[0, list(dims)].tolist()

    @override
    def vector(self, id: str, cap: int | None = None) -> csr_array:
        row = self._rows.get(id)
        return csr_array((1, len(self._numbers)), dtype=np.float32) if row is None else self._weights[[row]]

    @override
    def read(self, text: str) -> ReadText:
        return self._reads.get(text[:MAX_TEXT_CHARACTERS], self._read)

    def _read(self, text: str) -> ReadText:
        words = [(self._numbers[word], (start, end)) for word, start, end in read_words(text) if word in self._numbers]
        return ReadText(np.array([number for number, _ in words], np.int32), [span for _, span in words])

    @override
    def num_postings(self, cap: int | None = None) -> int | None:
        return int(self._weights.nnz)
