"""The exact index on disk: hits as of exact search, changes that are whole or not there, and its commands."""

import json
import random
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from command_runs import call, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from splade_lit import encode, evaluate, index, search
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_free, hold_folder
from splade_lit.engines import exact
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit
from splade_lit.engines.open_index import open_index
from splade_lit.evaluation.exact_search import SearchIndex, string_order

VOCAB = 30


def vectors(rows: int, seed: int, density: float = 0.3) -> csr_array:
    """Random weights of a few values, so that scores tie."""
    made = random_array((rows, VOCAB), density=density, rng=np.random.default_rng(seed), dtype=np.float32)
    made.data = np.round(made.data * 4) / 4
    made = csr_array(made)
    made.eliminate_zeros()
    return made


def expected(documents: csr_array, ids: list[str], queries: csr_array, k: int) -> list[list[Hit]]:
    """What exact search in memory finds."""
    top = SearchIndex(documents, string_order(ids)).search(queries, k)
    return [
        [Hit(ids[row], score) for row, score in zip(rows, scores, strict=True) if score > 0]
        for rows, scores in zip(top.documents.tolist(), top.scores.tolist(), strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.integers(1, 12), st.integers(1, 5))
def test_hits_are_those_of_exact_search_to_the_last_bit(rows, seed, k, num_parts):
    documents, queries = vectors(rows, seed), vectors(6, seed + 1)
    ids = [f"d{number}" for number in np.random.default_rng(seed).permutation(rows)]
    cuts = np.linspace(0, rows, num_parts + 1).astype(int)
    parts = [(ids[a:b], documents[a:b], None) for a, b in pairwise(cuts)]
    with TemporaryDirectory() as folder:
        made = ExactIndex.build(folder, lambda: iter(parts), VOCAB)
        assert made.search(queries, k) == expected(documents, ids, queries, k)
        assert open_index(folder).search(queries, k) == made.search(queries, k)


def build(folder: Path, rows: int = 20, seed: int = 1) -> tuple[ExactIndex, csr_array, list[str]]:
    documents, ids = vectors(rows, seed), [f"d{number}" for number in range(rows)]
    texts = [f"text of {id}" for id in ids]
    return ExactIndex.build(folder, lambda: [(ids, documents, texts)], VOCAB), documents, ids


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_changes_are_those_of_a_corpus_that_was_changed(tmp_path):
    made, documents, ids = build(tmp_path / "index")
    queries, more = vectors(8, 5), vectors(4, 9)
    assert made.delete(["d3", "d7", "nothing"]) == 2
    made.add(["d5", "new1", "d3", "new2"], more, ["five", "one", "three", "two"])
    assert made.delete(["new2", "d1"]) == 2
    kept = [row for row in range(20) if ids[row] not in ("d1", "d3", "d5", "d7")]
    rows = csr_array(np.concatenate([documents.toarray()[kept], more.toarray()[:3]]))
    names = [*(ids[row] for row in kept), "d5", "new1", "d3"]
    for opened in (made, open_index(tmp_path / "index")):
        assert opened.search(queries, 50) == expected(rows, names, queries, 50)
        assert opened.text("d5") == "five"
        assert opened.text("d4") == "text of d4"
        assert opened.text("d7") is None
        assert opened.weights("new1", range(VOCAB)) == more.toarray()[1].tolist()
        assert opened.weights("d7", [0, 1]) == [0.0, 0.0]
        assert opened.stats().num_documents == 19
        only = {"d2", "d5", "d7", "new1"}
        allowed = [names.index(name) for name in ("d2", "d5", "new1")]
        found = expected(rows[allowed], ["d2", "d5", "new1"], queries, 2)
        assert opened.search(queries, 2, only) == found
    assert names_in(tmp_path / "index") == ["0000", "0000-3.deleted", "0001", "0001-1.deleted", "index.json"]


def test_a_new_index_takes_the_place_of_another_once_it_is_whole(tmp_path):
    made, _, _ = build(tmp_path / "index")

    def fails() -> Any:
        yield ["a"], vectors(1, 1), None
        raise UserError("the corpus is gone")

    with pytest.raises(UserError, match="the corpus is gone"):
        ExactIndex.build(tmp_path / "index", fails, VOCAB)
    assert open_index(tmp_path / "index").stats().num_documents == 20
    build(tmp_path / "index", rows=5)
    assert open_index(tmp_path / "index").stats().num_documents == 5
    assert sorted(path.name for path in (tmp_path / "index").iterdir() if path.name != ".lock") == [
        "0001",
        "index.json",
    ]
    assert made.search(vectors(1, 3), 3)  # one that was opened before stays as it was


def test_many_segments_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "_MOST_SEGMENTS", 3)
    made, documents, _ = build(tmp_path / "index", rows=4)
    more, queries = vectors(12, 7), vectors(6, 5)
    for row in range(12):
        made.add([f"e{row}"], more[[row]], [f"text of e{row}"] if row % 2 else None)
    made.delete(["d1", "e5"])
    names = ["d0", "d2", "d3", *(f"e{row}" for row in range(12) if row != 5)]
    kept = [0, 2, 3, *(4 + row for row in range(12) if row != 5)]
    rows = csr_array(np.concatenate([documents.toarray(), more.toarray()])[kept])
    for opened in (made, open_index(tmp_path / "index")):
        assert opened.search(queries, 50) == expected(rows, names, queries, 50)
        assert [opened.text(id) for id in ("d0", "e3", "e4")] == ["text of d0", "text of e3", ""]
    assert len(json.loads((tmp_path / "index" / "index.json").read_text())["segments"]) <= 3


def test_files_of_others_are_left_alone(tmp_path):
    build(tmp_path / "index")
    (tmp_path / "index" / "2024-01-05.log").write_text("mine")
    (tmp_path / "index" / ".hidden").write_text("mine")
    open_index(tmp_path / "index").delete(["d1"])
    assert {"2024-01-05.log", ".hidden"} <= {path.name for path in (tmp_path / "index").iterdir()}
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "index.json").write_text('{"schemaVersion": 2}')
    with pytest.raises(UserError, match="is in use and holds no index"):
        build(tmp_path / "image")


@pytest.mark.parametrize(
    ("ids", "documents", "what"),
    [
        (["a", "a"], vectors(2, 1), "Two documents have the id 'a'"),
        (["a"], vectors(2, 1), "There are 1 ids for vectors"),
        (["a"], csr_array(np.full((1, VOCAB), np.nan, np.float32)), "must be finite and not negative"),
        (["a"], csr_array(np.full((1, VOCAB), -1, np.float32)), "must be finite and not negative"),
    ],
)
def test_documents_that_cannot_be_indexed_are_told(tmp_path, ids, documents, what):
    with pytest.raises(UserError, match=what):
        ExactIndex.build(tmp_path / "index", lambda: [(ids, documents, None)], VOCAB)
    made, _, _ = build(tmp_path / "index")
    with pytest.raises(UserError, match=what):
        made.add(ids, documents)
    assert open_index(tmp_path / "index").stats().num_documents == 20


@pytest.mark.parametrize("damage", ["cut", "lost", "engine", "elsewhere", "above", "json", "version", "fields", "kind"])
def test_damaged_indexes_are_told(tmp_path, damage):
    folder = tmp_path / "index"
    build(folder)
    header = json.loads((folder / "index.json").read_text())
    changes = {"engine": {"engine": "magic"}, "version": {"format": 9}, "fields": {"more": 1}}
    changes["elsewhere"] = {"segments": ["../index/0000"]}
    changes["above"] = {"segments": [".."]}
    if damage == "cut":
        path = folder / "0000" / "documents.npy"
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "lost":
        (folder / "0000" / "values.npy").unlink()
    elif damage == "kind":
        np.save(folder / "0000" / "values.npy", np.load(folder / "0000" / "values.npy").astype("U9"))
    elif damage == "json":
        (folder / "index.json").write_text("{")
    else:
        (folder / "index.json").write_text(json.dumps(header | changes[damage]))
    with pytest.raises(UserError, match="index"):
        open_index(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is in use and holds no index"):
        ExactIndex.build(tmp_path / "other", lambda: [], VOCAB)
    with pytest.raises(UserError, match="holds no index"):
        open_index(tmp_path / "other")


@pytest.mark.parametrize(("name", "number"), [("documents", 4_000_000_000), ("hash_rows", -(10**9))])
def test_numbers_that_no_build_writes_are_told_where_they_are_read(tmp_path, name, number):
    _, documents, ids = build(tmp_path / "index")
    path = tmp_path / "index" / "0000" / f"{name}.npy"
    content = np.load(path)
    np.save(path, np.full_like(content, number))
    opened = open_index(tmp_path / "index")
    asked = {
        "documents": [lambda: opened.search(documents, 3), lambda: list(opened.documents())],
        "hash_rows": [lambda: opened.text(ids[0]), lambda: opened.delete(ids)],
    }
    for ask in asked[name]:
        with pytest.raises(UserError, match=r"damaged part of an index .* build the index again"):
            ask()


TEXTS = ["the song of the musical", "", "river and water " * 9, "heart disease", "a cell protein", "king and queen"] * 3


@pytest.fixture
def model(encoder, tmp_path) -> Path:
    encoder.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(TEXTS)))
    return path


@pytest.mark.parametrize("stored", [False, True])
def test_the_commands_find_what_search_finds(model, corpus, tmp_path, stored):
    more: list[object] = []
    if stored:
        vectors_of = ("--model", model, "--corpus", corpus, "--output", tmp_path / "vectors", "--shard-documents", 4)
        assert call(encode.main, *vectors_of).code == 0
        more = ["--vectors", tmp_path / "vectors"]
    made = call(index.main, "--model", model, "--corpus", corpus, *more, "--output", tmp_path / "index")
    assert made.code == 0, made.err
    assert made.last_line.startswith(f"index: {tmp_path / 'index'}  documents 15  ")
    assert list((tmp_path / "index").glob(".vectors*")) == []
    shutil.rmtree(model / "document_0_MLMTransformer")  # it is not needed any more
    for query in ("song of the king", "water", "zebra ?"):
        found = call(search.main, "--index", tmp_path / "index", query)
        assert found.code == 0, found.err
        assert "the" not in found.err
    shutil.copytree(tmp_path / "index", tmp_path / "moved")
    assert call(search.main, "--index", tmp_path / "moved", "water").out.count("\n") > 3


def test_vectors_that_another_process_is_at_stay(model, corpus, tmp_path, monkeypatch):
    output, at_work = tmp_path / "index", []
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", output).code == 0
    for name in (".vectors_theirs", ".vectors_left"):
        (output / name).mkdir()
        (output / name / "shard-00000.npz").touch()
    held = hold_folder(output / ".vectors_theirs")
    add = ExactIndex.add

    def add_and_look(self, *documents: Any) -> None:
        (ours,) = set(output.glob(".vectors_*")) - {output / ".vectors_theirs", output / ".vectors_left"}
        with pytest.raises(UserError, match="is being written by another process"):
            check_free(ours)
        at_work.append(ours)
        add(self, *documents)

    monkeypatch.setattr(ExactIndex, "add", add_and_look)
    added = call(index.main, "--model", model, "--corpus", corpus, "--add", "--output", output)
    assert added.code == 0, added.err
    assert at_work
    assert [path.name for path in output.glob(".vectors_*")] == [".vectors_theirs"]
    assert (output / ".vectors_theirs" / "shard-00000.npz").exists()
    held.release()


def test_output_is_that_of_search_in_a_corpus(model, corpus, tmp_path):
    corpus.write_text("\n".join(corpus.read_text().splitlines()[:6]))  # no two score the same
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", tmp_path / "index").code == 0
    for query in ("song of the king", "water and heart", "zebra"):
        direct = call(search.main, "--model", model, "--corpus", corpus, query)
        assert call(search.main, "--index", tmp_path / "index", query).out == direct.out


def test_a_search_loads_neither_torch_nor_transformers(model, corpus, tmp_path):
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", tmp_path / "index").code == 0
    code = f"""
import sys
from splade_lit.search import main
main(["--index", {str(tmp_path / "index")!r}, "song of the king"])
print(sorted({{"torch", "transformers", "datasets", "lightning", "numba"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.splitlines()[-1] == "[]"


def test_runs_are_those_of_evaluate(model, world, tmp_path):
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    corpus = task / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(TEXTS) if text))
    queries = {"q1": "song king", "q2": "heart of the river", "q3": "protein"}
    (task / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": id, "text": text}) for id, text in queries.items())
    )
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td3\t1\nq3\td4\t1\n")
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", tmp_path / "index").code == 0
    found = call(
        search.main, "--index", tmp_path / "index", "--queries-file", task / "queries.jsonl", "--top", 100, "--run",
        tmp_path / "found.trec",
    )  # fmt: skip
    assert found.code == 0, found.err
    evaluated = call(evaluate.main, "--model", model, "--tasks", task, "--runs", tmp_path / "runs")
    assert evaluated.code == 0, evaluated.err
    (path,) = (tmp_path / "runs").iterdir()
    theirs = [line.split()[:5] for line in path.read_text().splitlines() if float(line.split()[4]) > 0]
    assert [line.split()[:5] for line in (tmp_path / "found.trec").read_text().splitlines()] == theirs


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--index", "nothing", "song"], "nothing holds no index"),
        (["--index", "INDEX", "--model", "m", "song"], "An index has all of it; leave out --model"),
        (["--index", "INDEX", "--run", "r.trec"], "give --queries-file"),
        (["--index", "INDEX", "--run", "r.trec", "--explain"], "leave out --run, or --explain"),
        (["--index", "INDEX", "--model", "OTHER", "--explain", "song"], "was made with another model"),
        (["--run", "r.trec"], "go with --index"),
        (["song"], "give --model, or --index"),
        (["--index", "INDEX", "--queries-file", "bad.jsonl"], "bad.jsonl, line 2: a query needs _id and text"),
    ],
)
def test_what_cannot_be_searched_is_told(encoder, model, corpus, tmp_path, arguments, what):
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", tmp_path / "index").code == 0
    (tmp_path / "bad.jsonl").write_text('{"_id": "q", "text": "song"}\n[1]\n')
    encoder.document.decoder.bias.data += 0.1
    encoder.save(tmp_path / "other")
    places = {"INDEX": tmp_path / "index", "OTHER": tmp_path / "other", "bad.jsonl": tmp_path / "bad.jsonl"}
    outcome = call(search.main, *(places.get(word, word) for word in arguments))
    assert outcome.code == 2
    assert what in outcome.errors[0]


def test_vectors_and_corpus_that_do_not_belong_together_are_told(encoder, model, corpus, tmp_path):
    arguments = ("--model", model, "--output", tmp_path / "index")
    assert call(encode.main, "--model", model, "--corpus", corpus, "--output", tmp_path / "vectors").code == 0
    other = tmp_path / "other.jsonl"
    other.write_text('{"_id": "x", "text": "song"}\n')
    told = call(index.main, *arguments, "--vectors", tmp_path / "vectors", "--corpus", other)
    assert (told.code, "are not those of" in told.errors[0]) == (2, True)
    encoder.document.decoder.bias.data += 0.1
    encoder.save(tmp_path / "second")
    told = call(
        index.main, "--model", tmp_path / "second", "--vectors", tmp_path / "vectors", "--output", tmp_path / "index"
    )
    assert (told.code, "are those of another model" in told.errors[0]) == (2, True)
    assert call(index.main, *arguments, "--vectors", tmp_path / "vectors").code == 0
    assert "  1. " in call(search.main, "--index", tmp_path / "index", "song").out


def test_a_corpus_that_has_grown_since_and_a_lost_shard_are_told(model, corpus, tmp_path):
    made = ("--model", model, "--corpus", corpus, "--output", tmp_path / "vectors", "--shard-documents", 5)
    assert call(encode.main, *made).code == 0
    arguments = ("--model", model, "--vectors", tmp_path / "vectors", "--output", tmp_path / "index")
    corpus.write_text(corpus.read_text() + '\n{"_id": "new", "text": "song"}')
    told = call(index.main, *arguments, "--corpus", corpus)
    assert (told.code, "has more documents than the vectors" in told.errors[0]) == (2, True)
    (tmp_path / "vectors" / "shard-00001.npz").unlink()
    told = call(index.main, *arguments)
    assert (told.code, "holds 10 of 15 documents" in told.errors[0]) == (2, True)
    told = call(index.main, "--model", model, "--vectors", corpus, "--output", tmp_path / "index")
    assert (told.code, "There is no folder" in told.errors[0]) == (2, True)


@pytest.mark.slow
def test_thirty_kills_never_leave_half_an_index(model, corpus, tmp_path):
    drawn, output = random.Random(3), tmp_path / "index"
    whole = tmp_path / "whole"
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", whole).code == 0
    words = [sys.executable, "-m", "splade_lit.index", "--model", str(model), "--corpus", str(corpus)]
    begun = time.monotonic()
    subprocess.run([*words, "--output", str(tmp_path / "timed")], env=environment(), check=True)
    took = time.monotonic() - begun
    for _ in range(30):
        process = subprocess.Popen([*words, "--output", str(output)], env=environment())
        time.sleep(drawn.uniform(0.5, 1) * took)
        process.kill()
        process.wait()
        if (output / "index.json").exists():
            assert open_index(output).stats().num_documents == 15
        else:
            with pytest.raises(UserError, match="holds no index"):
                open_index(output)
    assert call(index.main, "--model", model, "--corpus", corpus, "--output", output).code == 0
    found = [call(search.main, "--index", folder, "song of the king").out for folder in (output, whole)]
    assert found[0] == found[1]
