"""Batches of token ids for training, and the position of a run in its epoch."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from splade_lit.core.tokens import PairBatch, Tokens
from splade_lit.data.answers import KnownAnswers
from splade_lit.data.sampler import NoDuplicatesBatchSampler
from splade_lit.data.token_store import TokenStore

logger = logging.getLogger(__name__)


class TeacherScores(Protocol):
    """A teacher's scores of the pairs of a batch."""

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: of the queries of these rows with all documents of the batch, NaN if not scored."""


class PairLoader:
    """An iterable of `PairBatch`, one epoch an iteration; a checkpoint can resume it in the middle of an epoch.

    A batch is copied out of memory maps in well under a millisecond, so it is made when it is asked for: there are no
    worker processes, and nothing is read ahead that a resumed run would miss. Several processes share the documents of
    each batch, as many tokens for each as can be; all have its queries.

    Args:
        queries: distinct token ids of the queries.
        documents: token ids of each column of positives, then of hard negatives; all as long as `queries`.
        answers: which documents there are, and which of them answer which query.
        sampler: gives batches as positions in `rows` of the stores; Lightning calls its `set_epoch`.
        trained_batches: gives how many batches of the epoch optimizer steps were taken on, as training may stop in the
            middle of a step; by default, all that were handed out.
        teacher: gives a teacher's scores of the pairs of a batch, by its rows of the stores.
        num_processes: how many processes share a batch.
        rank: which of them this is, from 0.
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
        num_processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.queries = queries
        self.documents = documents
        self.answers = answers
        self.sampler = sampler
        self.batch_sampler = None  # Lightning reads it of every loader that has a sampler
        self.rows = rows
        self.trained_batches = trained_batches
        self.teacher = teacher
        self.num_processes, self.rank = num_processes, rank
        self._state = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] | None = None
        self._told = False

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
        columns = [rows[there] for there in self.answers.present(rows).T]
        shares = self._shares(columns)
        first = sum(shares[: self.rank])
        # A process without a share still has to take part in a step; what it makes of a document is not used.
        own = slice(first, first + shares[self.rank]) if shares[self.rank] else slice(0, 1)
        parts = [store.gather(part) for store, part in zip(self.documents, _cut(columns, own), strict=True)]
        lengths = tuple(chain.from_iterable(part.lengths for part in parts))
        documents = Tokens(torch.cat([part.input_ids for part in parts]), lengths)
        answers = torch.from_numpy(self.answers.among(rows))
        teacher_scores = self.teacher(rows) if self.teacher else None
        shared = shares if self.num_processes > 1 else None
        return PairBatch(self.queries.gather(rows), documents, answers, teacher_scores, shared)

    def _shares(self, columns: Sequence[np.ndarray]) -> tuple[int, ...]:
        """How many of the documents each process has: cut where their tokens are."""
        lengths = np.concatenate([store.lengths(rows) for store, rows in zip(self.documents, columns, strict=True)])
        middles = lengths.cumsum() - lengths / 2
        cuts = np.searchsorted(middles, lengths.sum() * np.arange(1, self.num_processes) / self.num_processes)
        return tuple(np.diff(cuts, prepend=0, append=len(lengths)).tolist())

    @property
    def _settings(self) -> dict[str, Any]:
        """What decides which batches an epoch has, and what of them is an answer."""
        return self.sampler.settings | {"columns of answers": self.answers.num_positives}

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its batches are done, and which these are; Lightning saves it with each checkpoint."""
        state = {**self._state, "batches_of": self._settings}
        if self.trained_batches is not None:
            state["batches"] = min(self._state["batches"], self.trained_batches())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on after those batches, if it is of the same epoch.

        Where the state is one of other batches, a warning says what has changed, and the epoch's begin with the first.
        """
        before, now = state.get("batches_of", {}), self._settings
        if changed := [f"{name} {now[name]} (was {value})" for name, value in before.items() if value != now[name]]:
            if not self._told:  # Lightning may load it more than once
                text = "Resuming with other batches than the checkpoint's run, from the first of the epoch: %s."
                logger.warning(text, ", ".join(changed))
            self._told = True
            return
        self._state = self._resumed = {"epoch": state["epoch"], "batches": state["batches"]}


def batches_of_step(batch: int, batches_per_step: int, batches_per_epoch: float) -> int:
    """How many batches the step of a batch has: the last one of an epoch may have fewer.

    >>> [batches_of_step(batch, 2, 3) for batch in range(3)]
    [2, 2, 1]
    """
    return int(min(batches_per_step, batches_per_epoch - batch + batch % batches_per_step))


def in_whole_steps(batches: int, accumulated: int, per_epoch: float) -> int:
    """Of the first batches of an epoch, those that optimizer steps were taken on: so many a step, fewer in the last.

    >>> in_whole_steps(5, 2, 7), in_whole_steps(7, 2, 7)
    (4, 7)
    """
    return batches if batches >= per_epoch else batches - batches % accumulated


def _cut(columns: Sequence[np.ndarray], part: slice) -> Iterator[np.ndarray]:
    """Part of a sequence that is given in columns, one after another: what each of them has of it."""
    start = 0
    for column in columns:
        yield column[max(part.start - start, 0) : max(part.stop - start, 0)]
        start += len(column)
