"""What OpenSearch and Elasticsearch have in common as engines: clients that take the same calls, and documents.

Features are numbers of dims, which neither refuses. Lucene keeps 9 significant bits of a weight, and those are sent, so
that a document's weights are the ones that it is scored by.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import hold_folder
from splade_lit.core.progress import WorkProgress
from splade_lit.core.text import parse_json, warn_once
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.cluster_bodies import (
    MAX_FEATURE_WEIGHT,
    MOST_CLAUSES,
    MOST_HITS,
    Ceilings,
    Field,
    Product,
    bulk_lines,
    check_document_ids,
    index_body,
    query_body,
)
from splade_lit.engines.connection import Connection
from splade_lit.engines.features import FeatureNames
from splade_lit.engines.folder_index import Build, FolderIndex
from splade_lit.engines.index import Hit, IndexStats, Server
from splade_lit.engines.index_folder import check_folder
from splade_lit.engines.limits import LimitGuard, check_queries
from splade_lit.engines.segments import best_hits
from splade_lit.engines.ties import dot, settled

MANTISSA_BITS = 8
"""Behind the leading one: Lucene's features have 9 significant bits."""
_MOST_DOCUMENTS, _MOST_BYTES = 500, 8_000_000  # of a request
_CEILINGS = "ceilings.json"
_DEFAULT_SEARCH_CEILING = 16.0


class ClusterIndex(FolderIndex):
    """See `Index`; hits are those of an exact index over weights of 9 significant bits.

    Args:
        folder: of an index that `build` has made.

    Raises:
        UserError: there is no such index, it is damaged, or its cluster does not answer.
    """

    product: ClassVar[Product]
    field: ClassVar[Field]
    least_version: ClassVar[tuple[int, int]] = (0, 0)

    @classmethod
    def connect(cls, server: Server) -> Connection:
        """A connection to a server; a UserError says that there is none, or no client."""
        raise NotImplementedError

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        if self._header.server is None:
            raise UserError(f"{self.folder} holds a damaged index (it names no server); build it again.")
        self._names = FeatureNames.of_dims(self.vocab_size)
        ceilings = self.folder / self._header.name / _CEILINGS
        try:
            self._ceilings = Ceilings(**parse_json(ceilings.read_text())) if ceilings.is_file() else None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.folder} holds a damaged index ({ceilings}); build it again.") from error
        self._connection = self.connect(self._header.server)
        self._check_there()

    def _check_there(self) -> None:
        if not self._connection.exists():
            raise UserError(f"{self._connection.url} has no index {self._connection.name}; build it again.")

    @classmethod
    def _write(cls, place: Path, server: Server | None, build: Build) -> None:
        assert server is not None
        ceilings = cls._measured_ceilings(build)
        if ceilings:
            (place / _CEILINGS).write_text(json.dumps({"ingest": ceilings.ingest, "search": ceilings.search}))
        with closing(cls.connect(server)) as connection:
            connection.create(cls._body(connection, ceilings))
            _upload(connection, build)

    @classmethod
    def _check_version(cls, connection: Connection) -> None:
        if connection.version < cls.least_version:
            least = ".".join(map(str, cls.least_version))
            raise UserError(f"{cls.engine} needs version {least}; {connection.url} is an older one.")

    @classmethod
    def _measured_ceilings(cls, build: Build) -> Ceilings | None:
        return None

    @classmethod
    def _body(cls, connection: Connection, ceilings: Ceilings | None) -> dict[str, Any]:
        return index_body(cls.product, cls.field, ceilings)

    @classmethod
    def _check_free(cls, server: Server) -> None:
        with closing(cls.connect(server)) as connection:
            connection.check_free()

    @classmethod
    def _drop(cls, server: Server) -> None:
        with closing(cls.connect(server)) as connection:
            connection.drop()

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """See `Index.check`."""
        if server is None:
            raise UserError(f"{cls.engine} is a server; give its address with --url.")
        check_folder(folder, cls.engine, server)
        with closing(cls.connect(server)) as connection:
            cls._check_version(connection)

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Add documents, float32 `[documents, vocab]`; those whose ids are there already take their places."""
        guard = LimitGuard(self.limits, self.vocab_size)
        with self._change():
            _send(self._connection, "index", ids, guard.fit(ids, vectors), texts)
        guard.report()

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; how many were there."""
        chosen, count = sorted(set(ids)), 0
        with self._change():
            for start in range(0, len(chosen), _MOST_DOCUMENTS):
                some = chosen[start : start + _MOST_DOCUMENTS]
                done = self._connection.send([{"delete": {"_id": id}} for id in some], [None] * len(some))
                for id, item in zip(some, done, strict=True):
                    if item["status"] not in (200, 404):
                        raise UserError(f"{self._connection.url} does not delete {id!r}: {_reason(item)}.")
                    count += item["status"] == 200
        return count

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Change documents while no build does: sent to an index that is no more, they would make another one."""
        held = hold_folder(self.folder)
        try:
            self._check_current()
            self._check_there()
            yield
            self._connection.refresh()
        finally:
            held.release()

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """The best k documents of each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found. Lucene knows
        no weights below 0 in a query; they are left out, with a warning. A UserError says that queries have other dims
        than documents, that `k` is more than the cluster gives, or that it does not answer.
        """
        check_queries(queries, self.vocab_size)
        if k > MOST_HITS:
            raise UserError(f"{self.engine} gives {MOST_HITS:,} hits of a query at most; ask for fewer.")
        if negative := int((queries.data < 0).sum()):
            warn_once(f"{self.engine}: {negative} weights of queries are below 0, which Lucene has not, and left out.")
        found = []
        for dims, weights in split_rows(queries.sorted_indices()):
            kept = weights > 0
            asked = self._heaviest(dims[kept], weights[kept].astype(np.float32), only)
            found.append(self._search(*asked, k, only) if kept.any() and (only is None or only) else [])
        return found

    def _heaviest(
        self, dims: np.ndarray, weights: np.ndarray, only: Collection[str] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a query that it has clauses for."""
        most = MOST_CLAUSES - (only is not None)
        if self.field != "rank_features" or len(dims) <= most:
            return dims, weights
        warn_once(f"{self.engine}: a query has more than {most:,} tokens; the others, of the least weight, count 0.")
        kept = np.sort(np.argsort(-weights, kind="stable")[:most])
        return dims[kept], weights[kept]

    def _search(self, dims: np.ndarray, weights: np.ndarray, k: int, only: Collection[str] | None) -> list[Hit]:
        features = self._names.weights(dims.tolist(), weights)

        def fetch(limit: int) -> list[Hit]:
            return self._connection.search(query_body(self.product, self.field, features, min(limit, MOST_HITS), only))

        def scores(ids: Sequence[str]) -> dict[str, float]:
            return {id: dot(dims, weights, *vector) for id, vector in self._vectors(ids).items()}

        return settled(fetch, scores, k)

    def _vectors(self, ids: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Dims, ascending, and weights of documents."""
        found = {}
        for id, vector in self._connection.sources(ids, "vector").items():
            pairs = sorted((self._names.dim(name), weight) for name, weight in vector.items())
            dims, weights = zip(*pairs, strict=True) if pairs else ((), ())
            found[id] = np.array(dims, np.int64), np.array(weights, np.float32)
        return found

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""
        return self._connection.sources([id], "text").get(id)

    def weights(self, id: str, dims: Sequence[int]) -> list[float]:
        """The weights of some dims of a document, as it is scored by; 0 where it has none."""
        there = self._connection.sources([id], "vector").get(id, {})
        return [float(np.float32(there.get(self._names.names[dim], 0.0))) for dim in dims]

    def stats(self) -> IndexStats:
        """What it holds; the engines do not count weights."""
        return IndexStats(self.engine, self._connection.count(), None, self._connection.num_bytes())

    def close(self) -> None:
        """Let go of connections."""
        self._connection.close()


class SeismicSearch(ClusterIndex):
    """OpenSearch's own type `sparse_vector`: in large segments hits are approximate, and scores are those of 8 bits."""

    def _search(self, dims: np.ndarray, weights: np.ndarray, k: int, only: Collection[str] | None) -> list[Hit]:
        ceiling = self._ceilings.search if self._ceilings else _DEFAULT_SEARCH_CEILING
        for most, does in ((MAX_FEATURE_WEIGHT, "are clipped"), (ceiling, "count as that much in large segments")):
            if above := int((weights > most).sum()):
                warn_once(f"{self.engine}: {above} weights of a query are above {most:g} and {does}.")
        features = self._names.weights(dims.tolist(), np.minimum(weights, np.float32(MAX_FEATURE_WEIGHT)))
        body = query_body(self.product, self.field, features, k, only)
        # Else a pipeline that the index has by default could leave tokens out of the query.
        return best_hits(self._connection.search(body, params={"search_pipeline": "_none"}), k)

    @classmethod
    def _measured_ceilings(cls, build: Build) -> Ceilings | None:
        from splade_lit.encoder.query_side import load_query_side

        ingest = max((float(vectors.data.max(initial=0)) for _, vectors, _ in build.parts()), default=0.0)
        search = _DEFAULT_SEARCH_CEILING
        if build.copy_query is not None:
            with TemporaryDirectory() as folder:
                build.copy_query(Path(folder))
                search = float(load_query_side(folder).weights.max(initial=0))
        return Ceilings.of(ingest, search)


def _upload(connection: Connection, build: Build) -> None:
    with WorkProgress("indexing", "documents", None) as progress:
        for ids, vectors, texts in build.parts():
            fitted = build.guard.fit(ids, vectors)
            _send(connection, "create", ids, fitted, texts, progress.advance)
    connection.refresh()


def _send(
    connection: Connection,
    action: str,
    ids: Sequence[str],
    vectors: csr_array,
    texts: Sequence[str] | None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> None:
    """Send documents, some at a time; `create` refuses those whose id is there."""
    check_document_ids(ids)
    names = FeatureNames.of_dims(vectors.shape[1])
    actions: list[dict[str, Any]] = []
    sources: list[dict[str, Any] | None] = []
    size = 0

    def flush() -> None:
        nonlocal size
        if not actions:
            return
        for line, item in zip(actions, connection.send(actions, sources), strict=True):
            if item["status"] == 409:
                raise UserError(f"Two documents have the id {line[action]['_id']!r}; make ids unique.")
            if item["status"] >= 300:
                raise UserError(f"{connection.url} refuses the document {line[action]['_id']!r}: {_reason(item)}.")
        on_batch(len(actions))
        actions.clear()
        sources.clear()
        size = 0

    for line, source in bulk_lines(ids, vectors, texts, names):
        length = 20 * len(source["vector"]) + 4 * len(source.get("text", ""))
        if len(actions) >= _MOST_DOCUMENTS or size + length > _MOST_BYTES:
            flush()
        actions.append({action: line["index"]})
        sources.append(source)
        size += length
    flush()


def _reason(item: dict[str, Any]) -> str:
    """Why a cluster has not done something."""
    return first_line(Exception(item.get("error", {}).get("reason", "no reason")))
