"""Ragged token ids: the form in which text travels from the data to the encoders.

No padding anywhere: the ids of all texts of a batch lie in one row, cut by offsets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
        arrays = [np.asarray(ids, dtype=np.int64) for ids in token_ids]
        flat = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
        return cls(torch.from_numpy(flat), tuple(map(len, arrays)))

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
        starts, lengths = torch.tensor([self.offsets[:-1], self.lengths], dtype=torch.int64)
        positions = torch.arange(sum(self.lengths)) - torch.repeat_interleave(starts, lengths)
        return positions.to(self.input_ids.device, non_blocking=True)

    def split(self, num_texts: int) -> list["Tokens"]:
        """The same texts in parts of so many, in order.

        >>> [part.lengths for part in Tokens.from_lists([[5, 6], [], [7]]).split(2)]
        [(2, 0), (1,)]
        """
        cuts = [(i, min(i + num_texts, len(self))) for i in range(0, len(self), num_texts)]
        ids, ends = self.input_ids, self.offsets
        return [Tokens(ids[ends[start] : ends[end]], self.lengths[start:end]) for start, end in cuts]

    def to(self, device: torch.device | str, **kwargs: Any) -> "Tokens":
        """The same tokens on another device."""
        return Tokens(self.input_ids.to(device, non_blocking=True), self.lengths)

    def padded(self, padding_id: int) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, both int64 `[texts, longest]`, as models of transformers take them."""
        longest = max(self.lengths, default=0)
        input_ids = self.input_ids.new_full((len(self), longest), padding_id)
        attention_mask = torch.zeros_like(input_ids)
        input_ids[self.text_index, self.positions] = self.input_ids
        attention_mask[self.text_index, self.positions] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}


@dataclass(frozen=True)
class PairBatch:
    """A training batch, of all processes together.

    Attributes:
        queries: the distinct token ids of each query (presence is all that counts), `Q` texts.
        documents: the first positive of each query, document i answering query i, then their further positives and
            their hard negatives, column after column. Where a row has none in a column, there is none. Where several
            processes share a batch, those of this process.
        answers: int64 `[answers, 2]`: which document answers which query, pairs (query, document) in ascending order:
            every document of the batch that is known to answer a query, whichever row it is in.
        teacher_scores: fp32 `[Q, documents]`, what a teacher gives for each query with each document, NaN for pairs
            that it has not scored; None without a teacher.
        shares: how many of the documents each process has, one after another in the order of ranks; None if they are
            not shared. All else is of the whole batch.
    """

    queries: Tokens
    documents: Tokens
    answers: Tensor
    teacher_scores: Tensor | None = None
    shares: tuple[int, ...] | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> "PairBatch":
        """The same batch on another device."""
        answers = self.answers.to(device, non_blocking=True)
        scores = None if self.teacher_scores is None else self.teacher_scores.to(device, non_blocking=True)
        return PairBatch(self.queries.to(device), self.documents.to(device), answers, scores, self.shares)
