"""A run that goes on with other data or settings than those of its checkpoint says which."""

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from splade_lit.data.datamodule import PairsDataModule


@pytest.fixture
def make(tiny_tokenizer_dir, tmp_path):
    """Function of two scores and settings: a DataModule of eight rows with these scores each, set up."""

    def make(scores: tuple[float, float] = (1.0, 2.0), **settings: Any) -> PairsDataModule:
        path = tmp_path / "pairs.jsonl"
        texts = ({"query": f"song {n}", "answer": f"the song {n}", "other": f"a river {n}"} for n in range(8))
        path.write_text("".join(f"{json.dumps(row | {'scores': scores})}\n" for row in texts))
        cache = str(tmp_path / "cache")
        data = PairsDataModule(str(tiny_tokenizer_dir), str(path), num_eval_pairs=0, cache_dir=cache, **settings)
        data.setup()
        return data

    return make


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_answers_that_have_become_negatives(make, caplog):
    state = make(positive_columns=["other"]).train_dataloader().state_dict()
    make(positive_columns=["other"]).train_dataloader().load_state_dict(state)
    loader = make(negative_columns=["other"]).train_dataloader()
    before = {name: value for name, value in state["batches_of"].items() if name != "columns of answers"}
    loader.load_state_dict(state | {"batches_of": before})  # of an earlier version
    assert not warned(caplog)
    loader.load_state_dict(state)
    assert warned(caplog)[-1].endswith("from the first of the epoch: columns of answers 1 (was 2).")


def test_other_scores_in_the_same_columns(make, caplog):
    columns = {"negative_columns": ["other"], "score_columns": ["scores"]}
    state = make(**columns).state_dict()
    make(**columns).load_state_dict(state)
    data = make((1.0, 3.0), **columns)
    data.load_state_dict({"taught_by": {k: v for k, v in state["taught_by"].items() if k != "scores"}})
    assert not warned(caplog)
    data.load_state_dict(state)
    assert "another teacher than the checkpoint's run: data.scores of hash " in warned(caplog)[-1]


def test_another_number_of_batches_a_step(make, caplog):
    data = make()
    data.trainer = SimpleNamespace(accumulate_grad_batches=2)
    state = data.state_dict()
    data.load_state_dict(state)
    data.load_state_dict({})  # of an earlier version
    assert not warned(caplog)
    data.trainer.accumulate_grad_batches = 3
    data.load_state_dict(state)
    assert warned(caplog) == ["Resuming with trainer.accumulate_grad_batches 3 (was 2)."]
