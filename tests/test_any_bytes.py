"""Files that hold anything at all: a reader of rows, judgements, rankings or queries reads them, or says why not."""

import contextlib
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from splade_lit.core.errors import UserError
from splade_lit.core.queries import read_queries
from splade_lit.core.tables import FORMATS, column_names, read_numbers, read_rows, read_unique
from splade_lit.core.text import read_qrels, read_trec_run
from splade_lit.evaluation.per_query import read_per_query

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
