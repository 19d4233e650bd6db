"""The progress bar of training."""

from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's rich progress bar; a run that ends by steps is not said to have -1 epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        return description if self.trainer.max_epochs != -1 else description.replace("/-2", "")
