"""Files that hold anything at all: a reader of rows, judgements, rankings or queries reads them, or says why not."""

import contextlib
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from splade_lit.command_line.arguments import read_settings
from splade_lit.core.errors import UserError
from splade_lit.core.queries import read_queries
from splade_lit.core.tables import FORMATS, column_names, read_numbers, read_rows, read_unique
from splade_lit.core.text import read_qrels, read_trec_run
from splade_lit.encoder.table import idf_from_json
from splade_lit.engines.shards import open_shards
from splade_lit.evaluation.per_query import read_per_query
from splade_lit.runs.config import read_config
from splade_lit.runs.stages import read_stages

WORDS = st.sampled_from(["query-id", "corpus-id", "score", "_id", "text", "q1", "Q0", "-2", "1e999", "nan", '"', ""])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=3)
)
LINES = st.lists(st.lists(WORDS, max_size=6), max_size=6)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(VALUES, max_size=5).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(VALUES, max_size=5).map(lambda rows: json.dumps(rows).encode()),
    *(LINES.map(lambda rows, cut=cut: "\n".join(map(cut.join, rows)).encode()) for cut in "\t, "),
)


def _all_rows(path: Path) -> None:
    names = column_names(path)
    readers: list[Callable[[], Any]] = [
        lambda: list(read_rows(path, names)),
        lambda: list(read_rows(path, names, names[:1], lists=True)),
        lambda: list(read_numbers(path, names)),
        lambda: list(read_unique([path, path], names)),
        lambda: list(read_rows(path, ["a", "b"], ["a"], names=["a", "b"])),
    ]
    for read in readers:
        with contextlib.suppress(UserError):
            read()


READERS: list[tuple[tuple[str, ...], Callable[[Path], Any]]] = [
    (FORMATS, _all_rows),
    ((".tsv", ".qrels"), read_qrels),
    ((".trec", ".run"), read_trec_run),
    ((".jsonl", ".tsv"), lambda path: list(read_queries(path))),
    ((".jsonl",), read_per_query),
]


@settings(deadline=None, max_examples=400)
@given(content=CONTENTS, zipped=st.sampled_from(["", ".gz", "not gzip"]))
@example(content=b'{"_id": "a", "text": ' + b"[" * 100_000, zipped="")
@example(content=b'{"_id": ' + b"9" * 5_000 + b', "text": "a"}', zipped="")
def test_whatever_a_file_holds_it_is_read_or_told(content, zipped):
    with tempfile.TemporaryDirectory() as folder:
        for endings, read in READERS:
            for ending in endings:
                path = Path(folder) / f"file{ending}{'.gz' if zipped else ''}"
                path.write_bytes(gzip.compress(content) if zipped == ".gz" else content)
                with contextlib.suppress(UserError):
                    read(path)


FIGURES = dict.fromkeys(("ndcg@10", "mrr@10", "map@100"), 0.5)
DEEP = "[" * 200_000
BEYOND_FLOATS = 10**400
DIRECTED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "stages": (json.dumps({"after": {"NanoNQ_dot_ndcg@10": BEYOND_FLOATS}}), read_stages),
    "figures": (
        json.dumps({"stage": "a", "task": "t", "query_id": "q", "query": "w", "x": BEYOND_FLOATS} | FIGURES),
        read_per_query,
    ),
    "idf": (json.dumps({"song": BEYOND_FLOATS}), lambda path: idf_from_json(path, {"song": 0}, 1)),
    "config": (DEEP, read_config),
    "settings": (DEEP, lambda path: read_settings(["--config", str(path)])),
}


@pytest.mark.parametrize("kind", DIRECTED)
def test_numbers_beyond_all_floats_and_values_nested_too_deeply_are_told(tmp_path, kind):
    content, read = DIRECTED[kind]
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path)):
        read(path)


HEADER = {"model": "m", "corpus": "c", "vocab_size": 30, "values": "float16", "shard_documents": 2, "num_documents": 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("shard_documents", value) for value in (0, -5, 1e999, "x", True, None)),
        *(("num_documents", value) for value in (0, "200", 200.0, 10**30)),
        *(("vocab_size", value) for value in (0, 10**12, "x")),
        *(("values", value) for value in ("float128", 32)),
        *(("pruning", value) for value in ("x", {"max_document_active_dims": "x"}, {"min_document_weight_share": 2})),
        ("model", 5),
    ],
)
def test_a_header_of_shards_that_no_run_writes_is_told(tmp_path, name, value):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps(HEADER | {"pruning": {"max_document_active_dims": 9}}))
    assert open_shards(tmp_path)[0].pruning.max_document_active_dims == 9
    path.write_text(json.dumps(HEADER | {name: value}))
    with pytest.raises(UserError, match="does not hold the vectors of a whole corpus"):
        open_shards(tmp_path)
