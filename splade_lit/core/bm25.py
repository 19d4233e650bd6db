"""BM25 as a sparse encoder: documents are vectors of weights, queries count words.

bm25s weighs each word of each document in advance.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN
from scipy.sparse import csc_array, csr_array

from splade_lit.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BM25 = "bm25"
"""What settings call it, where they may name a model instead."""

_WORD = re.compile(r"(?u)\b\w\w+\b")  # as bm25s has it
_STOP_WORDS = frozenset(STOPWORDS_EN)


def word_weights(
    source: str,
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    k1: float = 1.2,
    b: float = 0.75,
) -> tuple[csr_array, dict[str, int]]:
    """Weights of the words of documents, fp32 `[documents, words]`, and the number of each word.

    Args:
        source: what an error calls the documents.
        texts: the documents, whole.
        tokenizer: weigh WordPieces (or what tokens it has), without special tokens; if not given, words: lower-cased,
            of two letters or more, singular, without English stop words.
        k1: how slowly a repeated word saturates.
        b: how much long documents are held back, 0 to 1.

    Raises:
        UserError: no document has a word.
    """
    documents = _tokens(list(texts), tokenizer)
    if not any(documents):
        raise UserError(f"{source}: BM25 finds no word in any document; give texts.")
    bm25 = bm25s.BM25(method="lucene", k1=k1, b=b)
    bm25.index(documents, create_empty_token=False, show_progress=False)
    # bm25s numbers the words in any order; sums over them are the same to the last digit only in one order.
    words = sorted(bm25.vocab_dict)
    weights = csc_array(
        (bm25.scores["data"], bm25.scores["indices"], bm25.scores["indptr"]),
        shape=(len(documents), len(words)),
    )[:, [bm25.vocab_dict[word] for word in words]]
    return weights.tocsr(), {word: number for number, word in enumerate(words)}


def word_counts(
    texts: Sequence[str], numbers: Mapping[str, int], tokenizer: "PreTrainedTokenizerBase | None" = None
) -> csr_array:
    """How often each word is in each query, `[queries, words]`, of those words that documents have."""
    queries = _tokens(list(texts), tokenizer)
    found = [(row, numbers[word]) for row, query in enumerate(queries) for word in query if word in numbers]
    rows, columns = np.array(found, dtype=np.int64).reshape(-1, 2).T
    ones = np.ones(len(found), np.float32)
    return csr_array((ones, (rows, columns)), shape=(len(queries), len(numbers)))


def read_words(text: str) -> Iterator[tuple[str, int, int]]:
    """The words of a document as BM25 counts them, each with the characters from start to end that it stands for.

    >>> list(read_words("The songs of a river"))
    [('song', 4, 9), ('river', 15, 20)]
    """
    lower = text.lower()
    # A few letters become two in lower case.
    places = range(len(text)) if len(lower) == len(text) else [n for n, one in enumerate(text) for _ in one.lower()]
    for found in _WORD.finditer(lower):
        if found[0] not in _STOP_WORDS:
            yield singular(found[0]), places[found.start()], places[found.end() - 1] + 1


def singular(word: str) -> str:
    """The word without its plural ending: the S stemmer of Harman (1991), "How effective is suffixing?".

    Enough for most of what a stemmer brings: on NFCorpus nDCG@10 rises from 0.305 to 0.319 (published, with Porter's
    stemmer: 0.322).

    >>> [singular(word) for word in ("queries", "indexes", "vectors", "class", "status")]
    ['query', 'indexe', 'vector', 'class', 'status']
    """
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def _tokens(texts: list[str], tokenizer: "PreTrainedTokenizerBase | None") -> list[list[str]]:
    if tokenizer is None:
        settings = {"stopwords": "english", "return_ids": False, "show_progress": False}
        return list(bm25s.tokenize(texts, stemmer=lambda words: [singular(word) for word in words], **settings))
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(tokenizer.convert_ids_to_tokens(ids)) for ids in encoded]
