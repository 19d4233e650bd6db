"""Runs with several `RetrievalEvaluation`s: one file of figures, one card, and no figure measured twice."""

import csv
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cards import section, table
from command_runs import RETRIEVAL, call, read_json

from splade_lit import AsymmetricSparseEncoder, fit
from splade_lit.data.tasks import load_tasks
from splade_lit.evaluation.task_evaluation import evaluate_tasks

WORDS = "song river city heart blood school music film water world state player book".split()  # noqa: SIM905


def write_beir(folder: Path, seed: int) -> Path:
    """A retrieval set of 20 documents and 5 queries in BEIR's layout."""
    rng = random.Random(seed)
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(rng.choices(WORDS, k=8)) for _ in range(20)]
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    queries = [{"_id": f"q{n}", "text": " ".join(texts[n].split()[:3])} for n in range(5)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(5))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def evaluation(*tasks: Path, **settings: Any) -> dict[str, Any]:
    return {"class_path": RETRIEVAL, "init_args": {"tasks": [str(task) for task in tasks], **settings}}


@pytest.fixture
def tasks(tmp_path) -> tuple[Path, Path]:
    return write_beir(tmp_path / "one", 1), write_beir(tmp_path / "two", 2)


def figures(run: Path, *tasks: Path) -> dict[str, float]:
    """Those of the run's model."""
    return evaluate_tasks(AsymmetricSparseEncoder.load(run / "model"), load_tasks([str(task) for task in tasks]))


def test_they_share_a_file_and_a_card(world, tmp_path, tasks):
    one, two = tasks
    run = tmp_path / "run"
    callbacks = [evaluation(one, every_n_steps=1, bm25=True), evaluation(two, before=False)]
    config = world.config(run, {"trainer.callbacks": callbacks, "trainer.max_steps": 3})
    outcome = call(fit.main, "--config", config)
    assert outcome.code == 0, outcome.err
    stages = read_json(run / "metrics.json")
    assert list(stages) == ["bm25", "before", "after"]
    assert stages["after"] == pytest.approx(figures(run, one, two), rel=1e-5)
    assert {name.partition("_")[0] for name in stages["before"]} == {"one"}
    assert "one_dot_ndcg@10" in outcome.last_line
    assert "two_dot_ndcg@10" in outcome.last_line
    lines = list(map(json.loads, (run / "per_query.jsonl").read_text().splitlines()))
    assert [(line["stage"], line["task"]) for line in lines[::5]] == [
        *(("bm25", "one"), ("before", "one"), ("after", "one"), ("after", "two")),
    ]
    with (run / "metrics.csv").open(newline="") as file:
        logged = [(bool(row["val/one_dot_ndcg@10"]), bool(row["val/two_dot_ndcg@10"])) for row in csv.DictReader(file)]
    assert logged == [(True, False), (True, False), (True, True)]
    text = (run / "model" / "README.md").read_text()
    shown = table(section(text, "#### Sparse Information Retrieval"))
    assert set(shown[0]) == {"Metric", "one", "two"}
    assert [row["two"] for row in table(section(text, "#### dot_ndcg@10 in Comparison"))][:2] == ["-", "-"]
    # And on from its checkpoint.
    last = run / "checkpoints" / "last.ckpt"
    outcome = call(fit.main, "--config", config, "--ckpt_path", last, "--trainer.max_steps", 4)
    assert outcome.code == 0, outcome.err
    longer = read_json(run / "metrics.json")
    assert longer == stages | {"after": pytest.approx(figures(run, one, two), rel=1e-5)}
    again = list(map(json.loads, (run / "per_query.jsonl").read_text().splitlines()))
    assert again[:10] == lines[:10]
    assert np.mean([line["ndcg@10"] for line in again[10:15]]) == pytest.approx(longer["after"]["one_dot_ndcg@10"])


def test_what_two_of_them_measure_is_refused(world, tmp_path, tasks):
    one, two = tasks
    run = tmp_path / "run"
    for callbacks, sentence in (
        ([evaluation(one), evaluation(one, two)], "both measure one; leave it to one of them."),
        ([evaluation(one, bm25=True), evaluation(two, bm25=True)], "both measure bm25; leave it to one of them."),
        ([evaluation(one), evaluation(one, before=False)], "more than one"),
    ):
        outcome = call(fit.main, "--config", world.config(run, {"trainer.callbacks": callbacks}))
        assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.err
        assert sentence in outcome.errors[0]
        assert not (run / "metrics.json").exists()


def test_figures_before_training_are_reused_until_something_changes(world, tmp_path, tasks, caplog):
    """Another learning rate starts from the same model; other weights, tasks or code do not."""

    def run(name: str, **changes: object) -> dict[str, dict[str, float]]:
        caplog.clear()
        settings = {"trainer.callbacks": [evaluation(tasks[0], bm25=True, cache_dir=cache)], "trainer.max_steps": 3}
        with caplog.at_level(logging.INFO, "splade_lit"):
            outcome = call(fit.main, "--config", world.config(tmp_path / name, settings | changes))
        assert outcome.code == 0, outcome.err
        return read_json(tmp_path / name / "metrics.json")

    def reused() -> list[str]:
        told = [record.getMessage() for record in caplog.records if "are reused" in record.getMessage()]
        return [message.partition(":")[0] for message in told]

    cache = str(tmp_path / "cache")
    first = run("first")
    assert reused() == []
    second = run("second", **{"model.learning_rate": 1e-2})
    assert reused() == ["bm25", "before"]
    assert {stage: second[stage] for stage in ("bm25", "before")} == {
        stage: first[stage] for stage in ("bm25", "before")
    }
    assert second["after"] != first["after"]
    lines = [(tmp_path / name / "per_query.jsonl").read_text().splitlines()[:10] for name in ("first", "second")]
    assert lines[0] == lines[1]
    started = run("third", **{"model.start_active_dims": 5})
    assert reused() == ["bm25"]
    assert started["before"]["one_corpus_active_dims"] != first["before"]["one_corpus_active_dims"]
    run("shorter", **{"model.max_document_tokens": 8})
    assert reused() == ["bm25"]
    again = [evaluation(tasks[0], bm25=True, cache_dir=cache, reuse=False)]
    assert run("measured", **{"trainer.callbacks": again})["before"] == pytest.approx(first["before"], rel=1e-6)
    assert reused() == []
    corpus = tasks[0] / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("river", "water") + '{"_id": "more", "text": "one more"}\n')
    run("text")
    assert reused() == []
    for path in (tmp_path / "cache" / "figures").iterdir():
        path.write_text("{")  # damaged
    run("damaged")
    assert reused() == []
