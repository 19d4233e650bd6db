"""The batches: no text twice in one, every row once an epoch, the same number of batches in all epochs."""

import itertools

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from splade_lit.data.pairs import load_pairs, split_rows
from splade_lit.data.sampler import NoDuplicatesBatchSampler

FEW_TEXTS = arrays(np.uint64, st.tuples(st.integers(0, 60), st.integers(1, 4)), elements=st.integers(0, 25))


def unique_rows(rows: int, columns: int = 2) -> np.ndarray:
    return np.arange(rows * columns, dtype=np.uint64).reshape(rows, columns)


def has_text_twice(batch: np.ndarray, fingerprints: np.ndarray) -> bool:
    """Whether a text is in two rows; a row may hold one text in two columns."""
    texts = [text for row in batch for text in set(fingerprints[row].tolist())]
    return len(texts) != len(set(texts))


def epoch_rows(batches: list[np.ndarray]) -> list[int]:
    return sorted(np.concatenate([np.empty(0, dtype=np.int64), *batches]).tolist())


def natural_pairs(rows: int, seed: int = 0) -> np.ndarray:
    """Fingerprints with as many repetitions as questions and passages have: a few popular answers, queries rarely."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(0, 20 * rows, rows)
    answers = 20 * rows + rng.zipf(1.6, rows) % (rows // 2) + rng.integers(0, 2, rows) * rng.integers(0, rows, rows)
    return np.stack([queries, answers], axis=1).astype(np.uint64)


@settings(deadline=None, max_examples=300)
@given(
    fingerprints=FEW_TEXTS,
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    block_rows=st.integers(1, 5),
    seed=st.integers(0, 5),
)
def test_properties(
    fingerprints: np.ndarray, batch_size: int, drop_last: bool, shuffle: bool, block_rows: int, seed: int
) -> None:
    sampler = NoDuplicatesBatchSampler(fingerprints, batch_size, seed, drop_last, shuffle, block_rows)
    lengths = {len(sampler)}
    for epoch in (0, 1, 2, 7):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        lengths |= {len(batches), len(sampler)}
        assert len(lengths) == 1, "a number of batches that differs over epochs, or from what was told"

        for batch in batches:
            assert 0 < len(batch) <= batch_size
            assert not drop_last or len(batch) == batch_size
            assert not has_text_twice(batch, fingerprints)

        rows = epoch_rows(batches)
        assert len(rows) == len(set(rows)), "a row twice in an epoch"
        if not drop_last:
            assert rows == list(range(len(fingerprints)))


def test_texts_clash_across_columns() -> None:
    answer_is_query = np.array([[1, 2], [2, 3], [4, 5]], dtype=np.uint64)
    for seed in range(10):
        batches = list(NoDuplicatesBatchSampler(answer_is_query, batch_size=3, seed=seed))
        assert sorted(map(len, batches)) == [1, 2]
        assert not any({0, 1} <= set(batch.tolist()) for batch in batches)


def test_hard_negatives_clash_too() -> None:
    negative_is_answer = np.array([[1, 2, 3], [4, 3, 5], [6, 7, 8]], dtype=np.uint64)
    batches = list(NoDuplicatesBatchSampler(negative_is_answer, batch_size=3, shuffle=False))
    assert [batch.tolist() for batch in batches] == [[0, 2], [1]]


def test_a_row_may_answer_itself() -> None:
    fingerprints = np.array([[1, 1], [2, 3]], dtype=np.uint64)
    assert [batch.tolist() for batch in NoDuplicatesBatchSampler(fingerprints, 2, shuffle=False)] == [[0, 1]]


def test_rows_without_clashes_fill_their_batches_in_the_order_drawn() -> None:
    in_order = list(NoDuplicatesBatchSampler(unique_rows(10), batch_size=4, shuffle=False))
    assert [batch.tolist() for batch in in_order] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = list(NoDuplicatesBatchSampler(unique_rows(10), batch_size=4, seed=1))
    assert [len(batch) for batch in shuffled] == [4, 4, 2]
    assert epoch_rows(shuffled) == list(range(10)) != np.concatenate(shuffled).tolist()


def test_a_row_that_clashes_waits_for_the_next_batch_only() -> None:
    fingerprints = unique_rows(9)
    fingerprints[1] = fingerprints[0]
    batches = list(NoDuplicatesBatchSampler(fingerprints, batch_size=3, shuffle=False))
    assert [batch.tolist() for batch in batches] == [[0, 2, 3], [1, 4, 5], [6, 7, 8]]


def test_no_rows() -> None:
    sampler = NoDuplicatesBatchSampler(np.empty((0, 2), dtype=np.uint64), 16)
    assert len(sampler) == 0
    assert list(sampler) == []


def test_drop_last_leaves_out_short_batches_only() -> None:
    sampler = NoDuplicatesBatchSampler(unique_rows(70), batch_size=16, drop_last=True)
    assert [len(batch) for batch in sampler] == [16] * 4
    assert len(NoDuplicatesBatchSampler(unique_rows(70), batch_size=16)) == 5
    assert len(NoDuplicatesBatchSampler(unique_rows(10), batch_size=16, drop_last=True)) == 0


def test_each_epoch_and_seed_has_an_order_of_its_own_that_comes_again() -> None:
    fingerprints = natural_pairs(500)

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = NoDuplicatesBatchSampler(fingerprints, 16, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(np.concatenate(list(sampler)).tolist())

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in range(4)}
    assert len(set(orders.values())) == len(orders)
    assert all(order(*key) == rows for key, rows in orders.items())

    sampler = NoDuplicatesBatchSampler(fingerprints, 16, seed=0)
    for epoch in (3, 0, 2, 2):
        sampler.set_epoch(epoch)
        assert tuple(np.concatenate(list(sampler)).tolist()) == orders[0, epoch], "an epoch depends on those before"


def test_rows_are_not_drawn_with_their_neighbours() -> None:
    sampler = NoDuplicatesBatchSampler(unique_rows(10_000), batch_size=10)
    first, second = np.concatenate(list(sampler)).reshape(2, 5000)
    assert abs(first.mean() - second.mean()) < 200  # of 10,000; the standard error is 41
    assert np.mean(np.abs(np.diff(np.concatenate([first, second]))) == 1) < 0.002


def test_blocks_of_neighbours_stay_together() -> None:
    sampler = NoDuplicatesBatchSampler(unique_rows(1000), batch_size=8, block_rows=8)
    together = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        rows = np.concatenate(list(sampler))
        assert sorted(rows.tolist()) == list(range(1000))
        assert np.mean(np.diff(rows) == 1) > 0.85
        together.append({pair for batch in sampler for pair in itertools.pairwise(sorted(batch.tolist()))})
    assert together[0] != together[1], "blocks are cut at the same places in each epoch"


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_number_of_batches_stays_where_orders_give_different_ones(drop_last: bool) -> None:
    # Many texts of middling frequency: how many batches are short depends on the order.
    fingerprints = np.random.default_rng(0).integers(0, 60, (600, 2)).astype(np.uint64)
    first_fits = {len(NoDuplicatesBatchSampler(fingerprints, 8, seed, drop_last)) for seed in range(20)}
    assert len(first_fits) > 1, "the set is too easy for this test"
    sampler = NoDuplicatesBatchSampler(fingerprints, 8, 3, drop_last)
    orders = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert not any(has_text_twice(batch, fingerprints) for batch in batches)
        if not drop_last:
            assert epoch_rows(batches) == list(range(600))
        orders.add(tuple(np.concatenate(batches).tolist()))
    assert len(orders) == 20


def test_one_text_in_most_rows() -> None:
    rows, batch_size = 3000, 16
    fingerprints = unique_rows(rows)
    common = np.random.default_rng(0).permutation(rows)[:2000]
    fingerprints[common, 1] = 7_000_000
    sampler = NoDuplicatesBatchSampler(fingerprints, batch_size)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 2000, "one batch a row with the text; the others fit in between"
        assert not any(has_text_twice(batch, fingerprints) for batch in batches)
        assert epoch_rows(batches) == list(range(rows))


def test_all_rows_are_one_text() -> None:
    batches = list(NoDuplicatesBatchSampler(np.zeros((50, 2), dtype=np.uint64), 16))
    assert [len(batch) for batch in batches] == [1] * 50
    assert len(NoDuplicatesBatchSampler(np.zeros((50, 2), dtype=np.uint64), 16, drop_last=True)) == 0


@pytest.mark.parametrize("common_rows", [0, 900_000])
def test_a_million_pairs(common_rows: int) -> None:
    rows, batch_size = 1_000_000, 16
    fingerprints = natural_pairs(rows)
    fingerprints[np.random.default_rng(1).permutation(rows)[:common_rows], 1] = 12345
    sampler = NoDuplicatesBatchSampler(fingerprints, batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    order = np.concatenate(batches)
    assert np.array_equal(np.sort(order), np.arange(rows))
    _, text_ids = np.unique(fingerprints[order], return_inverse=True)
    places = np.unique(np.stack([np.repeat(batch_of, 2), text_ids.ravel()], axis=1), axis=0)
    twice_in_a_row = np.count_nonzero(fingerprints[:, 0] == fingerprints[:, 1])
    assert len(places) == 2 * rows - twice_in_a_row, "a text is in a batch twice"


def test_the_reference_recipe_fills_its_batches(shared_data) -> None:
    """Real pairs in batches of 16: no text twice, and no more batches than sentence-transformers makes."""
    pairs = load_pairs(str(shared_data / "qa-pairs"))
    train_rows, _ = split_rows(len(pairs), 1000, seed=12)
    train = pairs.select(train_rows)
    fingerprints = train.fingerprints()
    sampler = NoDuplicatesBatchSampler(fingerprints, batch_size=16)
    batches = list(sampler)
    assert epoch_rows(batches) == list(range(len(train)))
    assert sum(len(batch) < 16 for batch in batches) <= 5
    assert len(batches) - len(train) // 16 <= 5
    texts = train.dataset.to_pandas()
    for batch in batches[::20] + batches[-5:]:
        queries, documents = texts.iloc[batch]["query"].tolist(), texts.iloc[batch]["document"].tolist()
        assert len(set(queries) | set(documents)) == 2 * len(batch)

    peer = pytest.importorskip("sentence_transformers.base.sampler")
    subset = datasets.Dataset.from_pandas(texts.iloc[:2000], preserve_index=False)
    theirs = list(peer.NoDuplicatesBatchSampler(subset, batch_size=16, drop_last=False))
    ours = list(NoDuplicatesBatchSampler(fingerprints[:2000], batch_size=16))
    assert epoch_rows([np.array(batch) for batch in theirs]) == epoch_rows(ours)
    assert not any(has_text_twice(np.array(batch), fingerprints) for batch in theirs), (
        "clashes are other ones than theirs"
    )
    assert len(ours) <= len(theirs)
