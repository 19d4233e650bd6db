"""Runs that go on with other rates, again, under accumulation, on a few batches, or by themselves in evaluation."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from tiny_runs import make_data, make_trainer, named_weights, save_base, write_pairs

from splade_lit.core.errors import UserError
from splade_lit.losses.weights import learning_rate_factor
from splade_lit.training.callbacks.retrieval import check_watched
from splade_lit.training.callbacks.sparsity_monitor import SparsityMonitor
from splade_lit.training.module import SpladeModule
from splade_lit.training.run_checks import check_same_checkpoint


@pytest.fixture
def base(make_masked_lm, tiny_tokenizer, tmp_path) -> str:
    return str(save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer))


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer, num_pairs=24)


class Rates(L.Callback):
    """Keeps the rates of the optimizer before each step, and the gradients of it."""

    def __init__(self) -> None:
        self.rates: list[list[tuple[float, float]]] = []
        self.gradients: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        self.gradients.append(pl_module.encoder.idf_weights.grad.clone())


def run(base: str, pairs: Path, steps: int, ckpt_path: Any = None, model: Any = (), **settings: Any) -> L.Trainer:
    module = SpladeModule(base, **dict(model))
    trainer = make_trainer(pairs.parent, steps, **settings)
    trainer.fit(module, make_data(base, pairs), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_a_resumed_run_has_the_rates_of_its_settings(base, pairs, tmp_path):
    before = {"learning_rate": 1e-3, "idf_learning_rate": 1e-2, "weight_decay": 0.0}
    run(base, pairs, 4, model=before).save_checkpoint(tmp_path / "at_4.ckpt")
    for change in ({}, {"learning_rate": 1e-6, "weight_decay": 0.5}):
        now, seen = before | change, Rates()
        run(base, pairs, 8, tmp_path / "at_4.ckpt", now, callbacks=[seen])
        later = seen.rates[1:] if not change else seen.rates
        steps = range(8 - len(later), 8)
        for step, (idf, transformer) in zip(steps, later, strict=True):
            factor = learning_rate_factor(step, 1, 8)
            assert idf[0] == pytest.approx(1e-2 * factor) or step == 4, "the step after the resume has the old schedule"
            assert idf[1] == 0.0
            assert transformer == pytest.approx((now["learning_rate"] * factor, now["weight_decay"]))


def test_the_last_step_of_an_epoch_has_the_gradient_of_its_batches(base, pairs):
    alone, two = Rates(), Rates()
    rates = {"learning_rate": 0.0, "idf_learning_rate": 0.0}
    run(base, pairs, 3, model=rates, callbacks=[alone], gradient_clip_val=None)
    run(base, pairs, 2, model=rates, callbacks=[two], gradient_clip_val=None, accumulate_grad_batches=2)
    assert len(two.gradients) == 2
    torch.testing.assert_close(two.gradients[0], (alone.gradients[0] + alone.gradients[1]) / 2)
    torch.testing.assert_close(two.gradients[1], alone.gradients[2])


def test_no_step_is_looked_at_twice_after_a_resume(base, pairs, tmp_path):
    first = run(base, pairs, 4, callbacks=[SparsityMonitor(2)], max_epochs=9, accumulate_grad_batches=2)
    first.save_checkpoint(tmp_path / "at_4.ckpt")
    monitor = SparsityMonitor(2)
    run(base, pairs, 8, tmp_path / "at_4.ckpt", callbacks=[monitor], max_epochs=9, accumulate_grad_batches=2)
    assert [row["step"] for row in monitor.rows] == [2, 4, 6, 8]


def test_another_fit_goes_on_with_what_is_learned(base, pairs):
    module = SpladeModule(base, idf="corpus", start_active_dims=20, learning_rate=1e-2, idf_learning_rate=1e-2)
    data = make_data(base, pairs)
    make_trainer(pairs.parent, 3).fit(module, data)
    learned = named_weights(module)

    class First(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            self.weights = named_weights(pl_module)

    first = First()
    make_trainer(pairs.parent, 1, callbacks=[first]).fit(module, data)
    assert first.weights.keys() == learned.keys()
    assert all(torch.equal(first.weights[name], weight) for name, weight in learned.items())


def test_a_model_is_validated_by_itself(base, pairs):
    module, data = SpladeModule(base), make_data(base, pairs, num_eval_pairs=8)
    (figures,) = make_trainer(pairs.parent, -1).validate(module, data, verbose=False)
    assert figures["val/loss"] > 0
    assert figures["val/document_active_dims"] > 0


def test_overfit_batches_are_the_same_in_each_epoch(base, pairs):
    seen: list[list[int]] = []

    class Batches(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch.queries.input_ids.tolist())

    trainer = run(base, pairs, 6, callbacks=[Batches()], overfit_batches=2, max_epochs=3)
    assert trainer.global_step == len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]


def test_steps_whose_size_changes_are_refused(base, pairs):
    with pytest.raises(UserError, match=r"give trainer\.accumulate_grad_batches one number"):
        run(base, pairs, 2, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])


def test_held_out_figures_that_nobody_measures_are_not_watched(base, pairs):
    trainer = make_trainer(pairs.parent, 2, callbacks=[EarlyStopping("val/loss")])
    names = SpladeModule(base).logged_names
    check_watched(trainer, names, has_held_out=True)
    with pytest.raises(UserError, match=r"a figure of held-out pairs; set data\.num_eval_pairs"):
        check_watched(trainer, names, has_held_out=False)


def compare_checkpoints(rank: int, rendezvous: str, names: list[tuple[str | None, str | None]], told: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    for name in names:
        try:
            check_same_checkpoint(name[rank])
            told.put("")
        except UserError as error:
            told.put(str(error))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_processes_go_on_from_one_checkpoint(tmp_path):
    one, copy, other = (str(tmp_path / name) for name in ("one", "copy", "other"))
    for path, content in ((one, b"1"), (copy, b"1"), (other, b"2")):
        Path(path).write_bytes(content)
    told = torch.multiprocessing.get_context("spawn").SimpleQueue()
    names = [(one, copy), (None, None), (one, other), (one, None)]
    torch.multiprocessing.spawn(compare_checkpoints, args=(f"file://{tmp_path}/rendezvous", names, told), nprocs=2)
    said = [told.get() for _ in names for _ in range(2)]
    assert said[:4] == [""] * 4
    assert all("different checkpoints" in one for one in said[4:])
