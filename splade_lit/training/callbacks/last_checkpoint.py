"""The checkpoint that a run can always be resumed from."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from splade_lit.core.distributed import alone, world_size
from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.runs.folder import CHECKPOINTS
from splade_lit.training.callbacks.hooks import EveryNSteps

# Processes are told the time at every so many steps only: they would wait for it at each.
_TOLD_EVERY = 10


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: written after each validation and each epoch, at the last step, and where a run stops early.

    A run that is interrupted or fails leaves the state of that moment; one whose machine goes down is set back by
    `every_n_minutes` and the time of a validation at most. `step` is the file's, 0 where there is none.

    Args:
        folder: of the file, in the folder of the run.
        every_n_minutes: write it where the one before is older than this, by the clock of rank 0; 0 after each step.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(self, folder: str | Path = CHECKPOINTS, every_n_minutes: float = 15.0) -> None:
        check_range("LastCheckpoint", 0, every_n_minutes=every_n_minutes)
        self.folder = Path(folder)
        self.path = self.folder / "last.ckpt"
        self.every_n_minutes = every_n_minutes
        self.step = 0
        self._saved_at = time.monotonic()
        self._timing = EveryNSteps(1)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn where the run's folder is."""
        self.path = Path(trainer.default_root_dir) / self.folder / "last.ckpt"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is lost yet."""
        self._timing.begin(trainer)
        self._saved_at = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Correct Lightning's count for loggers: a checkpoint written within a step counts that step as done."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save where the file is old, and at the last step.

        Later Lightning takes the epoch for finished then, and a longer run would not go on in it.
        """
        if trainer.global_step >= trainer.estimated_stepping_batches or self._is_old(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, unless Lightning only tries validation out."""
        if not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    on_train_end = on_train_epoch_end  # of a run that another callback has ended

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save what there is, unless the model refuses to be saved: then the exception is about that.

        Rank 0 does so without waiting for the others, which may never come: `save_checkpoint` of a trainer would.
        """
        if trainer.is_global_zero and trainer.global_step != self.step:
            with suppress(UserError), alone():
                checkpoint = trainer._checkpoint_connector.dump_checkpoint()
                trainer.strategy.save_checkpoint(checkpoint, self.path)
                self.step = trainer.global_step

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the step resumed from for saved."""
        self.step = checkpoint["global_step"]

    def _is_old(self, trainer: L.Trainer) -> bool:
        """Whether it is time to save, the same in all processes; right before a validation or an epoch's end it is not.

        Those are followed by a save of their own. From one amid them, a resumed run would leave the validation out.
        """
        if not self._timing.due(trainer) or (world_size() > 1 and trainer.global_step % _TOLD_EVERY):
            return False
        loop: Any = trainer.fit_loop
        ends = loop.epoch_loop._num_ready_batches_reached() or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        old = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return bool(trainer.strategy.broadcast(old and not ends))

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self.step:
            trainer.save_checkpoint(self.path)
            self.step = trainer.global_step
            self._saved_at = time.monotonic()
