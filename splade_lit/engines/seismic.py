"""Seismic: approximate search in memory, some times as quick as exact search; scores are exact ones.

Bruch, Nardini, Rulli and Venturini (2024), "Efficient Inverted Indexes for Approximate Retrieval over Learned Sparse
Representations". Posting lists are cut to their largest weights and clustered; clusters that cannot matter for a query
are passed over. What it finds is scored again with the float32 weights that lie beside it, so that its 16-bit values
change no score.

0000/documents/               a segment as of the exact index: weights, ids, texts; filtered searches read it alone
0000/index.index.seismic      Seismic's own file, read whole when the index is opened
0000/whole.json               its size and hash

Seismic cannot change an index: documents that are added or deleted take a new build.
"""

import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.progress import WorkProgress
from splade_lit.core.text import parse_json
from splade_lit.engines.folder_index import Build, FolderIndex
from splade_lit.engines.index import Hit, IndexStats, Server
from splade_lit.engines.index_folder import check_folder
from splade_lit.engines.limits import EngineLimits, check_queries
from splade_lit.engines.names import require
from splade_lit.engines.segments import Segment, best_hits, write_segment
from splade_lit.engines.ties import MORE

QUERY_CUT = 32
"""Terms of a query that are searched with, the heaviest; queries of a look-up table have about eight."""
HEAP_FACTOR = 0.7
"""A cluster is passed over where its summary scores less than this times the k-th best; lower is slower, finds more."""
_SMALL_VOCAB = 2**16  # dims that Seismic's smaller form can tell apart
_NO_CHANGE = "Seismic cannot change an index; build it again with the documents that it is to have."
_FILE, _WHOLE = "index.index.seismic", "whole.json"


class SeismicIndex(FolderIndex):
    """See `Index`; it cannot be changed, and some of the best documents may be missing among its hits.

    Args:
        folder: of an index that `build` has made.
        query_cut: terms of a query that are searched with.
        heap_factor: how soon clusters are passed over.

    Raises:
        UserError: there is no such index, or it is damaged.
    """

    engine = "seismic"
    limits = EngineLimits(engine, max_vocab_size=2**32 - 1, max_weight=65504.0)

    def __init__(self, folder: str | Path, query_cut: int = QUERY_CUT, heap_factor: float = HEAP_FACTOR) -> None:
        super().__init__(folder)
        self._query_cut, self._heap_factor = query_cut, heap_factor
        place = self.folder / self._header.name
        index_class = _classes(self.vocab_size)[1]
        try:
            self._segment = Segment(place / "documents", self.vocab_size, None)
            if _whole(place / _FILE) != parse_json((place / _WHOLE).read_text(encoding="utf-8")):
                raise ValueError(f"{_FILE} is not whole")
            self._index = index_class.load(str(place / _FILE))
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise UserError(f"{folder} holds a damaged index ({error}); build it again.") from error
        self._names = np.arange(self.vocab_size).astype(require("seismic", "seismic").get_seismic_string())

    @classmethod
    def _write(cls, place: Path, server: Server | None, build: Build) -> None:
        """Documents are asked for twice more, and all of them are in memory at the end."""
        dataset_class, index_class = _classes(build.guard.vocab_size)
        write_segment(place / "documents", build.parts, build.guard.vocab_size)
        dataset, first = dataset_class(dim=build.guard.vocab_size), 0
        with WorkProgress("indexing", "documents", None) as progress:
            for ids, vectors, _ in build.parts():
                rows = build.guard.fit(ids, vectors).sorted_indices()
                names = [str(first + row) for row in range(len(ids))]
                dims, starts = rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
                dataset.add_documents_by_id(names, dims, rows.data, starts)
                first += len(ids)
                progress.advance(len(ids))
        with _silent():  # its progress goes to the standard output
            index_class.build_from_dataset(dataset).save(str(place / _FILE.removesuffix(".index.seismic")))
        replace_text(place / _WHOLE, json.dumps(_whole(place / _FILE)))

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """See `Index.check`."""
        if server is not None:
            raise UserError("A Seismic index is in files; leave out --url and --name.")
        require("seismic", "seismic")
        check_folder(folder, cls.engine)

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Raise a UserError: Seismic cannot."""
        raise UserError(_NO_CHANGE)

    def delete(self, ids: Collection[str]) -> int:
        """Raise a UserError: Seismic cannot."""
        raise UserError(_NO_CHANGE)

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """Good documents for each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found, and the
        search is exact. A UserError says that queries have other dims than documents.
        """
        check_queries(queries, self.vocab_size)
        queries, left_out = queries.sorted_indices(), self._segment.left_out(only)
        found = []
        for start, end in pairwise(queries.indptr.tolist()):
            dims, weights = queries.indices[start:end], queries.data[start:end].astype(np.float32)
            if only is not None:
                found.append(self._segment.search(dims, weights, k, left_out))
                continue
            rows = np.array(self._candidates(dims, weights, k + MORE), np.int64)
            scores = self._segment.scores(rows, dims, weights)
            kept = scores > 0
            hits = zip(rows[kept].tolist(), scores[kept].tolist(), strict=True)
            found.append(best_hits([Hit(self._segment.id(row), score) for row, score in hits], k))
        return found

    def _candidates(self, dims: np.ndarray, weights: np.ndarray, limit: int) -> list[int]:
        if not len(dims):
            return []
        names, values = self._names[dims], np.ascontiguousarray(weights)
        found = self._index.search("", names, values, limit, self._query_cut, self._heap_factor, 0, True)
        return [int(row) for _, _, row in found]

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""
        rows = self._segment.rows([id]).tolist()
        return self._segment.text(rows[0]) if rows else None

    def weights(self, id: str, dims: Sequence[int]) -> list[float]:
        """The weights of some dims of a document; 0 where it has none."""
        rows = self._segment.rows([id]).tolist()
        return [self._segment.weight(rows[0], dim) if rows else 0.0 for dim in dims]

    def stats(self) -> IndexStats:
        """What it holds."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return IndexStats(self.engine, self._segment.num_documents, len(self._segment.documents), size)

    def close(self) -> None:
        """Let go of its memory."""
        del self._index, self._segment


def _classes(vocab_size: int) -> tuple[Any, Any]:
    """Seismic's classes of documents and of the index."""
    seismic = require("seismic", "seismic")
    if vocab_size > _SMALL_VOCAB:
        return seismic.SeismicDatasetLV, seismic.SeismicIndexLV
    return seismic.SeismicDataset, seismic.SeismicIndex


def _whole(path: Path) -> dict[str, Any]:
    """What tells whether a file is whole: Seismic ends the process on some that are not."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "hash": digest.hexdigest()}


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches the standard output of the process, whoever writes there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
