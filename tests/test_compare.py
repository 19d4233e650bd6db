"""`python -m splade_lit.compare`, as users call it, on real runs."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from command_runs import NDCG, Outcome, call, read_json, rows
from compared_runs import Page, Runs, compared, copy_run, holm_closed, make_runs, peer_results, query_rows
from scipy import stats

from splade_lit import compare, evaluate
from splade_lit.analysis.encoded import encode_task
from splade_lit.analysis.explain import against_bm25
from splade_lit.analysis.subject import bm25_on, open_subject
from splade_lit.card import __main__ as card
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.exact_search import SearchIndex
from splade_lit.evaluation.paired_tests import p_value
from splade_lit.runs.emissions import footprint, read_emissions

GROUP = "NanoBEIR_mean"
METRICS = {"nDCG@10": "ndcg@10", "MRR@10": "mrr@10", "recall@10": "recall@10", "MAP@100": "map@100"}
TESTS = "differences in nDCG@10, query by query"


@pytest.fixture(scope="module", autouse=True)
def _wide_terminal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_tokenizer) -> Runs:
    return make_runs(tmp_path_factory.mktemp("runs"), tiny_tokenizer)


@pytest.fixture(scope="module")
def outcome(runs) -> Outcome:
    return call(compare.main, runs.dense, runs.sparse, runs.stopped, "--output", runs.world.folder / "report.html")


@pytest.fixture(scope="module")
def page(runs, outcome) -> Page:
    assert outcome.code == 0, outcome.err
    return Page(runs.world.folder / "report.html")


def test_figures_are_those_of_metrics_json(runs, outcome, page):
    for run, stage in ((runs.dense, "after"), (runs.sparse, "after"), (runs.dense, "bm25")):
        name = run.name if stage == "after" else "BM25"
        figures = read_json(run / "metrics.json")[stage]
        row = page.row(GROUP, name)
        for column, metric in METRICS.items():
            assert row[column] == f"{figures[f'{GROUP}_dot_{metric}']:.4f}"
        assert row["query dims"] == (f"{figures.get(f'{GROUP}_query_active_dims', 0):.1f}" if run.name == name else "-")
        for one in ("NanoMSMARCO", "NanoNQ"):
            assert page.row("nDCG@10", name)[one] == f"{figures[f'{one}_dot_ndcg@10']:.4f}"
        assert f"{figures[NDCG]:.4f}" in outcome.out
    assert read_json(runs.dense / "metrics.json")["bm25"] == read_json(runs.sparse / "metrics.json")["bm25"]
    assert outcome.last_line == f"report: {runs.world.folder / 'report.html'}"


def test_the_cost_of_training_is_that_of_emissions_csv(runs, page):
    for run in (runs.dense, runs.sparse, runs.stopped):
        used = footprint(read_emissions(run / "emissions.csv"))
        row = page.row("cost", run.name)
        assert row["train min"] == f"{used.stages['training'].seconds / 60:.1f}"
        assert row["g CO2eq"] == f"{1000 * used.total.emissions_kg:.2f}"
    assert page.row("cost", "BM25")["train min"] == page.row("cost", "BM25")["g CO2eq"] == "-"


def test_the_index_is_that_of_the_corpus(runs, page):
    (task, _) = load_tasks([str(runs.world.tasks)])
    encoder = AsymmetricSparseEncoder.load(runs.dense / "model")
    vectors = encoder.encode_document(list(task.corpus.values()), convert_to_csr=True)
    row = page.row("cost", "dense")
    assert row["index MB"] == f"{SearchIndex(vectors).nbytes / 1e6:.2f}"
    assert float(row["query ms"]) > 0
    assert float(page.row("cost", "BM25")["query ms"]) > 0
    assert page.row("cost", "stopped")["query ms"] == page.row("cost", "stopped")["index MB"] == "-"


def test_a_run_that_has_not_ended_shows_its_last_evaluation(runs, outcome, page):
    last = [row for row in rows(runs.stopped) if row[f"val/{NDCG}"]][-1]
    row = page.row(GROUP, "stopped")
    assert (row["stage"], row["nDCG@10"]) == (f"step {int(last['step']) + 1}", f"{float(last[f'val/{NDCG}']):.4f}")
    assert "stopped has not ended: its figures are those of its last evaluation" in " ".join(outcome.out.split())


def test_curves_go_from_before_training_to_the_end(runs, page):
    before, after = (read_json(runs.sparse / "metrics.json")[stage][NDCG] for stage in ("before", "after"))
    points = [text for text in page.points if text.startswith("sparse, step ")]
    assert f"sparse, step 0: {before:.4g}" in points
    assert f"sparse, step 6: {after:.4g}" in points
    for row in rows(runs.sparse):
        for name in ("ranking_loss", "lambda_d"):
            assert f"sparse, step {int(row['step']) + 1}: {float(row[f'train/{name}']):.4g}" in points


def test_figures_of_queries_are_those_that_the_means_are_of(runs):
    for stage, figures in read_json(runs.dense / "metrics.json").items():
        lines = query_rows(runs.dense, stage)
        assert len(lines) == 12
        for task in ("NanoMSMARCO", "NanoNQ"):
            for metric in METRICS.values():
                values = [line[metric] for line in lines if line["task"] == task]
                assert np.mean(values) == pytest.approx(figures[f"{task}_dot_{metric}"], abs=1e-12)
    texts = {task.name: task.queries for task in load_tasks([str(runs.world.tasks)])}
    assert all(line["query"] == texts[line["task"]][line["query_id"]] for line in lines)


def test_differences_and_t_tests_are_scipys(runs, page):
    values = {
        name: np.array([line["ndcg@10"] for line in query_rows(run, stage)])
        for name, run, stage in (
            ("dense", runs.dense, "after"),
            ("sparse", runs.sparse, "after"),
            ("BM25", runs.dense, "bm25"),
        )
    }
    rows = [dict(zip(page.tables[TESTS][0], row, strict=True)) for row in page.tables[TESTS][1:]]
    assert {frozenset((row["system"], row["against"])) for row in rows} == set(map(frozenset, combinations(values, 2)))
    p_values = {}
    for row in rows:
        ours, theirs = values[row["system"]], values[row["against"]]
        test = stats.ttest_rel(ours, theirs)
        p_values[row["system"] + row["against"]] = test.pvalue
        assert row["mean"] == f"{np.mean(ours - theirs):+.4f}"
        interval = test.confidence_interval()
        assert row["95 % interval"] == f"{interval.low:+.4f} to {interval.high:+.4f}"
        wins, losses = (ours > theirs).sum(), (ours < theirs).sum()
        assert row["won, equal, lost"] == f"{wins}/{len(ours) - wins - losses}/{losses}"
    corrected = holm_closed(p_values)
    for row in rows:
        p = corrected[row["system"] + row["against"]]
        assert row["p (t-test)"] == (f"{p:.4f}" if p >= 0.0001 else "< 0.0001")


def test_the_front_is_ringed(page):
    on_front = {
        text.partition(":")[0] for text in page.points if "active dims of a document" in text and "front" in text
    }
    columns, *rows = page.tables[GROUP]
    rows = [row for row in rows if row[1] != "before"]
    points = {row[0]: (float(row[-3].replace(",", "")), float(row[2])) for row in rows if row[-3] != "-"}
    assert page.row(GROUP, "BM25")["doc dims"] == "-"  # over all sets, so that it beats all that rank below it
    points["BM25"] = (0.0, float(page.row(GROUP, "BM25")["nDCG@10"]))
    assert columns[-3:] == ["doc dims", "FLOPS", "front"]
    better = {
        name
        for name, (cost, quality) in points.items()
        for other_cost, other in points.values()
        if (other_cost <= cost and other > quality) or (other_cost < cost and other >= quality)
    }
    assert on_front == points.keys() - better - {"BM25"} == {row[0] for row in rows if row[-1] == "*"}


def test_a_page_needs_nothing_else(runs, page):
    text = page.path.read_text(encoding="utf-8")
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.captions) == len(set(page.captions)) >= 9


@pytest.mark.parametrize(
    "left_out",
    [
        ("model", "metrics.csv", "emissions.csv", "per_query.jsonl", "config.yaml"),
        ("metrics.json", "per_query.jsonl", "emissions.csv"),
        ("metrics.json", "metrics.csv", "per_query.jsonl", "model", "emissions.csv"),
    ],
    ids=["figures alone", "log and model", "configuration alone"],
)
def test_a_part_of_a_run_is_shown_for_what_it_is(runs, tmp_path, left_out):
    run = copy_run(runs.dense, tmp_path / "part", *left_out)
    outcome, page = compared(tmp_path, run)
    after = f"{read_json(runs.dense / 'metrics.json')['after'][NDCG]:.4f}"
    assert (after in outcome.out) == ("metrics.csv" not in left_out or "metrics.json" not in left_out)
    cost = page.row("cost", "part")
    assert (cost["query ms"] == "-") == ("model" in left_out)
    assert cost["g CO2eq"] == "-"
    assert (cost["train min"] == "-") == ("model" in left_out)
    assert ("No system has retrieval figures" in outcome.out) == (after not in outcome.out)


@pytest.mark.parametrize("columns", [80, 200])
def test_figures_are_never_broken_over_lines(runs, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome, page = compared(tmp_path, runs.dense, runs.sparse)
    for table in (GROUP, TESTS, "cost"):
        headings, *rows = page.tables[table]
        shown = [number for number, heading in enumerate(headings) if number > 1 and heading != "MAP@100"]
        assert all(row[number] in outcome.out for row in rows for number in shown)
    assert max(map(len, outcome.out.splitlines()[:-1])) <= columns


def test_search_is_measured_where_asked(runs, tmp_path):
    _, page = compared(tmp_path, runs.dense, "--search-documents", 0)
    assert {row[1] for row in page.tables["cost"][1:]} == {"-"}
    assert "Search was not measured" in page.path.read_text(encoding="utf-8")


def test_figures_of_a_sample_are_not_taken_for_those_of_the_corpus(runs, tmp_path):
    run = copy_run(runs.stopped, tmp_path / "sampled")
    config = run / "config.yaml"
    config.write_text(re.sub("max_corpus_documents: null", "max_corpus_documents: 10", config.read_text()))
    _, page = compared(tmp_path, run)
    before = read_json(run / "metrics.json")["before"][NDCG]
    assert (page.row(GROUP, "sampled")["stage"], page.row(GROUP, "sampled")["nDCG@10"]) == ("before", f"{before:.4f}")
    assert not any("step 0:" in text for text in page.points)


@pytest.fixture(scope="module")
def peer(runs, tmp_path_factory) -> Path:
    """A folder with what sentence-transformers' evaluator says of a run's model, as JSON and as CSV."""
    return peer_results(runs, tmp_path_factory.mktemp("peer"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", ["figures.json", "csv/**/NanoBEIR_evaluation_mean_results.csv"])
def test_results_of_sentence_transformers(runs, peer, tmp_path, pattern):
    (path,) = peer.glob(pattern)
    _, page = compared(tmp_path, runs.dense, "--results", f"the peer={path}", "--search-documents", 0)
    theirs = read_json(peer / "figures.json")
    row = page.row(GROUP, "the peer")
    for column, metric in METRICS.items():
        assert float(row[column]) == pytest.approx(theirs[f"{GROUP}_dot_{metric}"], abs=1e-4)
    after = read_json(runs.sparse / "metrics.json")["after"]  # the peer counts hits that score 0, but as many dims
    assert float(row["doc dims"].replace(",", "")) == pytest.approx(after[f"{GROUP}_corpus_active_dims"], abs=0.06)
    assert page.row("cost", "the peer")["train min"] == "-"
    assert "the peer" in page.path.read_text(encoding="utf-8")


def test_rankings_are_judged_by_the_tasks_of_the_runs(runs, tmp_path):
    model, trec = runs.sparse / "model", tmp_path / "theirs"
    tasks = ["--tasks", runs.world.tasks]
    kept = ["--runs", trec, "--output", tmp_path / "eval" / "metrics.json"]
    outcome = call(evaluate.main, "--model", model, *tasks, *kept, "--per-query", tmp_path / "eval" / "per_query.jsonl")
    assert outcome.code == 0, outcome.err
    after = read_json(runs.sparse / "metrics.json")["after"]
    _, page = compared(
        tmp_path,
        *(runs.dense, tmp_path / "eval", "--search-documents", 0),
        *("--results", trec, f"queries={tmp_path / 'eval' / 'per_query.jsonl'}"),
    )
    for name, one in (("theirs", GROUP), ("eval", GROUP), ("theirs", "NanoNQ"), ("queries", "NanoNQ")):
        assert page.row("nDCG@10", name)[one] == f"{after[f'{one}_dot_ndcg@10']:.4f}"
    pairs = {frozenset(row[:2]): row for row in page.tables[TESTS][1:]}
    assert pairs[frozenset(("theirs", "eval"))][2:5] == ["+0.0000", "+0.0000 to +0.0000", "0/6/0"]
    assert len(pairs) == 10


@pytest.mark.parametrize(
    ("ranking", "mrr", "missing"), [("q0 Q0 d0 1 2.5 x\nq1 Q0 d3 1 1.5 x\n\n", 1 / 6, 4), ("", 0, 6)]
)
def test_queries_that_rankings_lack_count_as_nothing_found(runs, tmp_path, ranking, mrr, missing):
    """All of them do in the empty file that `evaluate --runs` writes of a model that finds nothing."""
    trec = tmp_path / "NanoNQ.trec"
    trec.write_text(ranking)
    outcome, page = compared(tmp_path, "--results", trec, "--tasks", "nq", "--nanobeir-source", runs.world.tasks)
    assert page.row("NanoBEIR_mean", "NanoNQ")["MRR@10"] == f"{mrr:.4f}"
    assert f"ranks nothing for {missing} of 6 queries" in outcome.out


def test_one_set_can_be_what_counts(runs, tmp_path):
    _, page = compared(tmp_path, runs.dense, runs.sparse, "--set", "NanoNQ", "--metric", "mrr@10")
    values = {
        run.name: np.array([line["mrr@10"] for line in query_rows(run, "after") if line["task"] == "NanoNQ"])
        for run in (runs.dense, runs.sparse)
    }
    pairs = {frozenset(row[:2]): row for row in page.tables["differences in MRR@10, query by query"][1:]}
    mean = abs(np.mean(values["dense"] - values["sparse"]))
    assert pairs[frozenset(values)][2] == f"{mean:+.4f}"
    assert len(values["dense"]) == 6


def test_names_are_text(runs, tmp_path):
    evil = "<img src=x onerror=alert(1)>[bold]&\x1b[31m"
    run = copy_run(runs.dense, tmp_path / evil, "model")
    figures = {"<b>x_dot_ndcg@10": 0.5, "<b>x_corpus_active_dims": 3.0}
    (tmp_path / "other.json").write_text(json.dumps(figures))
    outcome, page = compared(tmp_path, run, "--results", f"<i>\"'={tmp_path / 'other.json'}")
    assert not page.tags & {"img", "b", "i", "script"}
    shown = evil.replace("\x1b", "\ufffd")
    assert page.row(GROUP, shown, "after")["nDCG@10"]
    assert any(text.startswith(f"{shown}: nDCG@10") for text in page.points)
    assert "[bold]&" in outcome.out
    assert "\x1b" not in outcome.out


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for parent in ("one", "two"):
        copy_run(runs.dense, tmp_path / parent / "same", "model")
    _, page = compared(tmp_path, tmp_path / "one" / "same", tmp_path / "two" / "same")
    assert [row[0] for row in page.tables["cost"][1:]] == ["one/same", "two/same", "BM25"]


def test_bm25_on_other_data_is_another_system(runs, tmp_path):
    run = copy_run(runs.dense, tmp_path / "other", "model")
    stages = read_json(run / "metrics.json")
    stages["bm25"]["NanoNQ_dot_ndcg@10"] += 0.01
    (run / "metrics.json").write_text(json.dumps(stages))
    _, page = compared(tmp_path, runs.dense, run, "--search-documents", 0)
    assert [row[0] for row in page.tables["cost"][1:]] == ["dense", "other", "BM25 (of dense)", "BM25 (of other)"]


def test_bm25_of_equal_rankings_is_one(runs, tmp_path):
    """Sums over the vocabulary differ in the eighth digit from run to run; the rankings are equal."""
    run = copy_run(runs.sparse, tmp_path / "other", "model")
    stages = read_json(run / "metrics.json")
    for name in stages["bm25"]:
        if name.endswith("_avg_flops"):
            stages["bm25"][name] *= 1 + 9e-8
    (run / "metrics.json").write_text(json.dumps(stages))
    outcome, page = compared(tmp_path, runs.dense, run, "--search-documents", 0)
    assert [row[0] for row in page.tables["cost"][1:]] == ["dense", "other", "BM25"]
    assert len(page.tables[TESTS][1:]) == 3
    assert "0.0000 above BM25" not in outcome.out


def test_the_state_before_training_is_a_row(runs, page):
    before = read_json(runs.dense / "metrics.json")["before"]
    row = page.row(GROUP, "dense, sparse, stopped")
    assert (row["stage"], row["nDCG@10"], row["front"]) == ("before", f"{before[NDCG]:.4f}", "")
    assert row["doc dims"] == f"{before[f'{GROUP}_corpus_active_dims']:,.1f}"
    assert not any("before" in "".join(row[:2]) for row in page.tables[TESTS][1:])


def test_a_start_of_its_own_is_a_row_of_its_own(runs, tmp_path):
    run = copy_run(runs.sparse, tmp_path / "other", "model", "per_query.jsonl")
    stages = read_json(run / "metrics.json")
    stages["before"][NDCG] += 0.01
    (run / "metrics.json").write_text(json.dumps(stages))
    _, page = compared(tmp_path, runs.dense, run, "--search-documents", 0)
    rows = [row[:3] for row in page.tables[GROUP][1:] if row[1] == "before"]
    first = read_json(runs.dense / "metrics.json")["before"][NDCG]
    assert rows == [["dense", "before", f"{first:.4f}"], ["other", "before", f"{first + 0.01:.4f}"]]


def test_more_documents_searched_than_asked_for_are_told(runs, tmp_path):
    outcome, page = compared(tmp_path, runs.dense, "--search-documents", 1)
    (task,) = [task for task in load_tasks([str(runs.world.tasks)]) if task.name == "NanoMSMARCO"]
    judged = {document for grades in task.qrels.values() for document in grades} & task.corpus.keys()
    note = f"Search was measured on {len(judged)} documents of NanoMSMARCO, not 1: all documents that have a judgement"
    assert note in " ".join(outcome.out.split())
    assert note in page.path.read_text(encoding="utf-8")
    outcome, _ = compared(tmp_path, runs.dense)
    assert "Search was measured on" not in outcome.out


def test_a_notebook_finds_the_same_difference(runs, tmp_path):
    outcome, page = compared(tmp_path, runs.dense, "--set", "NanoNQ", "--search-documents", 0)
    subject = open_subject(runs.dense)
    (task,) = [task for task in load_tasks([str(runs.world.tasks)]) if task.name == "NanoNQ"]
    encoded = encode_task(subject.encoder, task)
    pair = against_bm25(encoded, encoded.evaluate(), bm25_on(subject, task), subject.name)
    row = page.row(TESTS, pair.first, pair.second)
    assert (row["mean"], row["p (randomisation)"]) == (f"{pair.mean:+.4f}", p_value(pair.p_random))
    assert row["won, equal, lost"] == f"{pair.wins}/{pair.ties}/{pair.losses}"
    assert pair.verdict in " ".join(outcome.out.split())


def test_a_run_of_before_the_modules_moved_is_read(runs, tmp_path):
    """The classes of its config.yaml have other paths now, and its model is where it was."""
    run = copy_run(runs.dense, tmp_path / "old")
    text = (run / "config.yaml").read_text()
    assert "splade_lit.training.callbacks." in text
    (run / "config.yaml").write_text(text.replace("splade_lit.training.callbacks.", "splade_lit.callbacks."))
    _, page = compared(tmp_path, run)
    assert page.row("cost", "old")["query ms"] != "-"  # its tasks are found by its evaluation
    assert open_subject(run).required_run().evaluations == open_subject(runs.dense).required_run().evaluations
    assert call(card.main, run / "model").code == 0


def test_long_queries_are_cut(runs, tmp_path):
    run = copy_run(runs.dense, tmp_path / "long", "model")
    lines = [json.loads(line) for line in (run / "per_query.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"query": "so long a query " * 100}) + "\n" for line in lines)
    (run / "per_query.jsonl").write_text(text)
    _, page = compared(tmp_path, run, "--search-documents", 0)
    shown = page.path.read_text(encoding="utf-8")
    assert "so long a query so long a query" in shown
    assert "so long a query " * 11 not in shown


def test_means_of_other_sets_are_pointed_out(runs, tmp_path):
    figures = {"NanoBEIR_mean_dot_ndcg@10": 0.9, "NanoFiQA2018_dot_ndcg@10": 0.9}
    (tmp_path / "peer.json").write_text(json.dumps(figures))
    outcome, _ = compared(tmp_path, runs.dense, "--results", tmp_path / "peer.json", "--search-documents", 0)
    assert "NanoBEIR_mean is not the same mean everywhere" in " ".join(outcome.out.split())
