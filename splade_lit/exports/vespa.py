"""Schema, feed and query for Vespa: found by whole numbers (`wand`), scored by the exact product of tensors."""

import logging
import re
from collections.abc import Iterator

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames
from splade_lit.exports.impacts import Counts, to_impacts
from splade_lit.exports.output import compact

VESPA_TYPE = "doc"
"""The name of the schema."""
# What Vespa's Text.isTextCharacter refuses: control characters but tab and ends of lines, surrogates, noncharacters.
_NO_TEXT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufdd0-\ufddf"
    + "".join(chr(plane + last) for plane in range(0x10000, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)

logger = logging.getLogger(__name__)


def vespa_lines(documents: Documents, names: FeatureNames, scale: float, counts: Counts) -> Iterator[str]:
    """A `put` a line, with the vector as a mapped tensor and its impacts as a weighted set to find documents by.

    Characters of texts that Vespa refuses become spaces, with a warning. A UserError says that an id has one.
    """
    replaced = 0
    for ids, vectors, texts in documents.parts():
        for row, (id, (dims, weights)) in enumerate(zip(ids, split_rows(vectors), strict=True)):
            if _NO_TEXT.search(id):
                raise UserError(f"The id {id[:40]!r} has a character that Vespa refuses; change it.")
            impacts = np.maximum(to_impacts(weights, scale), 1)  # else a document would not be found by it
            counts.add(1, len(weights), impacts)
            terms = {names.names[dim]: impact for dim, impact in zip(dims.tolist(), impacts.tolist(), strict=True)}
            cells = names.weights(dims.tolist(), weights)
            fields = {"id": id, "terms": terms, "vector": {"cells": cells}}
            if texts is not None:
                fields["text"], count = _NO_TEXT.subn(" ", texts[row])
                replaced += count
            yield compact({"put": f"id:splade_lit:{VESPA_TYPE}::{id}", "fields": fields})
    if replaced:
        are = f"{replaced:,} characters of texts are" if replaced > 1 else "1 character of a text is"
        logger.warning("%s refused by Vespa, such as control characters, and written as a space.", are)


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
