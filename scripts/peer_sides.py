"""The sides of `compare_with_peer.py`, each trained in a process of its own.

`python peer_sides.py ours|peer SETTINGS` trains one run from a start model that both share. A clock measures what steps
take, stops a run whose time is up, and leaves `clock.json` in its folder. Nothing here is meant to be called by hand.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L

from splade_lit.core.errors import UserError

_WARM_STEPS = 2  # the first steps of a process are slower
# Settings of the data that the peer's trainer has a use for.
_PEER_DATA = (
    *("source", "config", "split", "revision", "query_column", "document_column", "negative_columns", "max_pairs"),
    *("held_out_tasks", "num_eval_pairs", "split_seed", "cache_dir", "min_grade"),
)


def check_carried(config: Mapping[str, Any]) -> None:
    """Raise a UserError if an experiment has a setting that the peer's trainer cannot be given."""
    data, trainer = config.get("data", {}), config.get("trainer", {})
    if data.get("positive_columns"):
        raise UserError(
            "data.positive_columns: the peer's loss takes one answer a row; leave them out for both sides, with --ours."
        )
    if trainer.get("gradient_clip_val") and trainer.get("gradient_clip_algorithm", "norm") not in (None, "norm"):
        raise UserError(
            "trainer.gradient_clip_algorithm: the peer's trainer clips by norm; let ours do so, with --ours."
        )


class Clock:
    """Seconds of steps since a run began, which is when this object is made: reading the data counts."""

    def __init__(self, folder: str, stop_seconds: float | None) -> None:
        self.folder, self.stop_seconds = Path(folder), stop_seconds
        self.begun = time.monotonic()
        self.ends: list[float] = []

    def step_done(self) -> bool:
        """Count a step; whether there is time for another."""
        self.ends.append(time.monotonic() - self.begun)
        return self.stop_seconds is None or self.ends[-1] < self.stop_seconds

    def write(self) -> None:
        """Leave what was measured."""
        warm = min(_WARM_STEPS, len(self.ends) - 1)
        steps = len(self.ends) - warm
        seconds = self.ends[-1] - (self.ends[warm - 1] if warm else 0.0)
        step = seconds / steps
        figures = {"steps": len(self.ends), "seconds": self.ends[-1], "step_seconds": step}
        figures["setup_seconds"] = max(self.ends[warm - 1] - warm * step, 0.0) if warm else 0.0
        (self.folder / "clock.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")


class StepClock(L.Callback):
    """A `Clock` for Lightning's trainer.

    Args:
        folder: that `clock.json` is written to.
        stop_seconds: training stops after the step that ends past this time; never if not given.
    """

    def __init__(self, folder: str, stop_seconds: float | None = None) -> None:
        self.clock = Clock(folder, stop_seconds)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Count steps of the optimizer, not batches that it gathers."""
        if trainer.global_step > len(self.clock.ends) and not self.clock.step_done():
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave what was measured."""
        self.clock.write()


@dataclass(frozen=True)
class PeerSettings:
    """How sentence-transformers' trainer trains.

    Attributes:
        start: folder of the model to start from.
        folder: of the run; `model` in it is what is trained.
        data: settings of our DataModule, of which pairs and held-out tasks are taken.
        seed: of dropout and of the order of batches.
        max_steps: optimizer steps, that the learning rates fall over.
        stop_seconds: as of `StepClock`.
        batch_size: pairs of a batch.
        accumulate: batches whose gradients make a step.
        micro_batch_size: pairs that go through the model at a time, by its `CachedSpladeLoss`; all if None.
        learning_rate: peak, of the transformer.
        idf_learning_rate: peak, of the query weights.
        warmup_ratio: fraction of the steps in which they rise.
        weight_decay: of all weights.
        max_grad_norm: gradients are cut to; not at all if 0.
        lambda_d: weight of the FLOPS penalty on documents.
        lambda_q: on queries; none if 0.
        use_cpu: whether it trains on the CPU, though there may be a GPU.
        bf16: whether matrix products are in bfloat16.
        save: whether the model is kept.
    """

    start: str
    folder: str
    data: dict[str, Any]
    seed: int
    max_steps: int
    stop_seconds: float | None
    batch_size: int
    accumulate: int
    micro_batch_size: int | None
    learning_rate: float
    idf_learning_rate: float
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    lambda_d: float
    lambda_q: float
    use_cpu: bool
    bf16: bool
    save: bool

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def train_peer(settings: PeerSettings) -> None:
    """Train with sentence-transformers' own trainer, as its documentation does, on the training pairs of our run."""
    clock = Clock(settings.folder, settings.stop_seconds)
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.sparse_encoder import losses
    from transformers import TrainerCallback

    from splade_lit.data.datamodule import PairsDataModule
    from splade_lit.encoder.layout import find_saved

    model = SparseEncoder(settings.start)
    layout = find_saved(settings.start)
    data = PairsDataModule(
        str(layout.document_folder),
        **{name: value for name, value in settings.data.items() if name in _PEER_DATA},
        max_document_tokens=layout.max_document_tokens,
    )
    data.setup("fit")

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not clock.step_done():  # it may be set already, at the last step
                control.should_training_stop = True

    pairs = data.train_pairs.dataset
    columns = [name for name in pairs.column_names if name in ("query", "document") or name.startswith("negative_")]
    arguments = SparseEncoderTrainingArguments(
        output_dir=settings.folder,
        seed=settings.seed,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        learning_rate_mapping={r"sub_modules\.query\.0\.weight": settings.idf_learning_rate},
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        use_cpu=settings.use_cpu,
        batch_sampler="no_duplicates",
        router_mapping={name: "query" if name == "query" else "document" for name in columns},
        logging_steps=max(settings.max_steps // 20, 1),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    weights = {"document_regularizer_weight": settings.lambda_d, "query_regularizer_weight": settings.lambda_q or None}
    ranking = losses.SparseMultipleNegativesRankingLoss(model)
    loss = (
        losses.SpladeLoss(model, ranking, **weights)
        if settings.micro_batch_size is None
        else losses.CachedSpladeLoss(model, ranking, **weights, mini_batch_size=settings.micro_batch_size)
    )
    trainer = SparseEncoderTrainer(
        model=model, args=arguments, train_dataset=pairs.select_columns(columns), loss=loss, callbacks=[Watch()]
    )
    trainer.train()
    clock.write()
    if settings.save:
        model.save_pretrained(str(Path(settings.folder) / "model"))


def train_ours(config: str) -> None:
    """Train as a YAML file says."""
    from splade_lit.command_line.exit_codes import run_command
    from splade_lit.fit import main

    run_command(main, ["--config", config])  # what is wrong ends in one sentence


if __name__ == "__main__":
    side, argument = sys.argv[1:]
    if side == "ours":
        train_ours(argument)
    else:
        train_peer(PeerSettings(**json.loads(argument)))
