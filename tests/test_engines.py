"""Every engine behind the one interface: hits, changes and filters as of the exact index, builds that are whole."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from splade_lit.core.errors import UserError
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit, Index, Server, default_name
from splade_lit.engines.names import engine_class
from splade_lit.engines.open_index import open_index
from splade_lit.engines.qdrant import QdrantIndex

VOCAB = 30
Build = Callable[..., Index]


def vectors(rows: int, seed: int, density: float = 0.3) -> csr_array:
    """Random weights of a few values, so that scores tie."""
    made = random_array((rows, VOCAB), density=density, rng=np.random.default_rng(seed), dtype=np.float32)
    made.data = np.round(made.data * 4) / 4
    made = csr_array(made)
    made.eliminate_zeros()
    return made


def texts_of(ids: Sequence[str]) -> list[str]:
    return [f"text of {id}" for id in ids]


def same_hits(found: list[list[Hit]], expected: list[list[Hit]]) -> None:
    """The same documents in the same order, with scores that are equal but for rounding."""
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
    flat = [[hit.score for hits in one for hit in hits] for one in (found, expected)]
    np.testing.assert_allclose(*flat, rtol=1e-6)


def parts(ids: Sequence[str], documents: csr_array, cut: int) -> Callable[[], list]:
    texts = texts_of(ids)
    return lambda: [(ids[:cut], documents[:cut], texts[:cut]), (ids[cut:], documents[cut:], texts[cut:])]


@pytest.mark.parametrize("engine", ["qdrant"])
def test_hits_changes_and_filters_are_those_of_the_exact_index(engine, tmp_path):
    ids = [f"d{number}" for number in np.random.default_rng(3).permutation(90)]
    documents, queries = vectors(90, 1), vectors(12, 5)
    exact = ExactIndex.build(tmp_path / "exact", parts(ids, documents, 40), VOCAB, model="m")
    made = engine_class(engine).build(tmp_path / "index", parts(ids, documents, 40), VOCAB, model="m")
    check_same(made, exact, queries, ids)
    made.close()
    made = open_index(tmp_path / "index")
    check_same(made, exact, queries, ids)
    assert (made.model, made.stats().engine, made.stats().num_documents) == ("m", engine, 90)
    for index in (made, exact):
        assert index.delete(["d3", "d7", "nothing"]) == 2
        index.add(["d5", "new1", "d3", "new2"], vectors(4, 9), ["five", "one", "three", "two"])
        assert index.delete(["new2", "d1"]) == 2
    made.close()
    made = open_index(tmp_path / "index")
    check_same(made, exact, queries, [*ids, "new1", "new2"])
    assert [made.text(id) for id in ("d5", "new2", "d7")] == ["five", None, None]
    assert made.stats().num_documents == 89
    made.close()


def check_same(made: Index, exact: Index, queries: csr_array, ids: Sequence[str]) -> None:
    for k, only in ((1, None), (10, None), (500, None), (5, ids[3:30:2]), (5, ["nothing"]), (5, [])):
        same_hits(made.search(queries, k, only), exact.search(queries, k, only))
    nothing = csr_array((2, VOCAB), dtype=np.float32)
    assert made.search(nothing, 3) == [[], []]
    assert [made.text(id) for id in ids] == [exact.text(id) for id in ids]
    assert [made.weights(id, range(VOCAB)) for id in ids] == [exact.weights(id, range(VOCAB)) for id in ids]
    with pytest.raises(UserError, match="Queries have 31 dims, documents 30"):
        made.search(csr_array((1, 31), dtype=np.float32), 3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.integers(1, 12))
def test_qdrant_in_memory_finds_what_the_exact_index_finds(tmp_path_factory, rows, seed, k):
    ids, documents, queries = [f"d{number}" for number in range(rows)], vectors(rows, seed), vectors(4, seed + 1)
    exact = ExactIndex.build(tmp_path_factory.mktemp("exact"), lambda: [(ids, documents, None)], VOCAB)
    made = QdrantIndex.in_memory(lambda: [(ids, documents, None)], VOCAB)
    same_hits(made.search(queries, k), exact.search(queries, k))
    assert made.query_folder is None


@pytest.mark.parametrize("engine", ["exact", "qdrant"])
def test_what_cannot_be_indexed_leaves_what_was_there(engine, tmp_path):
    build = engine_class(engine).build
    ids, documents = ["a", "b"], vectors(2, 1)
    build(tmp_path / "index", lambda: [(ids, documents, None)], VOCAB).close()
    for wrong, what in ((["a", "a"], "Two documents have"), (["a"], "There are 1 ids for vectors")):
        with pytest.raises(UserError, match=what):
            build(tmp_path / "index", lambda wrong=wrong: [(wrong, documents, None)], VOCAB)
        made = open_index(tmp_path / "index")
        with pytest.raises(UserError, match=what):
            made.add(wrong, documents)
        made.close()
    made = open_index(tmp_path / "index")
    assert [made.stats().num_documents, made.text("a")] == [2, None]
    made.close()
    build(tmp_path / "index", lambda: [(["c"], vectors(1, 2), None)], VOCAB).close()
    names = sorted(path.name for path in (tmp_path / "index").iterdir() if not path.name.startswith("."))
    assert len(names) == 2  # what failed and what gave way is gone
    with pytest.raises(UserError, match=f"holds an index of the engine {engine}"):
        engine_class("qdrant" if engine == "exact" else "exact").build(tmp_path / "index", lambda: [], VOCAB)


def test_damaged_indexes_are_told(tmp_path):
    QdrantIndex.build(tmp_path / "index", lambda: [(["a"], vectors(1, 1), None)], VOCAB).close()
    for path in (tmp_path / "index" / "0000").rglob("*.json"):
        path.write_text("{")
    with pytest.raises(UserError, match="damaged index of Qdrant"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("url", "name", "what"),
    [
        ("http://127.0.0.1:9", "docs", "Qdrant does not answer"),
        ("ftp://host", "docs", "no address of Qdrant"),
        ("http://me:secret@host", "docs", "holds a password"),
        ("http://127.0.0.1:9", "Docs!", "no name for a server"),
    ],
)
def test_servers_that_cannot_be_reached_are_told(tmp_path, url, name, what):
    with pytest.raises(UserError, match=what):
        QdrantIndex.build(tmp_path / "index", lambda: [(["a"], vectors(1, 1), None)], VOCAB, server=Server(url, name))
    with pytest.raises(UserError, match="holds no index"):
        open_index(tmp_path / "index")


def test_names_on_servers_come_from_folders():
    assert default_name(Path("runs/My docs.index")) == "my_docs_index"
    assert default_name(Path("2024")) == "index_2024"
    assert len(default_name(Path("x" * 90))) == 40
