"""Runs of `python -m splade_lit.fit` that stop and go on: resumed, made longer, watched, failed and interrupted."""

import json
import re
import shutil
import signal
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from command_runs import (
    CHECKPOINT,
    NDCG,
    RETRIEVAL,
    SPARSITY,
    Outcome,
    assert_same_weights,
    call,
    interrupted,
    load_checkpoint,
    read_json,
    reports,
    rows,
    same_figures,
    steps,
)

from splade_lit.fit import main


@pytest.fixture(scope="module")
def finished(world) -> tuple[Path, Outcome]:
    """A whole run; its folder is not to be written to."""
    run = world.folder / "runs" / "finished"
    return run, call(main, "--config", world.config(run))


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the whole run that a test may write to."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_overwriting_what_is_resumed_is_refused(world, copy):
    last = copy / "checkpoints" / "last.ckpt"
    outcome = call(main, "--config", world.config(copy), "--ckpt_path", last, "--overwrite", "true")
    assert outcome.code == 2
    assert "--overwrite would remove" in outcome.errors[0]
    assert last.exists()


@pytest.mark.parametrize("end", ["max_steps", "max_epochs"])
def test_a_resumed_run_ends_as_one_that_never_stopped(world, tmp_path, end):
    """An epoch has 6 steps; the checkpoints lie within each of two epochs."""
    checkpoint = {"every_n_train_steps": 4, "save_top_k": -1, "filename": "{step}"}
    ends = {"max_steps": (10, {"max_steps": 10}), "max_epochs": (12, {"max_steps": -1, "max_epochs": 2})}
    total, limits = ends[end]
    changes: dict[str, Any] = {
        **{f"trainer.{name}": value for name, value in limits.items()},
        "trainer.callbacks": [
            {"class_path": RETRIEVAL, "init_args": {"tasks": [str(world.tasks)], "bm25": True, "every_n_steps": 4}},
            {"class_path": SPARSITY, "init_args": {"every_n_steps": 2, "num_documents": 16}},
            {"class_path": CHECKPOINT, "init_args": checkpoint},
        ],
    }
    whole = tmp_path / "whole"
    config = world.config(whole, changes)
    assert call(main, "--config", config).code == 0
    assert {"step=4.ckpt", "step=8.ckpt", "last.ckpt"} <= {path.name for path in (whole / "checkpoints").iterdir()}
    expected_rows, expected_stages = rows(whole), read_json(whole / "metrics.json")
    assert steps(whole) == list(range(total))
    for step in (4, 8):
        resumed = Path(shutil.copytree(whole, tmp_path / f"resumed_{step}"))
        (resumed / "metrics.json").unlink()
        arguments = [
            "--trainer.default_root_dir",
            resumed,
            "--ckpt_path",
            resumed / "checkpoints" / f"step={step}.ckpt",
        ]
        outcome = call(main, "--config", config, *arguments)
        assert outcome.code == 0, outcome.err
        assert_same_weights(resumed, whole)
        assert steps(resumed) == list(range(total))
        assert rows(resumed)[:step] == expected_rows[:step]
        for row, expected in zip(rows(resumed), expected_rows, strict=True):
            assert float(row["train/loss"]) == pytest.approx(float(expected["train/loss"]), rel=1e-5)
            assert row.keys() == expected.keys()
            assert [bool(value) for value in row.values()] == [bool(value) for value in expected.values()]
        stages = read_json(resumed / "metrics.json")
        assert list(stages) == ["bm25", "before", "after"]
        assert stages["before"] == expected_stages["before"]
        assert same_figures(stages["after"], expected_stages["after"])
        assert [report["step"] for report in reports(resumed)] == list(range(2, total + 1, 2))
        assert load_checkpoint(resumed / "checkpoints" / "last.ckpt")["global_step"] == total
        assert yaml.safe_load((resumed / "config.yaml").read_text())["ckpt_path"] is None


def test_a_finished_run_can_be_resumed_and_made_longer(world, copy, finished):
    last = copy / "checkpoints" / "last.ckpt"
    shutil.rmtree(copy / "model")
    config = world.config(copy)
    outcome = call(main, "--config", config, "--ckpt_path", last)
    assert outcome.code == 0, outcome.err
    assert outcome.last_line == finished[1].last_line.replace(str(finished[0]), str(copy))
    assert_same_weights(copy, finished[0])
    stages = read_json(copy / "metrics.json")
    assert stages == read_json(finished[0] / "metrics.json")
    outcome = call(main, "--config", config, "--ckpt_path", last, "--trainer.max_steps", 9)
    assert outcome.code == 0, outcome.err
    assert steps(copy) == list(range(9))
    assert load_checkpoint(last)["global_step"] == 9
    longer = read_json(copy / "metrics.json")
    assert {name: longer[name] for name in ("bm25", "before")} == {name: stages[name] for name in ("bm25", "before")}
    assert float(rows(copy)[-1][f"val/{NDCG}"]) == longer["after"][NDCG]
    assert longer["after"]["NanoNQ_corpus_active_dims"] != stages["after"]["NanoNQ_corpus_active_dims"]


def test_one_command_begins_a_run_and_goes_on_with_it(world, tmp_path):
    run = tmp_path / "run"
    config = world.config(run, {"trainer.callbacks": None, "trainer.max_steps": 4, "trainer.val_check_interval": 2})
    words = ("--config", config, "--ckpt_path", "last")
    run.mkdir()
    (run / "metrics.csv").write_text("step\n0\n")  # of a run that was killed before its first checkpoint
    refused = call(main, *words)
    assert (refused.code, "may be no run" in refused.errors[0]) == (2, True)
    shutil.copy(config, run / "config.yaml")
    assert call(main, *words).code == 0
    assert steps(run) == [0, 1, 2, 3]
    longer = call(main, *words, "--trainer.max_steps", 6)
    assert longer.code == 0, longer.err
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / "step=6.ckpt")
    assert call(main, *words, "--trainer.max_steps", 8).code == 0
    assert steps(run) == list(range(8))
    shutil.rmtree(run / "checkpoints")
    kept = call(main, *words)
    assert (kept.code, "holds a run already" in kept.errors[0]) == (2, True)


class EndsMeanwhile(L.Callback):
    """Another start of the same run, which has ended by the time that this one has read its settings."""

    def __init__(self, finished: str, run: str) -> None:
        shutil.copytree(finished, run, dirs_exist_ok=True)


@pytest.mark.parametrize("words", [[], ["--ckpt_path", "last"]])
def test_what_another_start_has_trained_meanwhile_is_kept(world, finished, tmp_path, words):
    run = tmp_path / "run"
    paths = {"finished": str(finished[0]), "run": str(run)}
    config = world.config(run, {"trainer.callbacks": [{"class_path": f"{__name__}.EndsMeanwhile", "init_args": paths}]})
    outcome = call(main, "--config", config, *words)
    assert (outcome.code, f"{run} holds a run already" in outcome.errors[0]) == (2, True), outcome.err
    assert_same_weights(run, finished[0])


def test_other_settings_than_the_checkpoints_are_said_in_a_line(world, copy, caplog):
    last = copy / "checkpoints" / "last.ckpt"
    changes = {"model.lambda_d": 0.5, "model.learning_rate": 2.0e-3, "data.batch_size": 4, "trainer.max_steps": 8}
    outcome = call(main, "--config", world.config(copy, changes), "--ckpt_path", last)
    assert outcome.code == 0, outcome.err
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (settings,) = [line for line in lines if "other settings" in line]
    assert "run: model.learning_rate 0.002 (was 0.001), model.lambda_d 0.5 (was 0.003)." in settings
    (batches,) = [line for line in lines if "other batches" in line]
    assert "pairs a batch 4 (was 8)" in batches


def test_resuming_into_another_folder_leaves_the_first_alone(world, copy, tmp_path):
    other = tmp_path / "other"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    last = copy / "checkpoints" / "last.ckpt"
    arguments = ["--trainer.max_steps", 8, "--ckpt_path", last]
    assert call(main, "--config", world.config(other), *arguments).code == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert steps(other) == [6, 7]
    refused = call(main, "--config", world.config(other), *arguments)
    assert "holds a run already" in refused.errors[0]


def test_checkpoints_of_another_model_are_refused(world, copy, tmp_path):
    base = Path(shutil.copytree(world.base, tmp_path / "base"))
    settings = read_json(base / "config.json")
    (base / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 1}))
    changes = {"model.base_model": str(base)}
    last = copy / "checkpoints" / "last.ckpt"
    outcome = call(main, "--config", world.config(copy, changes), "--ckpt_path", last)
    assert outcome.code == 2
    assert "is a checkpoint of another model" in outcome.errors[0]


def test_a_checkpoint_callback_watches_the_retrieval_metric(world, tmp_path):
    """The last of 7 steps is no multiple of 3: it is evaluated, and it is what last.ckpt holds."""
    run = tmp_path / "run"
    retrieval = {"tasks": [str(world.tasks)], "every_n_steps": 3, "before": False}
    checkpoint = {
        "monitor": NDCG,
        "mode": "max",
        "filename": "{step}",
        "every_n_train_steps": 3,
        "save_top_k": 2,
        "save_last": True,
    }
    changes = {
        "trainer.max_steps": 7,
        "trainer.callbacks": [
            {"class_path": CHECKPOINT, "init_args": checkpoint},
            {"class_path": RETRIEVAL, "init_args": retrieval},
        ],
    }
    outcome = call(main, "--config", world.config(run, changes))
    assert outcome.code == 0, outcome.err
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step=3.ckpt", "step=6.ckpt", "last.ckpt"}
    logged = {int(row["step"]): float(row[f"val/{NDCG}"]) for row in rows(run) if row[f"val/{NDCG}"]}
    assert list(logged) == [2, 5, 6]
    last = load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 7
    watcher = next(state for name, state in last["callbacks"].items() if name.startswith("ModelCheckpoint"))
    scores = {Path(path).name: float(score) for path, score in watcher["best_k_models"].items()}
    assert scores == pytest.approx({"step=3.ckpt": logged[2], "step=6.ckpt": logged[5]})
    assert read_json(run / "metrics.json")["after"][NDCG] == logged[6]


EARLY_STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


@pytest.mark.parametrize("watcher", [CHECKPOINT, EARLY_STOPPING])
@pytest.mark.parametrize(
    ("monitor", "meant"),
    [(f"val/{NDCG}", f"; did you mean {NDCG}"), ("val/los", "; did you mean val/loss"), ("accuracy", ".")],
)
def test_a_metric_that_nothing_measures_is_refused_at_once(world, tmp_path, watcher, monitor, meant):
    run = tmp_path / "run"
    retrieval = {"class_path": RETRIEVAL, "init_args": {"tasks": [str(world.tasks)]}}
    callbacks = [retrieval, {"class_path": watcher, "init_args": {"monitor": monitor}}]
    outcome = call(main, "--config", world.config(run, {"trainer.callbacks": callbacks}))
    assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.err
    name = watcher.rpartition(".")[2]
    assert f"{name} watches {monitor}, which nothing in this run measures{meant}" in outcome.errors[0]
    assert not run.exists()


@pytest.mark.parametrize("before", [True, False])
def test_early_stopping_sees_the_model_of_its_validation(world, tmp_path, before):
    """Validations every 3 steps, evaluations every 4; a metric that never falls by 10 ends the run at step 9."""
    run = tmp_path / "run"
    retrieval = {"tasks": [str(world.tasks)], "every_n_steps": 4, "before": before}
    stop = {"monitor": NDCG, "mode": "min", "min_delta": 10.0, "patience": 2}
    changes = {
        "trainer.max_steps": 30,
        "trainer.callbacks": [
            {"class_path": EARLY_STOPPING, "init_args": stop},
            {"class_path": RETRIEVAL, "init_args": retrieval},
        ],
    }
    outcome = call(main, "--config", world.config(run, changes))
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 9
    assert [int(row["step"]) for row in rows(run) if row[f"val/{NDCG}"]] == [2, 3, 5, 7, 8]
    assert read_json(run / "metrics.json")["after"][NDCG] == float(rows(run)[-1][f"val/{NDCG}"])


def test_an_exception_leaves_a_checkpoint_to_resume_from(world, tmp_path):
    run = tmp_path / "run"
    fails = {"class_path": "command_runs.FailsAfter", "init_args": {"steps": 4}}
    config = world.config(run, {"trainer.callbacks": [fails]})
    err = tmp_path / "err.txt"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with (
        err.open("w") as file,
        redirect_stderr(file),
        pytest.raises(RuntimeError, match="the disk is gone"),
    ):
        main(["--config", str(config)])
    last = run / "checkpoints" / "last.ckpt"
    assert f"--config {run / 'config.yaml'} --ckpt_path {last}" in err.read_text()
    assert load_checkpoint(last)["global_step"] == 4
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert steps(run) == [0, 1, 2]  # Lightning logs a step after its callbacks
    arguments = ["--ckpt_path", last, "--trainer.callbacks", "null"]
    outcome = call(main, "--config", run / "config.yaml", *arguments)
    assert outcome.code == 0, outcome.err
    assert steps(run)[-2:] == [4, 5]


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_train_batch_end"])
def test_a_run_that_fails_amid_a_step_goes_on_as_if_it_had_not(world, finished, tmp_path, hook):
    run = tmp_path / "run"
    fails = {"class_path": "command_runs.FailsAfter", "init_args": {"steps": 4, "hook": hook}}
    with pytest.raises(RuntimeError, match="the disk is gone"):
        call(main, "--config", world.config(run, {"trainer.callbacks": [fails]}))
    last = run / "checkpoints" / "last.ckpt"
    outcome = call(main, "--config", run / "config.yaml", "--ckpt_path", last, "--trainer.callbacks", "null")
    assert outcome.code == 0, outcome.err
    lost = 3 if hook == "on_train_batch_end" else None  # Lightning logs a step after its callbacks
    expected = {int(row["step"]): float(row["train/loss"]) for row in rows(finished[0]) if int(row["step"]) != lost}
    assert {step: float(row["train/loss"]) for step, row in zip(steps(run), rows(run), strict=True)} == pytest.approx(
        expected
    )
    assert len(rows(run)) == len(expected)
    assert_same_weights(run, finished[0])


def _has_rows(run: Path, number: int) -> bool:
    return (run / "metrics.csv").exists() and len(rows(run)) >= number


def test_an_interrupted_run_says_how_to_go_on(world, tmp_path):
    run = tmp_path / "run"
    config = world.config(run, {"trainer.max_steps": 100_000, "trainer.val_check_interval": 1000})
    outcome = interrupted(config, tmp_path, partial(_has_rows, run, 5))
    assert outcome.code == 130
    assert "Traceback" not in outcome.out + outcome.err
    message = outcome.err.strip().splitlines()[-1]
    found = re.fullmatch(
        r"The run was stopped; go on after step (\d+) with: python -m splade_lit.fit --config (\S+) --ckpt_path (\S+)",
        message,
    )
    assert found
    step, last = int(found[1]), Path(found[3])
    assert load_checkpoint(last)["global_step"] == step >= 5
    assert not (run / "model").exists()
    outcome = call(main, "--config", found[2], "--ckpt_path", last, "--trainer.max_steps", step + 2)
    assert outcome.code == 0, outcome.err
    assert load_checkpoint(last)["global_step"] == step + 2
    assert list(read_json(run / "metrics.json")) == ["bm25", "before", "after"]


def test_a_schedulers_warning_ends_a_run_with_its_state_saved(world, tmp_path, monkeypatch):
    """SIGUSR1 under what looks like SLURM: Lightning would save elsewhere, and ask for the job to be started again."""
    variables = {"JOB_ID": "1234", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run = tmp_path / "run"
    signals = {"steps": 2, "hook": "on_before_backward", "number": int(signal.SIGUSR1)}
    callbacks = [{"class_path": "command_runs.SignalsAfter", "init_args": signals}]
    outcome = call(main, "--config", world.config(run, {"trainer.callbacks": callbacks}))
    assert outcome.code == 128 + signal.SIGUSR1, outcome.err
    assert "The run was stopped; go on after step 3 with: " in outcome.err
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert list(run.glob("hpc_ckpt*")) == []


@pytest.mark.slow
def test_so_it_does_to_a_process_of_its_own(world, tmp_path):
    run = tmp_path / "run"
    changes = {"trainer.max_steps": 100_000, "trainer.val_check_interval": 1000, "trainer.callbacks": None}
    outcome = interrupted(world.config(run, changes), tmp_path, partial(_has_rows, run, 5), signal.SIGUSR1)
    assert outcome.code == 128 + signal.SIGUSR1, outcome.err
    assert "The run was stopped; go on after step " in outcome.err
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] >= 5
