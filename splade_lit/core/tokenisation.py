"""From texts to token ids: one way for training, evaluation and serving, with `tokenizers` and numpy alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from splade_lit.core.errors import UserError

_CHARACTERS_A_TOKEN = 8  # more than most texts have

_MOST_IDS_A_TOKEN, _SPARE_IDS = 2, 1_000  # some vocabularies leave ids out


def vocabulary_size(vocabulary: Mapping[str, int], source: object) -> int:
    """The largest id of a vocabulary and one, which tables have rows for; a UserError if it is far beyond its tokens.

    >>> vocabulary_size({"a": 0, "b": 7}, "model")
    8
    """
    size = max(vocabulary.values(), default=-1) + 1
    if not vocabulary or size > _MOST_IDS_A_TOKEN * len(vocabulary) + _SPARE_IDS:
        raise UserError(
            f"{source}: its tokenizer has {len(vocabulary):,} tokens and ids up to {size - 1:,}, so it is damaged; "
            "fetch the model again."
        )
    return size


@dataclass(frozen=True)
class EngineTokenizer:
    """A tokenizer without transformers: what looking queries up needs, under the names that transformers has."""

    backend_tokenizer: Tokenizer
    truncation_side: str = "right"


class ReadText(NamedTuple):
    """A document as the model reads it: its prompt before it, special tokens around it, cut to the limit.

    `ids` are int32 `[tokens]`; `spans` are the characters of the text that each token stands for, from the first to the
    one after the last, None for special tokens and those of the prompt.
    """

    ids: np.ndarray
    spans: list[tuple[int, int] | None]


@dataclass(frozen=True)
class Tokenisation:
    """How the texts of both sides become token ids: prompt, tokens, limit.

    Attributes:
        tokenizer: fast tokenizer of transformers; `EngineTokenizer` is enough for queries and for `read_document`.
        max_query_tokens: queries are cut after this many tokens.
        max_document_tokens: documents are cut to this many tokens, special tokens included.
        prompts: texts put before queries and documents, by name; "query" and "document" are empty if not given.
    """

    tokenizer: Any
    max_query_tokens: int
    max_document_tokens: int
    prompts: Mapping[str, str] = field(default_factory=dict)

    def queries(self, texts: Sequence[str], prompt_name: str = "query", prompt: str | None = None) -> list[np.ndarray]:
        """The distinct token ids of each query with a prompt before it: that of a name, or `prompt` itself.

        Raises:
            ValueError: there is no prompt of this name.
        """
        texts = self._prompted(texts, prompt_name, prompt)
        return tokenize_queries(self.tokenizer, texts, self.max_query_tokens, self._known_words)

    def documents(
        self, texts: Sequence[str], prompt_name: str = "document", prompt: str | None = None
    ) -> list[np.ndarray]:
        """The token ids of each document; arguments as of `queries`, see `tokenize_documents`."""
        return tokenize_documents(self.tokenizer, self._prompted(texts, prompt_name, prompt), self.max_document_tokens)

    def read_document(self, text: str, prompt_name: str = "document", prompt: str | None = None) -> ReadText:
        """The tokens of one document, as of `documents`, with the places in the text that they stand for."""
        engine = self.tokenizer.backend_tokenizer
        engine.no_truncation()
        engine.no_padding()
        (before,) = self._prompted([""], prompt_name, prompt)
        room = self.max_document_tokens - engine.num_special_tokens_to_add(is_pair=False)
        side, whole = self.tokenizer.truncation_side, before + text
        # Of a long text no more is cut into tokens than has room, where words do not depend on what follows them.
        by_parts = self._known_words.by_word and side == "right"
        size = _CHARACTERS_A_TOKEN * room if by_parts else len(whole)
        while True:
            cut = whole.find(" ", size)
            encoding = engine.encode(whole if cut < 0 else whole[:cut], add_special_tokens=False)
            if cut < 0 or len(encoding) >= room:
                break
            size *= 4
        encoding.truncate(room, direction=side)
        # Taken before special tokens are added: some engines trim the places of others once more in doing so.
        places, shift = iter(encoding.offsets), len(before)
        encoding = engine.post_process(encoding, add_special_tokens=True)
        of_tokens = [(0, 0) if special else next(places) for special in encoding.special_tokens_mask]
        spans = [(max(start - shift, 0), end - shift) if end > max(start, shift) else None for start, end in of_tokens]
        return ReadText(np.array(encoding.ids, np.int32), spans)

    def query_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each query are looked at, repeated ones counted each time."""
        token_ids = self._known_words.token_ids(self._prompted(texts, "query", None))
        return [min(len(ids) // 4, self.max_query_tokens) for ids in token_ids]

    @cached_property
    def _known_words(self) -> "KnownWords":
        return KnownWords(self.tokenizer)

    def _prompted(self, texts: Sequence[str], prompt_name: str, prompt: str | None) -> list[str]:
        prompts = {"query": "", "document": ""} | dict(self.prompts)
        if prompt is None and prompt_name not in prompts:
            raise ValueError(f"no prompt named {prompt_name!r}; there are {sorted(prompts)}")
        prompt = prompts[prompt_name] if prompt is None else prompt
        return [prompt + text for text in texts]


class KnownWords:
    """The token ids of words met before, for queries that come one after another.

    BERT's tokenizers cut a text at its spaces before anything else, so that its tokens are those of its words in a row.
    A word goes to the tokenizer's engine once, and is looked up from then on: a fifth of the time. Other tokenizers
    get whole texts each time.

    Ids are int32 in bytes objects, which Python's garbage collector need not look through. With lists it took as long
    as the engine.

    Attributes:
        by_word: whether the tokenizer is of this kind.
    """

    _MAX_WORDS = 1 << 17  # then all are forgotten; some tens of megabytes
    _WORDS_AT_ONCE = 128

    def __init__(self, tokenizer: Any) -> None:
        self._engine = tokenizer.backend_tokenizer
        self._known: dict[str, bytes] = {}
        added = self._engine.get_added_tokens_decoder()
        self.by_word = (
            isinstance(self._engine.pre_tokenizer, BertPreTokenizer)
            and isinstance(self._engine.normalizer, BertNormalizer)
            and not any(" " in token.content for token in added.values())
        )
        # Special tokens at which the engine cuts a text before anything else: (id, text); one is enough.
        cuts = (
            (id, token.content)
            for id, token in added.items()
            if token.special and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        )
        self._cut = next(cuts, (-1, " "))

    def token_ids(self, texts: Sequence[str]) -> list[bytes]:
        """All tokens of each text as int32, special ones left out, not cut."""
        if not self.by_word:
            return [ids.tobytes() for ids in self._from_engine(texts)]
        if len(self._known) > self._MAX_WORDS:
            self._known = {}
        known = self._known  # threads may share it: it only grows
        new = list(set(chain.from_iterable(text.split(" ") for text in texts)) - known.keys())
        if new:
            known.update(zip(new, self._words_from_engine(new), strict=True))
        return [b"".join(map(known.__getitem__, text.split(" "))) for text in texts]

    def _words_from_engine(self, words: list[str]) -> Iterator[bytes]:
        # One text of many words, cut apart by a special token, takes half the time of one text a word.
        cut_id, cut = self._cut
        chunks = [words[i : i + self._WORDS_AT_ONCE] for i in range(0, len(words), self._WORDS_AT_ONCE)]
        for chunk, ids in zip(chunks, self._from_engine([cut.join(chunk) for chunk in chunks]), strict=True):
            cuts = np.flatnonzero(ids == cut_id)
            if len(cuts) != len(chunk) - 1:  # a word holds that token itself
                yield from (word_ids.tobytes() for word_ids in self._from_engine(chunk))
            else:
                row, ends = ids.tobytes(), [-1, *cuts.tolist(), len(ids)]
                yield from (row[4 * start + 4 : 4 * end] for start, end in pairwise(ends))

    def _from_engine(self, texts: Sequence[str]) -> list[np.ndarray]:
        # Past transformers' wrapper, which takes as long again for a text this short.
        self._engine.no_truncation()
        self._engine.no_padding()
        encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def tokenize_queries(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, known_words: KnownWords | None = None
) -> list[np.ndarray]:
    """The distinct token ids of each query, ascending: no special tokens, cut after `max_tokens` tokens.

    Returns:
        One int32 array a text; an empty text gives an empty array.
    """
    if not texts:
        return []
    kept = slice(4 * max_tokens) if tokenizer.truncation_side == "right" else slice(-4 * max_tokens, None)
    token_ids = [ids[kept] for ids in (known_words or KnownWords(tokenizer)).token_ids(texts)]
    # The distinct ids of all texts by one sort of (text, id).
    lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids)) // 4
    keys = np.repeat(np.arange(len(token_ids)) << 32, lengths) | np.frombuffer(b"".join(token_ids), np.int32)
    keys.sort()
    distinct = keys[np.diff(keys, prepend=-1) != 0]
    ends = np.searchsorted(distinct, np.arange(len(token_ids) + 1) << 32).tolist()
    distinct = distinct.astype(np.int32)  # the lower half is the id
    return [distinct[start:end] for start, end in pairwise(ends)]


def tokenize_documents(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """The token ids of each document with the model's special tokens, `max_tokens` at most in all: int32 arrays."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]
