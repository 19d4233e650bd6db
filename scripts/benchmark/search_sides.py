"""The sides of the benchmark that search vectors made beforehand; see `sides.py`."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from turns import Turns


def search_ours(turns: Turns, vectors: str, k: int) -> None:
    """Exact search with an index made beforehand."""
    from splade_lit.evaluation.exact_search import SearchIndex

    queries, corpus = _vectors(vectors)
    index = SearchIndex(corpus)
    turns.timed(lambda: index.search(queries, k))


def search_peer(turns: Turns, vectors: str, k: int) -> None:
    """sentence-transformers' exact search: a sparse product and the top k of each row."""
    import torch
    from sentence_transformers.util import dot_score

    from splade_lit.encoder.vectors import csr_to_torch

    queries, corpus = (csr_to_torch(matrix) for matrix in _vectors(vectors))
    turns.timed(lambda: torch.topk(dot_score(queries, corpus), k, dim=1))


def search_seismic(turns: Turns, vectors: str, k: int) -> None:
    """Seismic, an approximate index, with settings at which it finds 99 of 100 documents of the exact search."""
    import numpy as np
    from seismic import SeismicDataset, SeismicIndex, get_seismic_string

    queries, corpus = _vectors(vectors)
    text = get_seismic_string()
    dataset = SeismicDataset()
    for number, (dims, weights) in enumerate(_rows(corpus)):
        dataset.add_document(str(number), np.array(dims.astype(str), dtype=text), weights)
    index = SeismicIndex.build_from_dataset(dataset, n_postings=10_000)
    rows = list(_rows(queries))
    exact = _exact(queries, corpus, k)

    def search(query_cut: int, heap_factor: float) -> Any:
        return index.batch_search(
            queries_ids=np.array([str(number) for number in range(len(rows))], dtype=text),
            query_components=[np.array(dims.astype(str), dtype=text) for dims, _ in rows],
            query_values=[weights for _, weights in rows],
            k=k,
            query_cut=query_cut,
            heap_factor=heap_factor,
        )

    def recall(results: Any) -> float:
        found = [{int(document) for _, _, document in hits} for hits in results]
        return sum(len(a & b) for a, b in zip(found, exact, strict=True)) / sum(map(len, exact))

    settings = [(10, 0.9), (20, 0.9), (20, 1.0), (50, 1.0)]
    best = next((one for one in settings if recall(search(*one)) >= 0.99), None)
    if best is None:
        raise RuntimeError("Seismic finds less than 0.99 of the hits with any of the settings, so times say nothing.")
    turns.timed(lambda: search(*best))


def search_splade_index(turns: Turns, vectors: str, k: int) -> None:
    """splade-index with its numba loops, exact."""
    from splade_index import SPLADE

    queries, corpus = _vectors(vectors)
    index = SPLADE(backend="numba")
    index.index(_GivenVectors(queries, corpus), [str(number) for number in range(corpus.shape[0])], show_progress=False)
    texts = [str(number) for number in range(queries.shape[0])]
    turns.timed(lambda: index.retrieve(texts, k=k, show_progress=False, return_as="doc_ids"))


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


def _rows(matrix: Any) -> Iterator[tuple[Any, Any]]:
    for start, end in pairwise(matrix.indptr):
        yield matrix.indices[start:end], matrix.data[start:end]


def _exact(queries: Any, corpus: Any, k: int) -> list[set[int]]:
    from splade_lit.evaluation.exact_search import exact_search

    top = exact_search(queries, corpus, k)
    return [
        {row for row, score in zip(rows, scores, strict=True) if score > 0}
        for rows, scores in zip(top.documents.tolist(), top.scores.tolist(), strict=True)
    ]


def _vectors(folder: str) -> tuple[Any, Any]:
    from scipy.sparse import csr_array, load_npz

    return csr_array(load_npz(f"{folder}/queries.npz")), csr_array(load_npz(f"{folder}/corpus.npz"))
