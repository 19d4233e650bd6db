"""Callbacks in real runs: when they are due, what they report, and that they leave training alone."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from command_runs import NDCG, FailsAfter
from lightning.pytorch.callbacks import EarlyStopping
from tiny_runs import make_data, make_trainer, named_weights, save_base

from splade_lit.core.errors import UserError
from splade_lit.data.tasks import load_tasks
from splade_lit.evaluation.bm25 import best_bm25
from splade_lit.evaluation.task_evaluation import evaluate_tasks
from splade_lit.training.callbacks.csv_log import CsvLog
from splade_lit.training.callbacks.hooks import EveryNSteps
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint
from splade_lit.training.callbacks.retrieval import RetrievalEvaluation
from splade_lit.training.callbacks.sparsity_monitor import SparsityMonitor
from splade_lit.training.callbacks.terms import TermTable
from splade_lit.training.module import SpladeModule


def train(world, folder: Path, max_steps: int, *callbacks: L.Callback, base: Path | None = None, **settings: Any):
    """A run of batches of 8 pairs, 8 an epoch; gives trainer and module."""
    L.seed_everything(1, verbose=False)
    module = SpladeModule(str(base or world.base), learning_rate=1e-3, max_query_tokens=16, max_document_tokens=32)
    data = make_data(world.base, world.pairs, max_query_tokens=16, max_document_tokens=32)
    checkpoint = settings.pop("ckpt_path", None)
    settings |= {"enable_checkpointing": any(isinstance(callback, LastCheckpoint) for callback in callbacks)}
    trainer = make_trainer(folder, max_steps, callbacks=list(callbacks), **settings)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=checkpoint and True)
    return trainer, module


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Recorder(L.Callback):
    """Notes the steps at which `EveryNSteps` is due, and how often it was asked."""

    def __init__(self, n: int | None) -> None:
        self.timing = EveryNSteps(n)
        self.due: list[int] = []
        self.asked = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.asked += 1
        if self.timing.due(trainer):
            self.due.append(trainer.global_step)


@pytest.mark.parametrize(("accumulate", "asked"), [(1, 7), (3, 19)])
def test_due_once_at_each_multiple(world, tmp_path, accumulate, asked):
    """7 steps; the last of the 8 batches of an epoch make a step, however few they are."""
    recorder, never = Recorder(2), Recorder(None)
    trainer, _ = train(world, tmp_path, 7, recorder, never, accumulate_grad_batches=accumulate)
    assert trainer.global_step == 7
    assert recorder.asked == asked
    assert recorder.due == [2, 4, 6]
    assert never.due == []


class TestCsvLog:
    def log(self, folder: Path, *entries: tuple[int, dict[str, float]]) -> CsvLog:
        log = CsvLog(folder)
        for step, metrics in entries:
            log.log_metrics(metrics, step)
        log.finalize("success")
        return log

    def test_one_row_a_step_whenever_it_is_saved(self, tmp_path):
        log = CsvLog(tmp_path)
        for step in range(3):
            log.log_metrics({"loss": step + 0.5, "epoch": 0}, step)
            log.save()
            log.log_metrics({"val": step + 0.25}, step)
            log.save()
            log.save()
        assert (tmp_path / "metrics.csv").read_text().splitlines() == [
            "step,loss,val",
            "0,0.5,0.25",
            "1,1.5,1.25",
            "2,2.5,2.25",
        ]

    def test_new_columns_leave_earlier_rows_as_they_are(self, tmp_path):
        self.log(tmp_path, (0, {"a": 1.0}), (1, {"a": 2.0, "b": 3.0}), (2, {"c": 4.0}), (3, {"a": 5.0}))
        assert read_csv(tmp_path) == [
            {"step": "0", "a": "1.0", "b": "", "c": ""},
            {"step": "1", "a": "2.0", "b": "3.0", "c": ""},
            {"step": "2", "a": "", "b": "", "c": "4.0"},
            {"step": "3", "a": "5.0", "b": "", "c": ""},
        ]

    def test_later_figures_of_a_step_win(self, tmp_path):
        log = CsvLog(tmp_path)
        log.log_metrics({"a": 1.23456789}, 4)
        log.save()
        log.log_metrics({"a": 2.0}, 4)
        log.save()
        assert read_csv(tmp_path) == [{"step": "4", "a": "2.0"}]

    def test_a_resumed_run_replaces_the_rows_that_it_runs_again(self, tmp_path):
        self.log(tmp_path, *((step, {"a": float(step), "old": 1.0}) for step in range(5)))
        self.log(tmp_path, *((step, {"a": 10.0 + step, "new": 2.0}) for step in range(3, 6)))
        rows = read_csv(tmp_path)
        assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
        assert [row["a"] for row in rows] == ["0.0", "1.0", "2.0", "13.0", "14.0", "15.0"]
        assert [row["old"] for row in rows] == ["1.0"] * 4 + [""] * 2
        assert [row["new"] for row in rows] == [""] * 3 + ["2.0"] * 3

    def test_a_resumed_run_that_validates_again_keeps_the_losses_of_that_step(self, tmp_path):
        self.log(tmp_path, *((step, {"loss": float(step)}) for step in range(3)))
        self.log(tmp_path, (2, {"val": 7.0}), (3, {"loss": 3.0}))
        assert read_csv(tmp_path) == [
            {"step": "0", "loss": "0.0", "val": ""},
            {"step": "1", "loss": "1.0", "val": ""},
            {"step": "2", "loss": "2.0", "val": "7.0"},
            {"step": "3", "loss": "3.0", "val": ""},
        ]

    def test_a_run_from_the_start_replaces_them_all(self, tmp_path):
        self.log(tmp_path, *((step, {"a": 1.0}) for step in range(5)))
        self.log(tmp_path, (0, {"a": 2.0}))
        assert read_csv(tmp_path) == [{"step": "0", "a": "2.0"}]

    @pytest.mark.parametrize("line", ["\0\0\0\0", ",,", "7,0.5", "1,0.5,x", "1,0.5,1,2", "\n\0\0\n\0"])
    def test_last_rows_that_are_damaged_are_left_out(self, tmp_path, caplog, line):
        self.log(tmp_path, *((step, {"a": float(step), "b": 1.0}) for step in range(3)))
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write(line)
        self.log(tmp_path, (3, {"a": 3.0}))
        assert [(row["step"], row["a"]) for row in read_csv(tmp_path)] == [(str(n), f"{n}.0") for n in range(4)]
        assert f"{tmp_path / 'metrics.csv'}: its last rows," in caplog.text

    @pytest.mark.parametrize("content", [b"step,a\nx,1.0\n1,1.0\n", b"a,b\n1,2\n", b"step,a\n0,1.0\n\xff,1.0\n"])
    def test_other_damage_is_told(self, tmp_path, content):
        (tmp_path / "metrics.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.csv is damaged; correct it by hand, or move it away"):
            self.log(tmp_path, (3, {"a": 3.0}))
        assert (tmp_path / "metrics.csv").read_bytes() == content

    def test_nothing_logged_is_no_file(self, tmp_path):
        log = self.log(tmp_path)
        log.log_hyperparams({"a": 1})
        log.save()
        assert list(tmp_path.iterdir()) == []
        assert (log.name, log.version, log.save_dir) == (tmp_path.name, "", str(tmp_path))

    def test_figures_of_no_step_join_the_row_of_the_moment(self, tmp_path):
        log = CsvLog(tmp_path)
        log.log_metrics({"a": 1.0}, 3)
        log.log_metrics({"b": 2.0})
        log.save()
        assert read_csv(tmp_path) == [{"step": "3", "a": "1.0", "b": "2.0"}]

    def test_rows_of_a_trainer(self, world, tmp_path):
        trainer, _ = train(world, tmp_path, 4, logger=CsvLog(tmp_path), log_every_n_steps=2)
        rows = read_csv(tmp_path)
        assert [row["step"] for row in rows] == ["1", "3"]
        assert all(float(row["train/loss"]) > 0 for row in rows)
        assert float(rows[-1]["train/loss"]) == float(trainer.logged_metrics["train/loss"])


def reports_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sparsity.jsonl").read_text().splitlines()]


def test_sparsity_reports_are_those_of_the_sample(world, tmp_path):
    monitor = SparsityMonitor(every_n_steps=2, num_documents=20, num_frequent=5, bins=4)
    trainer, module = train(world, tmp_path, 5, monitor, logger=CsvLog(tmp_path))
    reports = reports_of(tmp_path)
    assert [report["step"] for report in reports] == [2, 4, 5]
    last = reports[-1]
    sample = trainer.datamodule.sample_documents(20, seed=1)
    active = module.encoder.encode_document_tokens([ids.numpy() for ids in sample]).toarray() > 0
    counts, shares = active.sum(1), active.mean(0)
    assert last["num_documents"] == len(active) == 20
    assert last["active_dims"] == pytest.approx(counts.mean())
    assert last["dead_dims_ratio"] == pytest.approx((shares == 0).mean())
    assert last["active_dims_median"] == np.quantile(counts, 0.5, method="inverted_cdf")
    assert last["active_dims_p95"] == np.quantile(counts, 0.95, method="inverted_cdf")
    queries = trainer.datamodule.sample_queries(20, seed=1)
    query_counts = (module.encoder.encode_query_tokens([ids.numpy() for ids in queries]).toarray() > 0).sum(1)
    assert last["query_active_dims"] == pytest.approx(query_counts.mean())
    for side, values in (("histogram", counts), ("query_histogram", query_counts)):
        expected, edges = np.histogram(values, bins=4)
        assert last[f"{side}_counts"] == expected.tolist()
        assert last[f"{side}_edges"] == edges.tolist()
    tokens = module.encoder.tokenizer.convert_ids_to_tokens(list(range(len(shares))))
    frequent = dict(zip(tokens, shares, strict=True))
    assert [share for _, share in last["most_frequent"]] == pytest.approx(sorted(shares)[:-6:-1])
    for token, share in last["most_frequent"]:
        assert share == pytest.approx(frequent[token])
    row = read_csv(tmp_path)[-1]
    assert row["step"] == "4"  # counted from 0
    assert float(row["sparsity/document_active_dims"]) == last["active_dims"]
    assert float(row["sparsity/document_active_dims_median"]) == last["active_dims_median"]
    assert float(row["sparsity/document_active_dims_p95"]) == last["active_dims_p95"]
    assert float(row["sparsity/query_active_dims"]) == last["query_active_dims"]
    assert float(row["sparsity/dead_dims_ratio"]) == last["dead_dims_ratio"]
    assert float(row["sparsity/top_dim_document_share"]) == last["most_frequent"][0][1]


def test_sparsity_of_a_model_without_active_dims(world, tmp_path):
    class Silence(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            with torch.no_grad():
                pl_module.encoder.document.decoder.bias.fill_(-1e4)

    train(world, tmp_path, 2, Silence(), SparsityMonitor(every_n_steps=2, num_documents=8), logger=CsvLog(tmp_path))
    (report,) = reports_of(tmp_path)
    assert report["active_dims"] == 0
    assert report["dead_dims_ratio"] == 1
    assert report["most_frequent"] == []
    assert float(read_csv(tmp_path)[-1]["sparsity/top_dim_document_share"]) == 0


def test_sparsity_reports_go_through_a_checkpoint(world, tmp_path):
    def monitor() -> SparsityMonitor:
        return SparsityMonitor(every_n_steps=2, num_documents=8)

    train(world, tmp_path, 4, monitor(), LastCheckpoint(tmp_path))
    first = reports_of(tmp_path)
    train(world, tmp_path, 6, monitor(), LastCheckpoint(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert [report["step"] for report in reports_of(tmp_path)] == [2, 4, 6]
    assert reports_of(tmp_path)[:2] == first


def test_retrieval_figures_are_those_of_the_model_at_that_step(world, tmp_path):
    tasks = load_tasks([str(world.tasks)])
    expected: dict[str, dict[str, float]] = {}

    class Oracle(L.Callback):
        """Evaluates the same model beside the callback, and keeps what Lightning's callbacks could watch."""

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                expected["third"] = evaluate_tasks(pl_module.encoder, tasks)
                expected["watched"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    callback = RetrievalEvaluation([str(world.tasks)], every_n_steps=3, bm25=True)
    trainer, module = train(world, tmp_path, 5, callback, Oracle(), logger=CsvLog(tmp_path))
    stages = json.loads((tmp_path / "metrics.json").read_text())
    assert stages == callback.stages
    assert stages["bm25"] == best_bm25(tasks, module.encoder.tokenizer)[0]
    assert stages["after"] == evaluate_tasks(module.encoder, tasks)
    untrained = SpladeModule(str(world.base), max_query_tokens=16, max_document_tokens=32)
    assert stages["before"] == pytest.approx(evaluate_tasks(untrained.encoder, tasks))
    rows = {int(row["step"]): row for row in read_csv(tmp_path)}
    for step, figures in ((2, expected["third"]), (4, stages["after"])):
        logged = {name: float(rows[step][f"val/{name}"]) for name in figures}
        assert logged == pytest.approx(figures, rel=1e-6)
    assert not rows[3][f"val/{NDCG}"]
    watched = {name: value for name, value in expected["watched"].items() if name in expected["third"]}
    assert watched == pytest.approx(expected["third"], rel=1e-6)
    assert float(trainer.callback_metrics[NDCG]) == pytest.approx(stages["after"][NDCG], rel=1e-6)


def test_evaluating_leaves_training_as_it_was(world, tmp_path, make_masked_lm, tiny_tokenizer):
    """With dropout, so that a random number drawn or a mode left behind would show."""
    base = save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer, dropout=0.2)
    _, plain = train(world, tmp_path / "plain", 6, base=base)
    callbacks = [
        RetrievalEvaluation([str(world.tasks)], every_n_steps=2, bm25=True),
        SparsityMonitor(every_n_steps=1, num_documents=8),
        TermTable(every_n_steps=1, num_documents=2),
    ]
    _, evaluated = train(world, tmp_path / "evaluated", 6, *callbacks, base=base)
    expected = named_weights(plain)
    for name, weight in named_weights(evaluated).items():
        assert torch.equal(weight, expected[name]), name


def test_a_sampled_corpus_is_for_watching_only(world, tmp_path):
    """Judged documents are always kept, so a sample of 1 is the 6 judged ones; the stages are of all 30."""
    callback = RetrievalEvaluation([str(world.tasks)], every_n_steps=2, max_corpus_documents=1)
    trainer, module = train(world, tmp_path, 4, callback, logger=CsvLog(tmp_path))
    whole = evaluate_tasks(module.encoder, load_tasks([str(world.tasks)]))
    assert callback.stages["after"] == whole
    watched = float(trainer.callback_metrics["NanoNQ_corpus_active_dims"])
    assert watched != pytest.approx(whole["NanoNQ_corpus_active_dims"], rel=1e-6)
    assert [row["step"] for row in read_csv(tmp_path) if row[f"val/{NDCG}"]] == ["1", "3"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_model_is_evaluated_once(world, tmp_path, monkeypatch, accumulate):
    evaluated: list[int] = []
    callback = RetrievalEvaluation([str(world.tasks)], every_n_steps=2, before=False)
    evaluate = callback._evaluate

    def counting(pl_module: Any, limit: int | None) -> dict[str, float]:
        evaluated.append(pl_module.global_step)
        return evaluate(pl_module, limit)

    monkeypatch.setattr(callback, "_evaluate", counting)
    train(world, tmp_path, 5, callback, accumulate_grad_batches=accumulate)
    assert evaluated == [2, 4, 5]


def test_a_run_that_another_callback_ends_is_evaluated(world, tmp_path):
    """It stops where the metric does not rise: at the second evaluation, of step 4."""
    retrieval = RetrievalEvaluation([str(world.tasks)], every_n_steps=2, before=False)
    stop = EarlyStopping(NDCG, patience=1, mode="min", min_delta=10.0, check_on_train_epoch_end=True)
    trainer, module = train(world, tmp_path, 100, retrieval, stop, LastCheckpoint(tmp_path), limit_train_batches=2)
    assert trainer.global_step == 4
    assert retrieval.stages["after"] == evaluate_tasks(module.encoder, load_tasks([str(world.tasks)]))
    assert json.loads((tmp_path / "metrics.json").read_text()) == retrieval.stages
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


class TestLastCheckpoint:
    def step(self, folder: Path) -> int:
        return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]

    def test_the_last_step_is_kept_though_nothing_else_is(self, world, tmp_path):
        trainer, module = train(world, tmp_path, 3, LastCheckpoint(tmp_path))
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 3
        assert saved["state_dict"].keys() == module.state_dict().keys()
        for name, value in module.state_dict().items():
            assert torch.equal(saved["state_dict"][name], value)
        assert trainer.checkpoint_callbacks == [trainer.checkpoint_callback]

    def test_an_epoch_is_kept(self, world, tmp_path):
        seen: list[int] = []

        class Watch(L.Callback):
            def on_train_batch_start(_, *args: Any) -> None:
                if (tmp_path / "last.ckpt").exists():
                    seen.append(self.step(tmp_path))

        with pytest.raises(RuntimeError, match="the disk is gone"):
            train(world, tmp_path, 20, Watch(), LastCheckpoint(tmp_path), FailsAfter(10))
        assert seen == [8, 8]
        assert self.step(tmp_path) == 10

    def test_an_epoch_of_any_length_is_kept_every_few_minutes(self, world, tmp_path):
        seen: list[int] = []

        class Watch(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
                if trainer.global_step:
                    seen.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"])

        train(world, tmp_path, 10, Watch(), LastCheckpoint(tmp_path, every_n_minutes=0))
        assert seen == list(range(1, 10))
        assert self.step(tmp_path) == 10

    def test_before_the_first_step_there_is_nothing_to_keep(self, world, tmp_path):
        class Fails(L.Callback):
            def on_train_start(self, *args: Any) -> None:
                raise RuntimeError("at once")

        with pytest.raises(RuntimeError, match="at once"):
            train(world, tmp_path, 3, LastCheckpoint(tmp_path), Fails())
        assert not (tmp_path / "last.ckpt").exists()

    def test_a_resume_that_fails_leaves_the_checkpoint_alone(self, world, tmp_path):
        class Fails(L.Callback):
            def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
                with torch.no_grad():
                    pl_module.encoder.idf_weights.fill_(-7.0)
                raise RuntimeError("at once")

        train(world, tmp_path, 3, LastCheckpoint(tmp_path))
        before = (tmp_path / "last.ckpt").read_bytes()
        with pytest.raises(RuntimeError, match="at once"):
            train(world, tmp_path, 5, LastCheckpoint(tmp_path), Fails(), ckpt_path=tmp_path / "last.ckpt")
        assert (tmp_path / "last.ckpt").read_bytes() == before
