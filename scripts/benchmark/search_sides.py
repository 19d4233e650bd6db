"""The sides of the benchmark that search vectors made beforehand; see `sides.py`."""

from collections.abc import Callable
from typing import Any

from turns import Turns


def search(turns: Turns, side: str, vectors: str, k: int) -> None:
    """Search a corpus for all queries, with an index made beforehand."""
    from scipy.sparse import csr_array, load_npz

    queries, corpus = (csr_array(load_npz(f"{vectors}/{name}.npz")) for name in ("queries", "corpus"))
    sides = {"ours": _ours, "peer": _peer, "seismic": _seismic, "splade_index": _splade_index}
    turns.timed(sides[side](queries, corpus, k))


def _ours(queries: Any, corpus: Any, k: int) -> Callable[[], Any]:
    from splade_lit.evaluation.exact_search import SearchIndex

    index = SearchIndex(corpus)
    return lambda: index.search(queries, k)


def _peer(queries: Any, corpus: Any, k: int) -> Callable[[], Any]:
    """sentence-transformers' exact search: a sparse product and the top k of each row."""
    import torch
    from sentence_transformers.util import dot_score

    from splade_lit.encoder.vectors import csr_to_torch

    queries, corpus = csr_to_torch(queries), csr_to_torch(corpus)
    return lambda: torch.topk(dot_score(queries, corpus), k, dim=1)


def _seismic(queries: Any, corpus: Any, k: int) -> Callable[[], Any]:
    """Seismic, an approximate index, with settings at which it finds 99 of 100 documents of the exact search."""
    import numpy as np
    from seismic import SeismicDataset, SeismicIndex, get_seismic_string

    from splade_lit.encoder.rows import split_rows
    from splade_lit.evaluation.exact_search import SearchIndex

    def strings(numbers: Any) -> Any:
        return np.array([str(number) for number in numbers], dtype=get_seismic_string())

    dataset = SeismicDataset()
    for number, (dims, weights) in enumerate(split_rows(corpus)):
        dataset.add_document(str(number), strings(dims), weights)
    index = SeismicIndex.build_from_dataset(dataset, n_postings=10_000)
    given = {
        "queries_ids": strings(range(queries.shape[0])),
        "query_components": [strings(dims) for dims, _ in split_rows(queries)],
        "query_values": [weights for _, weights in split_rows(queries)],
        "k": k,
    }
    top = SearchIndex(corpus).search(queries, k)
    exact = {(int(query), int(top.documents[query, n])) for query, n in zip(*np.nonzero(top.scores > 0), strict=True)}

    def run(heap_factor: float) -> Any:
        return index.batch_search(**given, query_cut=10, heap_factor=heap_factor)

    def recall(results: Any) -> float:  # results come in any order of the queries
        hits = {(int(query), int(document)) for found in results for query, _, document in found}
        return len(hits & exact) / len(exact)

    best = next((factor for factor in (0.9, 0.7, 0.5, 0.3) if recall(run(factor)) >= 0.99), None)
    if best is None:
        raise RuntimeError("Seismic finds less than 0.99 of the hits with any of the settings, so times say nothing.")
    return lambda: run(best)


def _splade_index(queries: Any, corpus: Any, k: int) -> Callable[[], Any]:
    """splade-index with its numba loops, exact."""
    from splade_index import SPLADE

    index = SPLADE(backend="numba")
    index.index(_GivenVectors(queries, corpus), [str(number) for number in range(corpus.shape[0])], show_progress=False)
    texts = [str(number) for number in range(queries.shape[0])]
    return lambda: index.retrieve(texts, k=k, show_progress=False, return_as="doc_ids")


class _GivenVectors:
    """What splade-index takes for a model: it asks a model for its vectors, and these are made already."""

    def __init__(self, queries: Any, corpus: Any) -> None:
        from splade_lit.encoder.vectors import csr_to_torch

        rows = csr_to_torch(queries)
        self.queries = [rows[number].coalesce() for number in range(len(rows))]
        self.documents = csr_to_torch(corpus)
        self.tokenizer = self

    def get_vocab(self) -> dict[str, int]:
        return {str(dim): dim for dim in range(self.documents.shape[1])}

    def encode_query(self, texts: list[str], **settings: Any) -> Any:
        # Texts are numbers, but for one that the library warms up with.
        return [self.queries[int(text) if text.isdigit() else 0] for text in texts]

    def encode_document(self, texts: list[str], **settings: Any) -> Any:
        return self.documents
