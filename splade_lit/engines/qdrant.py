"""Qdrant: in memory, in a folder, or on a server or cluster; the same calls, the same hits.

Vectors are sparse ones of float32, read whole: Qdrant's inverted index leaves nothing out. A document is a point whose
id is a hash of the document's, with id and text as payload.

In a folder works Qdrant Edge, the engine itself inside this process. qdrant-client has a mode for folders, too, but it
keeps pickles there, which run what they hold when they are opened, and compares all documents with a query in NumPy.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.files import hold_folder
from splade_lit.core.progress import WorkProgress
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.folder_index import Build, FolderIndex
from splade_lit.engines.index import Hit, IndexStats, Parts, Server
from splade_lit.engines.index_folder import FORMAT, Header, check_folder
from splade_lit.engines.limits import EngineLimits, LimitGuard, check_queries
from splade_lit.engines.qdrant_points import (
    ClientPoints,
    Document,
    EdgePoints,
    Points,
    check_collection_free,
    drop_collection,
    open_client,
)
from splade_lit.engines.ties import MORE, dot, settled

MEMORY = ":memory:"
"""The address of an index that ends with the process."""
_DOCUMENTS_PER_REQUEST, _MOST_BYTES = 256, 8_000_000
_QUERIES_PER_REQUEST = 32


class QdrantIndex(FolderIndex):
    """See `Index`; hits and their order are those of `ExactIndex`, scores but for rounding.

    Args:
        folder: of an index that `build` has made.

    Raises:
        UserError: there is no such index, it is damaged, or its server does not answer.
    """

    engine = "qdrant"
    limits = EngineLimits(engine, max_vocab_size=2**32 - 1)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        server = self._header.server
        self._points: Points = (
            ClientPoints.open(open_client(server.url), server)
            if server
            else EdgePoints.open(self.folder / self._header.name)
        )

    @classmethod
    def _write(cls, place: Path, server: Server | None, build: Build) -> None:
        points: Points = ClientPoints.create(open_client(server.url), server) if server else EdgePoints.create(place)
        try:
            _upload(points, build.parts, build.guard)
        finally:
            points.close()

    @classmethod
    def _check_free(cls, server: Server) -> None:
        check_collection_free(server)

    @classmethod
    def _drop(cls, server: Server) -> None:
        drop_collection(server)

    @classmethod
    def in_memory(cls, parts: Parts, vocab_size: int) -> "QdrantIndex":
        """An index that ends with the process, as for a test of what is to run on a server; slow beyond 20,000."""
        index, server = cls.__new__(cls), Server(MEMORY, "documents")
        index.folder, index.vocab_size = Path(MEMORY), vocab_size
        index._header = Header(cls.engine, FORMAT, vocab_size, "0000", server=server)
        index._points = ClientPoints.create(open_client(MEMORY), server)
        _upload(index._points, parts, LimitGuard(cls.limits, vocab_size))
        return index

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """See `Index.check`."""
        check_folder(folder, cls.engine, server)
        if server is None:
            EdgePoints.check()
        else:
            ClientPoints.check(server)

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Add documents, float32 `[documents, vocab]`; those whose ids are there already take their places."""
        guard = LimitGuard(self.limits, self.vocab_size)
        fitted = guard.fit(ids, vectors)
        self._change(lambda: _upsert(self._points, ids, fitted, texts))
        guard.report()

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; how many were there."""
        return self._change(lambda: self._points.delete(sorted(set(ids))))

    def _change(self, change: Callable[[], int]) -> int:
        """Change documents in files while no other process does; a server sees to that itself."""
        server = self._header.server
        held = hold_folder(self.folder) if server is None else None
        try:
            if server is None or server.url != MEMORY:
                self._check_current()
            changed = change()
            self._points.settle()
            return changed
        finally:
            if held:
                held.release()

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """The best k documents of each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found. A UserError
        says that queries have other dims than documents, or that the server does not answer.
        """
        check_queries(queries, self.vocab_size)
        found: list[list[Hit]] = []
        allowed = None if only is None else list(only)
        vectors = [(dims, weights.astype(np.float32)) for dims, weights in split_rows(queries.sorted_indices())]
        for start in range(0, len(vectors), _QUERIES_PER_REQUEST):
            asked = vectors[start : start + _QUERIES_PER_REQUEST]
            # Those without a term have no hits, and not all engines take them.
            rows = [row for row, (dims, _) in enumerate(asked) if len(dims)] if allowed != [] else []
            first = dict(zip(rows, self._points.query([asked[row] for row in rows], k + MORE, allowed), strict=True))
            found += [
                self._settled(*asked[row], first[row], k, allowed) if row in first else [] for row in range(len(asked))
            ]
        return found

    def _settled(
        self, dims: np.ndarray, weights: np.ndarray, first: list[Hit], k: int, only: list[str] | None
    ) -> list[Hit]:
        def fetch(limit: int) -> list[Hit]:
            return first if limit == k + MORE else self._points.query([(dims, weights)], limit, only)[0]

        def scores(ids: Sequence[str]) -> dict[str, float]:
            return {id: dot(dims, weights, *vector) for id, vector in self._points.vectors(ids).items()}

        return settled(fetch, scores, k)

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""
        return self._points.text(id)

    def weights(self, id: str, dims: Sequence[int]) -> list[float]:
        """The weights of some dims of a document; 0 where it has none."""
        there, values = self._points.vectors([id]).get(id, (np.zeros(0, np.int64), np.zeros(0, np.float32)))
        found = dict(zip(there.tolist(), values.tolist(), strict=True))
        return [found.get(int(dim), 0.0) for dim in dims]

    def stats(self) -> IndexStats:
        """What it holds; Qdrant does not count weights, and a server does not tell its bytes."""
        size = None
        if self._header.server is None:
            files = (self.folder / self._header.name).rglob("*")
            size = sum(path.stat().st_blocks * 512 for path in files if path.is_file())
        return IndexStats(self.engine, self._points.count(), None, size)

    def close(self) -> None:
        """Let go of files and connections."""
        self._points.close()


def _upload(points: Points, parts: Parts, guard: LimitGuard) -> None:
    with WorkProgress("indexing", "documents", None) as progress:
        for ids, vectors, texts in parts():
            _upsert(points, ids, guard.fit(ids, vectors), texts, progress.advance)
    points.settle()
    if points.count() < guard.num_documents:
        raise UserError("Two documents have one id; make ids unique.")


def _upsert(
    points: Points,
    ids: Sequence[str],
    vectors: csr_array,
    texts: Sequence[str] | None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> int:
    rows, kept = list(split_rows(vectors)), [None] * len(ids) if texts is None else texts
    documents = [(id, *row, text) for id, row, text in zip(ids, rows, kept, strict=True)]
    batch: list[Document] = []
    size = 0

    def flush() -> None:
        nonlocal size
        if batch:
            points.upsert(batch)
            on_batch(len(batch))
        batch.clear()
        size = 0

    for document in documents:
        _, dims, _, text = document
        length = 30 * len(dims) + 4 * len(text or "")
        if len(batch) >= _DOCUMENTS_PER_REQUEST or size + length > _MOST_BYTES:
            flush()
        batch.append(document)
        size += length
    flush()
    return len(documents)
