"""Batches of token ids for training, and the position of a run in its epoch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from splade_lit.core.tokens import PairBatch, Tokens
from splade_lit.data.answers import KnownAnswers
from splade_lit.data.sampler import NoDuplicatesBatchSampler
from splade_lit.data.token_store import TokenStore


class TeacherScores(Protocol):
    """A teacher's scores of the pairs of a batch."""

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: of the queries of these rows with all documents of the batch, NaN if not scored."""


class PairLoader:
    """An iterable of `PairBatch`, one epoch an iteration; a checkpoint can resume it in the middle of an epoch.

    A batch is copied out of memory maps in well under a millisecond, so it is made when it is asked for: there are no
    worker processes, and nothing is read ahead that a resumed run would miss.

    Args:
        queries: distinct token ids of the queries.
        documents: token ids of each column of positives, then of hard negatives; all as long as `queries`.
        answers: which documents there are, and which of them answer which query.
        sampler: gives batches as positions in `rows` of the stores; Lightning calls its `set_epoch`.
        trained_batches: gives how many batches of the epoch were trained on, as training may stop in the middle of a
            batch; by default, all that were handed out.
        teacher: gives a teacher's scores of the pairs of a batch, by its rows of the stores.
    """

    def __init__(
        self,
        queries: TokenStore,
        documents: Sequence[TokenStore],
        answers: KnownAnswers,
        sampler: NoDuplicatesBatchSampler,
        rows: np.ndarray,
        trained_batches: Callable[[], int] | None = None,
        teacher: TeacherScores | None = None,
    ) -> None:
        self.queries = queries
        self.documents = documents
        self.answers = answers
        self.sampler = sampler
        self.batch_sampler = None  # Lightning reads it of every loader that has a sampler
        self.rows = rows
        self.trained_batches = trained_batches
        self.teacher = teacher
        self._state = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] | None = None

    def __len__(self) -> int:
        """Number of batches of the epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[PairBatch]:
        """The batches of the sampler's epoch, from its start or from where a loaded state left it."""
        # A generator: this runs when the first batch is asked for. Lightning has set the epoch by then.
        epoch = self.sampler.epoch
        resumed, self._resumed = self._resumed, None
        start = resumed["batches"] if resumed and resumed["epoch"] == epoch else 0
        for number, positions in enumerate(self.sampler.batches()[start:], start + 1):
            self._state = {"epoch": epoch, "batches": number}
            yield self.batch(self.rows[positions])

    def batch(self, rows: np.ndarray) -> PairBatch:
        """The batch of these rows of the stores."""
        present = self.answers.present(rows).T
        columns = [store.gather(rows[there]) for store, there in zip(self.documents, present, strict=True)]
        lengths = chain.from_iterable(column.lengths for column in columns)
        documents = Tokens(torch.cat([column.input_ids for column in columns]), tuple(lengths))
        answers = torch.from_numpy(self.answers.among(rows))
        teacher_scores = self.teacher(rows) if self.teacher else None
        return PairBatch(self.queries.gather(rows), documents, answers, teacher_scores)

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches are done; Lightning saves them with each checkpoint."""
        if self.trained_batches is None:
            return dict(self._state)
        return {**self._state, "batches": min(self._state["batches"], self.trained_batches())}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on after those batches, if it is of the same epoch."""
        self._state = self._resumed = dict(state)
