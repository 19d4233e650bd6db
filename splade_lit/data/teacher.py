"""A teacher's scores of the pairs of a batch: products of the vectors of a frozen sentence encoder, made once."""

from dataclasses import dataclass
from functools import cache as cache_once
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from splade_lit.core.tables import BATCH_ROWS
from splade_lit.data.answers import NO_TEXT
from splade_lit.data.pairs import Pairs
from splade_lit.encoder.layout import folder_fingerprint, model_folder
from splade_lit.teachers.sentence_encoder import (
    COSINE_SCALE,
    SentenceEncoder,
    Side,
    compares_by_cosine,
)
from splade_lit.teachers.vectors import TextVectors, add_vectors, open_vectors


@dataclass(frozen=True)
class RowTeacher:
    """Scores of each query of a batch with the documents of its own row: fp32 `[pairs, columns]`, as `Pairs` has them.

    `present`, bool `[pairs, columns]`, tells which documents are there.
    """

    scores: np.ndarray
    present: np.ndarray

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: documents column by column, as in `PairBatch`; NaN for those of other rows."""
        column, query = np.nonzero(self.present[rows].T)
        scores = np.full((len(rows), len(query)), np.nan, np.float32)
        scores[query, np.arange(len(query))] = self.scores[rows][query, column]
        return torch.from_numpy(scores)


@dataclass(frozen=True)
class InBatchTeacher:
    """Scores of all queries of a batch with all its documents.

    `query_rows` `[pairs]` and `document_rows` `[pairs, columns]` are the rows of the texts of each pair in the vectors,
    -1 for a document that is not there.
    """

    queries: TextVectors
    documents: TextVectors
    query_rows: np.ndarray
    document_rows: np.ndarray
    scale: float

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: documents column by column, as in `PairBatch`."""
        queries = torch.from_numpy(self.queries.gather(self.query_rows[rows]))
        document_rows = self.document_rows[rows].T
        documents = torch.from_numpy(self.documents.gather(document_rows[document_rows >= 0]))
        return self.scale * (queries @ documents.T)


def in_batch_teacher(
    pairs: Pairs,
    fingerprints: np.ndarray,
    source: str,
    max_tokens: int | None,
    scale: float | None,
    cache_dir: Path,
    device: str | torch.device,
) -> InBatchTeacher:
    """The teacher of these pairs; what is not in the cache is encoded, each distinct text once.

    Arguments are the settings `teacher...` of `PairsDataModule`, and the pairs' fingerprints. A UserError is that of
    `model_folder` or `SentenceEncoder`.
    """
    folder = model_folder(source)
    if scale is None:
        scale = COSINE_SCALE if compares_by_cosine(folder) else 1.0
    cache = cache_dir / "teachers" / f"{folder_fingerprint(folder)}-{max_tokens or 'all'}"

    @cache_once
    def encoder() -> SentenceEncoder:  # loaded only if a vector is missing
        return SentenceEncoder(folder, max_tokens, device)

    def vectors(side: Side, columns: slice) -> TextVectors:
        texts = DistinctTexts(pairs, fingerprints, columns)
        return add_vectors(
            open_vectors(cache / side),
            texts.hashes,
            texts.lengths(),
            texts.at,
            lambda batch: encoder().encode(batch, side),
            cache / side,
            f"teacher: encoding {side} texts",
        )

    queries, documents = vectors("query", slice(0, 1)), vectors("document", slice(1, None))
    rows = queries.rows(fingerprints[:, 0]), documents.rows(fingerprints[:, 1:])
    return InBatchTeacher(queries, documents, *rows, scale)


class DistinctTexts:
    """The distinct texts of some columns of pairs, by their hashes, read from disk as they are asked for."""

    def __init__(self, pairs: Pairs, fingerprints: np.ndarray, columns: slice) -> None:
        hashes, first = np.unique(fingerprints[:, columns], return_index=True)
        self.hashes, first = hashes[hashes != NO_TEXT], first[hashes != NO_TEXT]
        self._pairs, self._names = pairs, pairs.columns[columns]
        self._rows, self._columns = np.divmod(first, len(self._names))

    def numbers(self, fingerprints: np.ndarray) -> np.ndarray:
        """int64, like `fingerprints`: the position in `hashes` of each text, -1 where there is none."""
        return np.where(fingerprints == NO_TEXT, -1, np.searchsorted(self.hashes, fingerprints))

    def lengths(self) -> np.ndarray:
        """int64: characters of each text."""
        return np.stack([_lengths(self._pairs, name) for name in self._names], axis=1)[self._rows, self._columns]

    def at(self, positions: np.ndarray) -> list[str]:
        """The texts of some positions in `hashes`."""
        texts = np.empty(len(positions), object)
        for column, name in enumerate(self._names):
            here = self._columns[positions] == column
            texts[here] = self._pairs.dataset.select(self._rows[positions][here])[name][:]
        return texts.tolist()


def _lengths(pairs: Pairs, column: str) -> np.ndarray:
    """Characters of each text of a column."""
    tables = pairs.dataset.select_columns(column).with_format("arrow").iter(BATCH_ROWS)
    return np.concatenate([pc.fill_null(pc.utf8_length(table.column(0)), 0).to_numpy() for table in tables])
