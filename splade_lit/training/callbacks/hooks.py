"""What callbacks share: when they are due, and the encoder that is being trained."""

from typing import cast

import lightning as L

from splade_lit.encoder.model import AsymmetricSparseEncoder


def encoder_of(pl_module: L.LightningModule) -> AsymmetricSparseEncoder:
    """The encoder of a `SpladeModule`."""
    return cast(AsymmetricSparseEncoder, pl_module.encoder)


class EveryNSteps:
    """True once at each multiple of `n` optimizer steps, also under accumulation of gradients and after a resume.

    Args:
        n: optimizer steps; never if None.
    """

    def __init__(self, n: int | None) -> None:
        self.n = n
        self._last = -1

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this optimizer step is one, the first time that it is asked about."""
        step = trainer.global_step
        if self.n is None or step == 0 or step % self.n or step == self._last:
            return False
        self._last = step
        return True
