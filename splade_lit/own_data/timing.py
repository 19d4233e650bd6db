"""How long steps of training and the encoding of documents take on this machine."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from splade_lit.data.datamodule import PairsDataModule
from splade_lit.training.module import SpladeModule

_WARM_STEPS = 2  # the first steps of a process are slower


class StepTimes(L.Callback):
    """Keeps the seconds of each optimizer step, from the start of its batch to the end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Start the clock."""
        self._since = _now(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop it."""
        self.seconds.append(_now(pl_module.device) - self._since)


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of a model on this machine.

    Attributes:
        start: seconds until the first step: what the training documents decide, and tokens.
        step: median seconds of an optimizer step.
        document: seconds to encode a document.
        num_steps: steps that were measured.
    """

    start: float
    step: float
    document: float
    num_steps: int

    def run_seconds(self, steps: int, documents: int) -> float:
        """Expected seconds of so many optimizer steps and of encoding so many documents."""
        return self.start + steps * self.step + documents * self.document


def measure_times(
    module: SpladeModule, data: PairsDataModule, documents: Sequence[str], settings: dict[str, Any], num_steps: int = 5
) -> MeasuredTimes:
    """Train a few real steps and encode a few documents, and keep nothing of it.

    Args:
        module: the model; it is trained.
        data: the pairs.
        documents: what to encode.
        settings: accelerator, devices and precision of the trainer.
        num_steps: steps that count, after some that do not.
    """
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            max_steps=_WARM_STEPS + num_steps,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[times],
            **settings,
        )
        since = time.perf_counter()
        trainer.fit(module, data)
        start = time.perf_counter() - since - sum(times.seconds)
    counted = times.seconds[_WARM_STEPS:] or times.seconds
    module.to(trainer.strategy.root_device).eval()
    encode = module.encoder.encode_document
    encode(list(documents[:4]), convert_to_csr=True)
    since = time.perf_counter()
    encode(list(documents), convert_to_csr=True)
    document = (time.perf_counter() - since) / len(documents)
    return MeasuredTimes(start, statistics.median(counted), document, len(counted))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
