"""Runs that write down what batches they were given."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from splade_lit.core.tokens import PairBatch
from splade_lit.data.datamodule import PairsDataModule

EPOCHS = 4

Batch = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]


def as_tuple(batch: PairBatch) -> Batch:
    return tuple(tuple(tuple(ids.tolist()) for ids in tokens) for tokens in (batch.queries, batch.documents))


class Recorder(L.LightningModule):
    """Trains one number, and writes down what it was given.

    Args:
        fails_at: raise in the middle of this step.
        counts_steps: ask how many steps there are, as a schedule of learning rates does: Lightning then makes the
            loader before it reads a checkpoint.
    """

    def __init__(self, fails_at: int | None = None, counts_steps: bool = True) -> None:
        super().__init__()
        self.counts_steps = counts_steps
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fails_at = fails_at
        self.seen: list[Batch] = []
        self.validated: list[tuple[int, Batch]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fails_at:
            raise KeyError("stopped on purpose")
        self.seen.append(as_tuple(batch))
        return self.weight.square().sum()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.validated.append((self.global_step, as_tuple(batch)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.counts_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make_trainer(folder: Path, **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing="callbacks" in settings,
        default_root_dir=folder,
        **({"max_epochs": EPOCHS} | settings),
    )


def fit(
    data: PairsDataModule, folder: Path, checkpoint: Path | None = None, counts_steps: bool = True, **settings: Any
) -> Recorder:
    module = Recorder(counts_steps=counts_steps)
    make_trainer(folder, **settings).fit(module, data, ckpt_path=checkpoint and str(checkpoint), weights_only=True)
    return module
