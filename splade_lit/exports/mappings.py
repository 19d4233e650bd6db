"""How engines take the vectors of a bundle: the requests of each, with an example document and an example query."""

import json
from dataclasses import dataclass

import numpy as np

from splade_lit.engines.cluster_bodies import index_body, query_body
from splade_lit.engines.features import FeatureNames, plain_floats
from splade_lit.exports.impacts import to_impacts
from splade_lit.exports.vespa import VESPA_SCHEMA, VESPA_TYPE, vespa_query

MAPPINGS = {
    "opensearch.json": "OpenSearch: `rank_features`, exact scores but for 9 significant bits of a document's weights",
    "elasticsearch.json": "Elasticsearch: `sparse_vector`, without the pruning that is on by default",
    "qdrant.json": "Qdrant: a sparse vector by dims",
    "doc.sd": "Vespa: the schema; weights as a mapped tensor, and as whole numbers to find documents by",
    "vespa.json": "Vespa: requests",
    "pgvector.sql": "PostgreSQL with pgvector: `sparsevec`, inner product",
}
"""File to what it holds."""

_HITS = 10
_SCALE = 100.0  # whole numbers for Vespa's `wand`, which finds what the exact product then scores


@dataclass(frozen=True)
class Example:
    """A text with its vector: dims, int32 and ascending, and positive weights, float32."""

    text: str
    dims: np.ndarray
    weights: np.ndarray

    @property
    def values(self) -> list[float]:
        """The weights as JSON has them."""
        return plain_floats(self.weights)


def mapping_files(vocab_size: int, names: FeatureNames, document: Example, query: Example) -> dict[str, str]:
    """File name to text, one for each of `MAPPINGS`.

    Args:
        vocab_size: dims of a vector.
        names: of dims where an engine knows them by name.
        document: an example of what is indexed.
        query: an example of what is asked.
    """
    terms = names.weights(document.dims.tolist(), document.weights)
    asked = names.weights(query.dims.tolist(), query.weights)
    source = {"text": document.text, "vector": terms}
    impacts = dict(zip(terms, np.maximum(to_impacts(document.weights, _SCALE), 1).tolist(), strict=True))
    fields = {"id": "1", "text": document.text, "terms": impacts, "vector": {"cells": terms}}
    files: dict[str, object] = {
        "opensearch.json": {
            "PUT /documents": index_body("opensearch", "rank_features"),
            "PUT /documents/_doc/1": source,
            "POST /documents/_search": query_body("opensearch", "rank_features", asked, _HITS),
        },
        "elasticsearch.json": {
            "PUT /documents": index_body("elasticsearch", "sparse_vector"),
            "PUT /documents/_doc/1": source,
            "POST /documents/_search": query_body("elasticsearch", "sparse_vector", asked, _HITS),
        },
        "qdrant.json": {
            "PUT /collections/documents": {"sparse_vectors": {"vector": {}}},
            "PUT /collections/documents/points": {
                "points": [{"id": 1, "vector": {"vector": _by_dims(document)}, "payload": {"text": document.text}}]
            },
            "POST /collections/documents/points/query": {
                "query": _by_dims(query),
                "using": "vector",
                "limit": _HITS,
                "with_payload": True,
            },
        },
        "vespa.json": {
            f"POST /document/v1/splade_lit/{VESPA_TYPE}/docid/1": {"fields": fields},
            "POST /search/": vespa_query(asked, _SCALE, _HITS),
        },
    }
    texts = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in files.items()}
    return texts | {"doc.sd": VESPA_SCHEMA, "pgvector.sql": _sql(vocab_size, document, query)}


def _by_dims(example: Example) -> dict[str, list[int] | list[float]]:
    return {"indices": example.dims.tolist(), "values": example.values}


def _sql(vocab_size: int, document: Example, query: Example) -> str:
    """Statements; in pgvector's text, dims count from 1. OFFSET 0 keeps the product from being computed twice."""
    vectors = [
        f"{{{','.join(f'{dim + 1}:{weight}' for dim, weight in zip(one.dims.tolist(), one.values, strict=True))}}}"
        f"/{vocab_size}"
        for one in (document, query)
    ]
    text = document.text.replace("'", "''")
    return f"""CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE documents (id text PRIMARY KEY, text text, vector sparsevec({vocab_size}) NOT NULL);
INSERT INTO documents VALUES ('1', '{text}', '{vectors[0]}');
SELECT id, text, score
FROM (SELECT id, text, -(vector <#> '{vectors[1]}') AS score FROM documents OFFSET 0) scored
WHERE score > 0 ORDER BY score DESC, id LIMIT {_HITS};
"""
