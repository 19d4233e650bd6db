"""Sparsity: equal to a count by hand, to sentence-transformers, and the same in parts as in one."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, random_array

from splade_lit.evaluation.sparsity import (
    RetrievalSparsity,
    SparsityMetrics,
    SparsityStatistics,
    expected_flops,
    pooled_sparsity,
)


def sparse(rows: int, vocab: int, density: float, seed: int) -> csr_array:
    rng = np.random.default_rng(seed)
    return csr_array(random_array((rows, vocab), density=density, dtype=np.float32, rng=rng))


QUERIES, DOCUMENTS = sparse(7, 40, 0.1, 0), sparse(90, 40, 0.3, 1)


def test_counts_by_hand() -> None:
    statistics = SparsityStatistics.of(csr_array(np.array([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])))
    assert statistics.row_frequencies.tolist() == [2, 0, 1]
    assert statistics.row_sizes.tolist() == [1, 1, 1, 0]
    assert statistics.num_rows == 3
    assert statistics.active_dims == 1.0
    assert statistics.sorted_row_sizes.tolist() == [0, 1, 2]
    assert statistics.sparsity_ratio == pytest.approx(2 / 3)
    assert statistics.dead_dims_ratio == pytest.approx(1 / 3)
    assert statistics.most_frequent(2) == [(0, pytest.approx(2 / 3)), (2, pytest.approx(1 / 3))]
    assert [statistics.quantile(share) for share in (0.0, 0.33, 0.5, 1.0)] == [0, 0, 1, 2]


def test_stored_zeros_are_not_active() -> None:
    vectors = DOCUMENTS.copy()
    vectors.data[::3] = 0
    clean = vectors.copy()
    clean.eliminate_zeros()
    assert clean.nnz < vectors.nnz
    ours, expected = SparsityStatistics.of(vectors), SparsityStatistics.of(clean)
    np.testing.assert_array_equal(ours.row_frequencies, expected.row_frequencies)
    np.testing.assert_array_equal(ours.row_sizes, expected.row_sizes)


def test_expected_flops_is_the_mean_overlap() -> None:
    overlaps = (QUERIES.toarray() != 0).astype(int) @ (DOCUMENTS.toarray() != 0).astype(int).T
    flops = expected_flops(SparsityStatistics.of(QUERIES), SparsityStatistics.of(DOCUMENTS))
    assert flops == pytest.approx(overlaps.mean(), rel=1e-6)


def test_parts_add_up() -> None:
    parts = [SparsityStatistics.of(DOCUMENTS[first : first + 20]) for first in range(0, 90, 20)]
    together = sum(parts[1:], parts[0])
    whole = SparsityStatistics.of(DOCUMENTS)
    np.testing.assert_array_equal(together.row_frequencies, whole.row_frequencies)
    np.testing.assert_array_equal(together.row_sizes, whole.row_sizes)


def test_nothing_to_count() -> None:
    empty = SparsityStatistics.of(csr_array((0, 5), dtype=np.float32))
    assert (empty.active_dims, empty.sparsity_ratio, empty.dead_dims_ratio) == (0.0, 1.0, 1.0)
    assert expected_flops(empty, empty) == 0.0


def test_equal_to_sentence_transformers() -> None:
    peer = pytest.importorskip("sentence_transformers").SparseEncoder.sparsity(torch.from_numpy(DOCUMENTS.toarray()))
    ours = SparsityStatistics.of(DOCUMENTS)
    assert {"active_dims": ours.active_dims, "sparsity_ratio": ours.sparsity_ratio} == peer


def test_pooled_counts_every_row_once() -> None:
    tasks = [
        RetrievalSparsity(SparsityStatistics.of(QUERIES[:5]), SparsityStatistics.of(DOCUMENTS[:10])),
        RetrievalSparsity(SparsityStatistics.of(QUERIES[5:]), SparsityStatistics.of(DOCUMENTS[10:])),
    ]
    whole = RetrievalSparsity(SparsityStatistics.of(QUERIES), SparsityStatistics.of(DOCUMENTS))
    assert pooled_sparsity(tasks) == pytest.approx(whole.metrics, rel=1e-6)
    assert pooled_sparsity(tasks)["avg_flops"] != pytest.approx(
        np.mean([task.metrics["avg_flops"] for task in tasks]), rel=1e-3
    )


def test_batches_and_devices_add_up() -> None:
    """What torchmetrics does between devices is to add the states, as declared."""
    one, other = SparsityMetrics(40), SparsityMetrics(40)
    one.update(QUERIES[:3], DOCUMENTS[:50])
    one.update(QUERIES[:0], DOCUMENTS[50:60])
    other.update(QUERIES[3:], DOCUMENTS[60:])
    whole = RetrievalSparsity(SparsityStatistics.of(QUERIES), SparsityStatistics.of(DOCUMENTS)).metrics
    one.merge_state(other)
    assert one.compute() == whole
