"""A segment of an index: documents that were added together, in files that never change and are mapped into memory."""

import os
import shutil
from array import array
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import xxhash
from jaxtyping import Float32, Int64
from scipy.sparse import csc_array, csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.files import whole_file
from splade_lit.engines.index import Hit, Part, Parts
from splade_lit.engines.limits import check_vectors

_BLOCK = 1 << 20  # postings that are looked at together
_ARRAYS = {
    "starts": np.int64,
    "documents": np.uint32,
    "values": np.float32,
    "id_ends": np.int64,
    "hashes": np.uint64,
    "hash_rows": np.int64,
}

P = ParamSpec("P")
T = TypeVar("T")


def _told(method: Callable[Concatenate["Segment", P], T]) -> Callable[Concatenate["Segment", P], T]:
    """Have a method raise a UserError where files hold what no build writes, which opening does not look for."""

    @wraps(method)
    def told(self: "Segment", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (IndexError, UnicodeDecodeError) as error:
            raise UserError(f"{self.folder} is a damaged part of an index ({error}); build the index again.") from error

    return told


class Segment:
    """Documents of an index that were added together.

    Opening looks at the sizes of files, and a call at what it reads: a UserError says that it is damaged.
    """

    def __init__(self, folder: Path, vocab_size: int, deleted: Path | None) -> None:
        self.folder, self._deleted_path = folder, deleted
        # Plain views: each slice of a memory map costs as much as adding up a short list.
        arrays = [
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray) for name in _ARRAYS
        ]
        if [(one.dtype, one.ndim) for one in arrays] != [(np.dtype(kind), 1) for kind in _ARRAYS.values()]:
            raise ValueError(f"{folder.name} holds other numbers than an index")
        self.starts, self.documents, self.values, self._id_ends, self._hashes, self._hash_rows = arrays
        self.num_documents = len(self._id_ends)
        self._ids = _mapped(folder / "ids.bin")
        # All is opened at once: another process may replace the index meanwhile, and these files then stay as they are.
        has_texts = (folder / "text_ends.npy").is_file()
        self._text_ends = np.load(folder / "text_ends.npy", mmap_mode="r", allow_pickle=False) if has_texts else None
        self._texts = _mapped(folder / "texts.bin") if has_texts else None
        self.deleted = np.zeros(self.num_documents, bool)
        """Bool `[documents]`."""
        if deleted is not None:
            self.deleted = np.frombuffer(deleted.read_bytes(), bool)
        text_ends = self._text_ends
        whole = (
            text_ends is None or (len(text_ends) == self.num_documents and text_ends.dtype == np.int64),
            len(self.starts) == vocab_size + 1,
            len(self.documents) == len(self.values) == int(self.starts[-1]),
            len(self._hashes) == len(self._hash_rows) == len(self.deleted) == self.num_documents,
        )
        if not all(whole):
            raise ValueError(f"{folder.name} is not whole")

    @_told
    def num_postings(self) -> int:
        """Weights of all documents that are not deleted."""
        if not self.deleted.any():
            return len(self.documents)
        blocks = (self.documents[start : start + _BLOCK] for start in range(0, len(self.documents), _BLOCK))
        return sum(len(block) - int(np.count_nonzero(self.deleted[block])) for block in blocks)

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

    @_told
    def id(self, row: int) -> str:
        """The id of a document."""
        start = int(self._id_ends[row - 1]) if row else 0
        return bytes(self._ids[start : int(self._id_ends[row])]).decode("utf-8", "surrogatepass")

    @_told
    def rows(self, ids: Collection[str]) -> Int64[np.ndarray, " found"]:
        """The rows of those of these ids that are here, deleted or not."""
        found: list[int] = []
        for id in ids:
            hashed = np.uint64(_hash(id))  # with a Python number NumPy would compare floats
            place = int(np.searchsorted(self._hashes, hashed))
            while place < self.num_documents and self._hashes[place] == hashed:
                row = int(self._hash_rows[place])
                if self.id(row) == id:
                    found.append(row)
                place += 1
        return np.array(found, np.int64)

    def posting(self, row: int, dim: int) -> int | None:
        """The place of a posting, None where a document has no such dim."""
        start, end = int(self.starts[dim]), int(self.starts[dim + 1])
        place = start + int(np.searchsorted(self.documents[start:end], np.uint32(row)))
        return place if place < end and self.documents[place] == row else None

    @_told
    def weight(self, row: int, dim: int) -> float:
        """The weight of a dim of a document; 0 where it has none."""
        place = self.posting(row, dim)
        return 0.0 if place is None else float(self.values[place])

    @_told
    def scores(
        self, rows: Int64[np.ndarray, " rows"], dims: np.ndarray, weights: Float32[np.ndarray, " dims"]
    ) -> Float32[np.ndarray, " rows"]:
        """The scores of some documents, as `search` computes them."""
        scores = np.zeros(len(rows), np.float32)
        for dim, weight in zip(dims.tolist(), weights, strict=True):
            start, end = int(self.starts[dim]), int(self.starts[dim + 1])
            documents, values = self.documents[start:end], self.values[start:end]
            places = np.minimum(np.searchsorted(documents, rows.astype(np.uint32)), max(end - start - 1, 0))
            if end > start:
                there = documents[places] == rows
                scores[there] += weight * values[places[there]]
        return scores

    @_told
    def text(self, row: int) -> str | None:
        """The text of a document, if texts are kept."""
        if self._text_ends is None or self._texts is None:
            return None
        start = int(self._text_ends[row - 1]) if row else 0
        return bytes(self._texts[start : int(self._text_ends[row])]).decode("utf-8", "surrogatepass")

    @_told
    def ids_and_texts(self) -> tuple[list[str], list[str]]:
        """Ids and texts of all documents that are not deleted; texts are empty if none are kept."""
        rows = np.flatnonzero(~self.deleted).tolist()
        return [self.id(row) for row in rows], [self.text(row) or "" for row in rows]

    @_told
    def left(self) -> Part:
        """All documents that are not deleted."""
        shape = (self.num_documents, len(self.starts) - 1)
        rows = np.flatnonzero(~self.deleted)
        lists = csc_array((self.values, self.documents, self.starts), shape=shape)
        try:
            lists.check_format(full_check=True)  # else rows that are not there would be written outside of arrays
        except ValueError as error:
            raise IndexError(str(error)) from error
        vectors = csr_array(lists)[rows]
        texts = None if self._texts is None else [self.text(row) or "" for row in rows.tolist()]
        return [self.id(row) for row in rows.tolist()], vectors, texts

    @_told
    def search(
        self, dims: np.ndarray, weights: Float32[np.ndarray, " dims"], k: int, left_out: np.ndarray | None
    ) -> list[Hit]:
        """The best k documents of a query."""
        scores = np.zeros(self.num_documents, np.float32)
        for dim, weight in zip(dims.tolist(), weights, strict=True):
            start, end = int(self.starts[dim]), int(self.starts[dim + 1])
            scores[self.documents[start:end]] += weight * self.values[start:end]
        return self.best(scores, k, left_out)

    def best(self, scores: Float32[np.ndarray, " documents"], k: int, left_out: np.ndarray | None) -> list[Hit]:
        """The k documents with the best scores above 0, best first; scores of what is left out become 0."""
        if left_out is not None:
            scores[left_out] = 0
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= least]
        return best_hits([Hit(self.id(row), float(scores[row])) for row in rows.tolist()], k)


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def best_hits(hits: list[Hit], k: int) -> list[Hit]:
    """The best k, best first, and of equal scores the lower id first."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]


def write_segment(folder: Path, parts: Parts, vocab_size: int) -> None:
    """Write a segment into a new folder: lists are counted first, then filled part by part.

    Memory grows by some 40 bytes a document, whatever is in it. Documents without a text get an empty one where others
    have some. A UserError says that vectors do not fit, or that two documents have one id.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    counts, ends, hashes, text_ends = np.zeros(vocab_size, np.int64), array("q", [0]), array("Q"), array("q", [0])
    with (folder / "ids.bin").open("wb") as id_file, (folder / "texts.bin").open("wb") as text_file:
        for ids, vectors, texts in parts():
            check_vectors(ids, vectors, vocab_size)
            counts += np.bincount(vectors.indices, minlength=vocab_size)
            if texts is not None:
                text_ends.extend([text_ends[-1]] * (len(ends) - len(text_ends)))  # documents before, which have none
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
    if len(text_ends) > 1 or len(ends) == 1:
        text_ends.extend([text_ends[-1]] * (len(ends) - len(text_ends)))
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
