"""What is searched: the different documents of a data set and of a corpus, and which of them answer which query."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Int64

from splade_lit.data.answers import ranges
from splade_lit.data.corpus import Corpus
from splade_lit.data.pairs import Pairs
from splade_lit.data.text_keys import document_key, hashes, query_hashes


@dataclass(frozen=True)
class Candidates:
    """Documents of which no two have the same text, white space apart.

    Attributes:
        texts: the documents.
        answers: the documents of the columns of positives of each pair, -1 where there is none.
        num_queries: how many different queries there are; letter case, spaces and punctuation make no difference.
    """

    texts: list[str]
    answers: Int64[np.ndarray, "pairs positives"]
    num_queries: int
    _query_of: Int64[np.ndarray, " pairs"]
    _own: Int64[np.ndarray, " pairs"]  # the document that is the text of the query itself
    _starts: Int64[np.ndarray, " queries+1"]
    _known: Int64[np.ndarray, " answers"]

    def known(self, pairs: Int64[np.ndarray, " pairs"]) -> tuple[np.ndarray, np.ndarray]:
        """All documents that answer the queries of these pairs anywhere in the data, `(place in pairs, document)`."""
        starts = self._starts[self._query_of[pairs]]
        counts = self._starts[self._query_of[pairs] + 1] - starts
        return np.repeat(np.arange(len(pairs)), counts), self._known[ranges(starts, counts)]

    def own(self, pairs: Int64[np.ndarray, " pairs"]) -> tuple[np.ndarray, np.ndarray]:
        """The documents that are the query itself, in the same form."""
        places = np.flatnonzero(self._own[pairs] >= 0)
        return places, self._own[pairs][places]

    @property
    def answers_per_query(self) -> Int64[np.ndarray, " queries"]:
        """How many documents answer each query."""
        return np.diff(self._starts)


def find_candidates(pairs: Pairs, corpus: Corpus | None = None) -> Candidates:
    """The documents of the corpus, if there is one, and all that answer a query of the pairs."""
    texts: list[str] = []
    numbers: dict[int, int] = {}

    def numbered(documents: Iterable[str]) -> Iterator[int]:
        for text in documents:
            (key,) = hashes([document_key(text)]).tolist()
            number = numbers.setdefault(key, len(texts))
            if number == len(texts):
                texts.append(text)
            yield number

    if corpus is not None:
        for _ in numbered(text for _, text in corpus):
            pass
    answers = np.full((len(pairs), pairs.num_positives), -1)
    for column, name in enumerate(pairs.columns[1 : 1 + pairs.num_positives]):
        given = list(chain.from_iterable(pairs.batches(name)))
        there = np.fromiter(map(bool, given), bool, len(given))
        answers[there, column] = np.fromiter(numbered(filter(None, given)), np.int64, int(there.sum()))
    keys, query_of = np.unique(query_hashes(pairs), return_inverse=True)
    owned = (query_of[:, None] * len(texts) + answers)[answers >= 0]
    owner, known = np.divmod(np.unique(owned), len(texts))
    starts = np.searchsorted(owner, np.arange(len(keys) + 1))
    own = [numbers.get(key, -1) for key in pairs.hashes("query", document_key).tolist()]
    return Candidates(texts, answers, len(keys), query_of, np.array(own), starts, known)
