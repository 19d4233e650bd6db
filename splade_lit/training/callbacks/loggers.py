"""Callbacks log through these: numbers to all loggers of a run, histograms and tables to those that show them."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from splade_lit.card.markdown import code_cell, escaped

MOST_BINS = 512  # all that W&B takes of a histogram


def log_step(trainer: L.Trainer) -> int:
    """The step that figures of the model of the moment belong to: the one that Lightning logs the losses under.

    Lightning counts from 0: what it logs of the first optimizer step, and of the validation after it, is of step 0.
    """
    return max(trainer.global_step - 1, 0)


def log_figures(trainer: L.Trainer, figures: dict[str, float]) -> None:
    """Hand figures of the model of the moment to all loggers."""
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=log_step(trainer))


def log_histogram(trainer: L.Trainer, name: str, values: np.ndarray, bins: int) -> None:
    """Hand the histogram of values, one at least, to W&B and TensorBoard; it has `MOST_BINS` bins at most."""
    counts, edges = np.histogram(values, bins=bins)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # The form of a wandb.Histogram in the history of a run.
            histogram: Any = {"_type": "histogram", "values": counts.tolist(), "bins": edges.tolist()}
            logger.log_metrics({name: histogram}, step=log_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(name, values, log_step(trainer), bins=edges)


def log_table(
    trainer: L.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], num_new: int
) -> None:
    """Hand all rows of a table that grows to W&B, which shows the last one, and the last `num_new` to TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=log_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            lines = [" | ".join(map(escaped, columns)), " | ".join([":---"] * len(columns))]
            lines += [" | ".join(code_cell(str(cell)) for cell in row) for row in rows[len(rows) - num_new :]]
            text = "\n".join(f"| {line} |" for line in lines)
            logger.experiment.add_text(name, text, log_step(trainer))
