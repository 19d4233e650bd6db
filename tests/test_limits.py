"""What engines can hold, and the order of hits where an engine breaks ties as it likes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.engines.index import Hit
from splade_lit.engines.limits import EngineLimits, LimitGuard
from splade_lit.engines.ties import dot, settled

VECTORS = csr_array(np.array([[0.0, 5.0, 0.3, 2.0], [1.0, 0.0, 0.0, 0.0], [9.0, 8.0, 7.0, 6.5]], np.float32))


@pytest.mark.parametrize(
    ("limits", "expected", "losses"),
    [
        ({}, [[0, 5, 0.3, 2], [1, 0, 0, 0], [9, 8, 7, 6.5]], []),
        (
            {"max_active_dims": 2},
            [[0, 5, 0, 2], [1, 0, 0, 0], [9, 8, 0, 0]],
            ["2 documents have more than 2 active dims, of which 3 smaller weights are left out"],
        ),
        (
            {"max_weight": 6.5},
            [[0, 5, 0.3, 2], [1, 0, 0, 0], [6.5, 6.5, 6.5, 6.5]],
            ["3 of 8 weights are above 6.5 and are clipped"],
        ),
        (
            {"max_weight": 10.0, "levels": 10},
            [[0, 5, 0, 2], [1, 0, 0, 0], [9, 8, 7, 6]],
            ["2 of 8 weights are rounded, by 0.5 at most, 1 of them to 0"],
        ),
        (
            {"mantissa_bits": 1},
            [[0, 4, 0.25, 2], [1, 0, 0, 0], [8, 8, 6, 6]],
            ["5 of 8 weights are rounded, by 1 at most"],
        ),
    ],
)
def test_what_does_not_fit_is_made_to_fit_and_counted(limits, expected, losses, caplog):
    guard = LimitGuard(EngineLimits("small", **limits), 4)
    first = guard.fit(["a"], VECTORS[[0]])
    rest = guard.fit(["b", "c"], VECTORS[[1, 2]])
    np.testing.assert_allclose(np.concatenate([first.toarray(), rest.toarray()]), np.array(expected, np.float32))
    assert guard.losses == losses
    assert (guard.num_documents, guard.num_postings) == (3, 8)
    guard.report()
    assert [record.getMessage() for record in caplog.records] == [f"small: {loss}." for loss in losses]
    assert VECTORS.toarray()[2, 0] == 9  # what is given stays as it is


def test_vectors_that_no_engine_takes_are_told():
    with pytest.raises(UserError, match="small holds vectors of at most 3 dims, not 4"):
        LimitGuard(EngineLimits("small", max_vocab_size=3), 4)
    guard = LimitGuard(EngineLimits("small"), 4)
    for value in (-1, np.nan, np.inf):
        with pytest.raises(UserError, match="must be finite and not negative"):
            guard.fit(["a"], csr_array(np.array([[value, 1, 0, 0]], np.float32)))
    stored_zero = csr_array((np.zeros(1, np.float32), [2], [0, 1]), shape=(1, 4))
    assert guard.fit(["a"], stored_zero).nnz == guard.num_postings == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_hits_are_in_one_order_whatever_an_engine_does_among_equals(values, k, seed):
    """The engine adds a rounding error to each score and gives the best of these."""
    rng = np.random.default_rng(seed)
    exact = {f"d{number}": float(value) for number, value in enumerate(values)}
    given_scores = {id: score * (1 + rng.uniform(-3e-7, 3e-7)) for id, score in exact.items()}
    ranked = sorted(given_scores, key=lambda id: -given_scores[id])
    found = settled(
        lambda limit: [Hit(id, given_scores[id]) for id in ranked[:limit]],
        lambda ids: {id: exact[id] for id in ids},
        k,
    )
    expected = sorted(exact, key=lambda id: (-exact[id], id))[:k]
    assert [hit.id for hit in found] == expected
    np.testing.assert_allclose([hit.score for hit in found], [exact[id] for id in expected], rtol=1e-6)


def test_products_are_those_of_a_sum_in_the_order_of_dims():
    first, second = VECTORS[[0]], VECTORS[[2]]
    score = dot(first.indices, first.data, second.indices, second.data)
    expected = np.float32(0)
    for dim in (1, 2, 3):
        expected += np.float32(first.toarray()[0, dim]) * np.float32(second.toarray()[0, dim])
    assert score == expected
    assert dot(first.indices, first.data, np.array([0]), np.array([1.0], np.float32)) == 0
