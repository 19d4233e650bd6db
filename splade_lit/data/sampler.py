"""Batches in which no text occurs twice: in-batch negatives that are not answers in disguise."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numba
import numpy as np
import xxhash
from torch.utils.data import Sampler

_DRAWS = 8  # orders tried at most for an epoch until one gives no more batches than epoch 0 has


class NoDuplicatesBatchSampler(Sampler[np.ndarray]):
    """Batches of rows such that no text, of any column, is in two rows of a batch.

    Rows are drawn in an order seeded by the epoch. Each row goes to the first batch that has room and comes after all
    batches that hold one of its texts. All batches are full but a few at the end. Every row comes once an epoch (at
    most once with `drop_last`). Time is linear in the number of rows.

    Every epoch has the same number of batches, because a trainer asks for that number only once. Where an order gives
    fewer batches than epoch 0 has, the largest are split in two. Where every order that is tried gives more, the
    batches of epoch 0 come in another order.

    Args:
        fingerprints: integers `[rows, columns]`; equal texts have equal ones.
        batch_size: rows of a batch, of all devices together.
        seed: epoch e is drawn with (seed, e).
        drop_last: leave out batches that are not full.
        shuffle: False keeps the order of the rows in all epochs.
        block_rows: how many neighbouring rows stay together when the order is drawn. Where rows are ordered by topic,
            neighbours are hard negatives for each other.
    """

    def __init__(
        self,
        fingerprints: np.ndarray,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
        shuffle: bool = True,
        block_rows: int = 1,
    ) -> None:
        _, text_ids = np.unique(fingerprints, return_inverse=True)
        self._text_ids = text_ids.reshape(fingerprints.shape)
        self._hash = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(fingerprints).tobytes())
        self.batch_size, self.block_rows, self.drop_last = batch_size, block_rows, drop_last
        self.seed, self.shuffle = seed, shuffle
        self.epoch = 0
        self._plan: list[np.ndarray] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which batches an epoch has."""
        return {
            "pairs": f"{len(self._text_ids):,} with hash {self._hash}",
            "pairs a batch": self.batch_size,
            "drop_last": self.drop_last,
            "seed": self.seed,
            "block_rows": self.block_rows,
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this before each epoch."""
        if epoch != self.epoch and self.shuffle:
            self._plan = None
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches, exactly, the same in every epoch."""
        return len(self._first_plan)

    def __iter__(self) -> Iterator[np.ndarray]:
        """int64 row numbers, one array a batch."""
        yield from self.batches()

    def batches(self) -> list[np.ndarray]:
        """All batches of this epoch."""
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    @cached_property
    def _first_plan(self) -> list[np.ndarray]:
        return self._draw(self._rng(0))

    def _make_plan(self) -> list[np.ndarray]:
        first = self._first_plan
        if self.epoch == 0 or not self.shuffle:
            return first
        rng = self._rng(self.epoch)
        for _ in range(_DRAWS):
            if (plan := self._with_length(self._draw(rng), len(first))) is not None:
                return plan
        return [rng.permutation(first[number]) for number in rng.permutation(len(first))]

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch))

    def _draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches of the rows in an order drawn from `rng`."""
        num_rows = len(self._text_ids)
        order = np.arange(num_rows)
        if self.shuffle:
            # Blocks are cut elsewhere in each epoch, so that a row meets all of its neighbours.
            block_of = (order + rng.integers(self.block_rows)) // self.block_rows
            order = np.argsort(rng.permutation(num_rows + 1)[block_of], kind="stable")
        batch_of = _first_fit(order, self._text_ids, self.batch_size)
        rows = order[np.argsort(batch_of, kind="stable")]
        batches = np.split(rows, np.cumsum(np.bincount(batch_of))[:-1]) if num_rows else []
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        return batches

    def _with_length(self, batches: list[np.ndarray], length: int) -> list[np.ndarray] | None:
        """The same rows in `length` batches, or with `drop_last` the first of them; None if that cannot be."""
        if self.drop_last:
            return batches[:length] if len(batches) >= length else None
        if not 0 < len(batches) <= length:
            return None
        while len(batches) < length:
            largest = max(range(len(batches)), key=lambda number: (len(batches[number]), number))
            batch = batches[largest]
            cut = len(batch) // 2
            if cut == 0:
                return None
            batches[largest : largest + 1] = [batch[:cut], batch[cut:]]
        return batches


@numba.njit(cache=True)
def _first_fit(order: np.ndarray, text_ids: np.ndarray, batch_size: int) -> np.ndarray:
    """int64 `[rows]`: the batch of each row of `order`."""
    num_rows = len(order)
    batch_of = np.empty(num_rows, dtype=np.int64)
    num_texts = text_ids.max() + 1 if num_rows else 0
    next_batch = np.zeros(num_texts, dtype=np.int64)  # of each text: the first batch after all that hold it
    size = np.zeros(num_rows + 1, dtype=np.int64)
    open_from = np.arange(num_rows + 2)  # of each batch: itself or, if it is full, a later one to try
    for position in range(num_rows):
        texts = text_ids[order[position]]
        batch = 0
        for text in texts:
            batch = max(batch, next_batch[text])
        while open_from[batch] != batch:
            open_from[batch] = open_from[open_from[batch]]  # halve the path, so that chains of full batches stay short
            batch = open_from[batch]
        batch_of[position] = batch
        size[batch] += 1
        if size[batch] == batch_size:
            open_from[batch] = batch + 1
        for text in texts:
            next_batch[text] = batch + 1
    return batch_of
