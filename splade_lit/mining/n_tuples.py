"""Rows of query, documents and their scores in arrow: sentence-transformers' `n-tuple`, which `fit` reads."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from numpy import ndarray

from splade_lit.core.errors import UserError

SCORES = "scores"
"""The column of lists of scores: a row's documents in the order of their columns."""
_PARQUET, _JSONL = ".parquet", ".jsonl"


def check_ending(path: Path) -> None:
    """Raise a UserError if a file's ending is not that of a form that `table_writer` writes."""
    if path.suffix.lower() not in (_PARQUET, _JSONL):
        raise UserError(f"{path} must end in {_PARQUET} or {_JSONL}.")


@contextmanager
def table_writer(file: Path, ending: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes rows to a file, a table at a time: as jsonl if that is the ending its name will have, else as parquet."""
    if ending.lower() == _JSONL:
        with file.open("w", encoding="utf-8") as lines:
            yield lambda rows: lines.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows.to_pylist())
    else:
        with pq.ParquetWriter(file, schema) as writer:
            yield writer.write_table


def n_tuple_schema(documents: Sequence[str], scores: bool, key: str, settings: Mapping[str, object]) -> pa.Schema:
    """Columns `query`, those of documents, and `scores` if wanted; settings are kept as JSON under a metadata key."""
    fields = [(name, pa.string()) for name in ("query", *documents)]
    scored = [(SCORES, pa.list_(pa.float32()))] if scores else []
    return pa.schema(fields + scored, {key: json.dumps(dict(settings))})


def n_tuple_rows(
    schema: pa.Schema, texts: Sequence[Sequence[str | None]], scores: Float32[ndarray, "rows documents"] | None = None
) -> pa.RecordBatch:
    """Rows of a schema of `n_tuple_schema`: a list of texts a column; empty texts and scores of NaN are null."""
    arrays = [pa.array([text or None for text in column], pa.string()) for column in texts]
    if scores is not None:
        lists = [[None if math.isnan(one) else one for one in row] for row in scores.tolist()]
        arrays.append(pa.array(lists, pa.list_(pa.float32())))
    return pa.record_batch(arrays, schema)
