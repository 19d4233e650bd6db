"""Noticing losses, gradients and weights that are not finite, without waiting for the device at every step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from splade_lit.core.errors import UserError

# Losses in a row that are not finite until training is over.
_PATIENCE = 5
# Under a GradScaler a step whose gradients overflow is left out and the scale halved. After so many of them in a row
# nothing is left of the scale.
_PATIENCE_OF_A_SCALER = 100


class DivergenceWatch:
    """Remembers on the device which steps were not finite; `read` and `check` wait for the device.

    Args:
        scaled: whether a GradScaler scales the loss: its gradients overflow now and then.

    Attributes:
        lost_updates: optimizer steps whose update was lost, as far as `read` knows.
        last_lost: the last of them, from 1; 0 if there is none.
    """

    def __init__(self, scaled: bool = False) -> None:
        self.scaled = scaled
        self.lost_updates = self.last_lost = self._told = 0
        # Step since which the loss is not finite; whether it was not since the last update; the two attributes.
        self._state: Tensor | None = None

    def observe(self, loss: Tensor, step: int) -> None:
        """Take note of the loss of a batch, a scalar, in the optimizer step `step`; steps count from 1."""
        first, bad, lost, last = self._on(loss).unbind()
        finite = loss.detach().isfinite()
        first = torch.where(finite, 0, torch.where(first > 0, first, step))
        self._state = torch.stack([first, torch.where(finite, bad, 1), lost, last])

    def lost(self, gradients: Iterable[Tensor], step: int) -> Tensor:
        """1.0 where the gradients of an optimizer step are not finite and would spoil all weights, else 0.0."""
        lost = ~get_total_norm(gradients, float("inf")).isfinite()
        first, bad, count, last = self._on(lost).unbind()
        noted = bad > 0 if self.scaled else lost | (bad > 0)
        self._state = torch.stack([first, torch.zeros_like(bad), count + noted, torch.where(noted, step, last)])
        return lost.float()

    def read(self) -> str | None:
        """Wait for the device; what is to be said of lost updates: of the first, then when they have doubled."""
        if self._state is not None:
            self.lost_updates, self.last_lost = self._state[2:].tolist()
        if self.lost_updates < max(1, 2 * self._told):
            return None
        earlier = f" ({self.lost_updates} such steps so far)" if self._told else ""
        self._told = self.lost_updates
        return (
            f"step {self.last_lost}: the loss or its gradient is not finite, so the step leaves the weights as they "
            f"are{earlier}; a text of its batch, a query weight (model.idf) or a weight of the base model makes too "
            "large numbers."
        )

    def check(self, parameters: Iterable[Tensor], step: int) -> None:
        """Look at the weights that are trained and at the losses so far, after `step` steps.

        Raises:
            UserError: the weights are not finite, or the loss has not been for so long that nothing is learned.
        """
        first = 0 if self._state is None else int(self._state[0])
        largest = get_total_norm([parameter.detach() for parameter in parameters], float("inf"))
        patience = _PATIENCE_OF_A_SCALER if self.scaled else _PATIENCE
        if largest.isfinite() and not (first and step - first >= patience):
            return
        what = f"the loss is not finite from step {first} on" if first else f"the weights are not finite at step {step}"
        raise UserError(
            f"Training diverged: {what}; lower model.learning_rate or model.idf_learning_rate, set "
            "trainer.gradient_clip_val, and start again or from a checkpoint of before."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on."""
        return {"state": [0] * 4 if self._state is None else self._state.tolist(), "told": self._told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = torch.tensor(state_dict["state"])
        self._told = state_dict["told"]

    def _on(self, tensor: Tensor) -> Tensor:
        """The state, on the device of a tensor."""
        if self._state is None:
            self._state = torch.zeros(4, dtype=torch.int64, device=tensor.device)
        return self._state.to(tensor.device)
