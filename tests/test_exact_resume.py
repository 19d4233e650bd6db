"""A run that is interrupted anywhere and resumed ends with the very weights of one that never stopped."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from command_runs import CHECKPOINT, World, call, command, environment, load_checkpoint, rows

from splade_lit.fit import main
from splade_lit.losses.part import Step
from splade_lit.losses.ranking import RankingLoss
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint

FAILS = "command_runs.FailsAfter"
STEPS = 10
EVERYTHING: dict[str, Any] = {
    "model.dropout": 0.2,
    "model.micro_batch_size": 3,
    "model.target_active_dims": 20,
    "model.penalty": ["flops", "df_flops"],
    "model.ranking": ["in_batch", "kl"],
    "data.teacher": "bm25",
    "data.negative_columns": ["negative_1", "negative_2"],
    "data.num_eval_pairs": 20,
    "trainer.max_steps": STEPS,
    "trainer.accumulate_grad_batches": 2,
    "trainer.val_check_interval": 3,
    "trainer.callbacks": None,
}
"""A step is two batches; an epoch has six."""
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_end",
)
VALIDATED = (1, 3, 4, 6, 7, 9)
"""Optimizer steps after which, every three batches, it validates."""


def state(run: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == STEPS
    (optimizer,) = checkpoint["optimizer_states"]
    moments = {f"{number}.{name}": value for number, one in optimizer["state"].items() for name, value in one.items()}
    return {**checkpoint["state_dict"], **moments}


def assert_equal(run: Path, expected: Path) -> None:
    ours, theirs = state(run), state(expected)
    assert ours.keys() == theirs.keys()
    unequal = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert unequal == []


@pytest.fixture(scope="module")
def whole(world: World) -> Path:
    """A run that is never interrupted."""
    run = world.folder / "whole"
    outcome = call(main, "--config", world.config(run, EVERYTHING))
    assert outcome.code == 0, outcome.err
    return run


def interruptions(number: int) -> list[Any]:
    drawn = random.Random(7)
    points = []
    for _ in range(number):
        hook = drawn.choice(HOOKS)
        points.append((hook, drawn.choice(VALIDATED if "validation" in hook else range(1, STEPS))))
    return [
        pytest.param(*point, marks=[pytest.mark.slow] if place >= 4 else [], id=f"{point[0]}-{point[1]}")
        for place, point in enumerate(dict.fromkeys(points))
    ]


@pytest.mark.parametrize(("hook", "step"), interruptions(26))
def test_the_weights_are_those_of_a_run_without_a_stop(world, whole, tmp_path, hook, step):
    run = tmp_path / "run"
    fails = [{"class_path": FAILS, "init_args": {"steps": step, "hook": hook}}]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        main(["--config", str(world.config(run, EVERYTHING | {"trainer.callbacks": fails}))])
    last = run / "checkpoints" / "last.ckpt"
    outcome = call(main, "--config", world.config(run, EVERYTHING), "--ckpt_path", last)
    assert outcome.code == 0, outcome.err
    assert_equal(run, whole)


class Noisy(RankingLoss):
    """Draws from the generators of NumPy and Python."""

    def forward(self, step: Step) -> torch.Tensor:
        return step.scores.mean() * (np.random.rand() + random.random())  # noqa: NPY002


class KeepsCopies(L.Callback):
    """Keeps, before each step, the last.ckpt that a process would leave if it were killed there."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        root = Path(trainer.default_root_dir)
        if (last := root / "checkpoints" / "last.ckpt").exists():
            shutil.copy(last, root / f"{trainer.global_step}.ckpt")


WATCHERS = [
    {"class_path": CHECKPOINT, "init_args": {"monitor": "val/loss", "save_top_k": 2, "filename": "{step}"}},
    {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "patience": 50, "min_delta": 0.01},
    },
]
WATCHED = EVERYTHING | {
    "model.ranking": ["in_batch", "kl", {"class_path": f"{__name__}.Noisy"}],
    "trainer.callbacks": WATCHERS,
}


@pytest.fixture(scope="module")
def watched(world: World) -> Path:
    """A run that is never interrupted, whose validations decide, and which keeps its state at each step."""
    run = world.folder / "watched"
    each_step = {"class_path": f"{LastCheckpoint.__module__}.LastCheckpoint", "init_args": {"every_n_minutes": 0}}
    callbacks = [*WATCHERS, each_step, {"class_path": f"{__name__}.KeepsCopies"}]
    outcome = call(main, "--config", world.config(run, WATCHED | {"trainer.callbacks": callbacks}))
    assert outcome.code == 0, outcome.err
    return run


def patience(run: Path) -> tuple[float, int]:
    """What EarlyStopping has seen: the best figure, and how long ago."""
    states = load_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"].values()
    (waits,) = [state for state in states if "wait_count" in state]
    return float(waits["best_score"]), waits["wait_count"]


def best(run: Path) -> dict[str, float]:
    """What ModelCheckpoint holds to be the best checkpoints."""
    states = load_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"].values()
    (kept,) = [state for state in states if "best_k_models" in state]
    return {Path(path).name: float(figure) for path, figure in kept["best_k_models"].items()}


def goes_on(world: World, run: Path, checkpoint: Path, expected: Path) -> None:
    outcome = call(main, "--config", world.config(run, WATCHED), "--ckpt_path", checkpoint)
    assert outcome.code == 0, outcome.err
    assert_equal(run, expected)
    assert patience(run) == patience(expected)


@pytest.mark.slow
def test_a_signal_amid_a_step_changes_nothing_that_is_decided_later(world, watched, tmp_path):
    run = tmp_path / "run"
    stops = {"class_path": "command_runs.SignalsAfter", "init_args": {"steps": 5, "hook": "on_before_backward"}}
    outcome = call(main, "--config", world.config(run, WATCHED | {"trainer.callbacks": [*WATCHERS, stops]}))
    assert outcome.code == 128 + signal.SIGTERM, outcome.err
    goes_on(world, run, run / "checkpoints" / "last.ckpt", watched)
    assert best(run) == best(watched)
    assert best(run).keys() == {path.name for path in (run / "checkpoints").iterdir()} - {"last.ckpt"}


@pytest.mark.parametrize("step", [pytest.param(n, marks=[pytest.mark.slow] if n != 5 else []) for n in range(1, STEPS)])
def test_neither_does_a_kill(world, watched, tmp_path, step):
    assert load_checkpoint(watched / f"{step}.ckpt")["global_step"] == step
    goes_on(world, tmp_path / "run", watched / f"{step}.ckpt", watched)


TWO = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.batch_size": 4}


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "step"), interruptions(5))
def test_so_are_those_of_two_processes(world, tmp_path_factory, tmp_path, hook, step):
    paths = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"}
    expected = world.folder / "whole_of_two"
    if not expected.exists():
        outcome = command("splade_lit.fit", "--config", world.config(expected, EVERYTHING | TWO), cwd=tmp_path)
        assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    fails = [{"class_path": FAILS, "init_args": {"steps": step, "hook": hook}}]
    failing = world.config(run, EVERYTHING | TWO | {"trainer.callbacks": fails})
    assert command("splade_lit.fit", "--config", failing, cwd=tmp_path, **paths).code == 1
    last = run / "checkpoints" / "last.ckpt"
    config = world.config(run, EVERYTHING | TWO)
    outcome = command("splade_lit.fit", "--config", config, "--ckpt_path", last, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert_equal(run, expected)


@pytest.mark.slow
def test_thirty_kills_lose_nothing_but_steps(world, whole, tmp_path):
    run, drawn, kills = tmp_path / "run", random.Random(3), 0
    changes = EVERYTHING | {"trainer.val_check_interval": 1}
    quiet = world.folder / "whole_of_kills"
    assert call(main, "--config", world.config(quiet, changes)).code == 0
    config, last = world.config(run, changes), run / "checkpoints" / "last.ckpt"
    while True:
        how = ["--ckpt_path", str(last)] if last.exists() else ["--overwrite", "true"]
        words = [sys.executable, "-m", "splade_lit.fit", "--config", str(config), *how]
        process = subprocess.Popen(words, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        begun = time.monotonic()
        first = len(rows(run)) if (run / "metrics.csv").exists() else 0
        while process.poll() is None and kills < 30:
            done = len(rows(run)) if (run / "metrics.csv").exists() else 0
            if done > first or time.monotonic() - begun > 60:
                time.sleep(drawn.uniform(0, 0.3))
                break
            time.sleep(0.02)
        if kills < 30 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            if last.exists():
                load_checkpoint(last)
            if kills % 7 == 0:
                shutil.rmtree(run, ignore_errors=True)  # and all over again, as a run of a few steps is soon done
            continue
        assert process.wait(timeout=300) == 0, process.stderr.read() if process.stderr else ""
        assert_equal(run, quiet)
        if kills >= 30:
            break
        shutil.rmtree(run)
