"""Bad input: one clear sentence on stderr, exit code 2, and nothing trained, written or removed before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_runs import CHECKPOINT, RETRIEVAL, Outcome, World, call, command, environment

from splade_lit import evaluate, fit, search

MODEL = "some-owner/no-such-model"
DATA = "some-owner/no-such-pairs"


@pytest.fixture(scope="module")
def model(world) -> Path:
    """A saved model."""
    config = world.config(world.folder / "run", {"trainer.max_steps": 1, "trainer.callbacks": None})
    outcome = call(fit.main, "--config", config)
    assert outcome.code == 0, outcome.err
    return world.folder / "run" / "model"


def assert_one_sentence(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    assert len(outcome.errors) == 1
    assert "Traceback" not in outcome.err
    assert "usage:" not in outcome.err
    (sentence,) = outcome.errors
    assert outcome.err.rstrip().endswith(sentence)
    assert sentence.endswith((".", "?"))
    assert len(sentence) < 500
    for part in parts:
        assert part in sentence


def fit_fails(world: World, tmp_path: Path, changes: dict[str, Any], *parts: str) -> None:
    run = tmp_path / "run"
    assert_one_sentence(call(fit.main, "--config", world.config(run, changes)), *parts)
    assert not run.exists()


def callback(**settings: Any) -> list[dict[str, Any]]:
    return [{"class_path": RETRIEVAL, "init_args": settings}]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.lamda_d": 0.1}, ["run.yaml: there is no setting model.lamda_d; did you mean model.lambda_d"]),
        ({"data.bach_size": 8}, ["run.yaml: there is no setting data.bach_size; did you mean data.batch_size"]),
        ({"trainer.max_step": 8}, ["run.yaml: there is no setting trainer.max_step; did you mean trainer.max_steps"]),
        ({"modle.idf": "ones"}, ["run.yaml: there is no setting modle.idf; did you mean model.idf?"]),
        ({"optimizer": "adam"}, ["run.yaml: there is no setting optimizer."]),
        ({"data": None}, ["run.yaml: data must hold settings"]),
        ({"data.tokenizer": "x"}, ["data.tokenizer is taken from model.base_model"]),
        ({"data.max_query_tokens": 7}, ["data.max_query_tokens is taken from model.max_query_tokens"]),
        ({"model.learning_rate": "fast"}, ["run.yaml: model.learning_rate is fast, but must be float."]),
        ({"model.pooling": "avg"}, ["run.yaml: model.pooling is avg, but must be max or sum or null."]),
        ({"model.max_query_tokens": "all"}, ["model.max_query_tokens is all, but must be int or null."]),
        ({"model.warmup_ratio": 10}, ["model.warmup_ratio is 10"]),
        ({"data.batch_size": 0}, ["batch_size is 0"]),
        ({"trainer.precision": "fp99"}, ["trainer.precision is fp99, but must be", "16-mixed"]),
        (
            {"trainer.callbacks": callback(taks=["nq"])},
            ["run.yaml: trainer.callbacks: RetrievalEvaluation: there is no setting taks; did you mean tasks?"],
        ),
        (
            {"trainer.callbacks": callback(tasks=3)},
            ["callbacks: RetrievalEvaluation: tasks is 3, but must be list."],
        ),
        (
            {"trainer.callbacks": [{"class_path": f"{RETRIEVAL}s"}]},
            [f"module '{RETRIEVAL.rpartition('.')[0]}' has no attribute 'RetrievalEvaluations'"],
        ),
        (
            {"trainer.callbacks": [{"class_path": "splad.Monitor"}]},
            ["callbacks: Monitor: No module named 'splad'."],
        ),
        (
            {"trainer.callbacks": [{"class_path": "Monitor"}]},
            ["a class is named by its whole path", "not Monitor"],
        ),
        (
            {"trainer.callbacks": [{"class_path": "splade_lit.training.module.SpladeModule"}]},
            ["SpladeModule does not correspond to a subclass of Callback"],
        ),
        ({"trainer.logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}]}, ["CSVLogger", "save_dir"]),
        ({"trainer.accelerator": "gpus"}, ["trainer: ", "gpus"]),
        ({"trainer.callbacks": [{"class_path": CHECKPOINT, "init_args": {"save_top_k": -5}}]}, ["save_top_k=-5"]),
        ({"trainer.default_root_dir": None}, ["The run has no folder"]),
        ({"trainer.max_steps": -1, "trainer.max_epochs": -1}, ["The run has no known end"]),
        ({"trainer.val_check_interval": 100, "trainer.check_val_every_n_epoch": 1}, ["val_check_interval", "100"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings(world, tmp_path, changes, parts):
    fit_fails(world, tmp_path, changes, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model.lamda_d", 3], ["there is no setting --model.lamda_d; did you mean --model.lambda_d"]),
        (["--model.lambda", 3], ["there is no setting --model.lambda; did you mean --model.lambda"]),
        (["--model.lambda_d"], ["--model.lambda_d", "expected one argument"]),
        (["--model.lambda_d=high"], ["error: model.lambda_d is high, but must be float or Weight or null."]),
        (
            ["--model.penalty", "flop"],
            ["model.penalty is flop, but must be", "df_flops or anti_zero or a list of such."],
        ),
        (
            ["--model.ranking", "[in_bach]"],
            ["model.ranking is in_bach, but must be RankingLoss or in_batch or kl or margin_mse."],
        ),
        (["--model.ranking", "[]"], ["model.ranking is empty"]),
        (["experiments/smoke.yaml"], ["unrecognized arguments: experiments/smoke.yaml"]),
    ],
    ids=str,
)
def test_command_lines_of_fit(world, tmp_path, arguments, parts):
    assert_one_sentence(call(fit.main, "--config", world.config(tmp_path / "run"), *arguments), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: [", ["is not YAML, line 1"]),
        ("model:\n\tidf: ones\n", ["is not YAML, line 2"]),
        ('{"query": "a"}\n{"query": "b"}\n', ["is not YAML, line 2"]),
        ("\x80\x81", ["is not YAML"]),
        ("", ["holds no settings"]),
        ("- model\n- data\n", ["holds no settings"]),
        ("model", ["holds no settings"]),
    ],
    ids=repr,
)
def test_files_that_are_no_yaml(tmp_path, text, parts):
    path = tmp_path / "settings.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert_one_sentence(call(fit.main, "--config", path), f"{path}", *parts)


def test_missing_files(tmp_path):
    assert_one_sentence(
        call(fit.main, "--config", tmp_path / "none.yaml"), f"{tmp_path}/none.yaml: there is no such file"
    )
    assert_one_sentence(call(fit.main, f"--config={tmp_path}"), f"{tmp_path}: there is no such file")


def test_pairs(world, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.md").write_text("nothing here")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    blank = tmp_path / "blank.jsonl"
    blank.write_text(json.dumps({"query": "a", "answer": " "}) + "\n")
    few = tmp_path / "few.jsonl"
    few.write_text(world.pairs.read_text().splitlines()[0] + "\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 is what they begin with")
    for source, parts in (
        (tmp_path / "none.jsonl", ["none.jsonl: there is no such file or folder"]),
        (folder, [str(folder), "no data set"]),
        (empty, [str(empty), "empty"]),
        (blank, [str(blank), "no pair with both a query and a document"]),
        (few, ["num_eval_pairs is 16, but there are only 1 pairs"]),
        (broken, [str(broken)]),
        (DATA, [DATA, "network"]),
    ):
        fit_fails(world, tmp_path, {"data.source": str(source)}, *parts)
    fit_fails(world, tmp_path, {"data.query_column": "question"}, "no column question; its columns are query, answer")


def test_base_models(world, tmp_path):
    bare = Path(shutil.copytree(world.base, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    damaged = Path(shutil.copytree(world.base, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes(b"no weights")
    large = Path(shutil.copytree(world.base, tmp_path / "large"))
    tokenizer = json.loads((large / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["disease"] = 50_000_000
    (large / "tokenizer.json").write_text(json.dumps(tokenizer))
    folder = tmp_path / "folder"
    folder.mkdir()
    for source, parts in (
        (bare, ["has no weights"]),
        (large, ["its tokenizer has", "tokens and ids up to 50,000,000, so it is damaged"]),
        (damaged, ["weights are damaged"]),
        (folder, ["is not a model folder: it has no config.json"]),
        (tmp_path / "none", ["is not a folder"]),
        (MODEL, ["is not a folder, and the Hub does not give it; check the name and the network"]),
        ("package:no_such_package/model", ["no package 'no_such_package' is installed"]),
        ("package:json/model", ["has no folder 'model'"]),
    ):
        fit_fails(world, tmp_path, {"model.base_model": str(source)}, str(source), *parts)
    fit_fails(world, tmp_path, {"model.idf": str(tmp_path / "idf.json")}, "idf.json")


def test_tasks(world, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for task, parts in (
        ("nqq", ["'nqq' is neither a folder nor a known task", "msmarco"]),
        (str(folder), ["neither a BEIR folder", "nor one in NanoBEIR's layout"]),
        ("nq", ["NanoBEIR-en", "network"]),
    ):
        fit_fails(world, tmp_path, {"trainer.callbacks": callback(tasks=[task])}, *parts)
    twice = callback(tasks=[str(world.tasks), str(world.tasks)])
    fit_fails(world, tmp_path, {"trainer.callbacks": twice}, "would be evaluated twice")


def test_checkpoints(world, tmp_path):
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    tensors = tmp_path / "tensors.ckpt"
    torch.save({"weight": torch.zeros(2)}, tensors)
    number = tmp_path / "number.ckpt"
    torch.save(3, number)
    for path, part in (
        (text, "is not a checkpoint of a run"),
        (tensors, "is not a checkpoint of a run"),
        (number, "is not a checkpoint of a run"),
        (tmp_path / "none.ckpt", "is not a file"),
        (tmp_path, "is not a file"),
    ):
        run = tmp_path / "run"
        assert_one_sentence(call(fit.main, "--config", world.config(run), "--ckpt_path", path), f"{path} {part}")
        assert not run.exists()


def test_folders_that_cannot_be_written(world, tmp_path, model):
    """A path below a file can be written by nobody, the superuser included."""
    (tmp_path / "file").write_text("")
    config = world.config(tmp_path / "run")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        outcome = call(fit.main, "--config", config, "--trainer.default_root_dir", folder)
        assert_one_sentence(outcome, f"{folder} cannot be written")
    arguments = ["--model", model, "--tasks", world.tasks]
    for option in (["--output", tmp_path / "file" / "metrics.json"], ["--runs", tmp_path / "file"]):
        assert_one_sentence(call(evaluate.main, *arguments, *option), f"{option[1]} cannot be written")
    assert_one_sentence(call(evaluate.main, *arguments, "--output", tmp_path), f"{tmp_path} is a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folders_without_permission(world, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    outcome = call(fit.main, "--config", world.config(tmp_path / "run"), "--trainer.default_root_dir", locked / "run")
    assert_one_sentence(outcome, "cannot be written")


@pytest.mark.parametrize("main", [evaluate.main, search.main], ids=["evaluate", "search"])
def test_saved_models(world, tmp_path, main, model):
    rest = (
        ["--tasks", world.tasks] if main is evaluate.main else ["--corpus", world.pairs, "--text-column", "answer", "q"]
    )
    bare = Path(shutil.copytree(model, tmp_path / "bare"))
    next(bare.glob("document_0_*/model.safetensors")).unlink()
    for source, parts in (
        (tmp_path, [str(tmp_path)]),
        (tmp_path / "none", ["is not a folder"]),
        (bare, ["has no weights"]),
        (MODEL, [MODEL, "network"]),
    ):
        assert_one_sentence(call(main, "--model", source, *rest), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["the following arguments are required: --model"]),
        (["--model", "x", "--taks", "nq"], ["unrecognized arguments: --taks nq"]),
        (["--model", "x", "--max-corpus-documents", "0"], ["--max-corpus-documents", "at least 1"]),
        (["--model", "x", "--max-corpus-documents", "few"], ["--max-corpus-documents", "few"]),
        (["--model", "x", "--tasks", "nqq"], ["'nqq' is neither a folder nor a known task"]),
        (["--model", "x", "--device", "abacus"], ["there is no device abacus here"]),
    ],
    ids=str,
)
def test_command_lines_of_evaluate(arguments, parts):
    assert_one_sentence(call(evaluate.main, *arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "x", "q"], ["Nothing to search: give --corpus, or --vectors"]),
        (["--model", "x", "--corpus", "none.jsonl", "q"], ["none.jsonl: there is no such file"]),
        (["--model", "x", "--corpus", "none.jsonl", "--top", "0", "q"], ["--top", "at least 1"]),
        (["--model", "x", "--corpus", "none.jsonl", "--terms", "-1", "q"], ["--terms", "at least 1"]),
        (["--model", "x", "--corpus", "none.jsonl", "--devices", "cpu", "q"], ["unrecognized arguments: --devices"]),
    ],
    ids=str,
)
def test_command_lines_of_search(arguments, parts):
    assert_one_sentence(call(search.main, *arguments), *parts)


def test_ids_that_a_ranking_cannot_hold_are_told_before_anything_is_encoded(tmp_path):
    """The model is not even looked at."""
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text('{"_id": "doc 0", "text": "song"}\n')
    (task / "queries.jsonl").write_text('{"_id": "q", "text": "song"}\n')
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tdoc 0\t1\n")
    outcome = call(evaluate.main, "--model", "none", "--tasks", task, "--runs", tmp_path / "runs")
    assert_one_sentence(outcome, "The id 'doc 0' has white space, which a TREC run cannot hold")
    assert not (tmp_path / "runs").exists()


def test_text_of_another_encoding_in_and_out(tmp_path, model):
    """A query in latin-1 from a pipe and as an argument, and a document that the output's encoding lacks."""
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text(json.dumps({"_id": "a", "text": "the song \u6771\u4eac"}) + "\n")
    search_it = [sys.executable, "-m", "splade_lit.search", "--model", str(model), "--corpus", str(corpus)]
    for arguments, piped in (([], b"caf\xe9 the song\n"), ([b"caf\xe9 the song"], b"")):
        environ = environment(PYTHONIOENCODING="cp1252" if arguments else "utf-8")
        done = subprocess.run([*search_it, *arguments], input=piped, capture_output=True, env=environ, check=False)
        assert done.returncode == 0, done.stderr
        assert b"queries: 1 characters are not valid Unicode" in done.stderr
        assert ("the song ??" if arguments else "the song \u6771\u4eac").encode() in done.stdout


def test_a_process_of_its_own(world, tmp_path):
    """Nothing but the sentence on stderr: no log line, no warning of a library comes before it."""
    config = world.config(tmp_path / "run", {"data.bach_size": 8})
    outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path)
    assert_one_sentence(outcome)
    near = "data.batch_size or data.eval_batch_size"
    assert outcome.err == f"error: {config}: there is no setting data.bach_size; did you mean {near}?\n"
    assert outcome.out == ""


def test_a_hub_id_without_network_in_a_process_of_its_own(world, tmp_path):
    config = world.config(tmp_path / "run", {"model.base_model": MODEL})
    outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path, HF_HOME=str(tmp_path / "hub"))
    assert_one_sentence(outcome, MODEL, "check the name and the network")
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert yaml.safe_load(config.read_text())["model"]["base_model"] == MODEL
