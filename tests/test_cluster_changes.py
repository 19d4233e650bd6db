"""Changes of an index on a cluster, and addresses that are none of a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cluster_stand_in import Cluster, StoredIndex, serve
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
