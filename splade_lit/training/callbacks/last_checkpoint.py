"""The checkpoint that a run can always be resumed from."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from splade_lit.core.distributed import alone
from splade_lit.core.errors import UserError


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: written after each validation and each epoch, at the last step, and where a run stops early.

    A run that is interrupted or fails leaves the state of that moment. `step` is the file's, 0 where there is none.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.step = 0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Correct Lightning's count for loggers: a checkpoint written within a step counts that step as done."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save the last step; later, Lightning takes the epoch for finished, and a longer run would not go on in it."""
        if trainer.global_step >= trainer.estimated_stepping_batches:
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

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self.step:
            trainer.save_checkpoint(self.path)
            self.step = trainer.global_step
