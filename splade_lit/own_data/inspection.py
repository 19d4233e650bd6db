"""What is in pairs and in a corpus: counts, copies, lengths, language, and what pairs share with a corpus or a test."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.data.corpus import Corpus
from splade_lit.data.pairs import Pairs
from splade_lit.data.text_keys import answer_hashes, document_hashes, document_key, hashes, query_hashes
from splade_lit.own_data.language import LanguageGuess, guess_language

_SAMPLE = 10_000  # texts that lengths are measured on
_CHARACTERS = 50_000  # of a text that are tokenised: far more than a model takes
_LANGUAGE_SAMPLE = 1_000


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens, special tokens among them where the model adds them.

    Attributes:
        tokens: int64, ascending, one of each text of the sample.
        unknown_share: of tokens, those that the tokenizer has no entry for.
    """

    tokens: np.ndarray
    unknown_share: float

    @property
    def longest(self) -> int:
        """Length of the longest text."""
        return int(self.tokens[-1])

    def percentile(self, percent: float) -> int:
        """The length that so many percent of the texts do not exceed.

        >>> Lengths(np.array([3, 4, 5, 100]), 0.0).percentile(75)
        5
        """
        return int(np.percentile(self.tokens, percent, method="inverted_cdf"))

    def share_longer(self, limit: int) -> float:
        """Share of the texts that are longer."""
        return float(np.mean(self.tokens > limit))


@dataclass(frozen=True)
class PairsFacts:
    """What is in pairs.

    Attributes:
        num_rows: rows of the source.
        num_pairs: rows with text in all columns; what follows is about them.
        num_queries: distinct queries; letter case, spaces and punctuation at the ends of words make no difference.
        num_documents: distinct documents; spaces make no difference.
        num_copies: pairs that an earlier one equals in query and document.
        num_same_text: pairs whose document is their query.
        queries: lengths of queries, as `documents` those of documents.
    """

    num_rows: int
    num_pairs: int
    num_queries: int
    num_documents: int
    num_copies: int
    num_same_text: int
    queries: Lengths
    documents: Lengths
    query_language: LanguageGuess
    document_language: LanguageGuess

    @property
    def num_empty(self) -> int:
        """Rows without text in a column."""
        return self.num_rows - self.num_pairs


@dataclass(frozen=True)
class CorpusFacts:
    """What is in a corpus.

    Attributes:
        num_documents: rows, all of them.
        num_empty: rows without text.
        num_copies: documents whose text an earlier one has.
        num_found: documents of pairs that are in the corpus.
        num_sought: distinct documents of pairs.
    """

    num_documents: int
    num_empty: int
    num_copies: int
    num_found: int
    num_sought: int

    @property
    def found_share(self) -> float:
        """Share of the pairs' distinct documents that are in the corpus."""
        return self.num_found / self.num_sought


def inspect_pairs(pairs: Pairs, num_rows: int, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PairsFacts:
    """Count, and measure lengths and guess languages of a sample drawn by chance.

    `num_rows` counts the rows of the source, those without text among them; the tokenizer is the base model's.
    """
    queries, documents = query_hashes(pairs), document_hashes(pairs)
    rows = np.sort(np.random.default_rng(seed).choice(len(pairs), min(_SAMPLE, len(pairs)), replace=False))
    sample = pairs.dataset.select(rows)
    texts = {column: list(sample[column]) for column in ("query", "document")}
    queries_as_documents = hashes(map(document_key, chain.from_iterable(pairs.batches("query"))))
    return PairsFacts(
        num_rows=num_rows,
        num_pairs=len(pairs),
        num_queries=len(np.unique(queries)),
        num_documents=len(np.unique(documents)),
        num_copies=len(pairs) - len(np.unique(np.stack([queries, documents], axis=1), axis=0)),
        num_same_text=int((queries_as_documents == documents).sum()),
        queries=token_lengths(tokenizer, texts["query"], special_tokens=False),
        documents=token_lengths(tokenizer, texts["document"], special_tokens=True),
        query_language=guess_language(texts["query"][:_LANGUAGE_SAMPLE]),
        document_language=guess_language(texts["document"][:_LANGUAGE_SAMPLE]),
    )


def token_lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special_tokens: bool) -> Lengths:
    """Lengths of texts, not cut."""
    encoded = tokenizer(
        [text[:_CHARACTERS] for text in texts],
        add_special_tokens=special_tokens,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    tokens = np.array([len(ids) for ids in encoded], dtype=np.int64)
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded) if tokenizer.unk_token_id is not None else 0
    return Lengths(np.sort(tokens), unknown / max(int(tokens.sum()), 1))


def inspect_corpus(corpus: Corpus, pairs: Pairs) -> CorpusFacts:
    """Count, and look up the documents of pairs.

    Raises:
        UserError: no document has text.
    """
    texts = hashes(document_key(text) for _, text in corpus)
    if not len(texts):
        raise UserError(f"{corpus.source}: no document has text.")
    assert corpus.num_rows is not None, "open_corpus counts"
    distinct = np.unique(texts)
    sought = np.unique(answer_hashes(pairs)[2])
    return CorpusFacts(
        num_documents=corpus.num_rows,
        num_empty=corpus.num_rows - len(texts),
        num_copies=len(texts) - len(distinct),
        num_found=int(np.isin(sought, distinct).sum()),
        num_sought=len(sought),
    )
