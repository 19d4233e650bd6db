"""Rows of query, documents and their scores in arrow: sentence-transformers' `n-tuple`, which `fit` reads."""

import json
import math
from collections.abc import Mapping, Sequence

import pyarrow as pa
from jaxtyping import Float32
from numpy import ndarray

SCORES = "scores"
"""The column of lists of scores: a row's documents in the order of their columns."""


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
