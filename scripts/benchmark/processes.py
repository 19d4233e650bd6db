"""Processes that take turns: each side of the benchmark works in one of its own, and only when it is asked to."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress


class Side:
    """A process that runs one side of a task: its function in `sides.py`, with these settings and environment."""

    def __init__(self, task: str, name: str, settings: dict[str, Any], gpu: bool = False, **environment: str) -> None:
        self.title = f"{task} {name}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read where the process fails
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "0") if gpu else ""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sides.py")), task, name, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": devices, **environment},
        )

    def ask(self) -> dict[str, float]:
        """Let it take a turn and wait for its figures; the benchmark ends with its error if it fails."""
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            sys.exit(f"error: {self.title} ended:\n{self._log.read()[-3000:]}")
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def take_turns(
    task: str, names: Sequence[str], turns: int, settings: dict[str, Any], gpu: bool = False
) -> dict[str, list[dict[str, float]]]:
    """The figures of each side in each turn; the order of the sides changes from turn to turn."""
    sides = {name: Side(task, name, settings, gpu) for name in names}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    order = [*names]  # to get ready, one after another, as several at once get in each other's way
    order += [name for turn in range(turns) for name in (names if turn % 2 else reversed(names))]
    try:
        with _progress() as progress:
            for name in progress.track(order, description=task):
                answers[name].append(sides[name].ask())
    finally:
        for side in sides.values():
            side.end()
    return {name: each[1:] for name, each in answers.items()}


def time_processes(task: str, runs: int, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of whole processes, from their start to their answer."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with _progress() as progress:
        for name in progress.track(runs * [*seconds], description=task):
            with tempfile.TemporaryDirectory() as cache:  # nothing of an earlier run
                start = time.perf_counter()
                side = Side(task, name, settings, HF_DATASETS_CACHE=cache, SPLADE_LIT_CACHE=cache)
                side.ask()
                seconds[name].append(time.perf_counter() - start)
                side.end()
    return seconds


def _progress() -> Progress:
    return Progress(transient=True, disable=not sys.stdout.isatty())
