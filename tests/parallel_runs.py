"""Trains in as many processes as torchrun starts, or in this one, and notes what must not depend on their number.

    torchrun --nproc-per-node 2 tests/parallel_runs.py FOLDER PAIRS VARIANT...

FOLDER has a base model `base`, pairs `pairs.jsonl` and a task `task`; a run of a variant with PAIRS in the batch of all
processes leaves `VARIANT-PROCESSES-PAIRS.pt`.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tiny_runs import NEGATIVES, make_data, make_trainer

from splade_lit.data.tasks import load_tasks
from splade_lit.evaluation.task_evaluation import evaluate_tasks
from splade_lit.training.module import SpladeModule


@dataclass(frozen=True)
class Variant:
    """Settings of model and data, and for how many steps."""

    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    steps: int = 50


WEAK = {"lambda_d": 1e-3}
VARIANTS = {
    "plain": Variant({"lambda_q": 1e-3, **WEAK}),
    "hard_negatives": Variant(WEAK, {"negatives": NEGATIVES}),
    # A count jumps where a weight is 0 but for rounding, and all losses after it: one process with another number of
    # threads is 7e-4 away after 50 steps.
    "df_flops": Variant({"penalty": "df_flops", **WEAK}, {"negatives": NEGATIVES}, steps=10),
    "distilled": Variant(
        {"ranking": ["kl", "margin_mse"], "penalty": ["flops", "anti_zero"], **WEAK},
        {"negatives": NEGATIVES, "teacher": "bm25"},
    ),
    "target": Variant({"target_active_dims": 30}),
    "flops_target": Variant({"target_flops": 0.5}),
    "cached": Variant({"micro_batch_size": 3, "penalty": "l1", **WEAK}, {"negatives": NEGATIVES}),
}


class Notes(L.Callback):
    """Keeps the loss and the penalty's weight of each step, and the gradients of the first."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.weight: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {
                name: one.grad.clone() for name, one in pl_module.named_parameters() if one.grad is not None
            }

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.loss.append(float(trainer.callback_metrics["train/loss"]))
        self.weight.append(float(trainer.callback_metrics["train/lambda_d"]))


def train(folder: Path, variant: str, processes: int, num_pairs: int) -> None:
    settings = VARIANTS[variant]
    L.seed_everything(1)
    module = SpladeModule(str(folder / "base"), learning_rate=1e-3, idf_learning_rate=1e-3, **settings.model)
    notes = Notes()
    strategy = {"strategy": "ddp", "devices": processes} if processes > 1 else {}
    trainer = make_trainer(folder, settings.steps, callbacks=[notes], **strategy)
    data = make_data(folder / "base", folder / "pairs.jsonl", batch_size=num_pairs // processes, **settings.data)
    trainer.fit(module, data)
    figures = evaluate_tasks(module.encoder.eval(), load_tasks([str(folder / "task")]))
    state = {name: value for name, value in module.state_dict().items() if name.startswith("objective.")}
    noted = {"loss": notes.loss, "weight": notes.weight, "gradients": notes.gradients}
    if trainer.is_global_zero:
        torch.save({**noted, "figures": figures, "state": state}, folder / f"{variant}-{processes}-{num_pairs}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[3:]:
        train(Path(sys.argv[1]), name, int(os.environ["WORLD_SIZE"]), int(sys.argv[2]))
