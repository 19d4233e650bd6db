"""A run looked into: the table and the model that it started from, its checkpoints, terms gained and lost."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_runs import save_with_peer, train
from command_runs import load_checkpoint
from scipy.stats import spearmanr
from sentence_transformers import SparseEncoder
from tiny_runs import write_pairs

from splade_lit import UserError
from splade_lit.analysis.encoded import encode_task
from splade_lit.analysis.query_table import biggest_moves, table_change, weights_in_corpus
from splade_lit.analysis.snapshots import (
    document_history,
    load_weights,
    other_snapshot,
    run_snapshots,
    term_changes,
)
from splade_lit.analysis.subject import if_possible, initial_encoder, open_subject, training_data
from splade_lit.data.tasks import load_tasks
from splade_lit.runs.run import read_run

TEXTS = ["the song of the river", "who wrote the book of the year", "heart disease " * 20, "queen"]


@pytest.fixture(scope="module")
def run(world) -> Path:
    return train(world, "finished")


@pytest.fixture(scope="module")
def peer(world) -> Path:
    return save_with_peer(world)


@pytest.fixture(scope="module")
def untrained(world) -> Path:
    """A run that ends as it starts, its decoder bias calibrated."""
    return train(
        world,
        "untrained",
        {"model.learning_rate": 0.0, "model.idf_learning_rate": 0.0, "model.start_active_dims": 20},
    )


def test_the_start_is_made_again(untrained):
    subject = open_subject(untrained)
    change = table_change(subject)
    assert len(set(change.before.tolist())) > 10
    np.testing.assert_allclose(change.before, change.after, rtol=1e-6)
    first, start = subject.encoder, initial_encoder(subject, training_data(subject))
    torch.testing.assert_close(start.encode_document(TEXTS).to_dense(), first.encode_document(TEXTS).to_dense())
    torch.testing.assert_close(start.encode_query(TEXTS).to_dense(), first.encode_query(TEXTS).to_dense())


def test_the_table_moves_where_queries_are(run):
    change = table_change(open_subject(run))
    moved = change.after != change.before
    assert moved.any()
    assert not moved[~change.learned].any()
    assert not change.learned.all()
    assert change.num_documents == 48


def test_biggest_moves(run):
    subject = open_subject(run)
    change = table_change(subject)
    difference = change.after - change.before
    rises, falls = biggest_moves(change, subject.tokens, 5)
    assert [move.after - move.before for move in rises] == pytest.approx(sorted(difference, reverse=True)[:5])
    assert [move.after - move.before for move in falls] == pytest.approx(sorted(difference)[:5])
    vocabulary = subject.encoder.tokenizer.get_vocab()
    for move in (*rises, *falls):
        assert change.after[vocabulary[move.token]] == pytest.approx(move.after)
        assert change.query_frequencies[vocabulary[move.token]] == move.queries > 0


def test_an_idf_file_and_ones_are_known_again(world, tmp_path, tiny_tokenizer):
    path = tmp_path / "idf.json"
    path.write_text('{"river": 2.5, "song": 0.5}')
    frozen = {"model.freeze_idf": True, "trainer.max_steps": 1}
    change = table_change(open_subject(train(world, "json", frozen | {"model.idf": str(path)})))
    assert change.before[tiny_tokenizer.convert_tokens_to_ids("river")] == 2.5
    np.testing.assert_array_equal(change.before, change.after)
    ones = table_change(open_subject(train(world, "ones", frozen | {"model.idf": "ones"})))
    assert set(ones.before.tolist()) == set(ones.after.tolist()) == {1.0}
    assert np.isnan(ones.corpus_weights.rank_correlation)


def test_other_training_data_are_noticed(world, run, tiny_tokenizer):
    whole = world.pairs.read_bytes()
    write_pairs(world.pairs, tiny_tokenizer, seed=1)
    try:
        with pytest.raises(UserError, match="cannot be made again"):
            table_change(open_subject(run))
    finally:
        world.pairs.write_bytes(whole)


def test_training_data_that_are_gone_are_told(world, run, capsys):
    moved = world.pairs.rename(world.pairs.with_suffix(".moved"))
    try:
        assert if_possible(table_change, open_subject(run)) is None
    finally:
        moved.rename(world.pairs)
    assert capsys.readouterr().out.startswith(f"Left out: {world.pairs}")


def test_weights_in_a_corpus(world, run):
    subject = open_subject(run)
    (task, *_) = load_tasks([str(world.tasks)])
    corpus = weights_in_corpus(subject, encode_task(subject.encoder, task))
    texts = [set(text.split()) for text in task.corpus.values()]
    vocabulary = subject.encoder.tokenizer.get_vocab()
    for word in ("song", "river", "disease"):
        assert corpus.document_frequencies[vocabulary[word]] == sum(word in text for text in texts)
    assert corpus.document_frequencies[vocabulary["[CLS]"]] == 0
    held = [vocabulary[word] for word in set().union(*texts)]
    expected = spearmanr(corpus.weights[held], corpus.document_frequencies[held]).statistic
    assert corpus.rank_correlation == pytest.approx(expected)


def test_snapshots_of_a_run(run):
    subject = open_subject(run)
    snapshots = run_snapshots(subject, TEXTS)
    assert [snapshot.label for snapshot in snapshots] == ["start", "step 3", "step 6"]
    last = subject.encoder.encode_document(TEXTS, convert_to_csr=True)
    np.testing.assert_allclose(snapshots[-1].documents.toarray(), last.toarray(), rtol=1e-5, atol=1e-6)
    for before, after in pairwise(snapshots):
        assert abs(before.documents - after.documents).max() > 0.01
    assert [snapshot.label for snapshot in run_snapshots(subject, TEXTS, max_checkpoints=1)] == ["start", "step 6"]


def test_checkpoints_are_read_in_the_order_of_training(run):
    found = read_run(run).checkpoints()
    assert [step for step, _ in found] == [3, 6]
    assert "optimizer_states" not in load_checkpoint(found[0][1])


def test_a_run_without_checkpoints_has_two_snapshots(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints")
    assert [snapshot.label for snapshot in run_snapshots(open_subject(copy), TEXTS)] == ["start", "end"]


def test_what_is_no_checkpoint_of_the_run_is_refused(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "checkpoints" / "notes.ckpt").write_text("notes")
    with pytest.raises(UserError, match=r"notes\.ckpt is not a checkpoint"):
        run_snapshots(open_subject(copy), TEXTS)
    torch.save({"state_dict": {"encoder.query.idf_weights": torch.ones(3)}, "global_step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="another model"):
        load_weights(open_subject(run).encoder, tmp_path / "other.ckpt")


def test_terms_gained_and_lost(run):
    snapshots = run_snapshots(open_subject(run), TEXTS)
    change = term_changes(snapshots[0], snapshots[-1])
    gaining, losing = np.zeros_like(change.gaining), np.zeros_like(change.losing)
    for row in range(len(TEXTS)):
        first, last = (
            set(np.flatnonzero(snapshot.documents[[row]].toarray()[0])) for snapshot in (snapshots[0], snapshots[-1])
        )
        assert (change.kept[row], change.gained[row], change.lost[row]) == (
            len(first & last),
            len(last - first),
            len(first - last),
        )
        gaining[list(last - first)] += 1
        losing[list(first - last)] += 1
    np.testing.assert_array_equal(change.gaining, gaining)
    np.testing.assert_array_equal(change.losing, losing)
    assert change.gained.sum()
    assert change.lost.sum()


def test_history_of_a_document(run):
    subject = open_subject(run)
    snapshots = run_snapshots(subject, TEXTS)
    history = document_history(snapshots, 1, subject.tokens, n=6)
    change = term_changes(snapshots[0], snapshots[-1])
    assert (history.gained, history.lost) == (change.gained[1], change.lost[1])
    vocabulary = subject.encoder.tokenizer.get_vocab()
    dims = [vocabulary[term] for term in history.terms]
    expected = np.stack([snapshot.documents[[1]].toarray()[0][dims] for snapshot in snapshots], axis=1)
    np.testing.assert_array_equal(history.weights, expected)
    moves = snapshots[-1].documents[[1]].toarray()[0] - snapshots[0].documents[[1]].toarray()[0]
    assert [moves[dim] for dim in dims] == [*np.sort(moves)[::-1][:3], *np.sort(moves)[:3][::-1]]


def test_models_without_a_run(peer):
    subject = open_subject(peer)
    assert subject.run is None
    for function in (table_change, training_data):
        with pytest.raises(UserError, match="peer is a model without its run"):
            function(subject)
    expected = SparseEncoder(str(peer), device="cpu").encode_document(TEXTS).to_dense()
    torch.testing.assert_close(subject.encoder.encode_document(TEXTS).to_dense(), expected, rtol=1e-5, atol=1e-5)


def test_another_model_is_a_snapshot(run, peer, make_encoder):
    subject = open_subject(run)
    snapshot = other_snapshot(subject, peer, TEXTS)
    expected = SparseEncoder(str(peer), device="cpu").encode_document(TEXTS).to_dense()
    np.testing.assert_allclose(snapshot.documents.toarray(), expected, rtol=1e-5, atol=1e-5)
    encoder = make_encoder()
    words = encoder.tokenizer.train_new_from_iterator(TEXTS * 50, 90)
    encoder.tokenisation = replace(encoder.tokenisation, tokenizer=words)
    subject_of_other_words = type(subject)("other", encoder)
    with pytest.raises(UserError, match="another vocabulary"):
        other_snapshot(subject_of_other_words, peer, TEXTS)


def test_runs_that_cannot_be_opened(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for text in ("model: [", "model: {base_model: x}", "[]", "model"):
        (copy / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="not the resolved configuration"):
            open_subject(copy)
    shutil.copy(run / "config.yaml", copy)
    (copy / "metrics.csv").write_text("loss\n1.0\n")
    with pytest.raises(UserError, match=r"metrics\.csv is not the log of a run"):
        open_subject(copy)
    shutil.copy(run / "metrics.csv", copy)
    shutil.rmtree(copy / "model")
    with pytest.raises(UserError, match="has no model/ yet"):
        open_subject(copy)
    with pytest.raises(UserError, match="not a folder"):
        open_subject(tmp_path / "nothing")
