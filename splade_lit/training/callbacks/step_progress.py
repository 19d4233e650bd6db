"""The progress of training: a bar in a terminal, lines in a log."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from splade_lit.core.progress import duration
from splade_lit.core.ranges import check_range

logger = logging.getLogger(__name__)


class StepProgressBar(RichProgressBar):
    """Lightning's rich progress bar; a run that ends by steps is not said to have -1 epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        return description if self.trainer.max_epochs != -1 else description.replace("/-2", "")


class ProgressLines(ProgressBar):
    """A line about training now and then, where there is no terminal for a bar.

    Args:
        seconds: between two lines, at least.

    Raises:
        UserError: `seconds` is below 0.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        check_range("ProgressLines", 0, seconds=seconds)
        self.seconds = seconds
        self._enabled = True

    def disable(self) -> None:
        """Say nothing more: another process does."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from here."""
        super().on_train_start(trainer, pl_module)
        self._start = self._told = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Say where training is, if the last line is old enough."""
        super().on_train_batch_end(trainer, pl_module, *args)
        now, step = time.monotonic(), trainer.global_step
        if not self._enabled or now - self._told < self.seconds or step == self._first_step:
            return
        self._told = now
        a_step = (now - self._start) / (step - self._first_step)
        left = (trainer.estimated_stepping_batches - step) * a_step
        loss = trainer.callback_metrics.get("train/loss")
        logger.info(
            "step %d of %d%s, %.2g s a step with evaluations, about %s left",
            step,
            trainer.estimated_stepping_batches,
            "" if loss is None else f": loss {float(loss):.4f}",
            a_step,
            duration(left),
        )
