"""What builds leave in a folder and on a server, and what is somebody else's there."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_stand_in import Cluster, Refusal, serve
from servers import qdrant_stand_in
from test_engines import VOCAB, vectors

from splade_lit.core.errors import UserError
from splade_lit.engines.connection import Connection
from splade_lit.engines.index import Index, Server
from splade_lit.engines.known_hosts import check_known
from splade_lit.engines.names import engine_class
from splade_lit.engines.open_index import open_index
from splade_lit.engines.pgvector import PgvectorIndex, _Table
from splade_lit.engines.qdrant import QdrantIndex
from splade_lit.engines.qdrant_points import ClientPoints

pytest.importorskip("opensearchpy")

IDS = ["a", "b"]


def build(folder: Path, cluster: Cluster, engine: str = "opensearch", name: str = "docs") -> Index:
    parts = [(IDS, vectors(2, 1), None)]
    return engine_class(engine).build(folder, lambda: parts, VOCAB, server=Server(cluster.url, name))


class LateCluster(Cluster):
    """Somebody else makes an index between the question whether a name is free and the next request."""

    def answer(self, method: str, path: str, parameters: dict[str, str], body: str) -> object:
        if method == "HEAD" and path == "/docs_0000":
            raise Refusal("no such index", 404)
        return super().answer(method, path, parameters, body)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serve(Cluster("opensearch", "3.3.0")) as running:
        yield running


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("engine", ["opensearch", "opensearch-seismic"])
def test_a_build_that_is_stopped_takes_nothing_of_somebody_else(engine, cluster, tmp_path):
    build(tmp_path / "first", cluster).close()
    theirs = cluster.indexes["docs_0000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "create", stopped)
        patch.setattr(engine_class(engine), "_measured_ceilings", classmethod(stopped))
        with pytest.raises((KeyboardInterrupt, UserError)):
            build(tmp_path / "second", cluster, engine)
    with pytest.raises(UserError, match="has an index docs_0000 that is not of this folder"):
        build(tmp_path / "second", cluster, engine)
    assert cluster.indexes["docs_0000"] is theirs


def test_an_index_that_is_made_meanwhile_is_somebody_elses(tmp_path):
    with serve(LateCluster("opensearch", "3.3.0")) as cluster:
        cluster._create("docs_0000", {"mappings": {"properties": {"vector": {"type": "rank_features"}}}})
        theirs = cluster.indexes["docs_0000"]
        for _ in range(2):
            with pytest.raises(UserError, match="that is not of this folder"):
                build(tmp_path / "index", cluster)
            assert cluster.indexes["docs_0000"] is theirs
            assert not (tmp_path / "index" / "0000").exists()


def test_a_collection_of_somebody_else_stays(tmp_path):
    with qdrant_stand_in() as server:
        arguments = (lambda: [(IDS, vectors(2, 1), None)], VOCAB)
        place = Server(server.url, "docs")
        QdrantIndex.build(tmp_path / "first", *arguments, server=place).close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClientPoints, "create", stopped)
            with pytest.raises((KeyboardInterrupt, UserError)):
                QdrantIndex.build(tmp_path / "second", *arguments, server=place)
        with pytest.raises(UserError, match="that is not of this folder"):
            QdrantIndex.build(tmp_path / "second", *arguments, server=place)
        made = open_index(tmp_path / "first")
        assert made.stats().num_documents == 2
        made.close()


def test_what_a_build_has_written_goes_away_once_its_server_is_there(cluster, tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "send", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", cluster)
    assert list(cluster.indexes) == ["docs_0000"]

    def away(*_: object) -> None:
        raise UserError("it is away")

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Connection, "drop", away)
            build(tmp_path / "index", cluster).close()
    assert any("stays there until the next one: it is away" in message for message in caplog.messages)
    assert len(cluster.indexes) == 3
    build(tmp_path / "index", cluster).close()
    assert list(cluster.indexes) == ["docs_0003"]


def test_a_build_that_fails_leaves_nothing(cluster, tmp_path):
    build(tmp_path / "index", cluster).close()

    def fails() -> Iterator[tuple]:
        yield IDS, vectors(2, 1), None
        raise UserError("the corpus is gone")

    with pytest.raises(UserError, match="the corpus is gone"):
        engine_class("opensearch").build(tmp_path / "index", fails, VOCAB, server=Server(cluster.url, "docs"))
    assert list(cluster.indexes) == ["docs_0000"]
    open_index(tmp_path / "index").close()


@pytest.mark.parametrize("engine", ["exact", "opensearch"])
@pytest.mark.parametrize("damage", ["cut", "newer"])
def test_a_damaged_index_is_built_again(engine, damage, cluster, tmp_path):
    def made() -> Index:
        if engine == "opensearch":
            return build(tmp_path / "index", cluster)
        return engine_class("exact").build(tmp_path / "index", lambda: [(IDS, vectors(2, 1), None)], VOCAB)

    made().close()
    header = tmp_path / "index" / "index.json"
    content = json.loads(header.read_text())
    header.write_text(header.read_text()[:20] if damage == "cut" else json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match=r"build .*again"):
        open_index(tmp_path / "index")
    made().close()
    assert open_index(tmp_path / "index").stats().num_documents == 2
    assert len([path for path in (tmp_path / "index").iterdir() if not path.name.startswith(".")]) == 2
    assert list(cluster.indexes) in ([], ["docs_0001"])


def test_a_damaged_file_alone_could_be_anybodys(tmp_path):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match="is in use and holds no index"):
        engine_class("exact").build(tmp_path, lambda: [], VOCAB)


def test_a_name_without_room_for_a_number_is_told_before_anything_is_read(cluster, tmp_path):
    build(tmp_path / "index", cluster, name="n" * 50).close()
    with pytest.raises(UserError, match="give a name of 50 letters at most"):
        engine_class("opensearch").check(tmp_path / "other", Server(cluster.url, "n" * 51))


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@host",
        "https://token@host",
        "http://host:6333?api_key=secret",
        "postgresql://me:se%2Fcret@host/db",
        "postgresql://host/db?sslmode=require&sslpassword=secret",
        "postgresql://host/db?p%61ssword=secret",
        "http://host/?access_token=secret",
    ],
)
def test_secrets_in_addresses_are_refused(url):
    with pytest.raises(UserError, match="holds a password or a key"):
        Server(url, "docs")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@host/db?passfile=/home/me/.pgpass&sslkey=/home/me/key.pem&keepalives=1",
        "postgresql://me@/postgres?host=%2Ftmp%2Fsockets",
        "https://host:9200/a/path",
    ],
)
def test_addresses_without_secrets_are_taken(url):
    assert Server(url, "docs").url == url


def named_elsewhere(folder: Path, engine: str, url: str) -> Path:
    """An index as a stranger could send it."""
    (folder / "0000").mkdir(parents=True)
    content = {"engine": engine, "format": 1, "vocab_size": VOCAB, "name": "0000", "query": None, "model": None}
    (folder / "index.json").write_text(json.dumps(content | {"server": {"url": url, "name": "docs_0000"}}))
    return folder


@pytest.mark.parametrize(
    ("engine", "url", "secrets", "variable"),
    [
        ("opensearch", "http://host.invalid:9200", ["OPENSEARCH_PASSWORD", "OPENSEARCH_USER"], "OPENSEARCH_URL"),
        ("elasticsearch", "http://host.invalid:9200", ["ELASTICSEARCH_API_KEY"], "ELASTICSEARCH_URL"),
        ("qdrant", "http://host.invalid:6333", ["QDRANT_API_KEY"], "QDRANT_URL"),
        ("pgvector", "postgresql://localhost/db?host=host.invalid", ["PGPASSWORD"], "PGVECTOR_URL"),
    ],
)
def test_secrets_go_to_known_servers_alone(engine, url, secrets, variable, tmp_path, monkeypatch):
    monkeypatch.setattr("splade_lit.engines.known_hosts._given", set())
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    folder = named_elsewhere(tmp_path / "index", engine, url)
    asks = re.escape(f"server is {url}, which would get {secrets[0]}; set {variable} to this address")
    with pytest.raises(UserError, match=asks):
        open_index(folder)
    monkeypatch.setenv(variable, "http://host.other:9200")
    with pytest.raises(UserError, match=asks):
        open_index(folder)
    check_known(url.replace("host.invalid", "localhost"), variable, secrets[0])
    monkeypatch.setenv(variable, url)
    check_known(url, variable, secrets[0])
    monkeypatch.delenv(variable)
    Server(url, "docs")
    check_known(url, variable, secrets[0])  # as it has been given


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost.elsewhere",
        "http://localhost@elsewhere",
        "http://elsewhere\\@localhost",
        "http://127.0.0.1,elsewhere",
        "postgresql://127.0.0.1,elsewhere/db",
        "postgresql://127.0.0.1/db?h%6fstaddr=10.1.1.1",
        "postgresql:///db?servicefile=here",
        "postgresql:///db?host=/tmp,elsewhere",
        "http://[::1]x",
        "http://[",
        "",
    ],
)
def test_what_is_not_this_machine(url, monkeypatch):
    monkeypatch.setattr("splade_lit.engines.known_hosts._given", set())
    monkeypatch.delenv("QDRANT_URL", raising=False)
    with pytest.raises(UserError, match="set QDRANT_URL to this address"):
        check_known(url, "QDRANT_URL", "QDRANT_API_KEY")


def test_what_no_build_has_made_is_not_dropped(cluster, tmp_path, caplog):
    for name in ("production", "production_0007", "docs_0008"):
        cluster._create(name, {"mappings": {"properties": {"vector": {"type": "rank_features"}}}})
    build(tmp_path / "index", cluster).close()
    for number, name in (("0007", "production"), ("0008", "production_0007"), ("0009", "docs_0008")):
        (tmp_path / "index" / number).mkdir()
        (tmp_path / "index" / number / "server.json").write_text(json.dumps({"url": cluster.url, "name": name}))
    build(tmp_path / "index", cluster).close()
    assert set(cluster.indexes) == {"production", "production_0007", "docs_0008", "docs_0010"}
    assert any("production is another name than this index has" in message for message in caplog.messages)
    header = tmp_path / "index" / "index.json"
    header.write_text(header.read_text().replace("docs_0010", "production"))
    with pytest.raises(UserError, match="damaged index"):
        open_index(tmp_path / "index")


def test_a_table_of_somebody_else_stays(tmp_path, postgres_url):
    place, parts = Server(postgres_url, "of_somebody_else"), [(IDS, vectors(2, 1), None)]
    PgvectorIndex.build(tmp_path / "first", lambda: parts, VOCAB, server=place).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Table, "create", stopped)
        with pytest.raises((KeyboardInterrupt, UserError)):
            PgvectorIndex.build(tmp_path / "second", lambda: parts, VOCAB, server=place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Table, "check_free", lambda table: None, raising=False)  # it is made right after that
        for _ in range(2):
            with pytest.raises(UserError, match="a table of_somebody_else_0000 that is not of this folder"):
                PgvectorIndex.build(tmp_path / "second", lambda: parts, VOCAB, server=place)
    made = open_index(tmp_path / "first")
    assert made.stats().num_documents == 2
    made.close()
