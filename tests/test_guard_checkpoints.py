"""The guard that is to stop: when a checkpoint is due, after a resume, and in several processes."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import make_data, make_trainer, save_base, write_pairs

from splade_lit.core.errors import UserError
from splade_lit.training.callbacks import guard as guards
from splade_lit.training.callbacks.guard import CollapseGuard
from splade_lit.training.module import SpladeModule

WEAK = {"lambda_d": 0.0, "learning_rate": 1e-5}


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)


def run(
    make_masked_lm: Any,
    tokenizer: Any,
    pairs: Path,
    guard: CollapseGuard,
    max_steps: int,
    bias: float = 0.0,
    **data: Any,
) -> SpladeModule:
    """A run with a checkpoint at each step."""
    model = make_masked_lm("bert", len(tokenizer))
    model.get_output_embeddings().bias.data.add_(bias)
    base = save_base(pairs.parent / f"bert{bias}", model, tokenizer)
    L.seed_everything(1)
    module = SpladeModule(str(base), warmup_ratio=0.0, **WEAK)
    keep = ModelCheckpoint(pairs.parent / "kept", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(pairs.parent, max_steps, callbacks=[guard, keep], enable_checkpointing=True)
    trainer.fit(module, make_data(base, pairs, **data))
    return module


def test_documents_that_start_dense_have_a_third_of_the_run_whenever_a_checkpoint_is_due(
    make_masked_lm, tiny_tokenizer, pairs
):
    with pytest.raises(UserError, match=r"^step 4: training collapses: .* active dims \(it began with 18"):
        run(make_masked_lm, tiny_tokenizer, pairs, CollapseGuard("stop", every_n_steps=10), 12, bias=10.0)


def test_a_few_documents_are_no_sign(make_masked_lm, tiny_tokenizer, pairs):
    """Of batches of three, it takes three to have eight documents or more."""
    guard = CollapseGuard("stop", every_n_steps=10, min_active_dims=150)
    with pytest.raises(UserError, match=r"^step 3: training collapses: an average document has"):
        run(make_masked_lm, tiny_tokenizer, pairs, guard, 12, batch_size=3)


def test_updates_lost_before_a_resume_stop_nothing(make_masked_lm, tiny_tokenizer, pairs, monkeypatch):
    """The state of the module is restored before the guard starts."""
    guard = CollapseGuard("stop", every_n_steps=2)
    begin = SpladeModule.setup

    def setup(module: SpladeModule, stage: str) -> None:
        begin(module, stage)
        module.divergence.load_state_dict({"state": [0, 0, 1, 3], "told": 1})

    monkeypatch.setattr(SpladeModule, "setup", setup)
    assert run(make_masked_lm, tiny_tokenizer, pairs, guard, 4).global_step == 4


def test_nothing_is_judged_before_the_first_batch(make_masked_lm, tiny_tokenizer, tmp_path):
    base = save_base(tmp_path / "bert", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    assert guards._condition(guards._window_of(SpladeModule(str(base)))) is None


def test_several_processes_count_a_batch_once(monkeypatch):
    """Each of them has the figures of the whole batch."""
    window = torch.tensor([[40.0, 0.5, 1.0, 32.0], [1.0, 1.0, 1.0, 1.0]])
    alone = guards._condition(window)
    monkeypatch.setattr(guards, "gather", lambda value: [value] * 4)
    assert guards._condition(window) == alone
    assert alone is not None
    assert (alone.num_empty, alone.num_documents) == (1.0, 32.0)
