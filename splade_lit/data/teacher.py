"""A teacher's scores of the pairs of a batch: of a frozen sentence encoder, whose vectors are made once, or of BM25."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from scipy.sparse import csr_array
from torch import Tensor

from splade_lit.core.bm25 import BM25, word_counts, word_weights
from splade_lit.core.errors import UserError
from splade_lit.core.tables import BATCH_ROWS
from splade_lit.data.answers import NO_TEXT
from splade_lit.data.pairs import Pairs
from splade_lit.encoder.layout import model_folder
from splade_lit.teachers.kept_vectors import KeptVectors
from splade_lit.teachers.sentence_encoder import Side, usual_scale
from splade_lit.teachers.vectors import TextVectors

logger = logging.getLogger(__name__)


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
class SentenceTeacher:
    """Scores of a sentence encoder of all queries of a batch with all its documents.

    `query_rows` `[pairs]` and `document_rows` `[pairs, columns]` are the rows of the texts of each pair in the vectors,
    -1 for a document that is not there.
    """

    queries: TextVectors
    documents: TextVectors
    query_rows: np.ndarray
    document_rows: np.ndarray

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: documents column by column, as in `PairBatch`."""
        queries = torch.from_numpy(self.queries.gather(self.query_rows[rows]))
        documents = torch.from_numpy(self.documents.gather(_there(self.document_rows[rows])))
        return queries @ documents.T


@dataclass(frozen=True)
class WordTeacher:
    """BM25 of all queries of a batch with all its documents: counts of the words of queries, weights of the documents'.

    Rows are those of `SentenceTeacher`.
    """

    queries: csr_array
    documents: csr_array
    query_rows: np.ndarray
    document_rows: np.ndarray

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: documents column by column, as in `PairBatch`."""
        scores = self.queries[self.query_rows[rows]] @ self.documents[_there(self.document_rows[rows])].T
        return torch.from_numpy(scores.toarray())


@dataclass(frozen=True)
class MeanTeacher:
    """The mean of several teachers' scores, each times its scale."""

    teachers: Sequence[SentenceTeacher | WordTeacher]
    scales: Sequence[float]

    def row_vectors(self, rows: np.ndarray) -> np.ndarray:
        """fp32 `[rows, dims]`, of unit length: what the pairs are about, by the first sentence encoder of them."""
        sentence = next(teacher for teacher in self.teachers if isinstance(teacher, SentenceTeacher))
        vectors = sentence.queries.gather(sentence.query_rows[rows])
        vectors += sentence.documents.gather(sentence.document_rows[rows, 0])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-9)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """fp32 `[rows, documents]`: documents column by column, as in `PairBatch`."""
        scaled = [scale * teacher(rows) for teacher, scale in zip(self.teachers, self.scales, strict=True)]
        return torch.stack(scaled).mean(0)


def row_teacher(source: str, scores: np.ndarray, present: np.ndarray) -> RowTeacher:
    """The teacher that a `RowTeacher` is; a warning tells of pairs that it says nothing of.

    A loss compares documents of a query. A UserError says that no pair has scores of two.
    """
    silent = int(((~np.isnan(scores) & present).sum(axis=1) < 2).sum())
    if silent == len(scores):
        ways = "name a column of scores for each document of a row, or a list, and give negative_columns"
        raise UserError(f"{source}: no pair has scores of two documents, so that a teacher teaches nothing; {ways}.")
    if silent:
        text = "%s: %d of %d pairs have scores of fewer than two documents, from which a teacher's loss learns nothing."
        logger.warning(text, source, silent, len(scores))
    return RowTeacher(scores, present)


def in_batch_teacher(
    pairs: Pairs,
    fingerprints: np.ndarray,
    sources: Sequence[str],
    max_tokens: int | None,
    scales: Sequence[float] | None,
    cache_dir: Path,
    device: str | torch.device,
    half: torch.dtype | None,
) -> MeanTeacher:
    """The teacher of these pairs; vectors that are not in the cache are made, one of each distinct text.

    Arguments are the settings `teacher...` of `PairsDataModule`, and the pairs' fingerprints. A UserError is that of
    `model_folder` or `SentenceEncoder`.
    """
    queries = DistinctTexts(pairs, fingerprints, slice(0, 1))
    documents = DistinctTexts(pairs, fingerprints, slice(1, None))

    def teacher(source: str) -> SentenceTeacher | WordTeacher:
        if source == BM25:
            return _word_teacher(pairs.source, queries, documents, fingerprints)
        kept = KeptVectors(model_folder(source), max_tokens, device, cache_dir, half)
        return _sentence_teacher(kept, queries, documents, fingerprints)

    teachers = list(map(teacher, sources))
    return MeanTeacher(teachers, scales or [usual_scale(source) for source in sources])


def _word_teacher(
    source: str, queries: "DistinctTexts", documents: "DistinctTexts", fingerprints: np.ndarray
) -> WordTeacher:
    weights, numbers = word_weights(source, documents.all())
    rows = queries.numbers(fingerprints[:, 0]), documents.numbers(fingerprints[:, 1:])
    return WordTeacher(word_counts(queries.all(), numbers), weights, *rows)


def _sentence_teacher(
    kept: KeptVectors, queries: "DistinctTexts", documents: "DistinctTexts", fingerprints: np.ndarray
) -> SentenceTeacher:
    def vectors(side: Side, texts: DistinctTexts) -> TextVectors:
        return kept.of(side, texts.hashes, texts.lengths(), texts.at, f"teacher: encoding {side} texts")

    of_queries, of_documents = vectors("query", queries), vectors("document", documents)
    rows = of_queries.rows(fingerprints[:, 0]), of_documents.rows(fingerprints[:, 1:])
    return SentenceTeacher(of_queries, of_documents, *rows)


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

    def all(self) -> list[str]:
        """All texts, in the order of `hashes`."""
        return self.at(np.arange(len(self.hashes)))

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


def _there(document_rows: np.ndarray) -> np.ndarray:
    """`[documents]`: the rows of the documents that are there, column by column, of those `[pairs, columns]`."""
    by_column = document_rows.T
    return by_column[by_column >= 0]
