"""`index` and `search` with each engine: built, changed, filtered, measured, and without torch for a query."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import call, environment

from splade_lit import index, load_query_side, search
from splade_lit.engines.open_index import open_index, search_texts

ENGINES = ["exact", "qdrant", "pgvector", "seismic"]
TEXTS = ["the song of the musical", "river and water", "heart disease", "a cell protein", "king and queen", "song king"]


@pytest.fixture
def world_of_one(encoder, tmp_path) -> Path:
    """A model, and a task whose corpus is small."""
    encoder.save(tmp_path / "model")
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(TEXTS)]
    (task / "corpus.jsonl").write_text("\n".join(lines))
    (task / "queries.jsonl").write_text('{"_id": "q1", "text": "song king"}\n{"_id": "q2", "text": "water"}\n')
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td5\t1\nq2\td1\t1\n")
    return tmp_path


@pytest.mark.parametrize("engine", ENGINES)
def test_the_commands_build_change_and_search(world_of_one, engine, request):
    folder = world_of_one
    server = ["--url", request.getfixturevalue("postgres_url"), "--name", "commands"] if engine == "pgvector" else []
    made = call(
        index.main, "--model", folder / "model", "--corpus", folder / "task", "--tasks", folder / "task", "--engine",
        engine, *server, "--output", folder / "index",
    )  # fmt: skip
    assert made.code == 0, made.err
    *_, measured, last = made.out.splitlines()
    assert measured.startswith("task nDCG@10: ")
    assert measured.endswith("(+0.0000)")
    assert last.startswith(f"index: {folder / 'index'}  documents 6")
    assert list((folder / "index").glob(".vectors*")) == []
    query = ("--index", folder / "index", "--top", 3, "song of the king")
    found = call(search.main, *query)
    assert "song king" in found.out, found.err
    opened, texts = open_index(folder / "index"), ["song of the king", "water", ""]
    vectors = load_query_side(folder / "model").encode(texts)
    assert search_texts(opened, texts, 4) == opened.search(vectors, 4)
    place = opened.query_folder.rename(folder / "away")  # it was loaded once
    assert search_texts(opened, texts[1], 4, ["d1", "d3"]) == opened.search(vectors[[1]], 4, ["d1", "d3"])
    place.rename(opened.query_folder)
    opened.close()
    more = folder / "more.jsonl"
    more.write_text('{"_id": "d5", "text": "nothing"}\n{"_id": "d9", "text": "the song of the king"}\n')
    added = call(index.main, "--model", folder / "model", "--corpus", more, "--add", "--output", folder / "index")
    if engine == "seismic":
        assert (added.code, "Seismic cannot change" in added.errors[0]) == (2, True)
        return
    assert (added.code, "documents 7" in added.last_line) == (0, True), added.err
    (folder / "ids.txt").write_text("d0\nd3\n")
    deleted = call(index.main, "--delete-file", folder / "ids.txt", "--output", folder / "index")
    assert deleted.out.startswith("deleted: 2 of 2 documents"), deleted.err
    deleted = call(index.main, "--delete", "d1", "no", "--output", folder / "index")
    assert deleted.out.startswith("deleted: 1 of 2 documents"), deleted.err
    found = call(search.main, *query)
    assert ("the song of the king" in found.out, "song king" in found.out) == (True, False)
    (folder / "ids.txt").write_text("d4\n")
    found = call(search.main, *query, "--only", folder / "ids.txt")
    assert "king and queen" in found.out


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_search_loads_neither_torch_nor_transformers(world_of_one, engine, request):
    folder = world_of_one
    server = ["--url", request.getfixturevalue("postgres_url"), "--name", "light"] if engine == "pgvector" else []
    made = call(
        index.main, "--model", folder / "model", "--corpus", folder / "task", "--engine", engine, *server, "--output",
        folder / "index",
    )  # fmt: skip
    assert made.code == 0, made.err
    code = f"""
import sys
from splade_lit.search import main
main(["--index", {str(folder / "index")!r}, "song of the king"])
print(sorted({{"torch", "transformers", "datasets", "lightning", "numba"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--output", "INDEX"], "give --model"),
        (["--output", "INDEX", "--delete", "d1", "--model", "MODEL"], "leave out --model"),
        (["--output", "INDEX", "--delete", "d1", "--engine", "qdrant"], "says --engine itself"),
        (
            ["--output", "INDEX", "--delete", "d1", "--tasks", "x"],
            "--tasks measure an index as it is built; leave them",
        ),
        (["--output", "INDEX", "--delete-file", "nothing.txt"], "nothing.txt"),
        (["--output", "none", "--delete", "d1"], "holds no index"),
        (["--output", "o", "--model", "MODEL", "--corpus", "TASK", "--url", "http://host"], "give --engine qdrant"),
        (["--output", "o", "--model", "MODEL", "--corpus", "TASK", "--name", "docs"], "give its address with --url"),
        (["--output", "INDEX", "--model", "OTHER", "--corpus", "TASK", "--add"], "was made with another model"),
        (["--output", "o", "--model", "MODEL", "--corpus", "MORE", "--tasks", "TASK"], "none of its documents is in"),
    ],
)
def test_what_cannot_be_done_is_told(world_of_one, encoder, arguments, what):
    folder = world_of_one
    encoder.document.decoder.bias.data += 0.1
    encoder.save(folder / "other")
    (folder / "more.jsonl").write_text('{"_id": "x", "text": "song"}\n')
    places = {"INDEX": "index", "MODEL": "model", "TASK": "task", "OTHER": "other", "MORE": "more.jsonl", "o": "o"}
    made = call(index.main, "--model", folder / "model", "--corpus", folder / "task", "--output", folder / "index")
    assert made.code == 0, made.err
    told = call(index.main, *(folder / places[word] if word in places else word for word in arguments))
    assert told.code == 2
    assert what in told.errors[0]
    assert not (folder / "o").exists()
