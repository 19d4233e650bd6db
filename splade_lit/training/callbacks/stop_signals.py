"""SIGTERM, SIGUSR1 and Ctrl-C end a run on all of its processes, with its state saved."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment

from splade_lit.core.distributed import gather, world_size
from splade_lit.training.callbacks.hooks import PhaseCallback

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What schedulers send before a job's time is up; Windows has none.
_WARNINGS = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()


class StopSignals(PhaseCallback):
    """Stops a run when its processes are asked to end: by `kill`, by a scheduler that takes the machine, or by Ctrl-C.

    So does SIGUSR1, unless somebody else has a handler for it. Lightning's own for SLURM, which saves wherever the
    run is and starts the job again, is switched off.

    In training they stop at the end of a batch: amid an optimizer step, weights and what counts them would not agree.
    Several processes, which would wait for the gradients of one that has left, agree after each batch whether one of
    them was asked, and stop together. In evaluations, and before training starts, each stops at once; so it does
    anywhere when it is asked again.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._in_steps = False
        self._earlier: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen from here on."""
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False
        if threading.current_thread() is threading.main_thread():
            free = [number for number in _WARNINGS if signal.getsignal(number) == signal.SIG_DFL]
            self._earlier = {number: signal.signal(number, self._answer) for number in (*_SIGNALS, *free)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the place of Lightning's handler, which sends to other processes and may wait for them for ever."""
        self._in_steps = True
        for number in self._earlier:
            signal.signal(number, self._answer)

    def on_phase_end(self, trainer: L.Trainer) -> None:
        """Stop before an evaluation, which all processes enter together."""
        if self._asked is not None:
            self._stop(self._asked)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop if any process was asked to."""
        asked = self._asked is not None
        if world_size() > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if self._in_steps and asked:
            self._stop(max(gather(int(self._asked or 0))))  # all processes end with the same code

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No step follows that others would wait in."""
        self._in_steps = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let what is saved now be saved whole."""
        for number in self._earlier:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Listen no more; to be called when the run has ended, in whatever way."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        waits = self._in_steps and self.phase == "training" and self._asked is None
        self._asked = number
        if not waits:
            self._stop(number)

    @staticmethod
    def _stop(number: int) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
