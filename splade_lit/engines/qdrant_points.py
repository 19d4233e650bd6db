"""Documents as Qdrant's points: through its client (in memory, a server), or through its engine in this process."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from splade_lit.core.errors import UserError, first_line
from splade_lit.engines.index import Hit, NameTakenError, Server
from splade_lit.engines.known_hosts import check_known
from splade_lit.engines.names import require

_VECTOR = "splade"
_SECONDS = 60
API_KEY = "QDRANT_API_KEY"
"""The environment variable with the key of a server that asks for one."""

Vector = tuple[np.ndarray, np.ndarray]
"""Dims, ascending, and float32 weights."""

Document = tuple[str, np.ndarray, np.ndarray, str | None]
"""Id, dims, weights, and text if it is kept."""


class Points(Protocol):
    """What an index needs of Qdrant."""

    def upsert(self, documents: Sequence[Document]) -> None:
        """Put documents there, in the places of those that have their ids."""

    def settle(self) -> None:
        """A change is done: make search quick, and have it in the files."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; how many were there."""

    def query(self, vectors: Sequence[Vector], limit: int, only: Sequence[str] | None) -> list[list[Hit]]:
        """The best documents of each query, among these ids if they are given."""

    def vectors(self, ids: Sequence[str]) -> dict[str, Vector]:
        """The vectors of documents, as far as they are there."""

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""

    def count(self) -> int:
        """How many documents there are."""

    def close(self) -> None:
        """Let go of files and connections."""


def open_client(url: str) -> Any:
    """A client of qdrant-client; a UserError if there is none, this is no address, or the key must not go there."""
    import os

    qdrant = require("qdrant_client", "qdrant")
    if url == ":memory:":
        return qdrant.QdrantClient(":memory:")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is no address of Qdrant; give one such as http://localhost:6333.")
    port = None if url.count(":") > 1 else 443 if url.startswith("https://") else 6333
    if key := os.environ.get(API_KEY):
        check_known(url, "QDRANT_URL", API_KEY)
    with _plain_errors(url):
        return qdrant.QdrantClient(url=url, port=port, api_key=key, timeout=_SECONDS, check_compatibility=False)


class ClientPoints:
    """Points of a collection behind a client."""

    def __init__(self, client: Any, server: Server) -> None:
        self._client, self._name, self._url = client, server.name, server.url
        self._models = require("qdrant_client.models", "qdrant")

    @staticmethod
    def check(server: Server) -> None:
        """Raise a UserError if the client is not installed, or the server does not answer."""
        client = open_client(server.url)
        with _plain_errors(server.url):
            client.collection_exists(server.name)
        client.close()

    @classmethod
    def create(cls, client: Any, server: Server) -> "ClientPoints":
        """A new collection; a UserError if there is one of this name, or the server does not answer."""
        points = cls(client, server)
        models = points._models
        index = models.SparseIndexParams(on_disk=False, datatype=models.Datatype.FLOAT32)
        with _plain_errors(server.url):
            cls.check_free(client, server)
            try:
                client.create_collection(
                    server.name, {}, sparse_vectors_config={_VECTOR: models.SparseVectorParams(index=index)}
                )
            except Exception as error:
                if "already exists" in str(error):  # somebody has made it meanwhile
                    raise NameTakenError(server.url, "a collection", server.name) from error
                raise
        return points

    @staticmethod
    def check_free(client: Any, server: Server) -> None:
        """Raise a NameTakenError if there is a collection of this name."""
        with _plain_errors(server.url):
            if client.collection_exists(server.name):
                raise NameTakenError(server.url, "a collection", server.name)

    @classmethod
    def open(cls, client: Any, server: Server) -> "ClientPoints":
        """A collection that is there; a UserError if it is not, or the server does not answer."""
        with _plain_errors(server.url):
            if not client.collection_exists(server.name):
                raise UserError(f"{server.url} has no collection {server.name}; build the index again.")
        return cls(client, server)

    def upsert(self, documents: Sequence[Document]) -> None:
        """See `Points`."""
        models = self._models
        points = [
            models.PointStruct(
                id=_point_id(id),
                vector={_VECTOR: models.SparseVector(indices=dims.tolist(), values=weights.tolist())},
                payload=_payload(id, text),
            )
            for id, dims, weights, text in documents
        ]
        with _plain_errors(self._url):
            self._client.upsert(self._name, points, wait=True)

    def settle(self) -> None:
        """See `Points`; a server does this by itself."""

    def delete(self, ids: Sequence[str]) -> int:
        """See `Points`."""
        points = [_point_id(id) for id in ids]
        with _plain_errors(self._url):
            there = len(self._client.retrieve(self._name, points, with_payload=False)) if points else 0
            if there:
                self._client.delete(self._name, self._models.PointIdsList(points=points), wait=True)
        return there

    def query(self, vectors: Sequence[Vector], limit: int, only: Sequence[str] | None) -> list[list[Hit]]:
        """See `Points`."""
        models = self._models
        condition = None
        if only is not None:
            condition = models.Filter(must=[models.HasIdCondition(has_id=[_point_id(id) for id in only])])
        requests = [
            models.QueryRequest(
                query=models.SparseVector(indices=dims.tolist(), values=weights.tolist()),
                using=_VECTOR,
                limit=limit,
                filter=condition,
                with_payload=["id"],
            )
            for dims, weights in vectors
        ]
        with _plain_errors(self._url):
            found = self._client.query_batch_points(self._name, requests) if requests else []
        return [[Hit(point.payload["id"], point.score) for point in answer.points] for answer in found]

    def vectors(self, ids: Sequence[str]) -> dict[str, Vector]:
        """See `Points`."""
        with _plain_errors(self._url):
            points = self._client.retrieve(
                self._name, [_point_id(id) for id in ids], with_payload=["id"], with_vectors=True
            )
        return {point.payload["id"]: _vector((point.vector or {}).get(_VECTOR)) for point in points}

    def text(self, id: str) -> str | None:
        """See `Points`."""
        with _plain_errors(self._url):
            points = self._client.retrieve(self._name, [_point_id(id)], with_payload=["text"])
        return points[0].payload.get("text") if points else None

    def count(self) -> int:
        """See `Points`."""
        with _plain_errors(self._url):
            return int(self._client.count(self._name, exact=True).count)

    def close(self) -> None:
        """See `Points`."""
        self._client.close()


def check_collection_free(server: Server) -> None:
    """Raise a NameTakenError if a server has a collection of this name."""
    client = open_client(server.url)
    try:
        ClientPoints.check_free(client, server)
    finally:
        client.close()


def drop_collection(server: Server) -> None:
    """Remove a collection of a server, if it is there."""
    client = open_client(server.url)
    with _plain_errors(server.url):
        if client.collection_exists(server.name):
            client.delete_collection(server.name)
    client.close()


class EdgePoints:
    """Points in the files of a folder, in the hands of Qdrant Edge."""

    def __init__(self, folder: Path, shard: Any) -> None:
        self._folder, self._shard, self._edge = folder, shard, require("qdrant_edge", "qdrant")

    @staticmethod
    def check() -> None:
        """Raise a UserError if the engine is not installed."""
        require("qdrant_edge", "qdrant")

    @classmethod
    def create(cls, folder: Path) -> "EdgePoints":
        """Points in an empty folder."""
        edge = require("qdrant_edge", "qdrant")
        config = edge.EdgeConfig(sparse_vectors={_VECTOR: edge.EdgeSparseVectorParams()})
        with _plain_errors(str(folder)):
            return cls(folder, edge.EdgeShard.create(str(folder), config))

    @classmethod
    def open(cls, folder: Path) -> "EdgePoints":
        """Points that are there."""
        edge = require("qdrant_edge", "qdrant")
        with _plain_errors(str(folder), damaged=True):
            return cls(folder, edge.EdgeShard.load(str(folder)))

    def upsert(self, documents: Sequence[Document]) -> None:
        """See `Points`."""
        edge = self._edge
        points = [
            edge.Point(_point_id(id), {_VECTOR: edge.SparseVector(dims.tolist(), weights.tolist())}, _payload(id, text))
            for id, dims, weights, text in documents
        ]
        with _plain_errors(str(self._folder)):
            self._shard.update(edge.UpdateOperation.upsert_points(points))

    def settle(self) -> None:
        """See `Points`."""
        with _plain_errors(str(self._folder)):
            self._shard.optimize()
            self._shard.flush()

    def delete(self, ids: Sequence[str]) -> int:
        """See `Points`."""
        points = [_point_id(id) for id in ids]
        with _plain_errors(str(self._folder)):
            there = len(self._shard.retrieve(points, with_payload=False, with_vector=False)) if points else 0
            if there:
                self._shard.update(self._edge.UpdateOperation.delete_points(points))
        return there

    def query(self, vectors: Sequence[Vector], limit: int, only: Sequence[str] | None) -> list[list[Hit]]:
        """See `Points`."""
        edge, condition = self._edge, None
        if only is not None:
            condition = edge.Filter(must=[edge.HasIdCondition({_point_id(id) for id in only})])
        found = []
        with _plain_errors(str(self._folder)):
            for dims, weights in vectors:
                nearest = edge.Query.Nearest(edge.SparseVector(dims.tolist(), weights.tolist()), _VECTOR)
                request = edge.QueryRequest(limit=limit, query=nearest, filter=condition, with_payload=["id"])
                found.append([Hit(point.payload["id"], point.score) for point in self._shard.query(request)])
        return found

    def vectors(self, ids: Sequence[str]) -> dict[str, Vector]:
        """See `Points`."""
        with _plain_errors(str(self._folder)):
            points = self._shard.retrieve([_point_id(id) for id in ids], with_payload=["id"], with_vector=True)
        return {point.payload["id"]: _vector((point.vector or {}).get(_VECTOR)) for point in points}

    def text(self, id: str) -> str | None:
        """See `Points`."""
        with _plain_errors(str(self._folder)):
            points = self._shard.retrieve([_point_id(id)], with_payload=["text"], with_vector=False)
        return points[0].payload.get("text") if points else None

    def count(self) -> int:
        """See `Points`."""
        with _plain_errors(str(self._folder)):
            return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def close(self) -> None:
        """See `Points`."""
        self._shard.close()


def _point_id(id: str) -> str:
    """Points have numbers or UUIDs as ids: a hash of the document's."""
    return str(uuid.UUID(int=xxhash.xxh3_128_intdigest(id.encode("utf-8", "surrogatepass"))))


def _payload(id: str, text: str | None) -> dict[str, str]:
    return {"id": id} if text is None else {"id": id, "text": text}


def _vector(vector: Any) -> Vector:
    if vector is None:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    dims = np.array(vector.indices, np.int64)
    order = np.argsort(dims)
    return dims[order], np.array(vector.values, np.float32)[order]


@contextmanager
def _plain_errors(place: str, damaged: bool = False) -> Iterator[None]:
    """What Qdrant raises, in many classes, as a sentence."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        said = first_line(error)
        if "://" in place:
            raise UserError(
                f"{place}: Qdrant does not answer as it should ({said}); check that it runs at this address."
            ) from error
        if "WouldBlock" in str(error):
            held = f"{place} is open in another process, and Qdrant's files are for one at a time"
            raise UserError(f"{held}; close it there, or have a server.") from error
        does = "holds a damaged index of Qdrant" if damaged else "is not as Qdrant needs it"
        raise UserError(f"{place} {does} ({said}); build the index again.") from error
