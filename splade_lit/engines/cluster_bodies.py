"""What is sent to OpenSearch and Elasticsearch: index bodies, documents and queries, as plain JSON values.

    rank_features   both; a `bool` query of `rank_feature` clauses, whose `linear` function gives the dot product
    sparse_vector   Elasticsearch: its query `sparse_vector`, with token pruning, which is on by default, switched off;
                    OpenSearch from 3.3: SEISMIC behind its query `neural_sparse`, features are numbers of dims

A document has the fields `vector` and, where texts are kept, `text`; its id is the `_id` of the engine.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.features import FeatureNames

Product = Literal["opensearch", "elasticsearch"]
Field = Literal["rank_features", "sparse_vector"]

MOST_HITS = 10_000
"""Of a query, unless the setting `index.max_result_window` of the index says otherwise."""
MOST_CLAUSES = 1_024
"""Of a query, unless settings of the cluster allow more: `rank_feature` takes one for each token, a filter one more."""
MAX_FEATURE_WEIGHT = 64.0
"""Of a token of a query `neural_sparse`: Lucene's linear function takes no more. Boosts may be larger."""
MAX_SEISMIC_VOCAB_SIZE = 65_536
"""OpenSearch takes dims modulo this, so that those of a larger vocabulary would be mixed up."""
_MOST_ID_BYTES = 512


@dataclass(frozen=True)
class Ceilings:
    """The largest weights of documents and of queries, on which SEISMIC's 8-bit weights are spread."""

    ingest: float
    search: float

    @classmethod
    def of(cls, ingest: float, search: float) -> "Ceilings":
        """Those of largest weights: rounded up to hundredths, and positive.

        >>> Ceilings.of(2.521, 0.0)
        Ceilings(ingest=2.53, search=0.01)
        """
        return cls(*(max(math.ceil(largest * 100) / 100, 0.01) for largest in (ingest, search)))


def index_body(product: Product, field: Field, ceilings: Ceilings | None = None) -> dict[str, Any]:
    """The body that an index is made with."""
    mapping: dict[str, Any] = {"type": field}
    body: dict[str, Any] = {"mappings": {"properties": {"vector": mapping, "text": {"type": "text"}}}}
    if product == "opensearch" and field == "sparse_vector":
        if ceilings is None:
            raise ValueError("SEISMIC needs ceilings; by default it clips documents at 3 and queries at 16")
        parameters = {
            "quantization_ceiling_ingest": ceilings.ingest,
            "quantization_ceiling_search": ceilings.search,
        }
        mapping["method"] = {"name": "seismic", "parameters": parameters}
        body["settings"] = {"index": {"sparse": True}}
    return body


def bulk_lines(
    ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None, names: FeatureNames
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Action and source of each document, in the form of `_bulk`."""
    for row, (id, (dims, weights)) in enumerate(zip(ids, split_rows(vectors), strict=True)):
        source: dict[str, Any] = {"vector": names.weights(dims.tolist(), weights)}
        if texts is not None:
            source["text"] = texts[row]
        yield {"index": {"_id": id}}, source


def query_body(
    product: Product, field: Field, weights: Mapping[str, float], k: int, only: Collection[str] | None = None
) -> dict[str, Any]:
    """The body of a search for the best `k` documents, of those with these ids if `only` is given.

    Weights are of feature names, and positive. Without any, nothing is found.
    """
    chosen = None if only is None else {"ids": {"values": sorted(only)}}
    query: dict[str, Any]
    if not weights:
        query = {"match_none": {}}
    elif field == "rank_features":
        clauses = [
            {"rank_feature": {"field": f"vector.{name}", "linear": {}, "boost": weight}}
            for name, weight in weights.items()
        ]
        query = {"bool": {"should": clauses, "minimum_should_match": 1} | ({"filter": [chosen]} if chosen else {})}
    elif product == "elasticsearch":
        query = {"sparse_vector": {"field": "vector", "query_vector": dict(weights), "prune": False}}
        if chosen:
            query = {"bool": {"must": [query], "filter": [chosen]}}
    else:
        # All tokens of a query take part in it; by default the ten largest do.
        method: dict[str, Any] = {"k": k, "top_n": len(weights)} | ({"filter": chosen} if chosen else {})
        query = {"neural_sparse": {"vector": {"query_tokens": dict(weights), "method_parameters": method}}}
    return _search(query, k)


def neural_sparse_body(
    k: int,
    weights: Mapping[str, float] | None = None,
    text: str | None = None,
    analyzer: str | None = None,
    model_id: str | None = None,
) -> dict[str, Any]:
    """The body of OpenSearch's query `neural_sparse` on `rank_features`.

    Args:
        k: hits.
        weights: token to weight, at most `MAX_FEATURE_WEIGHT` each.
        text: in their place, a text that the cluster itself looks up.
        analyzer: with what: one of its analyzers, such as `bert-uncased`.
        model_id: or a tokenizer that is deployed there as a model.
    """
    given = {"query_tokens": weights and dict(weights), "query_text": text, "analyzer": analyzer, "model_id": model_id}
    return _search({"neural_sparse": {"vector": {name: value for name, value in given.items() if value}}}, k)


def _search(query: dict[str, Any], k: int) -> dict[str, Any]:
    return {"size": k, "query": query, "_source": False, "track_total_hits": False}


def check_document_ids(ids: Sequence[str]) -> None:
    """Raise a UserError if an id is none for these engines: empty, or longer than 512 bytes."""
    for id in ids:
        if not 1 <= len(id.encode("utf-8", "surrogatepass")) <= _MOST_ID_BYTES:
            what = f"is empty or longer than {_MOST_ID_BYTES} bytes"
            raise UserError(f"The id {id[:40]!r} {what}, which the engine refuses; shorten it.")


def cut_to_feature(weights: np.ndarray) -> np.ndarray:
    """Float32 weights as Lucene keeps features: 9 significant bits, the others cut off.

    >>> cut_to_feature(np.array([1.0, 1.2345, 3.999], np.float32)).tolist()
    [1.0, 1.234375, 3.9921875]
    """
    return (weights.astype(np.float32).view(np.uint32) >> 15 << 15).view(np.float32)
