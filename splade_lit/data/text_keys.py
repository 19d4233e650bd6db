"""When two texts count as the same: hashes that are equal where a person would call queries or documents equal."""

import unicodedata
from collections.abc import Iterable

import numpy as np

from splade_lit.data.answers import NO_TEXT
from splade_lit.data.pairs import Pairs, hashes

_PUNCTUATION = ".,;:?!¿¡\"'()[]。"


def query_key(text: str) -> str:
    """The query without letter case, spaces between its words, and punctuation around them.

    >>> query_key("Who is  Ada Lovelace?") == query_key("who is ada lovelace")
    True
    >>> query_key("What is C++?") == query_key("what is C#?")
    False
    """
    words = (word.strip(_PUNCTUATION) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return " ".join(word for word in words if word) or text.strip()


def document_key(text: str) -> str:
    """The document with one space wherever there is white space."""
    return " ".join(text.split())


def query_hashes(pairs: Pairs) -> np.ndarray:
    """uint64 `[pairs]`: the hash of each query's key."""
    return pairs.hashes("query", query_key)


def document_hashes(pairs: Pairs) -> np.ndarray:
    """uint64 `[pairs]`: the hash of each document's key."""
    return pairs.hashes("document", document_key)


def text_hashes(pairs: Pairs) -> np.ndarray:
    """uint64 `[pairs, columns]`: the hash of the key of each text, query or document; `NO_TEXT` if it is empty."""
    (empty,) = hashes([""])
    keys = [pairs.hashes(name, query_key if name == "query" else document_key) for name in pairs.columns]
    return np.stack([np.where(column == empty, np.uint64(NO_TEXT), column) for column in keys], axis=1)


def answer_hashes(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each answer, in all columns of answers: its row, the place of its column, and the hash of its key, uint64."""
    rows, columns, keys = [], [], []
    (empty,) = hashes([""])
    for place, name in enumerate(pairs.answer_columns):
        of_column = pairs.hashes(name, document_key)
        there = np.flatnonzero(of_column != empty)
        rows.append(there)
        columns.append(np.full(len(there), place))
        keys.append(of_column[there])
    order = np.argsort(np.concatenate(rows), kind="stable")
    return np.concatenate(rows)[order], np.concatenate(columns)[order], np.concatenate(keys)[order]


def without_queries(pairs: Pairs, queries: Iterable[str]) -> Pairs:
    """The pairs whose query is none of these."""
    kept = ~np.isin(query_hashes(pairs), hashes(query_key(query) for query in queries))
    return pairs if kept.all() else pairs.select(np.flatnonzero(kept))
