"""What is searched: the different documents of a data set and of a corpus, and which of them answer which query."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from splade_lit.data.answers import ranges
from splade_lit.data.corpus import Corpus
from splade_lit.data.pairs import Pairs
from splade_lit.data.text_keys import document_key, hashes, query_hashes, query_key


@dataclass(frozen=True)
class DocumentsOf:
    """Documents of each query: those of query n stand from `starts[n]` to `starts[n + 1]`."""

    starts: Int64[np.ndarray, " queries+1"]
    documents: Int64[np.ndarray, " documents"]

    def __call__(self, queries: Int64[np.ndarray, " queries"]) -> tuple[np.ndarray, np.ndarray]:
        """All documents of these queries, `(place in queries, document)`."""
        starts = self.starts[queries]
        counts = self.starts[queries + 1] - starts
        return np.repeat(np.arange(len(queries)), counts), self.documents[ranges(starts, counts)]


@dataclass(frozen=True)
class Candidates:
    """Documents of which no two have the same text, white space apart.

    Attributes:
        texts: the documents.
        answers: the documents of the columns of positives of each pair, -1 where there is none.
        num_queries: how many different queries there are; letter case, spaces and punctuation make no difference.
        num_answers: how many different answers, likewise.
        num_in_corpus: how many of them the corpus has, with their titles or without.
        repeated: which documents are answers that the corpus has in another form, with a title or other punctuation:
            the one of the corpus may be a negative of other queries, these are none.
    """

    texts: list[str]
    answers: Int64[np.ndarray, "pairs positives"]
    num_queries: int
    num_answers: int
    num_in_corpus: int
    repeated: Bool[np.ndarray, " documents"]
    _query_of: Int64[np.ndarray, " pairs"]
    _known: DocumentsOf
    _barred: DocumentsOf

    def known(self, pairs: Int64[np.ndarray, " pairs"]) -> tuple[np.ndarray, np.ndarray]:
        """All documents that answer the queries of these pairs in any of the pairs, `(place in pairs, document)`."""
        return self._known(self._query_of[pairs])

    def barred(self, pairs: Int64[np.ndarray, " pairs"]) -> tuple[np.ndarray, np.ndarray]:
        """All that are no negatives of these pairs, in the same form: `known` ones, the query itself, and copies.

        Letter case, spaces and punctuation make no difference, nor does a title in the corpus.
        """
        return self._barred(self._query_of[pairs])

    @property
    def answers_per_query(self) -> Int64[np.ndarray, " queries"]:
        """How many documents answer each query."""
        return np.diff(self._known.starts)


def find_candidates(pairs: Pairs, corpus: Corpus | None = None, answers: Pairs | None = None) -> Candidates:
    """The documents of the corpus, if there is one, and all that answer a query of the pairs.

    `answers` are more rows that say what answers a query. Their documents are no negatives of it, and are searched only
    where the corpus or a pair has them.
    """
    queries, query_of = np.unique(query_hashes(pairs), return_inverse=True)
    of_pairs = _answer_keys(pairs, queries)
    more = _answer_keys(answers, queries) if answers is not None else of_pairs[:0]
    themselves = np.stack([np.arange(len(queries), dtype=np.uint64), queries], axis=1)
    barred = np.unique(np.concatenate([of_pairs, more, themselves]), axis=0)
    found = _Documents(barred[:, 1])
    if corpus is not None:
        untitled: Iterator[str] = corpus.untitled() if corpus.untitled else repeat("")
        for (_, text), plain in zip(corpus.rows(), untitled, strict=False):
            if text:
                found.number(text, plain)
    sought, in_corpus = np.unique(of_pairs[:, 1]), found.alike_keys()
    num_of_corpus = len(found.texts)
    numbers = np.full((len(pairs), pairs.num_positives), -1)
    for column, name in enumerate(pairs.answer_columns):
        for row, text in enumerate(chain.from_iterable(pairs.batches(name))):
            if text:
                numbers[row, column] = found.number(text)
    added = hashes(map(query_key, found.texts[num_of_corpus:]))
    repeated = np.concatenate([np.zeros(num_of_corpus, bool), np.isin(added, in_corpus)])
    known = (query_of[:, None] * len(found.texts) + numbers)[numbers >= 0]
    owner, documents = found.alike(barred)
    return Candidates(
        found.texts,
        numbers,
        len(queries),
        len(sought),
        int(np.isin(sought, in_corpus).sum()),
        repeated,
        query_of,
        _documents_of(known, len(queries), len(found.texts)),
        _documents_of(owner * len(found.texts) + documents, len(queries), len(found.texts)),
    )


class _Documents:
    """Different documents in the order in which they come, and those whose key is one of `wanted`."""

    def __init__(self, wanted: UInt64[np.ndarray, " keys"]) -> None:
        self.texts: list[str] = []
        self._numbers: dict[int, int] = {}
        self._wanted = frozenset(wanted.tolist())
        self._alike: set[tuple[int, int]] = set()

    def number(self, text: str, untitled: str = "") -> int:
        """The number of a document, which may have its text without a title for a copy too."""
        (key,) = hashes([document_key(text)]).tolist()
        number = self._numbers.setdefault(key, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        alike = hashes(query_key(form) for form in (text, untitled) if form).tolist()
        self._alike.update((one, number) for one in alike if one in self._wanted)
        return number

    def alike_keys(self) -> UInt64[np.ndarray, " documents"]:
        """The keys that documents were found for."""
        return np.array([key for key, _ in self._alike], np.uint64)

    def alike(self, keyed: UInt64[np.ndarray, "rows 2"]) -> tuple[np.ndarray, np.ndarray]:
        """For rows of a query's number and a key: the number with each document of that key."""
        ordered = sorted(self._alike)
        keys = np.array([key for key, _ in ordered], np.uint64)
        first, last = (np.searchsorted(keys, keyed[:, 1], side) for side in ("left", "right"))
        numbers = np.array([number for _, number in ordered], np.int64)
        return np.repeat(keyed[:, 0].astype(np.int64), last - first), numbers[ranges(first, last - first)]


def _answer_keys(pairs: Pairs, queries: UInt64[np.ndarray, " queries"]) -> UInt64[np.ndarray, "answers 2"]:
    """The place among `queries`, which are in order, and the answer's key, of each answer to one of them."""
    asked = query_hashes(pairs)
    places = np.searchsorted(queries, asked).clip(max=len(queries) - 1)
    (empty,) = hashes([""])
    found = []
    for name in pairs.answer_columns:
        keys = pairs.hashes(name, query_key)
        there = (queries[places] == asked) & (keys != empty)
        found.append(np.stack([places[there].astype(np.uint64), keys[there]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _documents_of(owned: Int64[np.ndarray, " owned"], num_queries: int, num_documents: int) -> DocumentsOf:
    """From a number `query * num_documents + document` for each."""
    owner, documents = np.divmod(np.unique(owned), num_documents)
    return DocumentsOf(np.searchsorted(owner, np.arange(num_queries + 1)), documents)
