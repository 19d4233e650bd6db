"""Shared by callbacks: when they are due, what counts as training and what as evaluation, rows that they write."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import lightning as L

from splade_lit.core.files import replace_text
from splade_lit.encoder.model import AsymmetricSparseEncoder

T = TypeVar("T")
Phase = Literal["training", "evaluation"]


def encoder_of(pl_module: L.LightningModule) -> AsymmetricSparseEncoder:
    """The encoder of a `SpladeModule`."""
    return cast(AsymmetricSparseEncoder, pl_module.encoder)


def callbacks_of(trainer: Any, kind: type[T]) -> list[T]:
    """The callbacks of a run that are of a class."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


class EveryNSteps:
    """True once at each multiple of any `n` steps, also under accumulation and after a resume; None has none."""

    def __init__(self, *n: int | None) -> None:
        self.n = [one for one in n if one]
        self._last = -1

    def begin(self, trainer: L.Trainer) -> None:
        """Take the step that training starts from, or goes on from, for looked at."""
        self._last = trainer.global_step

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this optimizer step is one, the first time that it is asked about."""
        step = trainer.global_step
        if step in (0, self._last) or all(step % n for n in self.n):
            return False
        self._last = step
        return True


class RowsCallback(L.Callback):
    """Looks at the model every so many optimizer steps and at the end, and keeps rows of what it sees.

    Subclasses define `look`, which calls `add_rows`. A row has plain types and the optimizer steps done as `step`.
    """

    file: str  # in the folder of the run, a line of JSON a row
    state_name = "rows"  # what a checkpoint calls them

    def __init__(self, every_n_steps: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._timing = EveryNSteps(every_n_steps)

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the model after this step."""
        raise NotImplementedError

    def add_rows(self, trainer: L.Trainer, rows: list[dict[str, Any]]) -> None:
        """Keep rows, and write them to the file."""
        self.rows += rows
        if trainer.is_global_zero:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows]
            replace_text(Path(trainer.default_root_dir) / self.file, "".join(lines))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at no step again that a run is resumed from."""
        self._timing.begin(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Look, where due."""
        if self._timing.due(trainer):
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the final model, unless that has just been done."""
        if not self.rows or self.rows[-1]["step"] != trainer.global_step:
            self.look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {self.state_name: self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of a checkpoint."""
        self.rows = list(state_dict[self.state_name])


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
    """The block counts as evaluation; training goes on after it, unless it raised: then the run stops there."""
    callbacks = callbacks_of(trainer, PhaseCallback)
    for callback in callbacks:
        callback.enter(trainer, "evaluation")
    yield
    for callback in callbacks:
        callback.enter(trainer, "training")
