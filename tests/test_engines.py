"""Every engine behind the one interface: hits, changes and filters as of the exact index, builds that are whole."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from command_runs import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array
from servers import qdrant_stand_in
from tokenizers import BertWordPieceTokenizer

from splade_lit.core.errors import UserError
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit, Index, IndexStats, Server, default_name
from splade_lit.engines.names import engine_class
from splade_lit.engines.open_index import open_index
from splade_lit.engines.pgvector import PgvectorIndex
from splade_lit.engines.qdrant import QdrantIndex
from splade_lit.engines.seismic import SeismicIndex

VOCAB = 30
ENGINES = ["exact", "qdrant", "pgvector", "seismic"]


def vectors(rows: int, seed: int, density: float = 0.3) -> csr_array:
    """Random weights of a few values, so that scores tie."""
    made = random_array((rows, VOCAB), density=density, rng=np.random.default_rng(seed), dtype=np.float32)
    made.data = np.round(made.data * 4) / 4
    made = csr_array(made)
    made.eliminate_zeros()
    return made


def same_hits(found: list[list[Hit]], expected: list[list[Hit]]) -> None:
    """The same documents in the same order, with scores that are equal but for rounding."""
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
    flat = [[hit.score for hits in one for hit in hits] for one in (found, expected)]
    np.testing.assert_allclose(*flat, rtol=1e-6)


def parts(ids: Sequence[str], documents: csr_array, cut: int) -> Callable[[], list]:
    texts = [f"text of {id}" for id in ids]
    return lambda: [(ids[:cut], documents[:cut], texts[:cut]), (ids[cut:], documents[cut:], texts[cut:])]


@pytest.fixture
def build(request, tmp_path) -> Callable[..., Index]:
    """Function of an engine, parts and dims: an index in `index`, pgvector's on a server of the tests."""

    def made(
        engine: str, documents: Callable[[], list], vocab_size: int = VOCAB, folder: str = "index", **more: object
    ):
        server = None
        if engine == "pgvector":
            name = "t_" + "".join(letter for letter in request.node.name.lower() if letter.isalnum())[:30]
            server = Server(request.getfixturevalue("postgres_url"), name)
        return engine_class(engine).build(tmp_path / folder, documents, vocab_size, server=server, **more)

    return made


@pytest.mark.parametrize("engine", ["qdrant", "pgvector"])
def test_hits_changes_and_filters_are_those_of_the_exact_index(build, engine, tmp_path):
    ids = [f"d{number}" for number in np.random.default_rng(3).permutation(90)]
    documents, queries = vectors(90, 1), vectors(12, 5)
    exact = build("exact", parts(ids, documents, 40), folder="exact", model="m")
    made = build(engine, parts(ids, documents, 40), model="m")
    check_same(made, exact, queries, ids)
    made.close()
    made = open_index(tmp_path / "index")
    check_same(made, exact, queries, ids)
    assert (made.model, made.stats().engine, made.stats().num_documents) == ("m", engine, 90)
    for one in (made, exact):
        assert one.delete(["d3", "d7", "nothing"]) == 2
        one.add(["d5", "new1", "d3", "new2"], vectors(4, 9), ["five", "one", "three", "two"])
        assert one.delete(["new2", "d1"]) == 2
    made.close()
    made = open_index(tmp_path / "index")
    check_same(made, exact, queries, [*ids, "new1", "new2"])
    assert [made.text(id) for id in ("d5", "new2", "d7")] == ["five", None, None]
    assert made.stats().num_documents == 89
    made.close()


def check_same(made: Index, exact: Index, queries: csr_array, ids: Sequence[str]) -> None:
    for k, only in ((1, None), (10, None), (500, None), (5, ids[:30:2]), (5, ["nothing"]), (5, [])):
        same_hits(made.search(queries, k, only), exact.search(queries, k, only))
    nothing = csr_array((2, VOCAB), dtype=np.float32)
    assert made.search(nothing, 3) == [[], []]
    assert [made.text(id) for id in ids] == [exact.text(id) for id in ids]
    assert [made.weights(id, range(VOCAB)) for id in ids] == [exact.weights(id, range(VOCAB)) for id in ids]
    with pytest.raises(UserError, match="Queries have 31 dims, documents 30"):
        made.search(csr_array((1, 31), dtype=np.float32), 3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["qdrant", "pgvector"])
def test_hits_on_real_texts_are_those_of_the_exact_index(build, engine, shared_data):
    """NFCorpus in WordPieces: documents weigh the logarithm of a count, queries the IDF that OpenSearch has."""
    names = (shared_data / "bert-uncased" / "vocab.txt").read_text().splitlines()
    cut = BertWordPieceTokenizer(str(shared_data / "bert-uncased" / "vocab.txt"))
    idf = json.loads((shared_data / "bert-uncased" / "idf.json").read_text())
    table = np.array([idf.get(name, 0) for name in names], np.float32)

    def read(name: str) -> tuple[list[str], csr_array]:
        with gzip.open(shared_data / "beir" / "nfcorpus" / f"{name}.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for line in lines][:2000]
        found = [cut.encode(row["text"], add_special_tokens=False).ids for row in rows]
        starts = np.cumsum([0, *map(len, found)])
        made = csr_array(
            (np.ones(starts[-1]), np.concatenate(found).astype(int), starts), shape=(len(rows), len(names))
        )
        made.sum_duplicates()
        return [row["_id"] for row in rows], made

    ids, documents = read("corpus")
    documents.data = np.log1p(documents.data).astype(np.float32)
    queries = read("queries")[1][:200]
    queries.data = table[queries.indices]
    exact = build("exact", parts(ids, documents, 900), len(names), folder="exact")
    made = build(engine, parts(ids, documents, 900), len(names))
    same_hits(made.search(queries, 100), exact.search(queries, 100))
    made.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.integers(1, 12))
def test_qdrant_in_memory_finds_what_the_exact_index_finds(tmp_path_factory, rows, seed, k):
    ids, documents, queries = [f"d{number}" for number in range(rows)], vectors(rows, seed), vectors(4, seed + 1)
    exact = ExactIndex.build(tmp_path_factory.mktemp("exact"), lambda: [(ids, documents, None)], VOCAB)
    made = QdrantIndex.in_memory(lambda: [(ids, documents, None)], VOCAB)
    same_hits(made.search(queries, k), exact.search(queries, k))
    assert (made.query_folder, made.delete(["d0"])) == (None, 1)


@pytest.mark.parametrize("vocab_size", [VOCAB, 70_000])
def test_seismic_scores_are_exact_and_few_documents_are_missing(build, tmp_path, vocab_size):
    ids = [f"d{number}" for number in range(400)]
    rng = np.random.default_rng(2)
    dims = rng.integers(0, vocab_size, VOCAB)
    documents, queries = (
        csr_array((one.data, dims[one.indices], one.indptr), shape=(one.shape[0], vocab_size)).sorted_indices()
        for one in (csr_array(random_array((rows, VOCAB), density=0.2, rng=rng)) for rows in (400, 40))
    )
    for one in (documents, queries):
        one.sum_duplicates()
    exact = build("exact", parts(ids, documents, 100), vocab_size, folder="exact")
    made = build("seismic", parts(ids, documents, 100), vocab_size)
    for opened in (made, open_index(tmp_path / "index")):
        found, expected = opened.search(queries, 10), exact.search(queries, 400)
        for hits, all_hits in zip(found, expected, strict=True):
            scores = dict(all_hits)
            assert hits == sorted(((id, scores[id]) for id, _ in hits), key=lambda hit: (-hit[1], hit[0]))
        best = [{hit.id for hit in hits[:10]} for hits in expected]
        shared = sum(len(best[row] & dict(hits).keys()) for row, hits in enumerate(found))
        assert shared >= 0.9 * sum(map(len, best))
        assert opened.search(queries, 5, ids[:50]) == exact.search(queries, 5, ids[:50])
        assert opened.search(csr_array((1, vocab_size), dtype=np.float32), 5) == [[]]
        assert (opened.text("d3"), opened.text("x")) == ("text of d3", None)
        some = list(range(VOCAB))
        assert opened.weights("d3", some) == exact.weights("d3", some)
    for change in (lambda: made.add(["a"], documents[[0]]), lambda: made.delete(["d3"])):
        with pytest.raises(UserError, match="Seismic cannot change an index; build it again"):
            change()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_indexed_leaves_what_was_there(build, engine, tmp_path):
    build(engine, lambda: [(["a", "b"], vectors(2, 1), None)]).close()
    for wrong, what in ((["a", "a"], "Two documents have the id 'a'"), (["a"], "There are 1 ids for vectors")):
        with pytest.raises(UserError, match=what):
            build(engine, lambda wrong=wrong: [(wrong, vectors(2, 1), None)])
    with pytest.raises(UserError, match="Two documents have"):
        build(engine, lambda: [(["a"], vectors(1, 1), None), (["a"], vectors(1, 1), None)])
    made = open_index(tmp_path / "index")
    assert [made.stats().num_documents, made.text("a")] == [2, None]
    made.close()
    build(engine, lambda: [(["c"], vectors(1, 2), None)]).close()
    names = sorted(path.name for path in (tmp_path / "index").iterdir() if not path.name.startswith("."))
    assert len(names) == 2  # what failed and what gave way is gone
    with pytest.raises(UserError, match=f"holds an index of the engine {engine}"):
        engine_class("qdrant" if engine == "exact" else "exact").build(tmp_path / "index", lambda: [], VOCAB)


def test_tables_that_gave_way_or_were_left_are_dropped(build, tmp_path, postgres_url):
    import psycopg

    def tables() -> list[str]:
        with psycopg.connect(postgres_url) as connection:
            found = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 't\\_testtablesthat%'")
            return sorted(name for (name,) in found)

    def fails() -> Iterator[tuple]:
        yield ["a"], vectors(1, 1), None
        raise UserError("the corpus is gone")

    made = build("pgvector", lambda: [(["a"], vectors(1, 1), ["with\0 nothing"])])
    assert made.text("a") == "with nothing"
    made.close()
    with pytest.raises(UserError, match="the corpus is gone"):
        build("pgvector", fails)
    (first,) = tables()
    made = build("pgvector", lambda: [(["b"], vectors(1, 1), None)])
    made.close()
    (second,) = tables()
    assert first != second
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'ALTER TABLE "{second}" RENAME TO "{second}_moved"')
    with pytest.raises(UserError, match="has no table"):
        open_index(tmp_path / "index")


@pytest.mark.skipif(os.geteuid() == 0, reason="PostgreSQL does not run as the superuser")
def test_postgresql_runs_in_the_folder_of_an_index(tmp_path):
    made = PgvectorIndex.build(tmp_path / "index", lambda: [(["a", "b"], vectors(2, 1), None)], VOCAB)
    found = made.search(vectors(2, 1), 3)
    made.close()
    opened = open_index(tmp_path / "index")
    assert opened.search(vectors(2, 1), 3) == found
    opened.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="it is the superuser who cannot")
def test_the_superuser_is_told_that_postgresql_does_not_run(tmp_path):
    with pytest.raises(UserError, match="does not run as the superuser"):
        PgvectorIndex.build(tmp_path / "index", lambda: [(["a"], vectors(1, 1), None)], VOCAB)


def test_qdrant_on_a_server_is_asked_what_it_understands(tmp_path):
    """The real client, over a real connection, to a server that answers from a collection in its memory."""
    ids = [f"d{number}" for number in range(90)]
    documents, queries = vectors(90, 1), vectors(34, 5)
    exact = ExactIndex.build(tmp_path / "exact", parts(ids, documents, 40), VOCAB)
    with qdrant_stand_in() as server:
        place = Server(server.url, "docs")
        QdrantIndex.build(tmp_path / "index", parts(ids, documents, 40), VOCAB, server=place).close()
        with pytest.raises(UserError, match="a collection docs_0000 that is not of this folder"):
            QdrantIndex.build(tmp_path / "other", parts(ids, documents, 40), VOCAB, server=place)
        made = open_index(tmp_path / "index")
        check_same(made, exact, queries, ids[:4])
        for one in (made, exact):
            assert one.delete(["d3", "nothing"]) == 1
            one.add(["d5", "new"], vectors(2, 9), ["five", "one"])
        check_same(made, exact, queries, ["d3", "d5", "new"])
        assert made.stats() == IndexStats("qdrant", 90, None, None)
        made.close()
        rebuilt = QdrantIndex.build(tmp_path / "index", parts(ids, documents, 40), VOCAB, server=place)
        rebuilt.close()
        assert server.collections() == ["docs_0001"]
        server.drop("docs_0001")
        with pytest.raises(UserError, match="has no collection docs_0001"):
            open_index(tmp_path / "index")
    with pytest.raises(UserError, match="Qdrant does not answer"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("engine", ["qdrant", "pgvector"])
def test_an_index_that_was_built_again_is_not_changed(build, engine, tmp_path):
    opened = build(engine, lambda: [(["a"], vectors(1, 1), None)])
    build(engine, lambda: [(["b"], vectors(1, 1), None)]).close()
    for change in (lambda: opened.add(["c"], vectors(1, 2)), lambda: opened.delete(["b"])):
        with pytest.raises(UserError, match="has been built again meanwhile; open it again for changes"):
            change()
    opened.close()
    opened = open_index(tmp_path / "index")
    opened.add(["c"], vectors(1, 2))
    assert opened.stats().num_documents == 2
    opened.close()


def test_limits_of_pgvector(build):
    long = csr_array(np.ones((2, 20_000), np.float32))
    made = build("pgvector", lambda: [(["a", "b"], long, None)], 20_000)
    assert made.stats().num_postings == 32_000
    made.close()


def test_files_of_qdrant_are_for_one_process_at_a_time(build, tmp_path):
    made = build("qdrant", lambda: [(["a"], vectors(1, 1), None)])
    code = f"from splade_lit.engines.open_index import open_index; open_index({str(tmp_path / 'index')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert "is open in another process" in done.stderr
    made.close()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.parametrize("damage", ["cut", "lost"])
@pytest.mark.parametrize("engine", ["qdrant", "seismic"])
def test_damaged_indexes_are_told(build, engine, damage, tmp_path):
    build(engine, lambda: [(["a"], vectors(1, 1), None)]).close()
    pattern = "segment.json" if engine == "qdrant" else "*.seismic"
    for path in (tmp_path / "index" / "0000").rglob(pattern):
        if damage == "lost":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-9])
    if engine == "qdrant" and damage == "lost":
        (tmp_path / "index" / "0000" / "edge_config.json").unlink()
    with pytest.raises(UserError, match="holds a damaged index"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("engine", "url", "name", "what"),
    [
        (QdrantIndex, "http://127.0.0.1:9", "docs", "Qdrant does not answer"),
        (QdrantIndex, "ftp://host", "docs", "no address of Qdrant"),
        (QdrantIndex, "http://me:secret@host", "docs", "holds a password"),
        (QdrantIndex, "http://127.0.0.1:9", "Docs!", "no name for a server"),
        (PgvectorIndex, "postgresql://127.0.0.1:9/db", "docs", "PostgreSQL does not answer"),
        (PgvectorIndex, "mysql://host", "docs", "no address of PostgreSQL"),
        (PgvectorIndex, "postgresql://me:secret@host/db", "docs", "holds a password"),
        (SeismicIndex, "http://host", "docs", "is in files"),
        (ExactIndex, "http://host", "docs", "is in files"),
    ],
)
def test_servers_that_cannot_be_reached_are_told(tmp_path, engine, url, name, what):
    with pytest.raises(UserError, match=what):
        engine.build(tmp_path / "index", lambda: [(["a"], vectors(1, 1), None)], VOCAB, server=Server(url, name))
    with pytest.raises(UserError, match="holds no index"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("engine", "module"), [("qdrant", "qdrant_edge"), ("seismic", "seismic"), ("pgvector", "psycopg")]
)
def test_packages_that_are_missing_are_told_before_anything_is_read(tmp_path, monkeypatch, engine, module):
    monkeypatch.setitem(sys.modules, module, None)
    server = Server("postgresql://127.0.0.1:9/db", "docs") if engine == "pgvector" else None
    with pytest.raises(UserError, match=rf"run `pip install -c constraints\.txt -e '\.\[{engine}\]'`"):
        engine_class(engine).check(tmp_path / "index", server)


def test_names_on_servers_come_from_folders():
    assert default_name(Path("runs/My docs.index")) == "my_docs_index"
    assert default_name(Path("2024")) == "index_2024"
    assert len(default_name(Path("x" * 90))) == 40
