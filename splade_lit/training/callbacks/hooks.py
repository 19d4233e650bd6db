"""Shared by callbacks: when they are due, the encoder that is being trained, and who watches a metric."""

from typing import cast

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from splade_lit.encoder.model import AsymmetricSparseEncoder


def encoder_of(pl_module: L.LightningModule) -> AsymmetricSparseEncoder:
    """The encoder of a `SpladeModule`."""
    return cast(AsymmetricSparseEncoder, pl_module.encoder)


def watchers(trainer: L.Trainer) -> list[EarlyStopping | ModelCheckpoint]:
    """The callbacks of a run that watch a metric."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [one for one in callbacks if isinstance(one, (EarlyStopping, ModelCheckpoint)) and one.monitor]


class EveryNSteps:
    """True once at each multiple of `n` optimizer steps, also under accumulation of gradients and after a resume.

    Args:
        *n: optimizer steps; of several, a multiple of any counts, and None has no multiples.
    """

    def __init__(self, *n: int | None) -> None:
        self.n = [one for one in n if one]
        self._last = -1

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this optimizer step is one, the first time that it is asked about."""
        step = trainer.global_step
        if step in (0, self._last) or all(step % n for n in self.n):
            return False
        self._last = step
        return True
