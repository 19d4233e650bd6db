"""Dense vectors of texts, each made once and kept on disk, found by the hash of the text.

A folder belongs to one model with its limits. It holds parts of some thousand texts: `NAME.vectors.npy` and
`NAME.texts.npy`, their hashes, which is written last. So work that was interrupted goes on after the last whole part,
and data that share texts share their vectors.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from splade_lit.core.errors import UserError
from splade_lit.core.files import whole_file
from splade_lit.core.progress import WorkProgress
from splade_lit.core.text import warn_once

PART_TEXTS = 4_096
_TEXTS_AT_ONCE = 256  # between two steps of the progress
_VECTORS, _TEXTS = ".vectors.npy", ".texts.npy"

Encode = Callable[[Sequence[str]], np.ndarray]
Part = tuple[np.ndarray, np.ndarray]

logger = logging.getLogger(__name__)


class TextVectors:
    """float16 vectors of texts in parts, memory-mapped where they are files.

    Args:
        parts: the hashes, uint64 `[texts]`, and the vectors, float16 `[texts, dims]`, of each part.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._vectors = [vectors for _, vectors in parts]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(hashes for hashes, _ in parts)])
        self._starts = np.cumsum([0, *(len(hashes) for hashes, _ in parts)])
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._sorted)

    def rows(self, hashes: np.ndarray) -> np.ndarray:
        """int64, like `hashes`: the row of each text, -1 for those that are not there."""
        if not len(self):
            return np.full(hashes.shape, -1)
        places = np.searchsorted(self._sorted, hashes).clip(max=len(self) - 1)
        return np.where(self._sorted[places] == hashes, self._order[places], -1)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """fp32 `[rows, dims]`: the vectors of these rows, all of which are there."""
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        vectors = np.empty((len(rows), self._vectors[0].shape[1]), np.float32)
        for part in np.unique(part_of):
            chosen = part_of == part
            vectors[chosen] = self._vectors[part][rows[chosen] - self._starts[part]]
        return vectors


def open_vectors(folder: Path) -> list[Part]:
    """The parts in a folder that are whole; none if there is no such folder."""
    parts = []
    for path in sorted(folder.glob(f"*{_TEXTS}")):
        vectors = path.with_name(path.name.removesuffix(_TEXTS) + _VECTORS)
        try:
            part = np.load(path), np.load(vectors, mmap_mode="r")
            if len(part[0]) != len(part[1]) or part[0].dtype != np.uint64 or part[1].dtype != np.float16:
                raise ValueError("its files do not fit each other")
            parts.append(part)
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s is not whole and is made again: %s.", path, error)
    return parts


def add_vectors(
    parts: list[Part],
    hashes: np.ndarray,
    lengths: np.ndarray,
    texts: Callable[[np.ndarray], list[str]],
    encode: Encode,
    folder: Path,
    verb: str,
) -> TextVectors:
    """The vectors of the parts and of all these texts; those that are missing are encoded, and kept in the folder.

    If the folder cannot be written, a warning says so and they are kept in memory.

    Args:
        parts: what `open_vectors` gives.
        hashes: uint64 `[texts]`, of distinct texts.
        lengths: of each text, so that texts of like length are encoded together.
        texts: gives the texts of some positions in `hashes`.
        encode: makes the vectors of some texts, fp32 `[texts, dims]`.
        folder: where they are kept.
        verb: what the progress calls the work.

    Raises:
        UserError: a vector is not finite.
    """
    missing = np.flatnonzero(TextVectors(parts).rows(hashes) < 0)
    if not len(missing):
        return TextVectors(parts)
    parts = list(parts)
    missing = missing[np.argsort(-lengths[missing], kind="stable")]  # the longest first: time left only shrinks

    def vectors_of(positions: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(positions), _TEXTS_AT_ONCE):
            chunk = positions[start : start + _TEXTS_AT_ONCE]
            with np.errstate(over="ignore"):
                vectors = encode(texts(chunk)).astype(np.float16)
            if not np.isfinite(vectors).all():
                raise UserError(f"{verb}: a vector is not finite in 16 bits; take another model, or this one again.")
            yield vectors
            progress.advance(len(chunk))

    with WorkProgress(verb, "texts", len(missing)) as progress:
        for start in range(0, len(missing), PART_TEXTS):
            positions = missing[start : start + PART_TEXTS]
            parts.append(_kept(folder, (hashes[positions], np.concatenate(list(vectors_of(positions))))))
    return TextVectors(parts)


def _kept(folder: Path, part: Part) -> Part:
    """The part as files that are mapped into memory, or as it is where they cannot be written."""
    hashes, vectors = part
    name = xxhash.xxh3_64_hexdigest(hashes.tobytes())
    try:
        for ending, values in ((_VECTORS, vectors), (_TEXTS, hashes)):
            with whole_file(folder / f"{name}{ending}") as temporary, temporary.open("wb") as file:
                np.save(file, values)
        return hashes, np.load(folder / f"{name}{_VECTORS}", mmap_mode="r")
    except OSError as error:
        warn_once(f"A teacher's vectors are kept in memory: {folder} cannot be written ({error.strerror}).")
        return part
