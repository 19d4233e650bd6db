"""The table of terms: equal to sentence-transformers' decoding, always the same documents, kept when resumed."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from sentence_transformers import SparseEncoder
from tiny_runs import make_data, make_trainer

from splade_lit.core.errors import UserError
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint
from splade_lit.training.callbacks.terms import TermTable
from splade_lit.training.module import SpladeModule


def train(world, folder: Path, max_steps: int, *callbacks: L.Callback, held_out: int = 16, **settings: Any):
    """A run of batches of 8 pairs; gives trainer and module."""
    L.seed_everything(1, verbose=False)
    module = SpladeModule(str(world.base), learning_rate=1e-3, max_query_tokens=16, max_document_tokens=32)
    data = make_data(world.base, world.pairs, num_eval_pairs=held_out, max_query_tokens=16, max_document_tokens=32)
    checkpoint = settings.pop("ckpt_path", None)
    settings |= {"enable_checkpointing": any(isinstance(callback, LastCheckpoint) for callback in callbacks)}
    trainer = make_trainer(folder, max_steps, callbacks=list(callbacks), limit_val_batches=0, **settings)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=checkpoint and True)
    return trainer, module


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "terms.jsonl").read_text().splitlines()]


def test_terms_are_those_of_the_peer(world, tmp_path, tiny_tokenizer):
    trainer, module = train(world, tmp_path, 3, TermTable(every_n_steps=2, num_documents=4, num_terms=10))
    rows = rows_of(tmp_path)
    assert [(row["step"], row["example"]) for row in rows] == [(step, n) for step in (0, 2, 3) for n in range(4)]
    module.encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    answers = {pair["query"]: pair["document"] for pair in trainer.datamodule.eval_pairs.dataset}
    for row in rows[-4:]:
        text = answers[row["query"]]
        assert row["document"] == text  # short enough to be shown whole
        vector = peer.encode_document(text)
        everything = dict(peer.decode(vector))
        assert row["active_dims"] == len(everything)
        expected = dict(peer.decode(vector, top_k=10))
        assert {term["term"]: term["weight"] for term in row["terms"]} == pytest.approx(expected, rel=1e-4)
        weights = [term["weight"] for term in row["terms"]]
        assert weights == sorted(weights, reverse=True)
        words = set(tiny_tokenizer.tokenize(text)[:30])  # 32 tokens, two of them special
        assert [term["in_text"] for term in row["terms"]] == [term["term"] in words for term in row["terms"]]
        expansions = sum(weight for term, weight in everything.items() if term not in words)
        assert row["expansion_share"] == pytest.approx(expansions / sum(everything.values()), rel=1e-4)
    kinds = {term["in_text"] for row in rows for term in row["terms"]}
    assert kinds == {True, False}


def test_documents_stay_the_same_and_follow_the_seed(world, tmp_path):
    shown = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(world, tmp_path / name, 2, TermTable(every_n_steps=1, num_documents=5, seed=seed))
        rows = rows_of(tmp_path / name)
        texts = [[(row["query"], row["document"]) for row in rows if row["step"] == step] for step in (0, 1, 2)]
        assert texts[0] == texts[1] == texts[2]
        assert len(set(texts[0])) == 5
        shown[name] = texts[0]
    assert shown["first"] == shown["again"] != shown["other"]


def test_without_pairs_held_out_training_documents_are_shown(world, tmp_path):
    trainer, _ = train(world, tmp_path, 1, TermTable(num_documents=1000), held_out=0)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [0] * 64 + [1] * 64
    assert sorted(row["query"] for row in rows[:64]) == sorted(trainer.datamodule.train_pairs.dataset["query"][:])


def test_a_resumed_run_goes_on_with_its_rows(world, tmp_path):
    train(world, tmp_path, 4, TermTable(every_n_steps=2, num_documents=2), LastCheckpoint(tmp_path))
    first = rows_of(tmp_path)
    again = [TermTable(every_n_steps=2, num_documents=2), LastCheckpoint(tmp_path)]
    train(world, tmp_path, 6, *again, ckpt_path=tmp_path / "last.ckpt")
    rows = rows_of(tmp_path)
    assert rows[: len(first)] == first
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert [row["query"] for row in rows[-2:]] == [row["query"] for row in rows[:2]]


@pytest.mark.parametrize("setting", ["num_documents", "num_terms"])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UserError, match=f"{setting} is 0"):
        TermTable(**{setting: 0})
