"""Exact search: the same documents in the same order as sorting all scores, ties included, however it is cut up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from splade_lit.core.errors import UserError
from splade_lit.evaluation import exact_search as search
from splade_lit.evaluation.exact_search import SearchIndex, TopK, string_order


def sparse(rows: int, vocab: int, density: float, seed: int) -> csr_array:
    rng = np.random.default_rng(seed)
    return csr_array(random_array((rows, vocab), density=density, dtype=np.float32, rng=rng))


def whole_numbers(rows: int, vocab: int, density: float, seed: int, low: int = 1) -> csr_array:
    """Vectors with so few different weights that most scores are tied, and sums are exact."""
    vectors = sparse(rows, vocab, density, seed)
    vectors.data = np.random.default_rng(seed).integers(low, 3, vectors.nnz).astype(np.float32)
    return vectors


def exact_search(queries: csr_array, corpus: csr_array, k: int, tie_order: np.ndarray | None = None) -> TopK:
    return SearchIndex(corpus, tie_order).search(queries, k)


def sorted_scores(queries: csr_array, corpus: csr_array, k: int, tie_order: np.ndarray) -> np.ndarray:
    scores = queries.toarray() @ corpus.toarray().T
    return np.stack([np.lexsort((tie_order, -row))[:k] for row in scores])


@settings(deadline=None, max_examples=60)
@given(
    num_queries=st.integers(1, 40),
    num_documents=st.integers(1, 300),
    k=st.integers(1, 120),
    density=st.sampled_from([0.0, 0.02, 0.3]),
    low=st.sampled_from([1, -2]),
    seed=st.integers(0, 2**16),
)
def test_same_as_sorting_all_scores(
    num_queries: int, num_documents: int, k: int, density: float, low: int, seed: int
) -> None:
    queries = whole_numbers(num_queries, 30, density, seed, low)
    corpus = whole_numbers(num_documents, 30, density, seed + 1, low)
    tie_order = np.random.default_rng(seed).permutation(num_documents)
    top = exact_search(queries, corpus, k, tie_order)
    expected = sorted_scores(queries, corpus, k, tie_order)
    np.testing.assert_array_equal(top.documents, expected)
    np.testing.assert_array_equal(
        top.scores, (queries.toarray() @ corpus.toarray().T)[np.arange(num_queries)[:, None], expected]
    )


def test_many_documents_and_many_threads() -> None:
    queries, corpus = sparse(100, 500, 0.02, 0), sparse(3000, 500, 0.1, 1)
    index = SearchIndex(corpus)
    alone, together = index.search(queries, 100, num_threads=1), index.search(queries, 100, num_threads=4)
    np.testing.assert_array_equal(alone.documents, together.documents)
    np.testing.assert_array_equal(alone.scores, together.scores)
    exact = queries.toarray().astype(np.float64) @ corpus.toarray().astype(np.float64).T
    np.testing.assert_allclose(alone.scores, -np.sort(-exact, axis=1)[:, :100], rtol=1e-6)
    one_by_one = [index.search(queries[i : i + 1], 100).documents[0] for i in range(100)]
    np.testing.assert_array_equal(alone.documents, np.stack(one_by_one))


def test_scores_are_those_of_torch_to_the_last_bit() -> None:
    queries, corpus = sparse(20, 400, 0.05, 2), sparse(500, 400, 0.2, 3)
    as_torch = [torch.from_numpy(vectors.toarray()).to_sparse() for vectors in (queries, corpus)]
    expected = torch.mm(as_torch[0], as_torch[1].T).to_dense().numpy()
    top = exact_search(queries, corpus, 500)
    np.testing.assert_array_equal(top.scores, np.take_along_axis(expected, top.documents.astype(np.int64), axis=1))


def test_half_precision_corpus() -> None:
    queries, corpus = sparse(5, 100, 0.1, 4), sparse(50, 100, 0.3, 5)
    half = csr_array((corpus.data.astype(np.float16), corpus.indices, corpus.indptr), shape=corpus.shape)
    rounded = csr_array((half.data.astype(np.float32), half.indices, half.indptr), shape=half.shape)
    top, expected = exact_search(queries, half, 10), exact_search(queries, rounded, 10)
    np.testing.assert_array_equal(top.scores, expected.scores)
    np.testing.assert_array_equal(top.documents, expected.documents)


def test_unsorted_query_dims_change_nothing() -> None:
    queries, corpus = sparse(5, 100, 0.2, 6), sparse(50, 100, 0.3, 7)
    shuffled = queries.copy()
    for start, end in zip(queries.indptr, queries.indptr[1:], strict=False):
        shuffled.indices[start:end] = queries.indices[start:end][::-1]
        shuffled.data[start:end] = queries.data[start:end][::-1]
    shuffled.has_sorted_indices = False
    np.testing.assert_array_equal(exact_search(shuffled, corpus, 9).scores, exact_search(queries, corpus, 9).scores)
    assert not np.array_equal(shuffled.indices, queries.indices)  # the caller's vectors stay as they are


def test_nothing_to_search() -> None:
    assert exact_search(sparse(3, 10, 0.5, 0), csr_array((0, 10), dtype=np.float32), 5).documents.shape == (3, 0)
    assert exact_search(csr_array((0, 10), dtype=np.float32), sparse(3, 10, 0.5, 0), 5).documents.shape == (0, 3)


def test_string_order_is_pythons() -> None:
    ids = ["8", "10", "a", "B", "\u00e9", "", "9"]
    assert [sorted(ids)[rank] for rank in string_order(ids)] == ids


def test_bad_input_is_told() -> None:
    queries, corpus = sparse(3, 10, 0.5, 0), sparse(3, 11, 0.5, 0)
    with pytest.raises(UserError, match="10 dims, documents 11"):
        exact_search(queries, corpus, 5)
    with pytest.raises(ValueError, match="k must be at least 1"):
        exact_search(queries, queries, 0)
    diverged = queries.copy()
    diverged.data[0] = np.nan
    with pytest.raises(UserError, match="documents hold values that are not finite"):
        exact_search(queries, diverged, 1)
    with pytest.raises(UserError, match="queries hold values that are not finite"):
        exact_search(diverged, queries, 1)


def test_index_tells_its_size() -> None:
    corpus = sparse(50, 100, 0.3, 5)
    assert SearchIndex(corpus).nbytes == corpus.nnz * 8 + 101 * 8 + 50 * 4


def test_search_works_where_compiled_code_cannot_be_kept(tmp_path: Path) -> None:
    """Neither of numba's two places for it can be made: a file lies where the folder would be, and there is no home."""
    package = Path(search.__file__).parents[1]
    shutil.copytree(package, tmp_path / "splade_lit", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "splade_lit" / "evaluation" / "__pycache__").touch()
    (tmp_path / "home").touch()
    home = str(tmp_path / "home")
    environment = os.environ | {"HOME": home, "XDG_CACHE_HOME": home, "PYTHONPATH": str(tmp_path)}
    script = """
import numpy as np
from scipy.sparse import csr_array
from splade_lit.evaluation import exact_search as search
print(search.__file__)
print(search.SearchIndex(csr_array(np.eye(3))).search(csr_array(np.eye(3)), 1).documents.ravel().tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.stdout == f"{tmp_path}/splade_lit/evaluation/exact_search.py\n[0, 1, 2]\n", done.stderr
