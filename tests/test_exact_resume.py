"""A run that is interrupted anywhere and resumed ends with the very weights of one that never stopped."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import World, call, command, environment, load_checkpoint, rows

from splade_lit.fit import main

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
