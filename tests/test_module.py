"""The module: optimizer groups, what the training corpus decides, what is logged, resuming, and divergence."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import make_data, make_trainer, named_weights, save_base, write_pairs

from splade_lit.core.errors import UserError
from splade_lit.core.tokens import Tokens
from splade_lit.losses.weights import learning_rate_factor, penalty_factor
from splade_lit.training.module import SpladeModule


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)


@pytest.fixture
def make_base(make_masked_lm, tiny_tokenizer, tmp_path) -> Callable[..., Path]:
    """Function of an architecture: the folder of a tiny base model."""

    def make(architecture: str = "bert", **settings: Any) -> Path:
        model = make_masked_lm(architecture, len(tiny_tokenizer))
        return save_base(tmp_path / architecture, model, tiny_tokenizer, **settings)

    return make


class Figures(L.Callback):
    """Keeps what is logged after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(
    module: SpladeModule, pairs: Path, max_steps: int, ckpt_path: str | None = None, **settings: Any
) -> L.Trainer:
    data = make_data(module.hparams["base_model"], pairs, **settings.pop("data", {}))
    trainer = make_trainer(pairs.parent, max_steps, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("freeze_idf", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert"])
def test_groups_hold_every_trainable_parameter_once(make_base, architecture, freeze_idf):
    module = SpladeModule(str(make_base(architecture)), freeze_idf=freeze_idf)
    for name, parameter in module.named_parameters():
        if "layers.0." in name or "layer.0." in name:
            parameter.requires_grad_(False)
    groups = {group["name"]: group["params"] for group in module.parameter_groups()}
    assert list(groups) == (["transformer"] if freeze_idf else ["idf", "transformer"])
    assert freeze_idf or groups["idf"] == [module.encoder.idf_weights]
    grouped = [parameter for group in groups.values() for parameter in group]
    assert len({id(parameter) for parameter in grouped}) == len(grouped)
    trainable = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in grouped} == trainable
    # The decoder is tied to the input embeddings: one parameter, in one group.
    assert module.encoder.document.decoder.weight is module.encoder.document.model.get_input_embeddings().weight
    assert id(module.encoder.document.decoder.weight) in trainable


def test_a_parameter_of_no_group_is_noticed(make_base):
    module = SpladeModule(str(make_base()))
    module.temperature = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(AssertionError, match="every trainable parameter once"):
        module.parameter_groups()


def test_each_group_has_its_settings(make_base, pairs):
    settings = {"learning_rate": 1e-4, "idf_learning_rate": 1e-2, "weight_decay": 0.1}
    module = SpladeModule(str(make_base()), **settings)
    trainer = train(module, pairs, 1)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert (groups["idf"]["initial_lr"], groups["idf"]["weight_decay"]) == (1e-2, 0.0)
    assert (groups["transformer"]["initial_lr"], groups["transformer"]["weight_decay"]) == (1e-4, 0.1)


def test_frozen_table_stays_as_it_is(make_base, pairs):
    module = SpladeModule(str(make_base()), freeze_idf=True, learning_rate=1e-3)
    before = named_weights(module)
    train(module, pairs, 3)
    after = named_weights(module)
    assert torch.equal(after["idf_weights"], before["idf_weights"])
    assert not torch.equal(
        after["bert.embeddings.word_embeddings.weight"], before["bert.embeddings.word_embeddings.weight"]
    )


@pytest.mark.parametrize("nonnegative_idf", [True, False])
def test_nonnegative_table(make_base, pairs, nonnegative_idf):
    lowest = []

    class Lowest(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            lowest.append(float(pl_module.encoder.idf_weights.detach().min()))

    module = SpladeModule(str(make_base()), idf_learning_rate=0.5, nonnegative_idf=nonnegative_idf)
    train(module, pairs, 8, callbacks=[Lowest()])
    if nonnegative_idf:
        assert min(lowest) == 0.0
    else:
        assert min(lowest) < -0.1


def test_table_from_the_training_corpus(make_base, pairs, tiny_tokenizer):
    module = SpladeModule(str(make_base()), idf="corpus", idf_learning_rate=0.0)
    trainer = train(module, pairs, 1, data={"num_eval_pairs": 10, "max_document_tokens": 20})
    data = trainer.datamodule
    texts = [data.train_pairs[row]["document"] for row in range(len(data.train_pairs))]
    assert len(texts) == 54
    documents = [set(tiny_tokenizer(text, truncation=True, max_length=20)["input_ids"][1:-1]) for text in texts]
    frequencies = [sum(token in document for document in documents) for token in range(len(tiny_tokenizer))]
    weights = [math.log(1 + (54 - df + 0.5) / (df + 0.5)) for df in frequencies]
    scale = sum(frequencies) / sum(df * weight for df, weight in zip(frequencies, weights, strict=True))
    expected = [scale * weight for weight in weights]
    assert module.encoder.idf_weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 5


@pytest.mark.parametrize("has_head", [True, False], ids=["masked-LM", "grafted"])
def test_calibrated_start(make_masked_lm, tiny_tokenizer, tmp_path, pairs, has_head, caplog):
    model = make_masked_lm("bert", len(tiny_tokenizer))
    base = save_base(tmp_path / "base", model if has_head else model.bert, tiny_tokenizer)
    module = SpladeModule(str(base), start_active_dims=25, learning_rate=0.0)
    assert module.encoder.document.grafted is not has_head
    with caplog.at_level(logging.WARNING, logger="splade_lit"):
        trainer = train(module, pairs, 1)
    sample = trainer.datamodule.sample_documents(256, seed=0)
    with torch.no_grad():
        active = module.encoder.document.eval()(sample) > 0
    assert active.sum(1).float().mean().item() == pytest.approx(25, abs=0.1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def warnings_of_start(model: Any, tokenizer: Any, folder: Path, pairs: Path, caplog: Any) -> list[str]:
    base = save_base(folder / "base", model, tokenizer)
    with caplog.at_level(logging.WARNING, logger="splade_lit"):
        train(SpladeModule(str(base)), pairs, 1)
    return [record.getMessage() for record in caplog.records if record.name.startswith("splade_lit")]


@pytest.mark.parametrize(
    ("bias", "weight", "message"),
    [
        (10.0, 1.0, "documents start dense"),
        (-100.0, 1.0, "documents start with next to no active dims"),
        (None, 0.0, "documents start nearly constant"),
    ],
)
def test_bad_start_is_told_in_one_line(make_masked_lm, tiny_tokenizer, tmp_path, pairs, caplog, bias, weight, message):
    model = make_masked_lm("bert", len(tiny_tokenizer))
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        decoder.weight.mul_(weight)
        if bias is None:
            decoder.bias.fill_(-1.0)[:5] = 3.0
        else:
            decoder.bias.fill_(bias)
    (line,) = warnings_of_start(model, tiny_tokenizer, tmp_path, pairs, caplog)
    assert message in line
    assert "write start_active_dims: auto under model" in line
    assert "\n" not in line


def test_good_start_is_not_mentioned(make_masked_lm, tiny_tokenizer, tmp_path, pairs, caplog):
    model = make_masked_lm("bert", len(tiny_tokenizer))
    with torch.no_grad():
        model.get_output_embeddings().bias.zero_()
    assert warnings_of_start(model, tiny_tokenizer, tmp_path, pairs, caplog) == []


def test_logged_figures(make_base, pairs):
    settings = {"lambda_d": 0.1, "lambda_q": 0.02, "learning_rate": 1e-3, "idf_learning_rate": 1e-2}
    module, figures = SpladeModule(str(make_base()), **settings), Figures()
    trainer = train(module, pairs, 12, callbacks=[figures], data={"num_eval_pairs": 8}, val_check_interval=6)
    assert len(figures.steps) == 12
    for step, values in enumerate(figures.steps):
        train_values = {name: value for name, value in values.items() if not name.startswith("val/")}
        assert train_values.keys() == {
            "train/loss",
            "train/ranking_loss",
            "train/document_penalty",
            "train/query_penalty",
            "train/lambda_d",
            "train/lambda_q",
            "train/learning_rate_idf",
            "train/learning_rate_transformer",
            "sparsity/train_query_active_dims",
            "sparsity/train_document_active_dims",
        }
        ramp, rate = penalty_factor(step, 4), learning_rate_factor(step, 2, 12)
        expected = {"lambda_d": 0.1 * ramp, "lambda_q": 0.02 * ramp}
        expected |= {"learning_rate_transformer": 1e-3 * rate, "learning_rate_idf": 1e-2 * rate}
        assert {name: values[f"train/{name}"] for name in expected} == pytest.approx(expected)
        parts = values["train/ranking_loss"] + values["train/lambda_d"] * values["train/document_penalty"]
        parts += values["train/lambda_q"] * values["train/query_penalty"]
        assert values["train/loss"] == pytest.approx(parts, rel=1e-5)

    batches = trainer.datamodule.train_dataloader()
    rows = [batches.rows[positions] for positions in batches.sampler.batches()]
    batch = batches.batch(rows[0])
    fresh = SpladeModule(module.hparams["base_model"])
    documents = fresh.encoder.document(batch.documents).detach()
    first = figures.steps[0]
    assert first["sparsity/train_query_active_dims"] == pytest.approx(len(batch.queries.input_ids) / len(batch.queries))
    assert first["sparsity/train_document_active_dims"] == pytest.approx(float((documents > 0).sum(1).float().mean()))
    assert first["train/document_penalty"] == pytest.approx(float(documents.mean(0).square().sum()), rel=1e-5)

    validation = trainer.validate(module, trainer.datamodule, verbose=False)[0]
    assert validation.keys() == {"val/loss", "val/ranking_loss", "val/document_active_dims"}
    assert validation["val/loss"] > validation["val/ranking_loss"] > 0
    with torch.no_grad():
        module.eval()
        held_out = torch.cat([module.encoder.document(one.documents) for one in trainer.datamodule.val_dataloader()])
    assert validation["val/document_active_dims"] == pytest.approx(float((held_out > 0).sum(1).float().mean()))
    assert figures.steps[-1].keys() >= validation.keys()


def test_half_precision_takes_clipped_gradients(make_base, pairs):
    figures = Figures()
    train(SpladeModule(str(make_base())), pairs, 2, callbacks=[figures], precision="bf16-mixed")
    assert len(figures.steps) == 2
    assert all(math.isfinite(values["train/loss"]) for values in figures.steps)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_that_change_the_weights_are_refused(make_base, pairs, precision):
    with pytest.raises(UserError, match=rf"trainer\.precision is {precision}; it must be one of 32-true"):
        train(SpladeModule(str(make_base())), pairs, 1, precision=precision)


def test_a_missing_compiler_is_told(make_base, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "g++")))
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"model\.compile_body needs a C\+\+ compiler"):
        SpladeModule(str(make_base()), compile_body=True)
    torch._dynamo.reset()


def test_query_figures_are_left_out_where_queries_are_not_penalised(make_base, pairs):
    figures = Figures()
    train(SpladeModule(str(make_base()), freeze_idf=True), pairs, 1, callbacks=[figures])
    absent = {"train/query_penalty", "train/lambda_q", "train/learning_rate_idf"}
    assert not absent & figures.steps[0].keys()


@pytest.mark.parametrize("saved_step", [5, 8, 11])
def test_resumed_run_ends_as_one_without_a_stop(make_base, pairs, tmp_path, saved_step):
    """Batches, dropout, AdamW's moments and all schedules go on; in an epoch, at its end, in the next one."""
    settings = {"learning_rate": 1e-3, "idf_learning_rate": 1e-2, "lambda_d": 0.1}
    base = str(make_base(dropout=0.1))
    L.seed_everything(1)
    whole = SpladeModule(base, **settings)
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = train(whole, pairs, 13, callbacks=[keep], enable_checkpointing=True)
    assert len(trainer.train_dataloader) == 8

    L.seed_everything(2)
    resumed, figures = SpladeModule(base, **settings), Figures()
    path = str(tmp_path / "kept" / f"step={saved_step}.ckpt")
    again = train(resumed, pairs, 13, ckpt_path=path, callbacks=[figures])
    assert again.global_step == trainer.global_step == 13
    assert len(figures.steps) == 13 - saved_step
    expected = named_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in named_weights(resumed).items())


class Spoil(L.Callback):
    """Makes a weight infinite before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            pl_module.encoder.document.decoder.bias.data[7] = torch.inf


def test_divergence_is_told_with_its_step(make_base, pairs, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    settings = {"callbacks": [Spoil(step=4), keep], "enable_checkpointing": True, "log_every_n_steps": 5}
    with pytest.raises(UserError, match=r"the loss is not finite from step 4 on; lower .*") as error:
        train(SpladeModule(str(make_base())), pairs, 10, **settings)
    assert "\n" not in str(error.value)
    # No checkpoint of what is lost, and those of before are whole.
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]


@pytest.mark.parametrize("step", [6, 10])
def test_divergence_is_found_where_figures_are_logged_and_at_the_end(make_base, pairs, step):
    module = SpladeModule(str(make_base()))
    with pytest.raises(UserError, match=f"not finite from step {step} on"):
        train(module, pairs, 10, callbacks=[Spoil(step)], log_every_n_steps=7)
    assert module.global_step < 10


def test_too_high_a_learning_rate(make_base, pairs):
    module = SpladeModule(str(make_base()), learning_rate=1e38, warmup_ratio=0.0)
    with pytest.raises(UserError, match="Training diverged: the loss is not finite from step 2 on"):
        train(module, pairs, 10, log_every_n_steps=5)


def test_no_known_end(make_base, pairs):
    with pytest.raises(UserError, match="no known end"):
        train(SpladeModule(str(make_base())), pairs, -1, max_epochs=-1)


def test_a_power_of_weights_that_are_all_equal_is_refused(make_base):
    base, settings = str(make_base()), {"flops_idf_power": -0.5, "freeze_idf": True}
    for idf in (None, "ones"):
        with pytest.raises(UserError, match="flops_idf_power has no effect on query weights that are all equal"):
            SpladeModule(base, idf=idf, **settings)
    for kept in ({"idf": "corpus"}, {"freeze_idf": False}, {"flops_idf_power": 0.0}):
        SpladeModule(base, **settings | kept)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"lambda_ramp_ratio": -0.1}, "lambda_ramp_ratio"),
        ({"learning_rate": -1e-5}, "learning_rate"),
        ({"lambda_d": float("nan")}, "lambda_d"),
        ({"max_document_tokens": 0}, "max_document_tokens"),
        ({"start_active_dims": 0}, "start_active_dims"),
        ({"start_active_dims": 1_000_000}, "start_active_dims"),
        ({"l0_threshold": -1}, "l0_threshold"),
        ({"lambda_q": -0.1}, "lambda_q"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"idf_learning_rate": math.inf}, "idf_learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"dropout": 1.1}, "dropout"),
        ({"max_query_tokens": 0}, "max_query_tokens"),
        ({"pooling": "avg"}, "pooling"),
        ({"activation": "gelu"}, "activation"),
        ({"lambda_schedule": "cubic"}, "lambda_schedule"),
        ({"recompute": "all"}, "recompute"),
        ({"penalty": "flop"}, "penalty"),
        ({"ranking": ["in_bach"]}, "ranking"),
    ],
)
def test_settings_out_of_range_are_told(make_base, settings, name):
    with pytest.raises(UserError, match=f"model.{name} is"):
        SpladeModule(str(make_base()), **settings)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_dropout_is_the_base_models_unless_given(make_masked_lm, tiny_tokenizer, tmp_path, architecture):
    base = save_base(tmp_path / "base", make_masked_lm(architecture, len(tiny_tokenizer)), tiny_tokenizer, dropout=0.5)
    documents = Tokens.from_lists([[2, 50, 60, 70, 3]])

    def varies(module: SpladeModule) -> bool:
        document = module.encoder.document.train()
        return not torch.equal(document.hidden_states(documents), document.hidden_states(documents))

    assert varies(SpladeModule(str(base)))
    assert not varies(SpladeModule(str(base), dropout=0.0))


def test_gradients_take_no_memory_between_steps(make_base, pairs):
    module = SpladeModule(str(make_base()))
    train(module, pairs, 2)
    assert all(parameter.grad is None for parameter in module.parameters())
