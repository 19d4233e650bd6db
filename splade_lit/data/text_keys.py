"""When two texts count as the same: hashes that are equal where a person would call queries or documents equal."""

import unicodedata
from collections.abc import Iterable

import numpy as np
import xxhash

from splade_lit.data.pairs import Pairs

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


def hashes(texts: Iterable[str]) -> np.ndarray:
    """uint64, one a text; equal for equal texts."""
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64)


def query_hashes(pairs: Pairs) -> np.ndarray:
    """uint64 `[pairs]`: the hash of each query's key."""
    return hashes(query_key(text) for batch in pairs.batches("query") for text in batch)


def document_hashes(pairs: Pairs) -> np.ndarray:
    """uint64 `[pairs]`: the hash of each document's key."""
    return hashes(document_key(text) for batch in pairs.batches("document") for text in batch)


def without_queries(pairs: Pairs, queries: Iterable[str]) -> Pairs:
    """The pairs whose query is none of these."""
    kept = ~np.isin(query_hashes(pairs), hashes(query_key(query) for query in queries))
    return pairs if kept.all() else pairs.select(np.flatnonzero(kept))
