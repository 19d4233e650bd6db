"""Changes of an index on a cluster, and addresses that are none of a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from cluster_stand_in import Cluster, StoredIndex, serve
from scipy.sparse import csr_array
from test_build_folders import IDS, build
from test_engines import VOCAB, vectors

from splade_lit.core.errors import UserError
from splade_lit.engines.index import Server
from splade_lit.engines.names import engine_class
from splade_lit.engines.open_index import open_index

pytest.importorskip("opensearchpy")
pytest.importorskip("elasticsearch")


@dataclass
class ClosedCluster(Cluster):
    """Documents cannot be deleted while it is closed."""

    closed: bool = False

    def _write(self, index: StoredIndex, action: str, id: str, source: dict | None) -> dict:
        if self.closed and source is None:
            return {"status": 403, "error": {"type": "cluster_block_exception", "reason": "index [docs] is blocked"}}
        return super()._write(index, action, id, source)


@pytest.fixture
def cluster() -> Iterator[ClosedCluster]:
    with serve(ClosedCluster("opensearch", "3.3.0")) as running:
        yield running


def test_documents_that_a_cluster_does_not_delete_are_told(cluster, tmp_path):
    made = build(tmp_path / "index", cluster)
    cluster.closed = True
    with pytest.raises(UserError, match=r"does not delete 'a': index \[docs\] is blocked"):
        made.delete(["a"])
    cluster.closed = False
    assert made.delete(["a", "nothing"]) == 1


def test_an_index_that_was_built_again_or_removed_is_not_changed(cluster, tmp_path):
    made = build(tmp_path / "index", cluster)
    build(tmp_path / "index", cluster).close()
    for change in (lambda: made.add(IDS, vectors(2, 1)), lambda: made.delete(IDS)):
        with pytest.raises(UserError, match="has been built again meanwhile"):
            change()
    made = open_index(tmp_path / "index")
    made.add(["c"], vectors(1, 2))
    assert made.stats().num_documents == 3
    cluster.indexes.clear()
    cluster.requests.clear()
    with pytest.raises(UserError, match="has no index docs_0001"):
        made.add(IDS, vectors(2, 1))
    assert not [path for _, path in cluster.requests if path.endswith("_bulk")]


@pytest.mark.parametrize(
    ("engine", "url"),
    [
        ("elasticsearch", "localhost:9200"),
        ("elasticsearch", "http://localhost"),
        ("elasticsearch", "http://localhost:port"),
        ("opensearch", "http://localhost:port"),
        ("opensearch", "http://localhost:99999"),
    ],
)
def test_what_is_no_address_is_told(engine, url, tmp_path):
    with pytest.raises(UserError, match=r"is no address of a cluster .*such as http://localhost:9200"):
        engine_class(engine).build(tmp_path / "index", lambda: [], VOCAB, server=Server(url, "docs"))


def test_a_server_that_is_no_cluster_is_told(tmp_path):
    class Other(Cluster):
        def answer(self, method: str, path: str, parameters: dict[str, str], body: str) -> object:
            return "hello"

    with serve(Other("opensearch", "3.3.0")) as other, pytest.raises(UserError, match="is no address of a cluster"):
        build(tmp_path / "index", other)


@pytest.mark.parametrize("engine", ["opensearch", "elasticsearch-rank-features"])
def test_the_heaviest_tokens_of_a_very_long_query_count(engine, tmp_path, caplog):
    weights = np.linspace(2, 1, 1_100, dtype=np.float32)
    documents = csr_array(np.stack([weights, np.where(np.arange(1_100) < 1_000, 0, 1).astype(np.float32)]))
    product, version = ("opensearch", "3.3.0") if engine == "opensearch" else ("elasticsearch", "8.11.0")
    with serve(Cluster(product, version)) as running:
        made = engine_class(engine).build(
            tmp_path / "index", lambda: [(IDS, documents, None)], 1_100, server=Server(running.url, "docs")
        )
        shorter = csr_array(np.where(np.arange(1_100) < 1_024, weights, 0)[None].astype(np.float32))
        expected = made.search(shorter, 2)
        assert made.search(csr_array(weights[None]), 2) == expected
        assert f"{engine}: a query has more than 1,024 tokens" in caplog.text
        assert [hit.id for hit in made.search(csr_array(weights[None]), 2, IDS)[0]] == IDS
