"""Measures by name: equal to the library's own, as deep as they ask, in every file and table; bad names refused."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from command_runs import World, call
from rich.console import Console

from splade_lit import compare, evaluate, fit
from splade_lit.core.errors import UserError
from splade_lit.core.text import read_trec_run, trec_run_text
from splade_lit.data.tasks import RetrievalTask, load_task
from splade_lit.evaluation.bm25 import bm25_result
from splade_lit.evaluation.measures import measure_names
from splade_lit.evaluation.metrics import rank_metrics
from splade_lit.evaluation.per_query import figures_of_results, read_per_query, write_per_query
from splade_lit.evaluation.results import TaskResult, figure_names, flat_metrics
from splade_lit.evaluation.task_evaluation import with_measures
from splade_lit.runs.stages import by_set, measures_table, published_name, stages_table, write_stages
from splade_lit.training.callbacks.retrieval import RetrievalEvaluation

NAMES = ["nDCG@10", "RR@10", "R@100", "R@1000", "P@5", "AP(rel=2)@100", "AP", "RR", "Rprec", "P(judged_only=True)@5"]


@pytest.fixture(scope="module")
def nfcorpus(shared_data: Path) -> tuple[RetrievalTask, TaskResult]:
    """BM25 on NFCorpus, whose judgements are graded."""
    (task,) = with_measures(load_task(str(shared_data / "beir" / "nfcorpus")), NAMES)
    return task, bm25_result(task)


def their_own(task: RetrievalTask, run: dict, names: list[str]) -> dict[str, float]:
    measures = [ir_measures.parse_measure(name) for name in names]
    return {str(name): value for name, value in ir_measures.calc_aggregate(measures, task.qrels, run).items()}


def test_figures_are_the_librarys_own_on_the_ranking_that_is_written(
    nfcorpus: tuple[RetrievalTask, TaskResult], tmp_path: Path
) -> None:
    task, result = nfcorpus
    path = tmp_path / "nfcorpus.trec"
    path.write_text(trec_run_text(result.run))
    theirs = their_own(task, list(ir_measures.read_trec_run(str(path))), NAMES)
    assert {name: result.metrics[name] for name in NAMES} == pytest.approx(theirs, abs=1e-9)
    assert read_trec_run(path) == result.run
    assert {len(hits) for hits in result.run.values()} == {1000}
    assert theirs["R@1000"] > theirs["R@100"] > 0.2
    assert 0.3 < theirs["nDCG@10"] < 0.35


def test_peers_names_stay_as_they_are_on_a_deeper_ranking(
    nfcorpus: tuple[RetrievalTask, TaskResult], shared_data: Path
) -> None:
    task, result = nfcorpus
    (plain,) = load_task(str(shared_data / "beir" / "nfcorpus"))
    shallow = bm25_result(plain)
    assert {len(hits) for hits in shallow.run.values()} == {100}
    assert {name: result.metrics[name] for name in shallow.metrics} == shallow.metrics
    assert figure_names([task]) == flat_metrics([result]).keys()


def test_each_query_has_its_own_value(nfcorpus: tuple[RetrievalTask, TaskResult], tmp_path: Path) -> None:
    task, result = nfcorpus
    path = tmp_path / "per_query.jsonl"
    write_per_query(path, {"model": figures_of_results([task], [result])})
    (figures,) = read_per_query(path)["model"]
    theirs = {
        (metric.query_id, str(metric.measure)): metric.value
        for metric in ir_measures.iter_calc([ir_measures.AP(rel=2) @ 100, ir_measures.RR @ 10], task.qrels, result.run)
    }
    for name in ("AP(rel=2)@100", "RR@10"):
        expected = [theirs[query_id, name] for query_id in figures.query_ids]
        np.testing.assert_allclose(figures.metrics[name], expected, atol=1e-12)


def test_equal_scores_are_ranked_as_the_library_ranks_them() -> None:
    run, qrels = {"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}}
    means = rank_metrics(run, qrels, measures=("RR", "RR@10")).means
    assert means["mrr@10"] == 1.0  # the first id first
    assert means["RR"] == 1 / 2  # trec_eval: the last id first
    assert means["RR@10"] == 1.0  # MS MARCO's script


def test_a_query_without_a_hit_counts_0() -> None:
    metrics = rank_metrics({"q": {"a": 1.0}, "dead": {}}, {"q": {"a": 1}, "dead": {"a": 1}}, measures=("R@5", "AP"))
    assert metrics.per_query["R@5"].tolist() == metrics.per_query["AP"].tolist() == [1.0, 0.0]


def test_credit_without_a_term_is_told(caplog: pytest.LogCaptureFixture) -> None:
    corpus = {"d1": "river", "d2": "song", "d3": "song"}
    task = RetrievalTask("small", corpus, {"q": "river"}, {"q": {"d1": 1, "d3": 1}}, measures=("R@1000",))
    assert bm25_result(task).metrics["R@1000"] == 1.0
    assert "Without these" in caplog.text
    assert "R@1000 is 0.5000, not 1.0000" in caplog.text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nDGC@10", "is no measure of ir_measures"),
        ("nDCG@ten", "is no measure of ir_measures"),
        ("nDCG(rank=3)@10", "is no measure of ir_measures"),
        ("P@0", "cut at rank 1 or later"),
        ("NumRet", "is a sum"),
        ("alpha_nDCG@10", "cannot be computed"),
        ("two words", "is no measure of ir_measures"),
    ],
)
def test_a_measure_that_cannot_be_is_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        measure_names(["nDCG@10", name])


def test_a_grade_that_no_document_has_is_refused() -> None:
    task = RetrievalTask("small", {"d": "x"}, {"q": "x"}, {"q": {"d": 1}})
    with pytest.raises(UserError, match=r"AP\(rel=2\)@100 counts grades of 2 and more .* highest grade of small is 1"):
        with_measures([task], ["AP(rel=2)@100"])


def test_tables_and_cards_show_them() -> None:
    stages = {
        "model": {"set_dot_ndcg@10": 0.5, "set_dot_precision@5": 0.25, "set_dot_R@1000": 0.75, "set_dot_AP": 0.125}
    }
    assert [column.header for column in stages_table(stages).columns] == ["task", "stage", "nDCG @10"]
    table = measures_table(stages)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    assert [line.split() for line in console.export_text().splitlines() if "set" in line] == [
        ["set", "R@1000", "0.7500"],
        ["set", "AP", "0.1250"],
    ]
    assert [published_name(name) for name in by_set(stages["model"])["set"]] == [
        "dot_ndcg@10",
        "dot_precision@5",
        "dot_R@1000",
        "dot_AP",
    ]


@pytest.fixture(scope="module", autouse=True)
def _wide_terminal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield


def _write_run(folder: Path, task: RetrievalTask, result: TaskResult) -> None:
    write_stages(folder / "metrics.json", {"model": flat_metrics([result])})
    write_per_query(folder / "per_query.jsonl", {"model": figures_of_results([task], [result])})


def test_compare_shows_and_tests_them(
    nfcorpus: tuple[RetrievalTask, TaskResult], shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, result = nfcorpus
    _write_run(tmp_path / "one", task, result)
    ranking = tmp_path / "two" / "nfcorpus.trec"
    ranking.parent.mkdir()
    ranking.write_text(trec_run_text({id: dict(list(hits.items())[:50]) for id, hits in result.run.items()}))
    page = tmp_path / "compare.html"
    arguments = [
        str(tmp_path / "one"),
        "--results",
        str(ranking.parent),
        "--tasks",
        str(shared_data / "beir" / task.name),
    ]
    compare.main([*arguments, "--output", str(page), "--measures", *NAMES[:6], "--metric", "R@1000"])
    shown = capsys.readouterr().out
    assert "differences in R@1000, query by query" in shown
    cut = their_own(task, {id: dict(list(hits.items())[:50]) for id, hits in result.run.items()}, NAMES)
    assert f"{cut['R@1000']:.4f}" in shown
    assert f"{result.metrics['R@1000']:.4f}" in shown
    assert "AP(rel=2)@100" in page.read_text()


def callbacks(world: World, *measures: str) -> list[dict[str, object]]:
    retrieval = {"tasks": [str(world.tasks)], "every_n_steps": 3, "bm25": True, "measures": list(measures)}
    best = {"monitor": "NanoNQ_dot_R@1000", "mode": "max", "every_n_train_steps": 3, "filename": "best"}
    return [
        {"class_path": f"{RetrievalEvaluation.__module__}.RetrievalEvaluation", "init_args": retrieval},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best},
    ]


def test_a_run_measures_watches_and_publishes_them(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"trainer.callbacks": callbacks(world, "MRR@10", "R@1000", "AP")}
    outcome = call(fit.main, "--config", world.config(run, changes))
    assert outcome.code == 0, outcome.err
    stages = json.loads((run / "metrics.json").read_text())
    for stage in ("bm25", "before", "after"):
        names = [f"{of}_dot_{name}" for of in ("NanoNQ", "NanoBEIR_mean") for name in ("RR@10", "R@1000", "AP")]
        assert set(names) <= stages[stage].keys()
        assert stages[stage]["NanoNQ_dot_R@1000"] == 1.0  # of 30 documents
    assert list(run.rglob("best.ckpt"))
    assert "dot_R@1000" in (run / "model" / "README.md").read_text()
    assert [line.split()[:2] for line in outcome.out.splitlines() if "NanoNQ  " in line and "R@1000" in line]
    assert "val/NanoNQ_dot_AP" in (run / "metrics.csv").read_text()

    output = tmp_path / "evaluated"
    options = ["--measures", "RR@10", "R@1000", "AP", "--runs", output / "runs", "--output", output / "metrics.json"]
    options += ["--per-query", output / "per_query.jsonl"]
    outcome = call(evaluate.main, "--model", run / "model", "--tasks", world.tasks, *options)
    assert outcome.code == 0, outcome.err
    figures = json.loads((output / "metrics.json").read_text())["model"]
    for task in load_task(str(world.tasks)):
        ranking = ir_measures.read_trec_run(str(output / "runs" / f"{task.name}.trec"))
        theirs = their_own(task, list(ranking), ["RR@10", "R@1000", "AP"])
        ours = {name: figures[f"{task.name}_dot_{name}"] for name in theirs}
        assert ours == pytest.approx(theirs, abs=1e-9)
        assert ours == pytest.approx({name: stages["after"][f"{task.name}_dot_{name}"] for name in theirs}, abs=1e-6)


def test_a_bad_name_ends_a_command_before_its_work(world: World, tmp_path: Path) -> None:
    outcome = call(evaluate.main, "--model", "not read", "--tasks", "not read", "--measures", "nDGC@10")
    assert outcome.code == 2
    assert "'nDGC@10' is no measure of ir_measures; give names such as nDCG@10" in outcome.err
    changes = {"trainer.callbacks": callbacks(world, "AP(rel=2)@100")}
    outcome = call(fit.main, "--config", world.config(tmp_path / "run", changes))
    assert outcome.code == 2
    assert "but the highest grade of NanoMSMARCO is 1" in outcome.err
    assert not (tmp_path / "run").exists()


def test_compare_refuses_a_measure_that_no_system_has(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"set_dot_ndcg@10": 0.5}))
    for metric, says in (("R@1000", "no system has R@1000 on set"), ("ndgc@10", "is no measure")):
        with pytest.raises(UserError, match=says):
            compare.main(["--results", str(path), "--metric", metric, "--output", str(tmp_path / "page.html")])
