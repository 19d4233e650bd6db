"""W&B: an offline run read back, the same figures in metrics.csv and TensorBoard, and the dashboard of a project."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from command_runs import NDCG, RETRIEVAL, SPARSITY, Outcome, command, environment, make_world, read_json, reports, rows
from conftest import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from wandb_files import OfflineRun

from splade_lit.training.callbacks.wandb_log import best_value

STEP = "trainer/global_step"
TERMS = "terms/documents"
HISTOGRAMS = {"sparsity/document_histogram": "histogram", "sparsity/query_histogram": "query_histogram"}
MEDIA = {TERMS, *HISTOGRAMS}
OWN = {"epoch", STEP, "_step", "_runtime", "_timestamp"}  # of Lightning and W&B themselves


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_tokenizer) -> tuple[Path, Outcome]:
    """A whole run with both loggers and every callback that logs."""
    world = make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    run = world.folder / "runs" / "tiny run"
    wandb_log = {"project": "tiny", "model_artifact": True}
    loggers = [
        {"class_path": "splade_lit.training.callbacks.wandb_log.WandbLog", "init_args": wandb_log},
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": str(run), "name": "", "version": "tensorboard"},
        },
    ]
    callbacks = [
        {"class_path": RETRIEVAL, "init_args": {"tasks": [str(world.tasks)], "every_n_steps": 2}},
        {"class_path": SPARSITY, "init_args": {"every_n_steps": 2, "num_documents": 16, "bins": 6}},
        {
            "class_path": "splade_lit.training.callbacks.terms.TermTable",
            "init_args": {"every_n_steps": 2, "num_documents": 3, "num_terms": 8},
        },
        {"class_path": "splade_lit.training.callbacks.carbon.CarbonTracker"},
    ]
    config = world.config(run, {"trainer.logger": loggers, "trainer.callbacks": callbacks})
    data = {"WANDB_DATA_DIR": str(world.folder), "WANDB_CACHE_DIR": str(world.folder)}
    outcome = command("splade_lit.fit", "--config", config, cwd=world.folder, WANDB_MODE="offline", **data)
    assert outcome.code == 0, outcome.err
    return run, outcome


@pytest.fixture(scope="module")
def offline(finished) -> OfflineRun:
    return OfflineRun.in_folder(finished[0])


@pytest.fixture(scope="module")
def events(finished) -> EventAccumulator:
    return EventAccumulator(
        str(finished[0] / "tensorboard"), size_guidance=dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    ).Reload()


def figures_of_csv(run: Path) -> dict[tuple[str, int], float]:
    """Metric and step to the figure that metrics.csv holds."""
    return {
        (name, int(row["step"])): float(value)
        for row in rows(run)
        for name, value in row.items()
        if name != "step" and value
    }


def terms(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "terms.jsonl").read_text().splitlines()]


def test_the_offline_run_is_whole(finished, offline):
    run, _ = finished
    assert offline.exit_code == 0
    assert offline.run.project == "tiny"
    assert offline.run.display_name == run.name


def test_figures_are_those_of_metrics_csv(finished, offline):
    logged: dict[tuple[str, int], float] = {}
    for row in offline.history:
        logged |= {(name, row[STEP]): value for name, value in row.items() if name not in MEDIA | OWN}
    expected = figures_of_csv(finished[0])
    assert {name.split("/")[0] for name, _ in expected} == {"train", "val", "sparsity", "carbon", "guard"}
    assert logged == expected


def test_figures_in_tensorboard_are_those_of_metrics_csv(finished, events):
    logged = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
        if name not in OWN | {"hp_metric"}
    }
    assert logged == pytest.approx(figures_of_csv(finished[0]), rel=1e-6)


def test_metrics_run_over_optimizer_steps_and_sum_up_to_their_best(finished, offline):
    everything = offline.definitions["*"]
    assert everything.step_metric == STEP
    assert everything.options.step_sync
    figures: dict[str, list[float]] = {}
    for (name, _), value in figures_of_csv(finished[0]).items():
        figures.setdefault(name, []).append(value)
    best = {name: best_value(name) for name in figures}
    assert best[f"val/{NDCG}"] == best["val/NanoNQ_dot_mrr@10"] == best["val/NanoNQ_dot_map@100"] == "max"
    assert best["val/loss"] == best["val/NanoBEIR_mean_corpus_active_dims"] == "min"
    assert best["sparsity/document_active_dims_p95"] == best["sparsity/train_document_active_dims"] == "min"
    assert best["train/lambda_d"] is best["carbon/emissions_g_total"] is best["sparsity/dead_dims_ratio"] is None
    for name, values in figures.items():
        if best[name] is None:
            assert name not in offline.definitions
            assert offline.summary[name] == values[-1]
        else:
            definition = offline.definitions[name]
            assert (definition.step_metric, definition.summary.last) == (STEP, True)
            assert (definition.summary.max, definition.summary.min) == (best[name] == "max", best[name] == "min")
            extreme = max(values) if best[name] == "max" else min(values)
            assert offline.summary[name] == {best[name]: extreme, "last": values[-1]}


def test_metrics_are_defined_before_their_first_value(tmp_path, monkeypatch):
    """Or W&B would sum up what comes later only; with a prefix, which W&B then shows."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    code = f"""
from splade_lit.training.callbacks.wandb_log import WandbLog
log = WandbLog(project="tiny", save_dir={str(tmp_path)!r}, prefix="a")
for step, value in enumerate([3.0, 1.0, 2.0]):
    log.log_metrics({{"val/loss": value, "x_dot_ndcg@10": value}}, step)
log.experiment.finish()
"""
    subprocess.run([sys.executable, "-c", code], env=environment(WANDB_MODE="offline"), check=True, timeout=600)
    summary = OfflineRun.in_folder(tmp_path).summary
    assert summary["a-val/loss"] == {"min": 1, "last": 2}
    assert summary["a-x_dot_ndcg@10"] == {"max": 3, "last": 2}


def test_the_configuration_is_the_resolved_one(finished, offline):
    resolved = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert resolved["model"]["weight_decay"] == 0.0  # a default
    for name in ("model", "trainer", "seed_everything"):
        assert offline.config[name] == resolved[name]
    assert offline.config["data"] == resolved["data"]


@pytest.mark.parametrize(("name", "key"), HISTOGRAMS.items())
def test_histograms_are_those_of_the_sparsity_reports(finished, offline, events, name, key):
    expected = [
        (report["step"] - 1, report[f"{key}_counts"], report[f"{key}_edges"]) for report in reports(finished[0])
    ]
    assert len(expected) == 3
    assert all(sum(counts) == 16 for _, counts, _ in expected)
    logged = [(row[STEP], row[name]) for row in offline.history if name in row]
    assert logged == [
        (step, wandb.Histogram(np_histogram=(np.array(counts), np.array(edges))).to_json())
        for step, counts, edges in expected
    ]
    for event, (step, counts, edges) in zip(events.Histograms(name), expected, strict=True):
        shown = event.histogram_value
        assert (event.step, shown.num, shown.min, shown.max) == (step, 16, edges[0], edges[-1])
        limits = dict(zip(edges[1:], counts, strict=True))
        assert {edge: count for edge, count in zip(shown.bucket_limit, shown.bucket, strict=True) if count} == {
            edge: count for edge, count in limits.items() if count
        }


def test_the_table_of_terms_grows(finished, offline, events):
    run, _ = finished
    written = terms(run)
    assert [row["step"] for row in written] == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3
    tables = [(row[STEP], read_json(offline.media / row[TERMS]["path"])) for row in offline.history if TERMS in row]
    assert [(step, len(table["data"])) for step, table in tables] == [(0, 3), (1, 6), (3, 9), (5, 12)]
    assert offline.summary[TERMS]["nrows"] == 12
    columns = tables[-1][1]["columns"]
    for cells, row in zip(tables[-1][1]["data"], written, strict=True):
        shown = dict(zip(columns, cells, strict=True))
        for name in ("step", "example", "query", "document", "active_dims"):
            assert shown[name] == row[name]
        assert shown["expansion_share"] == pytest.approx(row["expansion_share"], abs=1e-4)
        for name, in_text in (("terms_in_text", True), ("expansions", False)):
            expected = [f"{term['term']} {term['weight']:.2f}" for term in row["terms"] if term["in_text"] == in_text]
            assert shown[name] == "  ".join(expected)
    texts = events.Tensors(f"{TERMS}/text_summary")
    assert [event.step for event in texts] == [0, 1, 3, 5]
    last = make_ndarray(texts[-1].tensor_proto)[0].decode()
    assert len(last.splitlines()) == 2 + 3
    assert all(str(row["active_dims"]) in line for row, line in zip(written[-3:], last.splitlines()[2:], strict=True))


def test_the_model_is_an_artifact_on_request(finished, offline):
    run, _ = finished
    (artifact,) = (artifact for artifact in offline.artifacts if artifact.type == "model")
    assert artifact.name == "tiny-run"
    uploaded = {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}
    files = {str(path.relative_to(run / "model")): path for path in (run / "model").rglob("*") if path.is_file()}
    assert {"README.md", "card.json", "modules.json"} < uploaded.keys()
    assert uploaded == {name: path.read_bytes() for name, path in files.items()}


def strings(value: Any, key: str = "") -> list[tuple[str, str]]:
    """All strings inside a value with the name that each has."""
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in strings(inner, name)]
    if isinstance(value, list):
        return [found for inner in value for found in strings(inner, key)]
    return [(key, value)] if isinstance(value, str) else []


def view(*arguments: str) -> dict[str, Any]:
    """The dashboard that the script would save."""
    script = [sys.executable, str(REPOSITORY / "scripts" / "wandb_workspace.py")]
    done = subprocess.run(
        [*script, "--entity", "me", "--project", "tiny", "--print", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_dashboard_shows_what_a_run_logs(offline):
    dashboard = view()
    assert (dashboard["entity"], dashboard["project"]) == ("me", "tiny")
    section = dashboard["spec"]["section"]
    assert section["settings"]["xAxis"] == STEP
    sections = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    assert list(sections) == ["Retrieval", "Losses", "Sparsity", "Terms of example documents", "Energy and emissions"]
    logged = {name for row in offline.history for name in row}
    summary = {f"summary:{name}" for name in offline.summary} | {
        f"summary:{name}.{value}"
        for name, values in offline.summary.items()
        if isinstance(values, dict)
        for value in values
    }
    shown = [found for panels in sections.values() for panel in panels for found in strings(panel["config"])]
    metrics = {name for key, name in shown if key == "metrics"}
    assert metrics <= logged
    assert metrics >= {"train/loss", "val/loss", "carbon/emissions_g_total", *HISTOGRAMS}
    patterns = [name for key, name in shown if key == "metricRegex"]
    for pattern in patterns:
        assert {name for name in logged if re.search(pattern, name)}, pattern
    assert any(re.search(pattern, f"val/{NDCG}") for pattern in patterns)
    axes = {name for key, name in shown if key in ("xAxis", "yAxis")}
    assert axes <= {STEP} | summary
    assert f"summary:val/{NDCG}.last" in axes
    assert TERMS in {name for _, name in strings(sections["Terms of example documents"])}
    columns = section["runSets"][0]["runFeed"]["columnOrder"]
    assert set(columns) <= {"run:displayName"} | summary
    assert f"summary:val/{NDCG}.max" in columns
    titles = [
        panel["config"]["chartTitle"]
        for panels in sections.values()
        for panel in panels
        if "chartTitle" in panel["config"]
    ]
    assert len(titles) == len(set(titles)) == len([panel for panels in sections.values() for panel in panels]) - 1


def test_the_dashboard_goes_by_another_metric():
    columns = view("--metric", "docstrings_dot_mrr@10")["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert {"summary:val/docstrings_dot_mrr@10.max", "summary:val/docstrings_corpus_active_dims.min"} < set(columns)
