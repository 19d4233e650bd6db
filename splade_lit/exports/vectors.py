"""Vectors as plain lines of JSON, exact: the nearest float32 of each number is the weight to the last bit."""

from collections.abc import Iterable, Iterator

import numpy as np

from splade_lit.encoder.query_side import QuerySide
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames, plain_floats
from splade_lit.exports.impacts import Counts
from splade_lit.exports.output import compact


def term_lines(documents: Documents, names: FeatureNames, counts: Counts) -> Iterator[str]:
    """A document a line: `id`, `content`, and `vector`, name to weight. Seismic reads this form."""
    for ids, vectors, texts in documents.parts():
        for row, (id, (dims, weights)) in enumerate(zip(ids, split_rows(vectors), strict=True)):
            counts.add(1, len(weights), np.ones(len(weights), np.int64))
            contents: dict[str, object] = {} if texts is None else {"content": texts[row]}
            yield compact({"id": id, **contents, "vector": names.weights(dims.tolist(), weights)})


def index_lines(documents: Documents, counts: Counts) -> Iterator[str]:
    """A document a line: `id`, `text`, `indices` and `values`, the form of Qdrant's sparse vectors."""
    for ids, vectors, texts in documents.parts():
        for row, (id, (dims, weights)) in enumerate(zip(ids, split_rows(vectors), strict=True)):
            counts.add(1, len(weights), np.ones(len(weights), np.int64))
            contents: dict[str, object] = {} if texts is None else {"text": texts[row]}
            yield compact({"id": id, **contents, "indices": dims.tolist(), "values": plain_floats(weights)})


def query_lines(queries: Iterable[tuple[str, str]], side: QuerySide, names: FeatureNames | None) -> Iterator[str]:
    """A query a line, in the form of `term_lines`, or of `index_lines` without names."""
    for id, text in queries:
        ((dims, weights),) = split_rows(side.encode(text))
        if names is None:
            yield compact({"id": id, "indices": dims.tolist(), "values": plain_floats(weights)})
        else:
            yield compact({"id": id, "vector": names.weights(dims.tolist(), weights)})


def query_weights(text: str, side: QuerySide, names: FeatureNames) -> dict[str, float]:
    """Name to weight of a query."""
    ((dims, weights),) = split_rows(side.encode(text))
    return names.weights(dims.tolist(), weights)
