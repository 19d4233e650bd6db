"""Scores of teachers for the documents of each row of a data set, and how several teachers become one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache as once
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from jaxtyping import Float32

from splade_lit.core.errors import UserError
from splade_lit.core.files import whole_file
from splade_lit.core.progress import WorkProgress
from splade_lit.data.pairs import Pairs
from splade_lit.data.teacher import DistinctTexts
from splade_lit.mining.miners import Scorer
from splade_lit.mining.n_tuples import n_tuple_rows, n_tuple_schema, table_writer

MIN_MAX_SCALE = 30.0
"""Factor of scores in [0, 1] (as in OpenSearch's training of inference-free models; Geng et al. 2024)."""
METADATA = "splade_lit.score"
"""The key in a parquet file's metadata under which its settings stand."""
_BLOCK = 512  # rows that are scored together
_GROUP_ROWS = 8_192  # rows that are written together

Scores = Float32[np.ndarray, "rows documents"]


def score_rows(
    pairs: Pairs, open_scorer: Callable[[Sequence[str]], Scorer], name: str, cache: Path | None = None
) -> Scores:
    """What a teacher gives each query with each document of its row, NaN where there is none.

    Each distinct document is read once: `open_scorer` makes the scorer of all of them. `name` is for the progress. A
    cache, the folder of this teacher alone, keeps the scores of each block of rows, so that work that was interrupted
    goes on where it was; the scorer is made only if a block is missing. A UserError says that a score is not finite.
    """
    fingerprints, columns_of_documents = pairs.fingerprints(), slice(1, None)
    documents = DistinctTexts(pairs, fingerprints, columns_of_documents)
    numbers = documents.numbers(fingerprints[:, columns_of_documents])

    @once
    def scorer() -> Scorer:
        return open_scorer(documents.at(np.arange(len(documents.hashes))))

    def scored(start: int, queries: list[str]) -> Scores:
        documents_of = numbers[start : start + len(queries)]
        scores = np.full(documents_of.shape, np.nan, np.float32)
        there = documents_of >= 0
        scores[there] = scorer().scores(scorer().encode(queries), np.nonzero(there)[0], documents_of[there])
        if not np.isfinite(scores[there]).all():
            raise UserError(f"{name} gives scores that are not finite; take another teacher, or its model again.")
        return scores

    blocks = []
    with WorkProgress(f"scoring with {name}", "rows", len(pairs)) as progress:
        for number, queries in enumerate(pairs.batches("query", _BLOCK)):
            start = number * _BLOCK
            key = xxhash.xxh3_64_hexdigest(fingerprints[start : start + len(queries)].tobytes())
            path = cache / f"{key}.npy" if cache else None
            block = _stored(path, (len(queries), numbers.shape[1]))
            if block is None:
                block = scored(start, queries)
                _store(path, block)
                progress.advance(len(queries))
            else:
                progress.skip(len(queries))
            blocks.append(block)
    return np.concatenate(blocks)


def _stored(path: Path | None, shape: tuple[int, int]) -> Scores | None:
    with suppress(OSError, ValueError, EOFError):
        if path is not None and (block := np.load(path)).shape == shape:
            return block
    return None


def _store(path: Path | None, block: Scores) -> None:
    if path is not None:
        with suppress(OSError), whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, block)


def min_max(scores: Scores) -> Scores:
    """Scores from 0, of a row's lowest, to 1, of its highest; all 0 where they are equal. NaN stays.

    >>> min_max(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, np.nan]], np.float32))
    array([[1. , 0. , 0.5],
           [0. , 0. , nan]], dtype=float32)
    """
    least = np.fmin.reduce(scores, axis=1, keepdims=True)
    span = np.fmax.reduce(scores, axis=1, keepdims=True) - least
    return (scores - least) / np.where(span > 0, span, 1)


def together(scores: Sequence[Scores], normalize: bool, scale: float) -> Scores:
    """The mean of the scores of several teachers times a factor; with `normalize`, of each teacher's `min_max`."""
    return np.mean([min_max(one) if normalize else one for one in scores], axis=0) * np.float32(scale)


def agreement(scores: Scores, num_positives: int) -> float:
    """Share of rows with an answer and another document in which an answer scores highest."""
    answers, others = scores[:, :num_positives], scores[:, num_positives:]
    both = ~np.isnan(answers).all(axis=1) & ~np.isnan(others).all(axis=1)
    best, other = (np.fmax.reduce(part[both], axis=1) for part in (answers, others))
    return float(np.mean(best > other)) if both.any() else float("nan")


def write_scored(path: Path, pairs: Pairs, scores: Scores, settings: Mapping[str, object]) -> None:
    """Write pairs with the column `scores`, as sentence-transformers' `n-tuple`: parquet, or jsonl by its ending.

    The columns are `query`, `answer`, `positive_2` and `negative_1` and so on, then a list of the scores of the row's
    documents in this order; what is not there is null. `settings` are kept in the metadata of a parquet file. A reader
    never sees half of the file; a UserError says that it cannot be written.
    """
    schema = n_tuple_schema(["answer", *pairs.columns[2:]], True, METADATA, settings)
    try:
        with whole_file(path) as temporary, table_writer(temporary, path.suffix, schema) as write:
            for batch in _batches(schema, pairs, scores):
                write(pa.Table.from_batches([batch]))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); free space or choose another folder.") from error


def _batches(schema: pa.Schema, pairs: Pairs, scores: Scores) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(pairs), _GROUP_ROWS):
        numbers = scores[start : start + _GROUP_ROWS]
        part = pairs.select(range(start, start + len(numbers)))
        texts = [list(chain.from_iterable(part.batches(name))) for name in pairs.columns]
        yield n_tuple_rows(schema, texts, numbers)
