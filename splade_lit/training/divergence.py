"""Noticing a training that has diverged, without waiting for the device at every step."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from splade_lit.core.errors import UserError

# Under a GradScaler a step whose gradients overflow is left out and the scale halved. After so many of them in a row
# nothing is left of the scale.
_PATIENCE = 100


class DivergenceWatch:
    """Remembers on the device since which step the loss is not finite; only `check` waits for the device."""

    def __init__(self) -> None:
        self._first_bad_step: Tensor | None = None

    def observe(self, loss: Tensor, step: int) -> None:
        """Take note of a step's loss, a scalar; steps count from 1."""
        first = loss.new_zeros((), dtype=torch.int64) if self._first_bad_step is None else self._first_bad_step
        self._first_bad_step = torch.where(loss.detach().isfinite(), 0, torch.where(first > 0, first, step))

    def check(self, parameters: Iterable[Tensor], step: int) -> None:
        """Look at the weights that are trained and at the losses so far, after `step` steps.

        Raises:
            UserError: the weights are not finite, or the loss has not been for so long that nothing is learned.
        """
        first = 0 if self._first_bad_step is None else int(self._first_bad_step)
        largest = get_total_norm([parameter.detach() for parameter in parameters], float("inf"))
        if largest.isfinite() and not (first and step - first >= _PATIENCE):
            return
        what = f"the loss is not finite from step {first} on" if first else f"the weights are not finite at step {step}"
        raise UserError(
            f"Training diverged: {what}; lower model.learning_rate or model.idf_learning_rate, set "
            "trainer.gradient_clip_val, and start again or from a checkpoint of before."
        )
