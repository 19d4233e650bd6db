"""Documents and queries for Anserini and Pyserini: a JsonVectorCollection (`-impact -pretokenized`) and topics."""

from collections.abc import Iterable, Iterator

import numpy as np

from splade_lit.encoder.query_side import QuerySide
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames
from splade_lit.exports.impacts import Counts, repeated, to_impacts
from splade_lit.exports.output import compact


def anserini_lines(
    documents: Documents, names: FeatureNames, scale: float, counts: Counts, with_texts: bool = True
) -> Iterator[str]:
    """A document a line, its weights as whole numbers; to be indexed with `-impact -pretokenized`."""
    for ids, vectors, texts in documents.parts():
        for row, (id, (dims, weights)) in enumerate(zip(ids, split_rows(vectors), strict=True)):
            impacts = to_impacts(weights, scale)
            counts.add(1, len(weights), impacts)
            pairs = zip(dims.tolist(), impacts.tolist(), strict=True)
            vector = {names.names[dim]: impact for dim, impact in pairs if impact}
            contents = texts[row] if texts is not None and with_texts else ""
            yield compact({"id": id, "contents": contents, "vector": vector})


def topic_lines(
    queries: Iterable[tuple[str, str]], side: QuerySide, names: FeatureNames, scale: float
) -> Iterator[str]:
    """A query a line: its id, a tab, and each token as often as its impact says.

    Weights below 0 are left out, and so are queries without any impact: Anserini's reader ends on a line without text.
    """
    for id, text in queries:
        ((dims, weights),) = split_rows(side.encode(text))
        impacts = to_impacts(np.maximum(weights, 0), scale).tolist()
        if any(impacts):
            yield f"{id}\t{repeated([names.names[dim] for dim in dims.tolist()], impacts)}"
