"""An exact index on disk, mapped into memory: opening takes no longer for a large one, and a query reads its own lists.

index.json      engine, dims, segments; replaced last, so that a change is there whole or not at all
0000/           a segment, which never changes: posting lists (starts, documents, values), ids, texts
0000-1.deleted  which documents of it have been deleted, a byte each
0000.query/     the query side of the model, if the index was made with one

Each `add` makes a segment; `ExactIndex.build` makes one of a whole corpus, in memory that does not grow with it.
"""

import json
import os
import shutil
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Float32, Int64
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.files import hold_folder, replace_text, whole_file
from splade_lit.engines.index import INDEX_JSON, Hit, IndexStats, read_index_json

ENGINE = "exact"
_FORMAT = 1
_ARRAYS = ("starts", "documents", "values", "id_ends", "hashes", "hash_rows")


Parts = Callable[[], Iterable[tuple[Sequence[str], csr_array, Sequence[str] | None]]]
"""Gives documents a part at a time, the same at each call: ids, vectors, and texts if they are to be kept."""


@dataclass(frozen=True)
class _Header:
    engine: str
    format: int
    vocab_size: int
    segments: list[str]
    deleted: dict[str, str] = field(default_factory=dict)
    query: str | None = None


class ExactIndex:
    """All postings of a query's terms are read, and scores are float32 sums in the order of dims.

    Args:
        folder: of an index that `build` has made.

    Raises:
        UserError: there is no such index, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        content = read_index_json(self.folder)
        try:
            self._open(_Header(**content))
        except (TypeError, ValueError, KeyError, OSError, EOFError, AttributeError) as error:
            raise UserError(f"{self.folder} holds a damaged index ({error}); build it again.") from error

    def _open(self, header: _Header) -> None:
        if (header.engine, header.format) != (ENGINE, _FORMAT):
            raise UserError(f"{self.folder}: the index is of another version; build it again.")
        names = [*header.segments, *header.deleted.values(), *([header.query] if header.query else [])]
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files elsewhere")
        self._header, self.vocab_size = header, header.vocab_size
        deleted = (header.deleted.get(name) for name in header.segments)
        self._segments = [
            _Segment(self.folder / name, header.vocab_size, self.folder / one if one else None)
            for name, one in zip(header.segments, deleted, strict=True)
        ]

    @classmethod
    def build(
        cls, folder: str | Path, parts: Parts, vocab_size: int, copy_query: Callable[[Path], None] | None = None
    ) -> "ExactIndex":
        """Write an index of documents that come a part at a time, twice.

        What is in the folder gives way once the index is whole.

        Args:
            folder: a new or empty folder, or one with an index.
            parts: the documents.
            vocab_size: dims of a vector.
            copy_query: writes the query side of the model to a folder.

        Raises:
            UserError: another process writes there, the folder holds something else, it cannot be written, or two
                documents have one id.
        """
        folder = Path(folder)
        if folder.exists() and not all(_is_ours(path.name) for path in folder.iterdir()):
            raise UserError(f"{folder} is in use and holds no index; give a new or an empty folder.")
        held = hold_folder(folder)
        try:
            name = _next_name(folder)
            _write_segment(folder / name, parts, vocab_size)
            if copy_query:
                copy_query(folder / f"{name}.query")
            _write_header(
                folder, _Header(ENGINE, _FORMAT, vocab_size, [name], {}, f"{name}.query" if copy_query else None)
            )
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}); free space and start again.") from error
        finally:
            held.release()
        return cls(folder)

    @property
    def query_folder(self) -> Path | None:
        """The folder with the query side of the model that the index was made with."""
        return self.folder / self._header.query if self._header.query else None

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Add documents, float32 `[documents, vocab]`; those whose ids are there already take their places."""
        self._change(ids, vectors, texts)

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; how many were there."""
        return self._change(ids)

    def _change(
        self, ids: Collection[str], vectors: csr_array | None = None, texts: Sequence[str] | None = None
    ) -> int:
        """Delete documents of these ids, and put others in their places if there are vectors; how many were deleted."""
        held = hold_folder(self.folder)
        try:
            self._open(_Header(**read_index_json(self.folder)))  # another process may have changed it
            header, count, deleted = self._header, 0, dict(self._header.deleted)
            for segment in self._segments:
                rows = segment.rows(ids)
                if len(rows := rows[~segment.deleted[rows]]):
                    deleted[segment.folder.name] = segment.write_deleted(rows)
                    count += len(rows)
            segments = list(header.segments)
            if vectors is not None:
                segments.append(_next_name(self.folder))
                _write_segment(self.folder / segments[-1], lambda: [(list(ids), vectors, texts)], self.vocab_size)
            header = replace(header, segments=segments, deleted=deleted)
            _write_header(self.folder, header)
            self._open(header)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); free space and try again.") from error
        finally:
            held.release()
        return count

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """The best k documents of each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found. A UserError
        says that queries have other dims than documents.
        """
        if queries.shape[1] != self.vocab_size:
            sizes = f"Queries have {queries.shape[1]} dims, documents {self.vocab_size}"
            raise UserError(f"{sizes}; search with the model that the index was made with.")
        queries = queries.sorted_indices()
        left_out = [segment.left_out(only) for segment in self._segments]
        found = []
        for start, end in pairwise(queries.indptr.tolist()):
            dims, weights = queries.indices[start:end], queries.data[start:end].astype(np.float32)
            hits: list[Hit] = []
            for segment, out in zip(self._segments, left_out, strict=True):
                hits += segment.search(dims, weights, k, out)
            found.append(_best(hits, k))
        return found

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

    def _place(self, id: str) -> Iterator[tuple["_Segment", int]]:
        for segment in self._segments:
            for row in segment.rows([id]).tolist():
                if not segment.deleted[row]:
                    yield segment, row

    def stats(self) -> IndexStats:
        """What it holds; postings of deleted documents count."""
        documents = sum(segment.num_documents - int(segment.deleted.sum()) for segment in self._segments)
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return IndexStats(ENGINE, documents, sum(len(segment.documents) for segment in self._segments), size)


class _Segment:
    """Documents of an index that were added together."""

    def __init__(self, folder: Path, vocab_size: int, deleted: Path | None) -> None:
        self.folder, self._deleted_path = folder, deleted
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS]
        self.starts, self.documents, self.values, self._id_ends, self._hashes, self._hash_rows = arrays
        self.num_documents = len(self._id_ends)
        self._ids = np.memmap(folder / "ids.bin", np.uint8, "r") if self.num_documents else np.zeros(0, np.uint8)
        whole = (
            len(self.starts) == vocab_size + 1,
            len(self.documents) == len(self.values) == int(self.starts[-1]),
            len(self._hashes) == len(self._hash_rows) == self.num_documents,
            deleted is None or deleted.stat().st_size == self.num_documents,
        )
        if not all(whole):
            raise ValueError(f"{folder.name} is not whole")

    @cached_property
    def deleted(self) -> np.ndarray:
        """Bool `[documents]`."""
        if self._deleted_path is None:
            return np.zeros(self.num_documents, bool)
        return np.frombuffer(self._deleted_path.read_bytes(), bool)

    def write_deleted(self, rows: np.ndarray) -> str:
        """Write which documents are deleted once these are, too; the name of the file."""
        deleted = self.deleted.copy()
        deleted[rows] = True
        number = 1 + int(self._deleted_path.stem.rpartition("-")[2]) if self._deleted_path else 1
        path = self.folder.with_name(f"{self.folder.name}-{number}.deleted")
        with whole_file(path) as temporary:
            temporary.write_bytes(deleted.tobytes())
        return path.name

    def left_out(self, only: Collection[str] | None) -> np.ndarray | None:
        """Bool `[documents]`: what is deleted, or not among these ids; None if that is nothing."""
        if only is None:
            return self.deleted if self._deleted_path is not None else None
        out = np.ones(self.num_documents, bool)
        out[self.rows(only)] = False
        return out | self.deleted

    def id(self, row: int) -> str:
        """The id of a document."""
        start = int(self._id_ends[row - 1]) if row else 0
        return bytes(self._ids[start : int(self._id_ends[row])]).decode("utf-8", "surrogatepass")

    def rows(self, ids: Collection[str]) -> Int64[np.ndarray, " found"]:
        """The rows of those of these ids that are here, deleted or not."""
        found: list[int] = []
        for id in ids:
            hashed = _hash(id)
            place = int(np.searchsorted(self._hashes, hashed))
            while place < self.num_documents and self._hashes[place] == hashed:
                row = int(self._hash_rows[place])
                if self.id(row) == id:
                    found.append(row)
                place += 1
        return np.array(found, np.int64)

    def weight(self, row: int, dim: int) -> float:
        """The weight of a dim of a document."""
        start, end = int(self.starts[dim]), int(self.starts[dim + 1])
        place = start + int(np.searchsorted(self.documents[start:end], row))
        return float(self.values[place]) if place < end and self.documents[place] == row else 0.0

    def text(self, row: int) -> str | None:
        """The text of a document."""
        path = self.folder / "text_ends.npy"
        if not path.is_file():
            return None
        ends = np.load(path, mmap_mode="r", allow_pickle=False)
        start = int(ends[row - 1]) if row else 0
        with (self.folder / "texts.bin").open("rb") as file:
            file.seek(start)
            return file.read(int(ends[row]) - start).decode("utf-8", "surrogatepass")

    def search(
        self, dims: np.ndarray, weights: Float32[np.ndarray, " dims"], k: int, left_out: np.ndarray | None
    ) -> list[Hit]:
        """The best k documents of a query."""
        scores = np.zeros(self.num_documents, np.float32)
        for dim, weight in zip(dims.tolist(), weights, strict=True):
            start, end = int(self.starts[dim]), int(self.starts[dim + 1])
            scores[self.documents[start:end]] += weight * self.values[start:end]
        if left_out is not None:
            scores[left_out] = 0
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= least]
        return _best([Hit(self.id(row), float(scores[row])) for row in rows.tolist()], k)


def _best(hits: list[Hit], k: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]


def _write_segment(folder: Path, parts: Parts, vocab_size: int) -> None:
    """Write a segment into a new folder: lists are counted first, then filled part by part."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    counts, ends, hashes, text_ends = np.zeros(vocab_size, np.int64), array("q", [0]), array("Q"), array("q", [0])
    with (folder / "ids.bin").open("wb") as id_file, (folder / "texts.bin").open("wb") as text_file:
        for ids, vectors, texts in parts():
            _check(ids, vectors, vocab_size)
            counts += np.bincount(vectors.indices, minlength=vocab_size)
            for id in ids:
                ends.append(ends[-1] + id_file.write(_bytes(id)))
                hashes.append(_hash(id))
            for text in texts or ():
                text_ends.append(text_ends[-1] + text_file.write(_bytes(text)))
    starts = np.concatenate([[0], counts.cumsum()])
    documents = _new_array(folder / "documents.npy", np.uint32, int(starts[-1]))
    values = _new_array(folder / "values.npy", np.float32, int(starts[-1]))
    next_place, first = starts[:-1].copy(), 0
    for ids, vectors, _ in parts():
        lists = vectors.tocsc()
        lists.sort_indices()
        here = np.diff(lists.indptr)
        places = np.arange(lists.nnz) + np.repeat(next_place - lists.indptr[:-1], here)
        documents[places] = lists.indices + first
        values[places] = lists.data
        next_place += here
        first += len(ids)
    id_ends, hashed = np.frombuffer(ends, np.int64), np.frombuffer(hashes, np.uint64)
    order = np.argsort(hashed, kind="stable")
    _check_unique(folder, hashed[order], order, id_ends)
    arrays = {"starts": starts, "id_ends": id_ends[1:], "hashes": hashed[order], "hash_rows": order}
    if len(text_ends) == len(ends):
        arrays["text_ends"] = np.frombuffer(text_ends, np.int64)[1:]
    else:
        (folder / "texts.bin").unlink()
    for name, content in arrays.items():
        np.save(folder / f"{name}.npy", content)
    for mapped in (documents, values):
        if isinstance(mapped, np.memmap):
            mapped.flush()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _new_array(path: Path, dtype: type, size: int) -> np.ndarray:
    """An array in a new file; an empty one is written at once, as it cannot be mapped."""
    if size == 0:
        np.save(path, np.zeros(0, dtype))
        return np.zeros(0, dtype)
    return np.lib.format.open_memmap(path, "w+", dtype, (size,))


def _check(ids: Sequence[str], vectors: csr_array, vocab_size: int) -> None:
    if vectors.shape != (len(ids), vocab_size):
        raise UserError(
            f"There are {len(ids)} ids for vectors of shape {vectors.shape}; [ids, {vocab_size}] is needed."
        )
    if not np.isfinite(vectors.data).all() or (vectors.data < 0).any():
        raise UserError("Weights of documents must be finite and not negative; the model that made them diverged.")


def _check_unique(folder: Path, hashes: np.ndarray, rows: np.ndarray, ends: np.ndarray) -> None:
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    content = (folder / "ids.bin").read_bytes() if len(same) else b""
    for place in same.tolist():
        first, second = (content[ends[row] : ends[row + 1]] for row in rows[place : place + 2].tolist())
        if first == second:
            raise UserError(f"Two documents have the id {first.decode('utf-8', 'replace')!r}; make ids unique.")


def _hash(id: str) -> int:
    return xxhash.xxh3_64_intdigest(_bytes(id))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _is_ours(name: str) -> bool:
    return name.startswith(".") or name == INDEX_JSON or name[:4].isdecimal()


def _next_name(folder: Path) -> str:
    taken = [int(path.name[:4]) for path in folder.iterdir() if path.name[:4].isdecimal()]
    return f"{max(taken, default=-1) + 1:04d}"


def _write_header(folder: Path, header: _Header) -> None:
    """Make a change: from here on, what the header does not name is removed."""
    replace_text(folder / INDEX_JSON, json.dumps(asdict(header), indent=2) + "\n")
    named = {*header.segments, *header.deleted.values(), header.query}
    for path in folder.iterdir():
        if path.name[:4].isdecimal() and path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
