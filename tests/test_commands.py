"""`python -m splade_lit.evaluate` and `python -m splade_lit.search`, as users call them."""

import csv
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import Outcome, call, command, environment, read_json
from conftest import REPOSITORY, tiny_masked_lm
from datasets import Dataset

from splade_lit import evaluate, fit, search
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder

TEXTS = {
    "a": "who wrote the song of the musical film",
    "b": "the river of the city and the water of the country",
    "c": "heart disease: cause, symptoms and treatment",
}


@pytest.fixture(scope="module")
def run(world) -> Path:
    """The folder of a whole run."""
    folder = world.folder / "run"
    outcome = call(fit.main, "--config", world.config(folder))
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer) -> AsymmetricSparseEncoder:
    """A random encoder whose documents have most terms."""
    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tiny_tokenizer)))
    idf = torch.rand(len(tiny_tokenizer), generator=torch.Generator().manual_seed(0)) + 0.5
    return AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tiny_tokenizer).eval()


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory) -> Path:
    """The folder that `encoder` is saved in."""
    folder = tmp_path_factory.mktemp("model")
    encoder.save(folder)
    return folder


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in TEXTS.items()))
    return path


def hits(out: str) -> list[dict[str, Any]]:
    """What a person reads: rank, score and id of each hit, its text, and the terms that matched."""
    found = re.findall(r"^ *(\d+)\. +([\d.]+)  (\S+)\n +(.*)\n +(.*)$", out, re.MULTILINE)
    return [
        {"rank": int(rank), "score": float(score), "id": id, "text": text, "terms": terms_of(terms)}
        for rank, score, id, text, terms in found
    ]


def terms_of(line: str) -> dict[str, float]:
    return {term: float(weight) for term, weight in (part.rsplit(" ", 1) for part in line.split(" + "))}


def test_evaluation_equals_that_of_the_run(world, run, tmp_path):
    output = tmp_path / "new" / "metrics.json"
    outcome = call(evaluate.main, "--model", run / "model", "--tasks", world.tasks, "--bm25", "--output", output)
    assert outcome.code == 0, outcome.err
    stages, of_run = read_json(output), read_json(run / "metrics.json")
    assert list(stages) == ["bm25", "model"]
    assert stages["bm25"] == of_run["bm25"]
    assert stages["model"] == pytest.approx(of_run["after"], rel=1e-9)
    for stage, figures in stages.items():
        assert re.search(rf"{stage} +{figures['NanoBEIR_mean_dot_ndcg@10']:.4f}", outcome.out)


def test_evaluation_on_names_and_folders(world, model, tmp_path):
    beir = tmp_path / "mine"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": id, "title": "", "text": text}) + "\n" for id, text in TEXTS.items())
    )
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "the river"}) + "\n")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t2\nq\ta\t1\n")
    arguments = ["--nanobeir-source", world.tasks, "--output", tmp_path / "metrics.json"]
    outcome = call(evaluate.main, "--model", model, "--tasks", "NQ", beir, *arguments)
    assert outcome.code == 0, outcome.err
    figures = read_json(tmp_path / "metrics.json")["model"]
    by_folder = call(evaluate.main, "--model", model, "--tasks", world.tasks, "--output", tmp_path / "both.json")
    assert by_folder.code == 0, by_folder.err
    both = read_json(tmp_path / "both.json")["model"]
    assert "NanoMSMARCO_dot_ndcg@10" in both
    assert "NanoMSMARCO_dot_ndcg@10" not in figures
    assert figures["NanoNQ_dot_ndcg@10"] == both["NanoNQ_dot_ndcg@10"] == figures["NanoBEIR_mean_dot_ndcg@10"]
    assert 0 <= figures["mine_dot_ndcg@10"] <= 1
    assert "mine" in outcome.out


def test_rankings_are_written_as_trec_runs(world, model, encoder, tmp_path):
    runs = tmp_path / "runs"
    outcome = call(evaluate.main, "--model", model, "--tasks", world.tasks, "--runs", runs)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in runs.iterdir()} == {"NanoMSMARCO.trec", "NanoNQ.trec"}
    for task in load_tasks([str(world.tasks)]):
        lines = [line.split(" ") for line in (runs / f"{task.name}.trec").read_text().splitlines()]
        assert {line[0] for line in lines} == set(task.queries)
        scores = encoder.similarity(
            encoder.encode_query(["", task.queries["q3"]]), encoder.encode_document(list(task.corpus.values()))
        )
        expected = dict(zip(task.corpus, scores[1].tolist(), strict=True))
        ranked = [line for line in lines if line[0] == "q3"]
        assert [int(line[3]) for line in ranked] == list(range(1, len(ranked) + 1))
        for _, q0, document_id, _, score, tag in ranked:
            assert (q0, tag) == ("Q0", "splade_lit")
            assert float(score) == pytest.approx(expected[document_id], rel=1e-4)
        found = [float(line[4]) for line in ranked]
        assert found == sorted(found, reverse=True)


def test_evaluation_on_a_sample_is_fair_to_bm25(world, model, tmp_path):
    """Both see the same documents: the 6 judged ones of each task."""
    arguments = ["--model", model, "--tasks", world.tasks, "--bm25"]
    for name, more in (("whole", []), ("sample", ["--max-corpus-documents", 1])):
        outcome = call(evaluate.main, *arguments, *more, "--output", tmp_path / f"{name}.json")
        assert outcome.code == 0, outcome.err
    whole, sample = read_json(tmp_path / "whole.json"), read_json(tmp_path / "sample.json")
    for stage in ("bm25", "model"):
        assert sample[stage]["NanoNQ_corpus_active_dims"] != whole[stage]["NanoNQ_corpus_active_dims"]
    # Of 6 documents, ten hits hold every relevant one that scores at all.
    assert sample["bm25"]["NanoBEIR_mean_dot_recall@10"] == 1.0


def test_evaluation_in_a_process_of_its_own(world, run, tmp_path):
    arguments = ["--model", run / "model", "--tasks", world.tasks, "--bm25", "--output", "out/metrics.json"]
    outcome = command("splade_lit.evaluate", *arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "DEBUG" not in outcome.err  # bm25s's own log
    figures = read_json(tmp_path / "out" / "metrics.json")["model"]
    assert figures == pytest.approx(read_json(run / "metrics.json")["after"], rel=1e-5)
    assert outcome.out.strip().splitlines()[0].split() == [
        *("task", "stage", "nDCG", "@10", "MRR", "@10", "recall", "@10", "MAP", "@100"),
        *("query", "dims", "corpus", "dims", "FLOPS"),
    ]


def test_search_shows_hits_with_what_made_their_scores(model, encoder, corpus):
    query = "the song of a river"
    outcome = call(search.main, "--model", model, "--corpus", corpus, "--terms", 100, query)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"query: {query}\n")
    found = hits(outcome.out)
    scores = encoder.similarity(encoder.encode_query(query), encoder.encode_document(list(TEXTS.values())))[0]
    expected = sorted(zip(TEXTS, scores.tolist(), strict=True), key=lambda hit: -hit[1])
    assert [(hit["id"], hit["score"]) for hit in found] == [
        (id, pytest.approx(s, abs=1e-3)) for id, s in expected if s > 0
    ]
    assert [hit["rank"] for hit in found] == list(range(1, len(found) + 1))
    for hit in found:
        assert hit["text"] == TEXTS[hit["id"]]
        assert sum(hit["terms"].values()) == pytest.approx(hit["score"], abs=5e-3)
        assert {term.strip("()") for term in hit["terms"]} <= {"the", "song", "of", "a", "river"}
        assert list(hit["terms"].values()) == sorted(hit["terms"].values(), reverse=True)


def test_search_adds_up_the_terms_that_it_does_not_show(model, corpus):
    outcome = call(search.main, "--model", model, "--corpus", corpus, "--terms", 1, "--top", 1, "the song of a river")
    (hit,) = hits(outcome.out)
    assert len(hit["terms"]) == 2
    assert re.fullmatch(r"\d+ more", list(hit["terms"])[1])
    assert sum(hit["terms"].values()) == pytest.approx(hit["score"], abs=5e-3)


def test_search_shows_terms_that_count_against_a_document(model, encoder, corpus, tmp_path):
    changed = AsymmetricSparseEncoder.load(model)
    documents = encoder.encode_document(list(TEXTS.values())).to_dense()
    best = int(documents[0].argmax())
    others = torch.topk(documents[0], 3).indices[1:]
    with torch.no_grad():
        changed.idf_weights[best] = -0.1
        changed.idf_weights[others] = 2.0
    changed.save(tmp_path / "changed")
    query = " ".join(encoder.tokenizer.convert_ids_to_tokens([best, *others.tolist()])).replace("##", "")
    outcome = call(search.main, "--model", tmp_path / "changed", "--corpus", corpus, "--terms", 100, query)
    shown = [hit for hit in hits(outcome.out) if min(hit["terms"].values()) < 0]
    assert shown
    for hit in shown:
        assert sum(hit["terms"].values()) == pytest.approx(hit["score"], abs=5e-3)


def test_queries_come_from_standard_input(model, corpus, monkeypatch):
    arguments = ["--model", model, "--corpus", corpus]
    monkeypatch.setattr("sys.stdin", io.StringIO("the song\n\n  the river  \n"))
    outcome = call(search.main, *arguments)
    assert outcome.code == 0, outcome.err
    queries = [line for line in outcome.out.splitlines() if line.startswith("query: ")]
    assert queries == ["query: the song", "query: the river"]
    assert outcome.out == call(search.main, *arguments, "the song", "the river").out
    assert "query>" not in outcome.out


def test_a_reader_that_has_seen_enough_ends_the_search(model, corpus, tmp_path):
    """As `| head -1` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "splade_lit.search", "--model", str(model), "--corpus", str(corpus)],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write("the song\n")
    process.stdin.flush()
    assert process.stdout.readline() == "query: the song\n"
    process.stdout.close()
    process.stdin.write("the river\n" * 100)
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=300) == 1
    assert "Traceback" not in err
    assert "BrokenPipeError" not in err


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", "text"])
        rows.writerows(TEXTS.items())


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.csv", "c.tsv", "c.parquet", "c.txt"])
def test_corpora_of_many_kinds(model, corpus, tmp_path, name):
    path = tmp_path / name
    if name == "c.jsonl":
        shutil.copy(corpus, path)
    elif name == "c.jsonl.gz":
        path.write_bytes(gzip.compress(corpus.read_bytes()))
    elif name == "c.parquet":
        Dataset.from_list([{"_id": id, "text": text} for id, text in TEXTS.items()]).to_parquet(path)
    elif name == "c.txt":
        path.write_text("\n".join(TEXTS.values()) + "\n")
    else:
        write_csv(path, "\t" if name == "c.tsv" else ",")
    expected = call(search.main, "--model", model, "--corpus", corpus, "the river", "disease").out
    outcome = call(search.main, "--model", model, "--corpus", path, "the river", "disease")
    assert outcome.code == 0, outcome.err
    found = outcome.out
    if name == "c.txt":  # ids are line numbers
        for number, id in enumerate(TEXTS):
            found = re.sub(rf"^( *\d+\. +[\d.]+  ){number}$", rf"\g<1>{id}", found, flags=re.MULTILINE)
    assert found == expected


def test_titles_and_other_columns(model, encoder, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"id": 7, "title": "the river", "body": "of the city"}) + "\n")
    outcome = call(search.main, "--model", model, "--corpus", path, "--text-column", "body", "the river")
    assert outcome.code == 0, outcome.err
    (hit,) = hits(outcome.out)
    assert (hit["id"], hit["text"]) == ("7", "the river of the city")
    score = encoder.similarity(encoder.encode_query("the river"), encoder.encode_document("the river of the city"))
    assert hit["score"] == pytest.approx(float(score), abs=1e-3)


def test_a_beir_folder_is_a_corpus_too(world, model):
    beir = world.folder / "beir"
    beir.mkdir()
    (beir / "corpus.jsonl").write_text(json.dumps({"_id": "x", "title": "", "text": "the river"}) + "\n")
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "the river"}) + "\n")
    (beir / "qrels").mkdir()
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tx\t1\n")
    outcome = call(search.main, "--model", model, "--corpus", beir, "the river")
    assert outcome.code == 0, outcome.err
    assert [hit["id"] for hit in hits(outcome.out)] == ["x"]


def test_a_query_that_matches_nothing(model, encoder, tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("the river\n")
    document = encoder.encode_document("the river", convert_to_csr=True)
    silent = np.setdiff1d(np.arange(encoder.vocab_size), document.indices)
    words = [token for token in encoder.tokenizer.convert_ids_to_tokens(silent.tolist()) if token.isalpha()]
    assert words
    outcome = call(search.main, "--model", model, "--corpus", path, words[0], "")
    assert outcome.code == 0, outcome.err
    nothing = "  no document shares a term with it"
    assert outcome.out.splitlines() == [f"query: {words[0]}", nothing, "query: ", nothing]


def test_long_texts_are_cut_for_the_eye(model, tmp_path):
    text = "the river " * 60
    path = tmp_path / "c.txt"
    path.write_text(text.strip() + "\n")
    query = " ".join(["the river"] * 30)
    outcome = call(search.main, "--model", model, "--corpus", path, query)
    assert outcome.out.splitlines()[0] == f"query: {query}"
    (hit,) = hits(outcome.out)
    assert hit["text"].endswith(" ...")
    assert len(hit["text"]) <= 164


@pytest.mark.parametrize(
    ("text", "part"),
    [("", "empty"), ('{"_id": "a", "text": ""}\n', "no document has text"), ('{"_id": "a"}\n', "text")],
)
def test_an_empty_corpus(model, tmp_path, text, part):
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    outcome = call(search.main, "--model", model, "--corpus", path, "the river")
    assert outcome.code == 2
    assert part in outcome.errors[0]
    assert str(path) in outcome.errors[0]


@pytest.mark.parametrize(
    ("main", "options"),
    [
        (evaluate.main, ["--model", "--tasks", "--bm25", "--output", "--runs", "--max-corpus-documents", "--device"]),
        (search.main, ["--model", "--corpus", "--top", "--terms", "--text-column", "queries"]),
    ],
    ids=["evaluate", "search"],
)
def test_help(main, options):
    outcome: Outcome = call(main, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith("usage: python -m splade_lit.")
    for option in options:
        assert re.search(rf"^  {option}\b.*", outcome.out, re.MULTILINE)


def test_bare_make_lists_the_targets():
    done = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    listed = dict(re.findall(r"^ +make (\S+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert {"quickstart", "test", "lint", "format", "clean"} <= set(listed)
    targets = re.findall(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert set(listed) == set(targets)


def test_make_quickstart_trains_offline_and_answers_a_query():
    done = subprocess.run(
        ["make", "--dry-run", "quickstart"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    train = next(line for line in lines if "splade_lit.fit" in line)
    find = next(line for line in lines if "splade_lit.search" in line)
    assert "HF_HUB_OFFLINE=1" in train
    assert "HF_HUB_OFFLINE=1" in find
    assert "--config experiments/quickstart.yaml" in train
    assert "--model runs/quickstart/model" in find
    assert lines.index(train) < lines.index(find)
