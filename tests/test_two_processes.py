"""Runs of two processes (gloo, on the CPU): they end, know the same figures, and stop together when asked to."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
import torch
from command_runs import (
    CHECKPOINT,
    NDCG,
    RETRIEVAL,
    SPARSITY,
    World,
    command,
    interrupted,
    load_checkpoint,
    read_json,
    reports,
    rows,
)

from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.task_evaluation import evaluate_tasks
from splade_lit.training import observer
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint

TWO = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.batch_size": 4}
EARLY_STOPPING = "lightning.pytorch.callbacks.EarlyStopping"
TERMS = "splade_lit.training.callbacks.terms.TermTable"
CARBON = "splade_lit.training.callbacks.carbon.CarbonTracker"


class NotesFigures(L.Callback):
    """Writes what each rank could watch at the end."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (self.folder / f"rank{trainer.global_rank}.txt").write_text(f"{trainer.global_step} {figures[NDCG]!r}")


def callbacks(world: World, *more: dict[str, Any], **retrieval: Any) -> list[dict[str, Any]]:
    settings = {"tasks": [str(world.tasks)], "bm25": True, "every_n_steps": 3} | retrieval
    return [{"class_path": RETRIEVAL, "init_args": settings}, *more]


def test_all_ranks_know_the_figures_that_are_watched(world, tmp_path):
    run = tmp_path / "run"
    more = [
        {"class_path": CHECKPOINT, "init_args": {"monitor": NDCG, "mode": "max", "filename": "best"}},
        {"class_path": EARLY_STOPPING, "init_args": {"monitor": NDCG, "mode": "min", "min_delta": 10.0, "patience": 2}},
        {"class_path": SPARSITY, "init_args": {"every_n_steps": 3, "num_documents": 15}},
        {"class_path": TERMS, "init_args": {"every_n_steps": 3, "num_documents": 2}},
        {"class_path": CARBON},
        {"class_path": "test_two_processes.NotesFigures", "init_args": {"folder": str(tmp_path)}},
    ]
    config = world.config(run, TWO | {"trainer.callbacks": callbacks(world, *more), "trainer.max_steps": 30})
    outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path, PYTHONPATH=paths())
    assert outcome.code == 0, outcome.err
    # The metric can never fall by 10: the first check sets it, and the two after that end the run.
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 9
    assert (run / "checkpoints" / "best.ckpt").exists()
    ranks = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    stages = read_json(run / "metrics.json")
    assert ranks[0].split()[0] == "9"
    assert float(ranks[0].split()[1]) == pytest.approx(stages["after"][NDCG], rel=1e-6)
    # Shares of the corpus add up to what one process measures.
    encoder = AsymmetricSparseEncoder.load(run / "model")
    assert stages["after"] == pytest.approx(evaluate_tasks(encoder, load_tasks([str(world.tasks)])), rel=1e-6)
    assert [report["num_documents"] for report in reports(run)] == [15, 15, 15]
    assert [int(row["step"]) for row in rows(run) if row[f"val/{NDCG}"]] == [2, 5, 8]
    assert outcome.err.count("INFO: step 9: mean nDCG@10") == 1


def paths() -> str:
    """Where a process finds the package and the tests."""
    return f"{Path(__file__).parents[1]}:{Path(__file__).parent}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_with_the_state_saved(world, tmp_path, number):
    run = tmp_path / "run"
    changes = TWO | {"trainer.max_steps": 100_000, "trainer.callbacks": callbacks(world, every_n_steps=2, bm25=False)}
    config = world.config(run, changes)
    outcome = interrupted(config, tmp_path, lambda: (run / "metrics.csv").exists() and len(rows(run)) >= 3, number)
    assert outcome.code == 128 + number, outcome.err
    assert "Traceback" not in outcome.err
    found = re.search(r"^The run was stopped; go on after step (\d+) with: ", outcome.err, re.MULTILINE)
    assert found, outcome.err
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == int(found[1]) >= 3


def _kill_a_child(main: int, number: int) -> None:
    children = psutil.Process(main).children()
    (child,) = [one for one in children if any("splade_lit" in word for word in one.cmdline())]
    child.send_signal(number)


def test_a_process_that_dies_ends_the_others_with_a_sentence(world, tmp_path):
    run = tmp_path / "run"
    config = world.config(run, TWO | {"trainer.max_steps": 100_000, "trainer.callbacks": None})

    def ready() -> bool:
        return (run / "metrics.csv").exists() and len(rows(run)) >= 4

    outcome = interrupted(config, tmp_path, ready, signal.SIGKILL, _kill_a_child)
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    *_, how, why = outcome.err.splitlines()
    assert how.startswith("The run was stopped; go on after step ")
    assert why.startswith(
        "error: another process of the run has ended or does not answer, so that this one cannot go on"
    )
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] >= 3


class DiesInAnEvaluation(L.Callback):
    """Rank 1 dies in the second validation, in which rank 0 does something long."""

    def __init__(self) -> None:
        observer.PATIENCE = 1.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 6:
            if not trainer.is_global_zero:
                os._exit(1)
            time.sleep(300)


@pytest.mark.slow
def test_a_process_that_dies_while_another_evaluates_leaves_the_state_saved(world, tmp_path):
    run = tmp_path / "run"
    dies = {"class_path": "test_two_processes.DiesInAnEvaluation"}
    config = world.config(run, TWO | {"trainer.max_steps": 20, "trainer.callbacks": [dies]})
    outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path, PYTHONPATH=paths())
    assert outcome.code == 128 + signal.SIGTERM, outcome.err
    assert "error: another process of the run has ended, so that this one is stopped" in outcome.err
    assert "The run was stopped; go on after step 6 with: " in outcome.err
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6


class NotesSaves(L.Callback):
    """Writes, before each step, which step last.ckpt holds."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (last := folder / "checkpoints" / "last.ckpt").exists():
            with (folder / "saves.txt").open("a") as file:
                file.write(f"{load_checkpoint(last)['global_step']}\n")


@pytest.mark.slow
def test_both_know_when_the_last_checkpoint_is_old(world, tmp_path):
    run = tmp_path / "run"
    last = {"class_path": f"{LastCheckpoint.__module__}.LastCheckpoint", "init_args": {"every_n_minutes": 0}}
    changes = {"trainer.max_steps": 24, "trainer.val_check_interval": 1000, "data.num_eval_pairs": 0}
    changes["trainer.callbacks"] = [last, {"class_path": "test_two_processes.NotesSaves"}]
    config = world.config(run, TWO | changes)
    outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path, PYTHONPATH=paths())
    assert outcome.code == 0, outcome.err
    assert set((run / "saves.txt").read_text().split()) == {"8", "10", "16", "20"}  # an epoch has eight


def test_an_error_on_one_rank_ends_the_others(world, tmp_path):
    run = tmp_path / "run"
    fails = {"class_path": "test_two_processes.FailsOnFirst"}
    config = world.config(run, TWO | {"trainer.callbacks": [fails]})
    outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path, PYTHONPATH=paths())
    assert outcome.code == 1
    assert "RuntimeError: the disk is gone" in outcome.err
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2


@pytest.mark.slow
def test_a_resumed_run_has_the_dropout_of_one_without_a_stop(world, tmp_path):
    """On each rank its own: weights are equal to the last bit."""
    keep = {"class_path": CHECKPOINT, "init_args": {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}}
    changes = TWO | {"model.dropout": 0.3, "trainer.callbacks": [keep]}
    whole, again = tmp_path / "whole", tmp_path / "again"
    resumed_from = whole / "checkpoints" / "step=3.ckpt"
    for run, more in ((whole, []), (again, ["--ckpt_path", resumed_from])):
        outcome = command("splade_lit.fit", "--config", world.config(run, changes), *more, cwd=tmp_path)
        assert outcome.code == 0, outcome.err
    ours, expected = (load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (again, whole))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    before = load_checkpoint(resumed_from)["state_dict"]
    assert not torch.equal(before["encoder.query.idf_weights"], expected["encoder.query.idf_weights"])


class FailsOnFirst(L.Callback):
    """Raises on rank 0 alone, after two steps."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == 2:
            raise RuntimeError("the disk is gone")
