"""One side's end of the benchmark's conversation: its turns, their seconds and their memory."""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Steps of training to get ready: the optimizer makes its state in the first, and the third is measured for memory, from
# a heap without free pages.
READY_STEPS = 3


class Turns:
    """This process's end of the conversation; whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> bool:
        """Wait for the next turn; False if there is none."""
        return sys.stdin.readline() == "go\n"

    def answer(self, **figures: float) -> None:
        """End the turn."""
        print(json.dumps(figures), file=self._answers, flush=True)

    def timed(self, work: Callable[[], Any], **figures: float) -> None:
        """Take all turns with the same work; the first run is to get ready."""
        work()
        finish()
        self.answer()
        while self.wait():
            start = time.perf_counter()
            work()
            finish()
            self.answer(seconds=time.perf_counter() - start, **figures)


class StepTurns:
    """Turns of a trainer: called at the end of each optimizer step."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.steps = 0
        self.start = 0.0
        self.resting_bytes = self.peak_bytes = 0

    def step_done(self, model: torch.nn.Module) -> bool:
        """Answer for the step that has just ended and wait for the next turn; False if training is to stop.

        Steps after the first `READY_STEPS` are measured for time, each as the one before left the heap.
        """
        finish()
        seconds = time.perf_counter() - self.start
        self.steps += 1
        if self.steps == READY_STEPS:
            self.peak_bytes = peak_bytes() - self.resting_bytes
            self.turns.answer()
        elif self.steps > READY_STEPS:
            self.turns.answer(seconds=seconds, bytes=self.peak_bytes)
        elif self.steps == READY_STEPS - 1:
            gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
            self.resting_bytes = bytes_from_here() - gradients
        if self.steps >= READY_STEPS and not self.turns.wait():
            return False
        self.start = time.perf_counter()
        return True


def on_gpu() -> bool:
    """Whether this side works on a GPU; the others see none."""
    return os.environ["CUDA_VISIBLE_DEVICES"] != ""


def finish() -> None:
    """Wait until a GPU has done what it was given."""
    if on_gpu():
        torch.cuda.synchronize()


def bytes_from_here() -> int:
    """Memory of this process, or of its tensors on the GPU; the peak counts from here."""
    gc.collect()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    return resident


def peak_bytes() -> int:
    """Largest memory since `bytes_from_here`."""
    return torch.cuda.max_memory_allocated() if on_gpu() else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
