"""Caps on the dims of documents, applied at search: what an index of documents that were cut would give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from splade_lit.encoder.rows import keep_largest
from splade_lit.engines import capped
from splade_lit.engines.capped import CappedIndex
from splade_lit.engines.exact import ExactIndex

VOCAB = 30


def vectors(rows: int, seed: int, density: float = 0.4) -> csr_array:
    """Random weights of a few values, so that weights and scores tie."""
    made = random_array((rows, VOCAB), density=density, rng=np.random.default_rng(seed), dtype=np.float32)
    made.data = np.round(made.data * 4) / 4
    made = csr_array(made)
    made.eliminate_zeros()
    return made


def index_of(folder, documents: csr_array, ids: list[str]) -> ExactIndex:
    return ExactIndex.build(folder, lambda: [(ids, documents, None)], VOCAB)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.integers(1, 8), st.integers(1, 12), st.integers(1, 60))
def test_hits_are_those_of_documents_that_were_cut(tmp_path_factory, rows, seed, k, cap, at_once):
    folder = tmp_path_factory.mktemp("capped")
    documents, queries, ids = vectors(rows, seed), vectors(5, seed + 1), [f"d{number}" for number in range(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capped, "_POSTINGS_AT_ONCE", at_once)
        made = CappedIndex(index_of(folder / "whole", documents, ids))
    cut = keep_largest(documents, cap)
    expected = index_of(folder / "cut", cut, ids).search(queries, k)
    assert [made.search(queries[[row]], k, cap) for row in range(5)] == expected
    assert (made.num_postings(cap), made.num_postings()) == (cut.nnz, documents.nnz)
    assert made.max_active_dims == max(np.diff(documents.indptr), default=0)
    assert made.nbytes == 2 * documents.nnz
    for row, id in enumerate(ids):
        assert made.vector(id, cap).toarray().tolist() == cut[[row]].toarray().tolist()
        assert made.vector(id).toarray().tolist() == documents[[row]].toarray().tolist()
        assert made.weights(id, range(VOCAB), cap) == cut[[row]].toarray()[0].tolist()


def test_postings_are_looked_through_some_times_at_most(tmp_path, monkeypatch):
    documents, sorted_parts, argsort = vectors(500, 3), [], np.argsort

    def counted(*arguments, **settings):
        sorted_parts.append(arguments)
        return argsort(*arguments, **settings)

    index = index_of(tmp_path / "index", documents, [f"d{number}" for number in range(500)])
    monkeypatch.setattr(capped, "_POSTINGS_AT_ONCE", 1)
    monkeypatch.setattr(capped.np, "argsort", counted)
    assert CappedIndex(index).num_postings() == documents.nnz
    assert len(sorted_parts) <= 33


def test_additions_and_deletions_are_seen(tmp_path):
    documents, more = vectors(20, 1), vectors(6, 2)
    index = index_of(tmp_path / "index", documents, [f"d{number}" for number in range(20)])
    index.add(["d3", "new1", "new2", "new3", "new4", "new5"], more)
    index.delete(["d5", "new2"])
    kept = [row for row in range(20) if row not in (3, 5)]
    rows = csr_array(np.concatenate([documents.toarray()[kept], more.toarray()[[0, 1, 3, 4, 5]]]))
    ids = [*(f"d{row}" for row in kept), "d3", "new1", "new3", "new4", "new5"]
    made = CappedIndex(index)
    whole = CappedIndex(index_of(tmp_path / "anew", rows, ids))
    for cap in (1, 3, 5, 100, None):
        for row in range(6):
            assert made.search(more[[row]], 9, cap) == whole.search(more[[row]], 9, cap)
        assert made.num_postings(cap) == whole.num_postings(cap)
    assert made.max_active_dims == whole.max_active_dims
    assert made.vector("d5").nnz == 0
    assert made.vector("d3").toarray().tolist() == more[[0]].toarray().tolist()
    assert made.weights("d5", [1, 2], 3) == [0.0, 0.0]


def test_an_index_of_nothing(tmp_path):
    made = CappedIndex(index_of(tmp_path / "index", csr_array((2, VOCAB), dtype=np.float32), ["a", "b"]))
    assert (made.max_active_dims, made.num_postings(), made.search(vectors(1, 1), 3, 2)) == (0, 0, [])
