"""The objective in a run: what parts learn and keep, random numbers, checkpoints of before, and the size of tensors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import NEGATIVES, make_data, make_trainer, named_weights, save_base, write_pairs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from splade_lit.core.errors import UserError
from splade_lit.losses.part import Step
from splade_lit.losses.penalties import L1
from splade_lit.losses.ranking import RankingLoss, in_batch_ranking_loss
from splade_lit.losses.weights import Ramp
from splade_lit.training.module import SpladeModule


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)


@pytest.fixture
def base(make_masked_lm, tiny_tokenizer, tmp_path) -> str:
    """The folder of a tiny base model with dropout."""
    return str(save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer, dropout=0.3))


def train(module: SpladeModule, pairs: Path, max_steps: int, ckpt_path: Any = None, **settings: Any) -> L.Trainer:
    trainer = make_trainer(pairs.parent, max_steps, **settings)
    data = make_data(module.hparams["base_model"], pairs)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def keep_all(folder: Path) -> dict[str, Any]:
    """Settings of a trainer that keeps a checkpoint each step, at `step=N.ckpt`."""
    keep = ModelCheckpoint(folder / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    return {"callbacks": [keep], "enable_checkpointing": True}


def test_dropout_is_that_of_seed_device_and_step(base, pairs, tmp_path):
    """Also when a run under accumulation is resumed: what was drawn before, or by others, does not matter."""
    keep = keep_all(tmp_path)
    settings = keep | {"accumulate_grad_batches": 3}

    class Draws(L.Callback):
        def __init__(self) -> None:
            self.values: list[tuple[int, int, float]] = []

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch.rand(7)  # as another callback may

        def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
            self.values.append((trainer.global_step, trainer.fit_loop.batch_idx, float(loss.detach())))

    def run(seed: int, ckpt_path: str | None = None) -> Draws:
        L.seed_everything(seed)
        draws = Draws()
        settings["callbacks"] = [draws, *keep["callbacks"]]
        train(SpladeModule(base, learning_rate=0.0), pairs, 5, ckpt_path, **settings)
        return draws

    whole = run(1)
    resumed = run(2, str(tmp_path / "kept" / "step=2.ckpt"))
    assert resumed.values == [value for value in whole.values if value[0] >= 2]
    assert len({loss for _, _, loss in whole.values}) == len(whole.values) > 12


def test_devices_draw_different_dropout(base):
    module = SpladeModule(base)
    states = []
    for rank in (0, 1):
        module._trainer = SimpleNamespace(global_rank=rank, global_step=3, accumulate_grad_batches=1)
        module.on_train_batch_start(None, 5)
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)


class Tempered(RankingLoss):
    """In-batch loss with a temperature that is learned and a count of batches."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.tensor(temperature))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, step: Step) -> torch.Tensor:
        self.batches += self.training
        return in_batch_ranking_loss(step.scores / self.temperature, step.answers)


def test_parameters_of_the_loss_are_a_group_of_their_own(base, pairs):
    module = SpladeModule(base, ranking=[Tempered(2.0)], idf_learning_rate=1e-2)
    trainer = train(module, pairs, 4)
    group = {group["name"]: group for group in trainer.optimizers[0].param_groups}["loss"]
    (temperature,) = group["params"]
    assert temperature is module.objective.ranking[0].temperature
    assert (group["initial_lr"], group["weight_decay"]) == (1e-2, 0.0)
    assert abs(float(temperature.detach()) - 2.0) > 1e-3
    assert trainer.callback_metrics.keys() >= {"train/tempered", "train/learning_rate_loss"}
    assert module.objective.ranking[0].batches == 4


@pytest.mark.parametrize("loss", ["in_batch", "counted"])
def test_checkpoints_of_before_parts_are_resumed(base, pairs, tmp_path, caplog, loss):
    """They know no state of the loss, and have one state of random numbers in place of a seed."""
    torch.manual_seed(1)
    whole = SpladeModule(base)
    train(whole, pairs, 6, **keep_all(tmp_path))
    path = tmp_path / "kept" / "step=3.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["seed"]
    checkpoint["random_state"] = {"cpu": torch.get_rng_state()}
    del checkpoint["state_dict"]["objective.penalty_scale"]
    assert not [name for name in checkpoint["state_dict"] if not name.startswith("encoder.")]
    torch.save(checkpoint, path)

    torch.manual_seed(1)
    counted = Tempered()
    counted.temperature.requires_grad_(False)
    resumed = SpladeModule(base, ranking=[counted if loss == "counted" else loss])
    train(resumed, pairs, 6, ckpt_path=str(path))
    expected = named_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in named_weights(resumed).items())
    told = [record.getMessage() for record in caplog.records if "another loss" in record.getMessage()]
    assert len(told) == (loss == "counted")
    assert counted.batches == (3 if loss == "counted" else 0)


def test_checkpoints_that_trained_other_weights_are_refused(base, pairs, tmp_path):
    train(SpladeModule(base), pairs, 1, **keep_all(tmp_path))
    with pytest.raises(UserError, match=r"trained other weights; resume with the config.yaml of its run"):
        train(SpladeModule(base, ranking=[Tempered()]), pairs, 2, str(tmp_path / "kept" / "step=1.ckpt"))


def test_settings_of_parts_are_plain_in_checkpoints(base, pairs, tmp_path):
    module = SpladeModule(base, ranking=[Tempered(2.0)], penalty=L1(), lambda_d=Ramp(0.1))
    train(module, pairs, 1, **keep_all(tmp_path))
    settings = torch.load(tmp_path / "kept" / "step=1.ckpt", weights_only=True)["hyper_parameters"]
    assert settings["ranking"] == [{"class_path": f"{__name__}.Tempered", "init_args": {"temperature": 2.0}}]
    assert settings["penalty"] == {"class_path": "splade_lit.losses.penalties.L1", "init_args": {"weight": None}}
    assert settings["lambda_d"]["init_args"] == {"value": 0.1, "schedule": "quadratic", "ramp_ratio": 1 / 3}
    assert settings["lambda_q"] == 0.0


class Sizes(TorchDispatchMode):
    """Keeps the shape of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.shapes |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def test_no_tensor_of_the_loss_is_queries_by_vocabulary(base, pairs):
    """With a penalty on queries, a mask and hard negatives."""
    module, data = SpladeModule(base, lambda_q=0.1, l0_threshold=3), make_data(base, pairs, NEGATIVES)
    sizes = Sizes()

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
            sizes.__enter__()

        def on_train_batch_end(self, *args: Any) -> None:
            sizes.__exit__(None, None, None)

    make_trainer(pairs.parent, 2, callbacks=[Watch()]).fit(module, data)
    queries, documents, vocab = 8, 24, module.encoder.vocab_size
    assert (documents, vocab) in sizes.shapes
    assert (queries, vocab) not in sizes.shapes
