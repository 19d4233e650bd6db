"""How long steps of training and the encoding of documents take on this machine, found out in a minute at most."""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from splade_lit.core.progress import WorkProgress
from splade_lit.core.tokens import Tokens
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.encoder.start import SAMPLE_DOCUMENTS
from splade_lit.training.module import SpladeModule

Clock = Callable[[], float]

_WARM_STEPS = 1  # the first step of a process is slower
_STEPS = 5
_SAMPLE = 32  # documents that the start is chosen by, in place of SAMPLE_DOCUMENTS
_CHUNK = 8  # documents between two looks at the clock
_TOLD = 10.0  # seconds between two lines of a log on the steps, at least
_VARIES = 2.0  # times the shortest step that the longest one takes where threads compete


class StepTimes(L.Callback):
    """Keeps the seconds of each optimizer step, from the start of its batch to the end.

    Args:
        clock: seconds from some moment on.
        end: training stops where the next step is expected to end after this moment of the clock.
        progress: is advanced with each step.
    """

    def __init__(
        self, clock: Clock = time.perf_counter, end: float = math.inf, progress: WorkProgress | None = None
    ) -> None:
        self.seconds: list[float] = []
        self._clock, self._end, self._progress = clock, end, progress

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Start the clock."""
        self._since = self._now(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop it, and training if the time is up."""
        now = self._now(pl_module.device)
        self.seconds.append(now - self._since)
        if self._progress is not None:
            self._progress.advance(1)
        if now + self.seconds[-1] > self._end:
            trainer.should_stop = True

    def _now(self, device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return self._clock()


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of a model on this machine.

    Attributes:
        start: seconds until the first step: what the training documents decide, and tokens.
        steps: seconds of each optimizer step that counts.
        document: seconds to encode a document.
        load: programs for each core that wanted it, on average over the minute before.
    """

    start: float
    steps: tuple[float, ...]
    document: float
    load: float

    @property
    def step(self) -> float:
        """Median seconds of an optimizer step."""
        return statistics.median(self.steps)

    @property
    def threads_compete(self) -> bool:
        """Whether other programs use the cores: more of them than cores, or steps that differ by a factor."""
        return self.load > 1 or max(self.steps) > _VARIES * min(self.steps)

    def run_seconds(self, steps: int, documents: int) -> float:
        """Expected seconds of so many optimizer steps and of encoding so many documents."""
        return self.start + steps * self.step + documents * self.document


class _FewerDocuments(PairsDataModule):
    """Pairs that give a small sample of documents to choose the start by."""

    def sample_documents(self, num_documents: int, seed: int) -> Tokens:
        """Token ids of some training documents."""
        return super().sample_documents(min(num_documents, _SAMPLE), seed)


def measure_times(
    model: dict[str, Any],
    data: dict[str, Any],
    documents: Sequence[str],
    trainer: dict[str, Any],
    seconds: float = 60.0,
    clock: Clock = time.perf_counter,
) -> MeasuredTimes:
    """Train a few real steps and encode a few documents, and keep nothing of it.

    Args:
        model: settings of the module.
        data: settings of the pairs.
        documents: what to encode.
        trainer: accelerator, devices and precision of the trainer.
        seconds: stop after so many, with one step and a few documents at least.
        clock: seconds from some moment on.
    """
    since = clock()
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    module, pairs = SpladeModule(**model), _FewerDocuments(model["base_model"], **data)
    progress = WorkProgress("timing", "steps", _WARM_STEPS + _STEPS, seconds=_TOLD)
    with tempfile.TemporaryDirectory() as folder, progress:
        times = StepTimes(clock, since + 0.7 * seconds, progress)
        fitting = L.Trainer(
            default_root_dir=folder,
            max_steps=_WARM_STEPS + _STEPS,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[times],
            **trainer,
        )
        fitting.fit(module, pairs)
    start = clock() - since - sum(times.seconds)
    module.to(fitting.strategy.root_device).eval()
    encode = module.encoder.encode_document
    encode(list(documents[:1]), convert_to_csr=True)
    before = now = clock()
    for done in range(_CHUNK, len(documents) + _CHUNK, _CHUNK):
        encode(list(documents[done - _CHUNK : done]), convert_to_csr=True)
        previous, now = now, clock()
        if now + (now - previous) > since + seconds:
            break
    document = (now - before) / min(done, len(documents))
    start += (SAMPLE_DOCUMENTS - _SAMPLE) * document
    return MeasuredTimes(start, tuple(times.seconds[_WARM_STEPS:] or times.seconds), document, load)
