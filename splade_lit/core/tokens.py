"""Ragged token ids: the form in which text travels from the data to the encoders.

No padding anywhere: the ids of all texts of a batch lie in one row, cut by offsets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Token ids of a batch of texts, in one row.

    Attributes:
        input_ids: int64 `[tokens]`, the texts one after another.
        lengths: tokens of each text; stays on the host, so that no loop over texts waits for a device.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def from_lists(cls, token_ids: Sequence[Sequence[int] | np.ndarray]) -> "Tokens":
        """Join one list of token ids a text.

        >>> Tokens.from_lists([[5, 6], [], [7]])
        Tokens(input_ids=tensor([5, 6, 7]), lengths=(2, 0, 1))
        """
        lengths = tuple(len(ids) for ids in token_ids)
        flat = (
            np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids]) if lengths else np.empty(0, np.int64)
        )
        return cls(torch.from_numpy(flat), lengths)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[Tensor]:
        """One view of ids a text."""
        return iter(self.input_ids.split(list(self.lengths)))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Text i lies at `offsets[i]:offsets[i + 1]`."""
        return (0, *np.cumsum(self.lengths, dtype=np.int64).tolist())

    @cached_property
    def text_index(self) -> Tensor:
        """int64 `[tokens]`: the text that each token belongs to, on the device of the ids."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self)), lengths).to(self.input_ids.device, non_blocking=True)

    @cached_property
    def positions(self) -> Tensor:
        """int64 `[tokens]`: the position of each token in its own text, from 0, on the device of the ids."""
        starts = torch.tensor(self.offsets[:-1], dtype=torch.int64)
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        positions = torch.arange(sum(self.lengths)) - torch.repeat_interleave(starts, lengths)
        return positions.to(self.input_ids.device, non_blocking=True)

    def to(self, device: torch.device | str, **kwargs: Any) -> "Tokens":
        """The same tokens on another device."""
        return Tokens(self.input_ids.to(device, non_blocking=True), self.lengths)

    def padded(self, padding_id: int) -> tuple[Tensor, Tensor]:
        """`(input_ids, attention_mask)`, both int64 `[texts, longest]`."""
        longest = max(self.lengths, default=0)
        input_ids = self.input_ids.new_full((len(self), longest), padding_id)
        attention_mask = torch.zeros_like(input_ids)
        input_ids[self.text_index, self.positions] = self.input_ids
        attention_mask[self.text_index, self.positions] = 1
        return input_ids, attention_mask


@dataclass(frozen=True)
class PairBatch:
    """A training batch.

    Attributes:
        queries: the distinct token ids of each query (presence is all that counts), `Q` texts.
        documents: the `Q` positives, document i answering query i, then the `Q` first hard negatives, the `Q` second
            ones and so on.
    """

    queries: Tokens
    documents: Tokens

    @cached_property
    def answers(self) -> Tensor:
        """int64 `[Q, 2]`: which document answers which query, pairs (query, document) on the device of the ids."""
        return torch.arange(len(self.queries), device=self.documents.input_ids.device).repeat(2, 1).T

    def to(self, device: torch.device | str, **kwargs: Any) -> "PairBatch":
        """The same batch on another device."""
        return PairBatch(self.queries.to(device), self.documents.to(device))


class KnownWords:
    """The token ids of words met before, for queries that come one after another.

    BERT's tokenizers cut a text at its spaces before anything else, so that its tokens are those of its words in a row.
    A word goes to the tokenizer's engine once, and is looked up from then on: a fifth of the time. Other tokenizers
    get whole texts each time.

    Ids are int32 in bytes objects: unlike lists, they are nothing that Python's garbage collector has to look through
    again and again, which took as long as the engine.

    Args:
        tokenizer: fast tokenizer.
    """

    _MAX_WORDS = 1 << 17  # then all are forgotten; some tens of megabytes
    _WORDS_AT_ONCE = 128

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = tokenizer.backend_tokenizer
        self._known: dict[str, bytes] = {}
        added = self._engine.get_added_tokens_decoder()
        self._by_word = (
            isinstance(self._engine.pre_tokenizer, BertPreTokenizer)
            and isinstance(self._engine.normalizer, BertNormalizer)
            and not any(" " in token.content for token in added.values())
        )
        # A special token at which the engine cuts a text before anything else: (id, text).
        self._cut = next(
            (
                (id, token.content)
                for id, token in added.items()
                if token.special and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
            ),
            None,
        )

    def token_ids(self, texts: Sequence[str]) -> list[bytes]:
        """All tokens of each text as int32, special ones left out, not cut."""
        if not self._by_word:
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
        cut_id, cut = self._cut or (-1, " ")
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
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, known_words: KnownWords | None = None
) -> list[np.ndarray]:
    """The distinct token ids of each query, ascending: no special tokens, cut after `max_tokens` tokens.

    Args:
        tokenizer: fast tokenizer.
        texts: the queries.
        max_tokens: tokens that are looked at.
        known_words: words of earlier calls with the same tokenizer.

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


def tokenize_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """The token ids of each document with the model's special tokens, `max_tokens` at most in all.

    Returns:
        One int32 array a text.
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]
