"""What the page searches: an index with the query side of its model; BM25 is in `bm25`."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array
from typing_extensions import override

from splade_lit.core.errors import UserError
from splade_lit.core.text import Mender
from splade_lit.core.tokenisation import ReadText
from splade_lit.encoder.explain import ReadToken
from splade_lit.encoder.query_side import QuerySide, load_query_side
from splade_lit.engines.capped import CappedIndex
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit
from splade_lit.engines.open_index import open_index

if TYPE_CHECKING:
    from splade_lit.encoder.model import AsymmetricSparseEncoder

_POSTING_BYTES = 8  # a document and a weight
MAX_TEXT_CHARACTERS = 200_000  # that are read of a text and shown
_KEPT_TOKENS = 1 << 19  # some tens of megabytes
_STEPS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


class KeptReads:
    """What was read of texts lately: as a query is typed the same documents come again and again."""

    def __init__(self) -> None:
        self._reads: dict[str, ReadText] = {}  # the latest are the last
        self._size, self._changing = 0, threading.Lock()

    def get(self, text: str, read: Callable[[str], ReadText]) -> ReadText:
        """What `read` gives for a text."""
        with self._changing:
            kept = self._reads.pop(text, None)
            if kept is not None:
                self._reads[text] = kept
                return kept
        made = read(text)
        with self._changing:
            if text not in self._reads:
                self._reads[text] = made
                self._size += _size(text, made)
            while self._size > _KEPT_TOKENS:
                first = next(iter(self._reads))
                self._size -= _size(first, self._reads.pop(first))
        return made


def _size(text: str, read: ReadText) -> int:
    """Memory that a text and its tokens take, in that of one token, some hundred bytes."""
    return 1 + len(read.spans) + len(text) // 64


class System(ABC):
    """Documents that can be searched and explained, from several threads at once: nothing in it changes.

    Attributes:
        name: what the page calls it.
        kind: `index` or `bm25`.
        num_documents: how many documents there are.
        can_prune: whether a search can leave out the smaller weights of documents.
        knows_tokens: whether `raised_by` has a model to ask.
    """

    name: str
    kind: str
    num_documents: int
    can_prune = False
    knows_tokens = False

    @abstractmethod
    def encode(self, query: str) -> csr_array:
        """The vector of a query, `[1, vocab]`."""

    @abstractmethod
    def search(self, vector: csr_array, k: int, cap: int | None = None) -> list[Hit]:
        """The best k documents of a query, of each no more weights than the cap."""

    @abstractmethod
    def tokens(self, dims: np.ndarray) -> list[str]:
        """The token of each of these dims."""

    @abstractmethod
    def text(self, id: str) -> str | None:
        """The text of a document, in valid Unicode; None where there is none."""

    @abstractmethod
    def weights(self, id: str, dims: Sequence[int], cap: int | None = None) -> list[float]:
        """The weights of some dims of a document that the cap leaves; else 0."""

    @abstractmethod
    def vector(self, id: str, cap: int | None = None) -> csr_array:
        """The vector of a document, `[1, vocab]`."""

    def has(self, id: str) -> bool:
        """Whether there is a document of this id."""
        return self.text(id) is not None or self.vector(id).nnz > 0

    @abstractmethod
    def read(self, text: str) -> ReadText:
        """What of a text is read, and where it stands."""

    def read_part(self, text: str) -> tuple[int, int | None]:
        """From which character of a text it is read, and before which reading stops; None where it does not."""
        return 0, None

    def raised_by(self, text: str, dims: np.ndarray) -> list[ReadToken | None] | None:
        """The token of a text that raised each of these dims; None if that is not known."""
        return None

    def caps(self) -> list[int]:
        """Caps that are worth a look, ascending; none where it cannot prune."""
        return []

    def num_postings(self, cap: int | None = None) -> int | None:
        """Weights of all documents that a cap leaves; None if they are not counted."""
        return None

    def posting_bytes(self, cap: int | None = None) -> int | None:
        """What they take in an index."""
        postings = self.num_postings(cap)
        return None if postings is None else _POSTING_BYTES * postings


class IndexSystem(System):
    """An index of any engine; the exact one can prune.

    Args:
        folder: of the index.
        name: what the page calls it.
        encoder: the model that made it, if it is to tell which tokens raised a term.

    Raises:
        UserError: there is no such index, it has no query side, or the model is another.
    """

    kind = "index"

    def __init__(self, folder: str, name: str, encoder: "AsymmetricSparseEncoder | None" = None) -> None:
        self.name, self._index, self._encoder = name, open_index(folder), encoder
        self.model = self._index.model
        """Fingerprint of the model that made the vectors, if it is known."""
        if self._index.query_folder is None:
            raise UserError(f"{folder} has no query side; build it with python -m splade_lit.index.")
        self._queries: QuerySide = load_query_side(self._index.query_folder)
        self._capped = CappedIndex(self._index) if isinstance(self._index, ExactIndex) else None
        self.can_prune, self.knows_tokens = self._capped is not None, encoder is not None
        self.num_documents = self._index.stats().num_documents
        self._reads = KeptReads()
        self._encoding = threading.Lock()
        # Clients of servers are for one thread at a time.
        self._asking: AbstractContextManager[object] = threading.Lock() if self._capped is None else nullcontext()
        if encoder is not None and encoder.vocab_size < self._index.vocab_size:
            raise UserError(
                f"The model has {encoder.vocab_size} dims, {folder} {self._index.vocab_size}; give --model the one "
                "that made the index."
            )

    @override
    def encode(self, query: str) -> csr_array:
        return self._queries.encode(query)

    @override
    def search(self, vector: csr_array, k: int, cap: int | None = None) -> list[Hit]:
        if self._capped is not None:
            return self._capped.search(vector, k, cap)
        with self._asking:
            return self._index.search(vector, k)[0]

    @override
    def tokens(self, dims: np.ndarray) -> list[str]:
        return self._queries.tokens(dims)

    @override
    def text(self, id: str) -> str | None:
        with self._asking:
            text = self._index.text(id)
        return None if text is None else Mender()(text)

    @override
    def weights(self, id: str, dims: Sequence[int], cap: int | None = None) -> list[float]:
        if self._capped is not None:
            return self._capped.weights(id, dims, cap)
        with self._asking:
            return self._index.weights(id, dims)

    @override
    def vector(self, id: str, cap: int | None = None) -> csr_array:
        if self._capped is not None:
            return self._capped.vector(id, cap)
        return csr_array(np.array([self.weights(id, range(self._index.vocab_size))], np.float32))

    @override
    def read(self, text: str) -> ReadText:
        tokenisation = self._queries.tokenisation
        if tokenisation.tokenizer.truncation_side == "right":
            text = text[:MAX_TEXT_CHARACTERS]
        return self._reads.get(text, tokenisation.read_document)

    @override
    def read_part(self, text: str) -> tuple[int, int | None]:
        read, tokenisation = self.read(text), self._queries.tokenisation
        if len(read.ids) < tokenisation.max_document_tokens:
            return 0, None
        spans = [span for span in read.spans if span]
        if tokenisation.tokenizer.truncation_side == "right":
            return 0, max((end for _, end in spans), default=0)
        return min((start for start, _ in spans), default=len(text)), None

    @override
    def raised_by(self, text: str, dims: np.ndarray) -> list[ReadToken | None] | None:
        if self._encoder is None:
            return None
        with self._encoding:  # a transformer takes all threads that it is given
            return self._encoder.raised_by(text, dims)

    @override
    def caps(self) -> list[int]:
        return [] if self._capped is None else [cap for cap in _STEPS if cap < self._capped.max_active_dims]

    @override
    def num_postings(self, cap: int | None = None) -> int | None:
        if self._capped is not None:
            return self._capped.num_postings(cap)
        with self._asking:
            return self._index.stats().num_postings

    def texts(self) -> tuple[list[str], list[str]]:
        """Ids and texts of all documents that have a text.

        Raises:
            UserError: the index has none, or does not give them.
        """
        if not isinstance(self._index, ExactIndex):
            raise UserError("BM25 reads the texts of an exact index; build one with python -m splade_lit.index.")
        found = [
            (id, text)
            for segment in self._index.segments
            for id, text in zip(*segment.ids_and_texts(), strict=True)
            if text
        ]
        if not found:
            raise UserError("The index has no texts for BM25; build it with --corpus.")
        return [id for id, _ in found], [Mender()(text) for _, text in found]
