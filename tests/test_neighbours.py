"""Rows that are alike next to each other: the order, and batches that are made of it."""

import numpy as np
import pytest
from command_runs import make_world
from tiny_runs import save_sentence_encoder

from splade_lit.core.errors import UserError
from splade_lit.data import neighbours
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.neighbours import neighbour_order


def clusters(number: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around some centres, in an order drawn by chance, and the centre of each."""
    rng = np.random.default_rng(seed)
    of = rng.permutation(np.repeat(np.arange(number), size))
    vectors = rng.normal(size=(number, 32))[of] + 0.1 * rng.normal(size=(number * size, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), of


@pytest.mark.parametrize("chunk", [32_768, 150])
def test_rows_of_a_cluster_stand_together(monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    vectors, of = clusters(40, 8)
    order = neighbour_order(vectors, 8)
    assert sorted(order) == list(range(320))
    alike = np.mean(of[order[1:]] == of[order[:-1]])
    assert alike > (0.85 if chunk > 320 else 0.5)  # by chance 0.02; at most 7 of 8 end no cluster
    np.testing.assert_array_equal(order, neighbour_order(vectors, 8))
    assert (order != neighbour_order(vectors, 8, seed=1)).any()


@pytest.mark.parametrize("number", [0, 1, 5, 9])
def test_any_number_of_rows_will_do(number):
    vectors = np.random.default_rng(0).normal(size=(number, 4)).astype(np.float32)
    assert sorted(neighbour_order(vectors, 4)) == list(range(number))


@pytest.fixture
def settings(tmp_path, tiny_tokenizer):
    pytest.importorskip("sentence_transformers")
    world = make_world(tmp_path, tiny_tokenizer)
    teacher = save_sentence_encoder(tmp_path / "teacher", tiny_tokenizer)
    places = {"tokenizer": str(world.base), "source": str(world.pairs), "cache_dir": str(tmp_path / "cache")}
    return {**places, "teacher": str(teacher), "num_eval_pairs": 8, "batch_size": 4, "block_rows": 4}


def test_batches_hold_rows_that_the_teacher_finds_alike(settings):
    def distance(**changes: object) -> float:
        """Of the pairs of a batch from each other: one less the mean cosine."""
        data = PairsDataModule(**settings, **changes)
        data.setup()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(0)
        batches = [loader.rows[positions] for positions in loader.sampler.batches()]
        assert sorted(np.concatenate(batches)) == sorted(data.train_rows)
        cosines = []
        for rows in batches:
            vectors = data._teacher_scores.row_vectors(rows)
            products = vectors @ vectors.T
            cosines += products[~np.eye(len(rows), dtype=bool)].tolist()
        return 1 - float(np.mean(cosines))

    assert distance(block_by="teacher") < 0.9 * distance()


def test_without_a_sentence_encoder_there_is_no_likeness(settings):
    for teacher in (None, "bm25"):
        with pytest.raises(UserError, match=r"^data\.block_by is teacher; give a sentence encoder as data\.teacher"):
            PairsDataModule(**{**settings, "teacher": teacher, "block_by": "teacher"})
    with pytest.raises(UserError, match=r"^data\.block_by is topic; it must be source or teacher"):
        PairsDataModule(**settings, block_by="topic")
