"""Batches in which no text occurs twice: in-batch negatives that are not answers in disguise."""

from collections.abc import Iterator

import numba
import numpy as np
from torch.utils.data import Sampler


class NoDuplicatesBatchSampler(Sampler[np.ndarray]):
    """Batches of rows such that no text, of any column, is in two rows of a batch.

    Rows are drawn in an order seeded by the epoch. Each goes to the first batch that has room and comes after all
    batches that hold one of its texts, so a row that clashes only waits for the next batch. Batches are full but for
    a few at the end; every row comes once an epoch (at most once with `drop_last`). Time is linear in the rows.

    With several devices, a batch is shared out: no text is twice in the batch of all devices together.

    Args:
        fingerprints: `[rows, columns]`, integers that are equal where texts are.
        batch_size: rows of a batch, on each device.
        seed: of the order; epoch e is drawn with (seed, e).
        drop_last: leave out batches that are not full.
        shuffle: False keeps the order of the rows, the same in all epochs.
        num_replicas: number of devices.
        rank: which of them.
    """

    def __init__(
        self,
        fingerprints: np.ndarray,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = False,
        shuffle: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        _, text_ids = np.unique(fingerprints, return_inverse=True)
        self._text_ids = text_ids.reshape(fingerprints.shape)
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self._plan: list[np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this before each epoch."""
        if epoch != self.epoch and self.shuffle:
            self._plan = None
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of this epoch, exactly."""
        return len(self.batches())

    def __iter__(self) -> Iterator[np.ndarray]:
        """int64 row numbers, one array a batch."""
        yield from self.batches()

    def batches(self) -> list[np.ndarray]:
        """All batches of this epoch, on this device."""
        if self._plan is None:
            self._plan = self._make_plan()
        return self._plan

    def _make_plan(self) -> list[np.ndarray]:
        num_rows = len(self._text_ids)
        order = np.arange(num_rows)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(num_rows)
        global_size = self.batch_size * self.num_replicas
        batch_of = _first_fit(order, self._text_ids, global_size)
        rows = order[np.argsort(batch_of, kind="stable")]
        batches = np.split(rows, np.cumsum(np.bincount(batch_of))[:-1]) if num_rows else []
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == global_size]
        # Devices take equal shares of a short batch: they must make the same number of steps.
        shares = (batch[: len(batch) - len(batch) % self.num_replicas] for batch in batches)
        return [share[self.rank :: self.num_replicas] for share in shares if len(share)]


@numba.njit(cache=True)
def _first_fit(order: np.ndarray, text_ids: np.ndarray, batch_size: int) -> np.ndarray:
    """int64 `[rows]`: the batch of each row of `order`."""
    num_rows = len(order)
    batch_of = np.empty(num_rows, dtype=np.int64)
    next_batch = np.zeros(text_ids.max() + 1 if num_rows else 0, dtype=np.int64)  # of a text: after all that hold it
    size = np.zeros(num_rows + 1, dtype=np.int64)
    open_from = np.arange(num_rows + 2)  # of a batch: itself, or if it is full, one to look at instead
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
