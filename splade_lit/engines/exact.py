"""An exact index on disk, mapped into memory: opening takes no longer for a large one, and a query reads its own lists.

index.json      engine, dims, segments; replaced last, so that a change is there whole or not at all
0000/           a segment, which never changes: posting lists (starts, documents, values), ids, texts
0000-1.deleted  which documents of it have been deleted, a byte each
0000.query/     the query side of the model, if the index was made with one

Each `add` makes a segment, and many of them are joined; `ExactIndex.build` makes one of a whole corpus, for which it
holds some 40 bytes a document and never their vectors.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.files import hold_folder
from splade_lit.engines.index import INDEX_JSON, Hit, IndexStats, Part, Parts, Server, read_index_json
from splade_lit.engines.index_folder import OURS, check_folder, next_name, remove_files, write_header
from splade_lit.engines.limits import check_queries
from splade_lit.engines.segments import Segment, best_hits, write_segment

ENGINE = "exact"
_FORMAT = 1
_MOST_SEGMENTS = 64  # more are joined: each takes some memory maps, and time in every search


@dataclass(frozen=True)
class _Header:
    engine: str
    format: int
    vocab_size: int
    segments: list[str]
    deleted: dict[str, str] = field(default_factory=dict)
    query: str | None = None
    model: str | None = None

    @property
    def names(self) -> set[str | None]:
        """What belongs to the index in its folder."""
        return {*self.segments, *self.deleted.values(), self.query}


class ExactIndex:
    """All postings of a query's terms are read, and scores are float32 sums in the order of dims.

    Args:
        folder: of an index that `build` has made.

    Raises:
        UserError: there is no such index, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read()

    def _read(self) -> None:
        """Open what `index.json` says; once more if it has been replaced meanwhile."""
        content = read_index_json(self.folder)
        try:
            self._open(_Header(**content))
        except UserError:
            raise
        except Exception as error:  # NumPy raises many kinds for files that are none of its own
            if read_index_json(self.folder) != content:
                self._read()
                return
            raise UserError(f"{self.folder} holds a damaged index ({error}); build it again.") from error

    def _open(self, header: _Header) -> None:
        if (header.engine, header.format) != (ENGINE, _FORMAT):
            raise UserError(f"{self.folder}: the index is of another version; build it again.")
        if any(not OURS.fullmatch(name) for name in header.names if name):
            raise ValueError("it names files elsewhere")
        self._header, self.vocab_size = header, header.vocab_size
        deleted = (header.deleted.get(name) for name in header.segments)
        self._segments = [
            Segment(self.folder / name, header.vocab_size, self.folder / one if one else None)
            for name, one in zip(header.segments, deleted, strict=True)
        ]

    @classmethod
    def build(
        cls,
        folder: str | Path,
        parts: Parts,
        vocab_size: int,
        copy_query: Callable[[Path], None] | None = None,
        *,
        model: str | None = None,
        server: Server | None = None,
    ) -> "ExactIndex":
        """See `Index.build`; documents are asked for twice."""
        folder = Path(folder)
        cls.check(folder, server)
        held = hold_folder(folder)
        try:
            _remove_left(folder)
            name = next_name(folder)
            query = f"{name}.query" if copy_query else None
            write_segment(folder / name, parts, vocab_size)
            if copy_query:
                copy_query(folder / f"{name}.query")
            _change_header(folder, _Header(ENGINE, _FORMAT, vocab_size, [name], {}, query, model))
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}); free space and start again.") from error
        finally:
            held.release()
        return cls(folder)

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """See `Index.check`."""
        if server is not None:
            raise UserError("An exact index is in files; leave out --url and --name.")
        check_folder(folder, ENGINE)

    @property
    def query_folder(self) -> Path | None:
        """The folder with the query side of the model that the index was made with."""
        return self.folder / self._header.query if self._header.query else None

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that made the vectors."""
        return self._header.model

    @property
    def segments(self) -> Sequence[Segment]:
        """What has been added, an addition each."""
        return self._segments

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Add documents, float32 `[documents, vocab]`; those whose ids are there already take their places."""
        self._change(ids, vectors, texts)

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; how many were there."""
        return self._change(set(ids))

    def _change(
        self, ids: Collection[str], vectors: csr_array | None = None, texts: Sequence[str] | None = None
    ) -> int:
        """Delete documents of these ids, and put others in their places if there are vectors; how many were deleted."""
        held = hold_folder(self.folder)
        try:
            self._read()  # another process may have changed it
            _remove_left(self.folder)
            header, count, deleted = self._header, 0, dict(self._header.deleted)
            for segment in self._segments:
                rows = segment.rows(ids)
                if len(rows := rows[~segment.deleted[rows]]):
                    deleted[segment.folder.name] = segment.write_deleted(rows)
                    count += len(rows)
            segments = list(header.segments)
            if vectors is not None:
                segments.append(self._write(lambda: [(list(ids), vectors, texts)]))
            self._replace(replace(header, segments=segments, deleted=deleted))
            if len(segments) > _MOST_SEGMENTS:
                self._replace(replace(header, segments=[self._write(self.documents)], deleted={}))
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); free space and try again.") from error
        finally:
            held.release()
        return count

    def _write(self, parts: Parts) -> str:
        """Write a segment of these documents; its name."""
        name = next_name(self.folder)
        write_segment(self.folder / name, parts, self.vocab_size)
        return name

    def _replace(self, header: _Header) -> None:
        _change_header(self.folder, header)
        self._open(header)

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """The best k documents of each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found. A UserError
        says that queries have other dims than documents.
        """
        check_queries(queries, self.vocab_size)
        queries = queries.sorted_indices()
        left_out = [segment.left_out(only) for segment in self._segments]
        found = []
        for start, end in pairwise(queries.indptr.tolist()):
            dims, weights = queries.indices[start:end], queries.data[start:end].astype(np.float32)
            hits: list[Hit] = []
            for segment, out in zip(self._segments, left_out, strict=True):
                hits += segment.search(dims, weights, k, out)
            found.append(best_hits(hits, k))
        return found

    def documents(self) -> Iterator[Part]:
        """All documents, those of a segment at a time."""
        for segment in self._segments:
            yield segment.left()

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""
        for segment, row in self._place(id):
            return segment.text(row)
        return None

    def weights(self, id: str, dims: Sequence[int]) -> list[float]:
        """The weights of some dims of a document; 0 where it has none."""
        for segment, row in self._place(id):
            return [segment.weight(row, dim) for dim in dims]
        return [0.0] * len(dims)

    def _place(self, id: str) -> Iterator[tuple[Segment, int]]:
        for segment in self._segments:
            for row in segment.rows([id]).tolist():
                if not segment.deleted[row]:
                    yield segment, row

    def stats(self) -> IndexStats:
        """What it holds; its files have the postings of deleted documents, too."""
        documents = sum(segment.num_documents - int(segment.deleted.sum()) for segment in self._segments)
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return IndexStats(ENGINE, documents, sum(segment.num_postings() for segment in self._segments), size)

    def close(self) -> None:
        """Let go of the files."""
        self._segments = []


def _change_header(folder: Path, header: _Header) -> None:
    """Make a change: from here on, what the header does not name is removed."""
    write_header(folder, header)
    remove_files(folder, header.names)


def _remove_left(folder: Path) -> None:
    """Remove what changes that were stopped have left, which the next one may need the room of."""
    if not (folder / INDEX_JSON).exists():
        remove_files(folder, set())
        return
    with suppress(UserError, TypeError, AttributeError):  # of a damaged index, nothing until another one is whole
        remove_files(folder, _Header(**read_index_json(folder)).names)
