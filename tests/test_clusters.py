"""OpenSearch and Elasticsearch behind the one interface: their real clients, over HTTP, to a stand-in that computes."""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster_stand_in import Cluster, serve
from command_runs import call, command, read_json
from export_world import QUERIES, make_export_world, vectors_of
from scipy.sparse import csr_array, random_array
from tokenizers import Tokenizer

from splade_lit import export, index, search
from splade_lit.core.errors import UserError
from splade_lit.encoder.query_side import load_query_side
from splade_lit.engines.cluster_bodies import cut_to_feature, neural_sparse_body, query_body
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit, Index, Server
from splade_lit.engines.names import engine_class
from splade_lit.engines.open_index import open_index

opensearchpy = pytest.importorskip("opensearchpy")
elasticsearch = pytest.importorskip("elasticsearch")

VOCAB = 40
ENGINES = {
    "opensearch": Cluster("opensearch", "3.3.0"),
    "opensearch-seismic": Cluster("opensearch", "3.3.0"),
    "elasticsearch": Cluster("elasticsearch", "9.5.1"),
    "elasticsearch-rank-features": Cluster("elasticsearch", "8.11.0"),
}


def vectors(rows: int, seed: int, few_values: bool = False) -> csr_array:
    """Random weights; of a few values, so that scores tie."""
    made = csr_array(random_array((rows, VOCAB), density=0.3, rng=np.random.default_rng(seed), dtype=np.float32))
    made.data = np.ceil(made.data * 4) / 4 if few_values else made.data * 3
    return made.astype(np.float32)


def cut(documents: csr_array) -> csr_array:
    """As Lucene keeps them."""
    kept = documents.copy()
    kept.data = cut_to_feature(kept.data)
    return kept


@pytest.fixture
def cluster(request) -> Iterator[Cluster]:
    """A cluster that answers: that of an engine, or a product and version."""
    engine = request.param
    with serve(Cluster(ENGINES[engine].product, ENGINES[engine].version)) as running:
        yield running


def build(engine: str, cluster: Cluster, folder: Path, documents: csr_array, ids: list[str], **more: object) -> Index:
    half = len(ids) // 2
    texts = [f"text of {id}" for id in ids]
    parts = [(ids[:half], documents[:half], texts[:half]), (ids[half:], documents[half:], texts[half:])]
    server = Server(cluster.url, "docs")
    return engine_class(engine).build(folder, lambda: parts, VOCAB, server=server, **more)


def same_hits(found: list[list[Hit]], expected: list[list[Hit]]) -> None:
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
    flat = [[hit.score for hits in one for hit in hits] for one in (found, expected)]
    np.testing.assert_allclose(*flat, rtol=1e-6)


both = pytest.mark.parametrize(("engine", "cluster"), [(name, name) for name in ENGINES], indirect=["cluster"])


@both
@pytest.mark.parametrize("few_values", [False, True])
def test_hits_are_those_of_an_exact_index_of_what_the_engine_keeps(engine, cluster, tmp_path, few_values):
    ids = [f"d {number}.ä" for number in np.random.default_rng(3).permutation(90)]
    documents, queries = vectors(90, 1, few_values), vectors(8, 5, few_values)
    exact = ExactIndex.build(tmp_path / "exact", lambda: [(ids, cut(documents), None)], VOCAB)
    made = build(engine, cluster, tmp_path / "index", documents, ids, model="m")
    for opened in (made, open_index(tmp_path / "index")):
        for k, only in ((1, None), (10, None), (500, None), (5, ids[3:30:2]), (5, ["nothing"]), (5, [])):
            expected = exact.search(queries, k, only)
            if engine == "opensearch-seismic" and few_values:  # which settles no ties that it has not fetched
                flat = [
                    [hit.score for hits in one for hit in hits] for one in (opened.search(queries, k, only), expected)
                ]
                np.testing.assert_allclose(*flat, rtol=1e-6)
            else:
                same_hits(opened.search(queries, k, only), expected)
        assert opened.search(csr_array((2, VOCAB), dtype=np.float32), 3) == [[], []]
        assert [opened.weights(id, range(VOCAB)) for id in ids[:9]] == cut(documents).toarray()[:9].tolist()
        assert (opened.text(ids[3]), opened.text("x"), opened.model) == (f"text of {ids[3]}", None, "m")
        stats = opened.stats()
        assert (stats.engine, stats.num_documents, stats.num_bytes) == (engine, 90, 4096)
        opened.close()


@both
def test_documents_are_added_replaced_and_deleted(engine, cluster, tmp_path, caplog):
    ids = [f"d{number}" for number in range(20)]
    documents, more, queries = vectors(20, 1), vectors(3, 9), vectors(6, 5)
    made = build(engine, cluster, tmp_path / "index", documents, ids)
    assert any("weights are rounded, by " in message for message in caplog.messages)
    assert made.delete(["d3", "d7", "nothing"]) == 2
    made.add(["d5", "new", "d3"], more, ["five", "one", "three"])
    kept = [row for row in range(20) if ids[row] not in ("d3", "d5", "d7")]
    rows = csr_array(np.concatenate([documents.toarray()[kept], more.toarray()]))
    names = [*(ids[row] for row in kept), "d5", "new", "d3"]
    exact = ExactIndex.build(tmp_path / "exact", lambda: [(names, cut(rows), None)], VOCAB)
    same_hits(made.search(queries, 50), exact.search(queries, 50))
    assert (made.text("d5"), made.stats().num_documents) == ("five", 20)


@both
def test_another_build_takes_the_place_of_the_first(engine, cluster, tmp_path):
    documents = vectors(6, 1)
    build(engine, cluster, tmp_path / "index", documents, list("abcdef"))
    assert list(cluster.indexes) == ["docs_0000"]
    with pytest.raises(UserError, match="Two documents have the id 'a'"):
        build(engine, cluster, tmp_path / "index", documents, ["a", "b", "c", "a", "e", "f"])
    assert open_index(tmp_path / "index").stats().num_documents == 6
    made = build(engine, cluster, tmp_path / "index", documents[:4], list("abcd"))
    assert made.stats().num_documents == 4
    assert len(cluster.indexes) == 1
    cluster.indexes["docs_0000"] = next(iter(cluster.indexes.values()))
    with pytest.raises(UserError, match="has an index docs_0000 that is not of this folder"):
        build(engine, cluster, tmp_path / "other", documents, list("abcdef"))
    with pytest.raises(UserError, match="that is not of this folder"):  # and it is still there
        build(engine, cluster, tmp_path / "other", documents, list("abcdef"))
    assert "docs_0000" in cluster.indexes


@both
def test_weights_that_lucene_has_not_are_told(engine, cluster, tmp_path, caplog):
    documents = vectors(6, 1)
    made = build(engine, cluster, tmp_path / "index", documents, list("abcdef"))
    queries = vectors(1, 5)
    positive = queries.copy()
    queries.data[0] = -queries.data[0]
    positive.data[0] = 0
    positive.eliminate_zeros()
    assert made.search(queries, 5) == made.search(positive, 5)
    assert f"{engine}: 1 weights of queries are below 0, which Lucene has not, and left out." in caplog.messages
    documents.data[0] = -1
    with pytest.raises(UserError, match="finite and not negative"):
        made.add(list("abcdef"), documents)
    with pytest.raises(UserError, match="10,000 hits"):
        made.search(queries, 10_001)


def test_a_cluster_that_is_busy_gets_documents_again(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve(Cluster("opensearch", "2.19.0", puts_off=9)) as cluster:
        made = build("opensearch", cluster, tmp_path / "index", vectors(6, 1), list("abcdef"))
        assert made.stats().num_documents == 6
        cluster.puts_off = 1000
        with pytest.raises(UserError, match="is too busy to take documents"):
            made.add(["g"], vectors(1, 2))


@pytest.mark.parametrize(
    ("engine", "version", "what"),
    [
        ("opensearch-seismic", "3.2.0", "opensearch-seismic needs version 3.3"),
        ("elasticsearch", "8.14.0", "elasticsearch needs version 8.15"),
    ],
)
def test_versions_that_are_too_old_are_told(engine, version, what, tmp_path):
    with serve(Cluster(ENGINES[engine].product, version)) as cluster, pytest.raises(UserError, match=what):
        build(engine, cluster, tmp_path / "index", vectors(4, 1), list("abcd"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_does_not_answer_is_told(engine, tmp_path):
    gone = Cluster("nothing", "0")
    gone.url = "http://127.0.0.1:9"
    with pytest.raises(UserError, match="does not do what is asked"):
        build(engine, gone, tmp_path / "index", vectors(4, 1), list("abcd"))
    with pytest.raises(UserError, match="give its address with --url"):
        engine_class(engine).build(tmp_path / "index", lambda: [], VOCAB)


@pytest.mark.parametrize(("engine", "package"), [("opensearch", "opensearchpy"), ("elasticsearch", "elasticsearch")])
def test_missing_packages_are_told(engine, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    gone = Cluster("nothing", "0", url="http://127.0.0.1:9")
    with pytest.raises(UserError, match=rf"needs {package}, .* run `pip install .* '\.\[{engine}\]'`"):
        build(engine, gone, tmp_path / "index", vectors(4, 1), list("abcd"))


def test_ids_that_the_engines_refuse_are_told(tmp_path):
    with serve(Cluster("opensearch", "3.3.0")) as cluster:
        for id in ("", "ä" * 300):
            with pytest.raises(UserError, match="is empty or longer than 512 bytes"):
                build("opensearch", cluster, tmp_path / "index", vectors(2, 1), ["a", id])


def test_seismic_spreads_8_bits_up_to_the_largest_weights(tmp_path):
    """In its approximate search, where weights above the ceilings that it has by default would be cut."""
    documents, queries, ids = vectors(60, 1), vectors(8, 5), [f"d{number}" for number in range(60)]
    documents.data *= 4  # up to 12, where 3 is the ceiling by default
    with serve(Cluster("opensearch", "3.3.0", approximate=True)) as cluster:
        made = build("opensearch-seismic", cluster, tmp_path / "index", documents, ids)
        (index,) = cluster.indexes.values()
        parameters = index.mapping["method"]["parameters"]
        largest = float(documents.data.max())
        assert largest <= parameters["quantization_ceiling_ingest"] <= largest + 0.01
        exact = ExactIndex.build(tmp_path / "exact", lambda: [(ids, documents, None)], VOCAB)
        for found, expected in zip(made.search(queries, 10), exact.search(queries, 60), strict=True):
            scores = dict(expected)
            for hit in found:
                assert hit.score == pytest.approx(scores[hit.id], rel=0.05)
            assert len({hit.id for hit in found} & {hit.id for hit in expected[:10]}) >= 8
    with pytest.raises(UserError, match="at most 65,536 dims"):
        engine_class("opensearch-seismic").build(
            tmp_path / "large", lambda: [], 70_000, server=Server("http://127.0.0.1:9", "docs")
        )


def test_pruning_that_is_on_by_default_would_lose_hits():
    """What the query switches off: a frequent token of small weight is left out by Elasticsearch 9."""
    documents = {f"d{row}": {"common": 1.0, **({"rare": 1.0} if row == 3 else {})} for row in range(50)}
    documents |= {f"x{n}": {f"t{n}": 1.0} for n in range(50)}
    with serve(Cluster("elasticsearch", "9.5.1")) as cluster, elasticsearch.Elasticsearch(cluster.url) as client:
        client.indices.create(index="docs", body={"mappings": {"properties": {"vector": {"type": "sparse_vector"}}}})
        lines = [line for id, v in documents.items() for line in ({"index": {"_id": id}}, {"vector": v})]
        client.bulk(index="docs", operations=lines)
        body = query_body("elasticsearch", "sparse_vector", {"common": 0.1, "rare": 1.0}, 100)
        assert len(client.search(index="docs", body=body)["hits"]["hits"]) == 50
        del body["query"]["sparse_vector"]["prune"]
        assert len(client.search(index="docs", body=body)["hits"]["hits"]) == 1


def test_names_and_weights_are_refused_as_by_real_clusters():
    with serve(Cluster("elasticsearch", "9.5.1")) as cluster, elasticsearch.Elasticsearch(cluster.url) as client:
        client.indices.create(index="docs", body={"mappings": {"properties": {"vector": {"type": "rank_features"}}}})
        for vector, what in (
            ({".": 1.0}, "do not support dots"),
            ({"a": 0}, "positive normal"),
            ({"a": -1}, "positive"),
        ):
            answer = client.bulk(index="docs", operations=[{"index": {"_id": "a"}}, {"vector": vector}])
            assert answer["errors"]
            assert what in answer["items"][0]["index"]["error"]["reason"]
        body = query_body("elasticsearch", "rank_features", {"a": -1.0}, 3)
        with pytest.raises(elasticsearch.BadRequestError, match="negative"):
            client.search(index="docs", body=body)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer, make_masked_lm) -> Path:
    """A folder with a model, a corpus, queries, and vectors of the corpus."""
    return make_export_world(tmp_path_factory.mktemp("clusters"), tiny_tokenizer, make_masked_lm)


def client_of(cluster: Cluster):
    if cluster.product == "opensearch":
        return opensearchpy.OpenSearch(hosts=[cluster.url])
    return elasticsearch.Elasticsearch(cluster.url)


def loaded(client, folder: Path) -> None:
    """Load the files of an export, as curl would."""
    client.indices.create(index="docs", body=read_json(folder / "create_index.json"))
    for path in sorted(folder.glob("bulk-*.ndjson")):
        answer = client.bulk(index="docs", body=path.read_text())
        assert not answer["errors"], answer["items"][:3]


def hits_of(answer) -> list[Hit]:
    return [Hit(hit["_id"], hit["_score"]) for hit in answer["hits"]["hits"]]


@pytest.mark.parametrize("field", ["rank_features", "sparse_vector"])
@pytest.mark.parametrize("product", ["opensearch", "elasticsearch"])
@pytest.mark.parametrize("rounds", [False, True])
def test_files_of_an_export_find_what_the_exact_index_finds(world, tmp_path, product, field, rounds):
    given = ("--model", world / "model", "--vectors", world / "vectors", "--queries-file", world / "queries.jsonl")
    made = call(export.main, product, *given, "--field", field, "--output", tmp_path / "out")
    assert made.code == 0, made.err
    ids, documents = vectors_of(world)
    kept = cut(documents) if rounds else documents
    exact = ExactIndex.build(tmp_path / "exact", lambda: [(ids, kept, None)], documents.shape[1])
    queries = load_query_side(world / "model").encode(list(QUERIES.values()))
    with serve(Cluster(product, "3.3.0" if product == "opensearch" else "9.5.1", rounds=rounds)) as cluster:
        client = client_of(cluster)
        loaded(client, tmp_path / "out")
        answer = client.msearch(index="docs", body=(tmp_path / "out" / "msearch.ndjson").read_text())
        found = [hits_of(one) for one in answer["responses"]]
        flat = [[hit.score for hits in one for hit in hits] for one in (found, exact.search(queries, 10))]
        np.testing.assert_allclose(*flat, rtol=1e-6)
        for hits, scores in zip(found, map(dict, exact.search(queries, 15)), strict=True):
            for hit in hits:
                assert hit.score == pytest.approx(scores[hit.id], rel=1e-6)
        assert client.search(index="docs", body=read_json(tmp_path / "out" / "query.json"))["hits"]["hits"]


def test_the_cluster_looks_queries_up_itself(world, tmp_path):
    given = ("--model", world / "model", "--vectors", world / "vectors")
    made = call(export.main, "opensearch", *given, "--doc-only", "--output", tmp_path / "out")
    assert made.code == 0, made.err
    ids, documents = vectors_of(world)
    exact = ExactIndex.build(tmp_path / "exact", lambda: [(ids, cut(documents), None)], documents.shape[1])
    side = load_query_side(world / "model")
    with (
        serve(Cluster("opensearch", "3.3.0")) as cluster,
        zipfile.ZipFile(tmp_path / "out" / "tokenizer.zip") as archive,
    ):
        engine = Tokenizer.from_str(archive.read("tokenizer.json").decode())
        cluster.models["m"] = engine, json.loads(archive.read("idf.json"))
        client = client_of(cluster)
        loaded(client, tmp_path / "out")
        for text in QUERIES.values():
            expected = dict(exact.search(side.encode(text), 15)[0])
            by_text = hits_of(client.search(index="docs", body=neural_sparse_body(15, text=text, model_id="m")))
            by_token = hits_of(client.search(index="docs", body=neural_sparse_body(15, weights=side.terms(text))))
            assert dict(by_text) == pytest.approx(expected, rel=1e-6)
            assert dict(by_token) == pytest.approx(expected, rel=1e-6)


@both
def test_the_commands_build_search_and_change(world, engine, cluster, tmp_path, caplog):
    exact, made = tmp_path / "exact", tmp_path / "index"
    given = ("--model", world / "model", "--vectors", world / "vectors", "--corpus", world / "docs.jsonl")
    assert call(index.main, *given, "--output", exact).code == 0
    unmeasured = "What rounded weights cost in nDCG@10 was not measured; give --tasks to know."
    assert unmeasured not in caplog.messages
    built = call(index.main, *given, "--engine", engine, "--url", cluster.url, "--output", made)
    assert built.code == 0, built.err
    assert built.last_line == f"index: {made}  documents 15  4,096 bytes"
    assert caplog.messages.count(unmeasured) == 1
    found = [call(search.main, "--index", folder, "the river", "song.") for folder in (exact, made)]
    assert found[1].code == 0, found[1].err
    ranks = [[line.split()[0] for line in one.out.splitlines() if line.strip()[:1].isdigit()] for one in found]
    assert ranks[0] == ranks[1]
    assert call(index.main, "--delete", "d 1", "--output", made).last_line.startswith(f"index: {made}  documents 14")
    added = call(index.main, *given, "--add", "--output", made)
    assert added.code == 0, added.err
    assert added.last_line.startswith(f"index: {made}  documents 15")


def test_a_query_on_a_cluster_loads_neither_torch_nor_transformers(world, tmp_path):
    with serve(Cluster("opensearch", "3.3.0")) as cluster:
        given = ("--model", world / "model", "--vectors", world / "vectors", "--output", tmp_path / "index")
        assert call(index.main, *given, "--engine", "opensearch", "--url", cluster.url).code == 0
        code = (
            f"import sys\nfrom splade_lit.search import main\nmain(['--index', {str(tmp_path / 'index')!r}, 'song'])\n"
        )
        (tmp_path / "run.py").write_text(f"{code}print(sorted({{'torch', 'transformers'}} & sys.modules.keys()))\n")
        outcome = command("run", cwd=tmp_path)
        assert outcome.out.splitlines()[-1] == "[]", outcome.err
