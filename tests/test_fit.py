"""`python -m splade_lit.fit`: what a run leaves, how it is set, which folders it takes, and W&B."""

import json
import logging
import re
import shutil
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_runs import (
    NDCG,
    RETRIEVAL,
    Outcome,
    assert_same_weights,
    call,
    command,
    load_checkpoint,
    read_json,
    reports,
    rows,
    same_figures,
    steps,
    weights,
)
from conftest import REPOSITORY
from sentence_transformers import SparseEncoder
from wandb_files import OfflineRun

from splade_lit.command_line.devices import precision_on_cpu
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.fit import main

EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def finished(world) -> tuple[Path, Outcome]:
    """A whole run, started as users do; its folder is not to be written to."""
    run = world.folder / "runs" / "finished"
    return run, command("splade_lit.fit", "--config", world.config(run), cwd=world.folder)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the whole run that a test may write to."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_a_run_leaves_a_whole_folder(finished):
    run, outcome = finished
    assert outcome.code == 0, outcome.err
    assert {path.name for path in run.iterdir() if path.name != ".lock"} == {
        *("checkpoints", "config.yaml", "metrics.csv", "metrics.json", "model", "per_query.jsonl", "sparsity.jsonl")
    }
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 6
    stages = read_json(run / "metrics.json")
    assert list(stages) == ["bm25", "before", "after"]
    assert stages["before"].keys() == stages["after"].keys() >= {NDCG, "NanoNQ_dot_mrr@10", "NanoNQ_corpus_active_dims"}
    assert stages["before"] != stages["after"]
    assert NDCG in stages["bm25"]
    assert [report["step"] for report in reports(run)] == [2, 4, 6]


def test_the_last_line_tells_model_and_figures(finished):
    run, outcome = finished
    after = read_json(run / "metrics.json")["after"]
    assert outcome.last_line.startswith(f"model: {run / 'model'}  ")
    assert f"{NDCG} {after[NDCG]:.4g}" in outcome.last_line
    assert f"NanoBEIR_mean_corpus_active_dims {after['NanoBEIR_mean_corpus_active_dims']:.4g}" in outcome.last_line
    for stage, figures in read_json(run / "metrics.json").items():
        assert re.search(rf"^ ?(NanoBEIR_mean)? *{stage} +{figures[NDCG]:.4f}", outcome.out, re.MULTILINE)


def test_the_log_has_one_row_a_step(finished):
    run, _ = finished
    table = rows(run)
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    for row in table:
        assert float(row["train/loss"]) > 0
    logged = {name: [int(row["step"]) for row in table if row[name]] for name in table[0]}
    assert logged["val/loss"] == [2, 5]
    assert logged["sparsity/document_active_dims"] == [1, 3, 5]
    assert logged[f"val/{NDCG}"] == [5]
    assert float(table[-1][f"val/{NDCG}"]) == read_json(run / "metrics.json")["after"][NDCG]


def test_the_model_of_a_run_is_what_was_evaluated(finished):
    run, _ = finished
    encoder = AsymmetricSparseEncoder.load(run / "model")
    peer = SparseEncoder(str(run / "model"), device="cpu")
    texts = ["who wrote the song", "the river"]
    ours = encoder.encode_document(texts).to_dense()
    torch.testing.assert_close(ours, peer.encode_document(texts).to_dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.encode_query(texts).to_dense(), peer.encode_query(texts).to_dense())
    saved = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(saved["encoder.query.idf_weights"], encoder.idf_weights.detach())


def test_the_resolved_configuration_reproduces_the_run(world, tmp_path):
    run = tmp_path / "run"
    config = world.config(run, {"data.batch_size": 4})
    assert call(main, "--config", config, "--model.lambda_d", 0.01).code == 0
    config.unlink()
    outcome = call(main, "--config", run / "config.yaml", "--trainer.default_root_dir", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert_same_weights(tmp_path / "again", run)
    for stage, figures in read_json(run / "metrics.json").items():
        assert same_figures(read_json(tmp_path / "again" / "metrics.json")[stage], figures)
    other = ["--trainer.default_root_dir", tmp_path / "other", "--data.seed", 7]
    assert call(main, "--config", run / "config.yaml", *other).code == 0
    ours, expected = weights(tmp_path / "other"), weights(run)
    assert any(not torch.allclose(ours[name], expected[name], rtol=1e-3) for name in ours)
    first, second = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, tmp_path / "again"))
    second["trainer"]["default_root_dir"] = str(run)
    assert first == second


def test_settings_on_the_command_line_win(world, tmp_path):
    run = tmp_path / "run"
    arguments = ["--model.lambda_d", "0.5", "--model.lambda_schedule=constant", "--trainer.max_steps=2"]
    outcome = call(main, "--config", world.config(run), *arguments, "--trainer.callbacks", "null")
    assert outcome.code == 0, outcome.err
    assert [float(row["train/lambda_d"]) for row in rows(run)] == [0.5, 0.5]
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["lambda_d"] == 0.5
    assert settings["trainer"]["max_steps"] == 2
    assert not (run / "metrics.json").exists()
    assert outcome.last_line == f"model: {run / 'model'}"


def test_a_run_without_a_step_says_so(world, tmp_path, finished):
    outcome = call(main, "--config", world.config(tmp_path / "run", {"trainer.max_steps": 0}))
    assert outcome.code == 0
    assert "not a step was trained" in outcome.err
    assert "not a step was trained" not in finished[1].err


@pytest.mark.parametrize("setting", ["fast_dev_run", "logger", "enable_checkpointing"])
def test_switches_of_the_trainer(world, tmp_path, setting):
    """Each leaves a folder that says by its config.yaml what it is."""
    run = tmp_path / "run"
    config = world.config(run, {"trainer.callbacks": None, "trainer.max_steps": 2, "trainer.val_check_interval": 1})
    value = str(setting == "fast_dev_run").lower()
    for more in ([], ["--overwrite", "true"]):
        outcome = call(main, "--config", config, f"--trainer.{setting}", value, *more)
        assert outcome.code == 0, outcome.err
        assert (run / "config.yaml").exists()
        assert (run / "checkpoints" / "last.ckpt").exists() == (setting != "enable_checkpointing")
        assert (run / "metrics.csv").exists() == (setting != "fast_dev_run")


def test_progress_is_shown_by_steps(world, tmp_path, caplog):
    progress = "splade_lit.training.callbacks.step_progress"
    changes = {"trainer.enable_progress_bar": True, "trainer.max_steps": 3}
    bar = {"trainer.callbacks": [{"class_path": f"{progress}.StepProgressBar"}]}
    outcome = call(main, "--config", world.config(tmp_path / "bar", changes | bar))
    assert re.search(r"^Epoch 0 .* 3/3 ", outcome.out, re.MULTILINE)
    assert outcome.last_line == f"model: {tmp_path / 'bar' / 'model'}"
    lines = {"trainer.callbacks": [{"class_path": f"{progress}.ProgressLines", "init_args": {"seconds": 0}}]}
    with caplog.at_level(logging.INFO, "splade_lit"):
        assert call(main, "--config", world.config(tmp_path / "lines", changes | lines)).code == 0
    pattern = re.compile(r"step (\d) of 3: loss \d+\.\d+, [\d.e-]+ s a step with evaluations, about .* left")
    told = [found[1] for record in caplog.records if (found := pattern.fullmatch(record.getMessage()))]
    assert told == ["1", "2", "3"]
    # Without a terminal lines are what there is, and a run this short has none.
    caplog.clear()
    none = call(main, "--config", world.config(tmp_path / "none", changes | {"trainer.callbacks": None}))
    assert "Epoch" not in none.out
    assert "of 3" not in caplog.text
    off = changes | {"trainer.enable_progress_bar": False, "trainer.callbacks": None}
    quiet = call(main, "--config", world.config(tmp_path / "quiet", off))
    assert quiet.code == 0
    assert "Epoch" not in quiet.out


def test_evaluations_are_told(finished):
    _, outcome = finished
    told = re.findall(
        r"^INFO: step (\d): mean nDCG@10 0\.\d{4}, \d+\.\d active dims a document$", outcome.err, re.MULTILINE
    )
    assert told == ["0", "6"]


def test_a_later_file_wins_over_an_earlier_one(world, tmp_path):
    (tmp_path / "more.yaml").write_text("model: {idf: corpus}\n")
    config = world.config(tmp_path / "run")
    outcome = call(main, "--config", config, "--config", tmp_path / "more.yaml", "--print_config")
    settings = yaml.safe_load(outcome.out)
    assert settings["model"]["idf"] == "corpus"
    assert settings["model"]["base_model"] == str(world.base)


@pytest.mark.parametrize("limit", [None, 80, 10_000])
def test_texts_are_cut_to_what_the_model_can_read(world, tmp_path, limit):
    base = Path(shutil.copytree(world.base, tmp_path / "base"))
    settings = read_json(base / "tokenizer_config.json")
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": int(1e30)}))
    row = {"query": "the song of the river", "answer": " ".join(["song", "river", "king"] * 60)}
    pairs = [row | {"query": f"{row['query']} {n}", "answer": f"{n} {row['answer']}"} for n in range(12)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    changes = {
        "model.base_model": str(base),
        "model.max_query_tokens": None,
        "model.max_document_tokens": limit,
        "data.source": str(tmp_path / "long.jsonl"),
        "data.num_eval_pairs": 2,
        "trainer.max_steps": 1,
        "trainer.callbacks": None,
        "trainer.val_check_interval": 1,
    }
    outcome = call(main, "--config", world.config(tmp_path / "run", changes))
    if limit == 10_000:
        assert outcome.code == 2
        assert "max_document_tokens is 10000; it must be at least 3" in outcome.errors[0]
        assert "at most 80, the positions that the model has" in outcome.errors[0]
    else:
        assert outcome.code == 0, outcome.err


def test_help_shows_the_docstrings():
    outcome = call(main, "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    for sentence in (
        "peak learning rate of the query weights",
        "pairs held out of training for the validation loss",
        "Checkpoint to resume from",
        "Start again in a folder that holds a run",
        "Trains an asymmetric inference-free SPLADE encoder",
    ):
        assert sentence in text
    callback = call(main, f"--trainer.callbacks.help={RETRIEVAL}")
    assert callback.code == 0
    assert "optimizer steps between two evaluations" in " ".join(callback.out.split())


def test_print_config_prints_a_file_that_runs(world, tmp_path):
    outcome = call(main, "--config", world.config(tmp_path / "run"), "--model.lambda_d", "0.25", "--print_config")
    assert outcome.code == 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "printed.yaml").write_text(outcome.out)
    assert yaml.safe_load(outcome.out)["model"]["lambda_d"] == 0.25
    again = call(main, "--config", tmp_path / "printed.yaml", "--print_config")
    assert again.code == 0, again.err
    assert yaml.safe_load(again.out) == yaml.safe_load(outcome.out)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_fit_the_signatures(path, tmp_path):
    parsed = call(main, "--config", path, "--print_config")
    assert parsed.code == 0, parsed.err
    settings = yaml.safe_load(parsed.out)
    assert settings["trainer"]["default_root_dir"] == f"runs/{path.stem}"
    broken = tmp_path / "broken.yaml"
    broken.write_text(path.read_text().replace("base_model:", "base_modell:"))
    assert call(main, "--config", broken, "--print_config").code == 2


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_state_what_they_are_for(path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header
    found = re.findall(r"^# (\w+): +(\S.*)$", header[0], re.MULTILINE)
    assert [name for name, _ in found] == ["Question", "Command", "Hardware", "Time", "Expected"]
    assert f"experiments/{path.name}" in dict(found)["Command"]


def test_there_are_experiments():
    recipes = {"msmarco_distill", "nq_distilbert", "nq_distilbert_best", "nq_minilm_cpu", "own_corpus"}
    assert recipes | {"quickstart", "smoke"} <= {path.stem for path in EXPERIMENTS}


@pytest.mark.slow  # parses the docstrings of all packages and loads a real model
def test_smoke_runs_for_real(tmp_path):
    run = tmp_path / "smoke"
    config = REPOSITORY / "experiments" / "smoke.yaml"
    outcome = command("splade_lit.fit", "--config", config, "--trainer.default_root_dir", run, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.last_line == f"model: {run / 'model'}"
    assert steps(run) == [0, 1, 2, 3]
    assert AsymmetricSparseEncoder.load(run / "model").vocab_size == 30_522


@pytest.mark.parametrize("avx512_bf16", [True, False])
def test_half_precision_falls_back_on_a_cpu(world, tmp_path, recwarn, monkeypatch, avx512_bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": avx512_bf16}, raising=False)
    changes = {"trainer.precision": "16-mixed", "trainer.max_steps": 1, "trainer.callbacks": None}
    outcome = call(main, "--config", world.config(tmp_path / "run", changes))
    assert outcome.code == 0
    fitting = "bf16-mixed" if avx512_bf16 else "32-true"
    warned = [line for line in outcome.err.splitlines() if "16-mixed" in line or "precision" in line]
    assert warned == [f"warning: the run is on a CPU, so trainer.precision 16-mixed falls back to {fitting}."]
    assert not [warning for warning in recwarn if "16-mixed" in str(warning.message)]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["precision"] == fitting


@pytest.mark.parametrize("avx512_bf16", [True, False])
def test_precision_of_a_cpu(monkeypatch, avx512_bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": avx512_bf16}, raising=False)
    assert precision_on_cpu("bf16-mixed") == ("bf16-mixed" if avx512_bf16 else "32-true")
    assert [precision_on_cpu(other) for other in ("32-true", None)] == ["32-true", None]


def test_a_folder_that_holds_a_run_is_refused(world, copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    outcome = call(main, "--config", world.config(copy))
    assert outcome.code == 2
    assert "holds a run already" in outcome.errors[0]
    assert f"--ckpt_path {copy}/checkpoints/last.ckpt" in outcome.errors[0]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("left", ["checkpoints", "model", "metrics.csv", "metrics.json", "sparsity.jsonl"])
def test_any_output_shows_that_a_folder_holds_a_run(world, copy, left):
    for path in copy.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "holds a run already" in call(main, "--config", world.config(copy)).errors[0]
    # Without a config.yaml it may be any folder: nothing in it is removed.
    outcome = call(main, "--config", world.config(copy), "--overwrite", "true")
    assert outcome.code == 2
    assert "no config.yaml" in outcome.errors[0]
    assert (copy / left).exists()


def test_overwriting_leaves_nothing_of_the_earlier_run(world, copy):
    (copy / "checkpoints" / "step=3.ckpt").write_bytes(b"old")
    for name in ("emissions.csv", "terms.jsonl"):
        (copy / name).write_text("old")
    (copy / "notes.txt").write_text("mine")
    changes = {"trainer.max_steps": 2, "trainer.callbacks": None, "trainer.val_check_interval": 1}
    outcome = call(main, "--config", world.config(copy, changes), "--overwrite", "true")
    assert outcome.code == 0, outcome.err
    left = {path.name for path in copy.iterdir() if path.name != ".lock"}
    assert left == {"checkpoints", "config.yaml", "metrics.csv", "model", "notes.txt"}
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["last.ckpt"]
    assert load_checkpoint(copy / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert steps(copy) == [0, 1]
    assert yaml.safe_load((copy / "config.yaml").read_text())["overwrite"] is False


def test_bad_data_overwrite_nothing(world, copy):
    (world.folder / "other.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    config = world.config(copy, {"data.source": str(world.folder / "other.jsonl")})
    outcome = call(main, "--config", config, "--overwrite", "true")
    assert outcome.code == 2
    assert "query" in outcome.errors[0]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


class Listener(socketserver.ThreadingTCPServer):
    """Counts who connects; answers nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.connections = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        self.shutdown_request(request)


def test_wandb_stays_offline_unless_asked(world, tmp_path, monkeypatch):
    run = tmp_path / "run"
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "tiny"}}
    config = world.config(run, {"trainer.logger": [logger]})
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with Listener() as listener:
        address = f"http://127.0.0.1:{listener.server_address[1]}"
        network = {"WANDB_BASE_URL": address, "HTTP_PROXY": address, "HTTPS_PROXY": address}
        outcome = command("splade_lit.fit", "--config", config, cwd=tmp_path, WANDB_API_KEY="0" * 40, **network)
        connections = listener.connections
        listener.shutdown()
    assert outcome.code == 0, outcome.err
    assert connections == 0
    assert not (tmp_path / "wandb").exists()
    offline = OfflineRun.in_folder(run)
    assert offline.exit_code == 0
    assert offline.run.display_name == "run"
    assert offline.definitions[f"val/{NDCG}"].summary.max
    assert offline.artifacts == []
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    assert (run / "checkpoints" / "last.ckpt").exists()
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["trainer"]["logger"][0]["init_args"]["save_dir"] == "."  # another folder: another place
