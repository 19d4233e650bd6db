"""Schema, feed and query for Vespa: found by whole numbers (`wand`), scored by the exact product of tensors."""

from collections.abc import Iterator

import numpy as np

from splade_lit.encoder.rows import split_rows
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames
from splade_lit.exports.impacts import Counts, to_impacts
from splade_lit.exports.output import compact

VESPA_TYPE = "doc"
"""The name of the schema."""


def vespa_lines(documents: Documents, names: FeatureNames, scale: float, counts: Counts) -> Iterator[str]:
    """A `put` a line, with the vector as a mapped tensor and its impacts as a weighted set to find documents by."""
    for ids, vectors, texts in documents.parts():
        for row, (id, (dims, weights)) in enumerate(zip(ids, split_rows(vectors), strict=True)):
            impacts = np.maximum(to_impacts(weights, scale), 1)  # else a document would not be found by it
            counts.add(1, len(weights), impacts)
            terms = {names.names[dim]: impact for dim, impact in zip(dims.tolist(), impacts.tolist(), strict=True)}
            cells = names.weights(dims.tolist(), weights)
            fields = {"id": id, "terms": terms, "vector": {"cells": cells}}
            if texts is not None:
                fields["text"] = texts[row]
            yield compact({"put": f"id:splade_lit:{VESPA_TYPE}::{id}", "fields": fields})


VESPA_SCHEMA = """schema doc {
    document doc {
        field id type string {
            indexing: summary | attribute
        }
        field text type string {
            indexing: summary
        }
        field terms type weightedset<string> {
            indexing: attribute
            attribute: fast-search
        }
        field vector type tensor<float>(term{}) {
            indexing: attribute
        }
    }
    rank-profile splade {
        inputs {
            query(q) tensor<float>(term{})
        }
        first-phase {
            expression: sum(query(q) * attribute(vector))
        }
    }
}
"""


def vespa_query(weights: dict[str, float], scale: float, k: int) -> dict[str, object]:
    """The body of a search: `wand` finds documents by whole numbers, the profile scores them by the exact product."""
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    impacts = {name: max(round(weight * scale), 1) for name, weight in weights.items()}
    return {
        "yql": f"select id from {VESPA_TYPE} where ({{targetHits: {k}}}wand(terms, @terms))",
        "terms": compact(impacts),
        "ranking": "splade",
        "input.query(q)": compact(weights),
        "hits": k,
    }
