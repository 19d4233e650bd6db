"""Which part of a run trains and which evaluates, for callbacks that count time or energy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L

Phase = Literal["training", "evaluation"]


class PhaseCallback(L.Callback):
    """A callback whose `on_phase_end` is called whenever a run changes between training and evaluation.

    Evaluation is Lightning's validation loop and whatever callbacks do inside `evaluating`; all else is training.
    """

    phase: Phase = "training"

    def on_phase_end(self, trainer: L.Trainer) -> None:
        """Called while `phase` still is the one that ends."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin evaluation."""
        self.enter(trainer, "evaluation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with training."""
        self.enter(trainer, "training")

    def enter(self, trainer: L.Trainer, phase: Phase) -> None:
        """Go over to a phase."""
        if phase != self.phase:
            self.on_phase_end(trainer)
            self.phase = phase


@contextmanager
def evaluating(trainer: Any) -> Iterator[None]:
    """The block counts as evaluation; training goes on after it."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, PhaseCallback)]
    for callback in callbacks:
        callback.enter(trainer, "evaluation")
    yield
    for callback in callbacks:  # not where the block raised: the run has stopped in its evaluation
        callback.enter(trainer, "training")
