"""What guards against a training that cannot work: at its start, and while it goes on."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from command_runs import call
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import make_data, make_trainer, named_weights, save_base, write_pairs

from splade_lit.core.errors import UserError
from splade_lit.encoder.condition import Bounds, Condition
from splade_lit.encoder.start import Start
from splade_lit.fit import main
from splade_lit.training.callbacks.guard import CollapseGuard
from splade_lit.training.module import SpladeModule

GUARD = "splade_lit.training.callbacks.guard.CollapseGuard"
RARE = "disease"


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)


@pytest.fixture
def make_base(make_masked_lm, tiny_tokenizer, tmp_path):
    """Function of a number that is added to the decoder bias: the folder of a tiny base model."""

    def make(bias: float = 0.0) -> Path:
        model = make_masked_lm("bert", len(tiny_tokenizer))
        model.get_output_embeddings().bias.data.add_(bias)
        return save_base(tmp_path / f"bert{bias}", model, tiny_tokenizer)

    return make


def train(
    base: Path, pairs: Path, guard: CollapseGuard | None, max_steps: int, model: dict[str, Any], **settings: Any
) -> SpladeModule:
    L.seed_everything(1)
    module = SpladeModule(str(base), **({"learning_rate": 1e-2, "warmup_ratio": 0.0} | model))
    callbacks = [*settings.pop("callbacks", []), *([guard] if guard else [])]
    trainer = make_trainer(pairs.parent, max_steps, callbacks=callbacks, **settings)
    trainer.fit(module, make_data(base, pairs))
    return module


def told(caplog, word: str) -> list[str]:
    """What guards have said that has this word."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("splade_lit") and word in r.getMessage()]


@pytest.fixture(autouse=True)
def _all_lines(caplog):
    caplog.set_level(logging.INFO, logger="splade_lit")


STRONG = {"lambda_d": 100.0, "lambda_schedule": "constant"}


def test_figures_of_vectors():
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(7, 30, generator=random).relu()
    vectors[2] = 0
    others = vectors[torch.arange(7) != 2]
    similarities = torch.nn.functional.cosine_similarity(others[:, None], others[None], dim=-1)
    different = ~torch.eye(6, dtype=torch.bool)
    found = Condition.of(vectors)
    assert found.active_dims == pytest.approx(float((vectors > 0).sum(1).float().mean()))
    assert found.similarity == pytest.approx(float(similarities[different].mean()), rel=1e-5)
    assert Condition.of(vectors[:1].expand(4, -1)).similarity == pytest.approx(1)
    assert math.isnan(Condition.of(vectors[1:3]).similarity)
    assert (found.num_empty, found.num_documents) == (1, 7)
    half = Condition.of(torch.cat([torch.zeros(16, 300), torch.rand(16, 300, generator=random) - 0.5]).relu())
    assert half.active_dims > 60
    assert Bounds(1000).problem(half) == "partly_dead"
    assert Bounds(1000).problem(found) is None  # one is no sign


def test_a_dense_start_is_remedied_on_request(make_base, pairs, caplog):
    base = make_base(10.0)
    train(base, pairs, None, 1, {})
    (line,) = told(caplog, "documents start dense")
    assert "write start_active_dims: auto under model" in line
    caplog.clear()
    module = train(base, pairs, None, 1, {"start_active_dims": "auto", "learning_rate": 0.0})
    (line,) = told(caplog, "documents start")
    size = module.encoder.vocab_size
    assert line.startswith(f"documents start with {size // 4}.")
    assert f"as the decoder bias was set; without, {size:.1f} and" in line


def test_a_good_start_stays_with_auto(make_base, pairs, caplog):
    base = make_base()
    modules = [train(base, pairs, None, 1, {"start_active_dims": how, "learning_rate": 0.0}) for how in (None, "auto")]
    biases = [module.encoder.document.decoder.bias.detach() for module in modules]
    assert torch.equal(*biases)
    first, second = told(caplog, "documents start")
    assert first == second
    assert "mean cosine similarity 0." in first


def test_a_base_model_that_is_not_finite_is_refused(make_masked_lm, tiny_tokenizer, tmp_path):
    model = make_masked_lm("bert", len(tiny_tokenizer))
    model.config.tie_word_embeddings = False
    decoder = model.get_output_embeddings()
    decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    model.get_input_embeddings().weight.data[tiny_tokenizer.convert_tokens_to_ids(RARE)] = torch.inf
    base = save_base(tmp_path / "damaged", model, tiny_tokenizer)
    with pytest.raises(UserError, match=r"word_embeddings\.weight are not finite, so it is damaged"):
        SpladeModule(str(base))


def test_documents_that_stay_dense_are_told_after_a_third_of_the_run(make_base, pairs, caplog):
    settings = {"lambda_d": 0.0, "learning_rate": 1e-5}
    train(make_base(10.0), pairs, CollapseGuard(every_n_steps=2), 12, settings)
    (line,) = told(caplog, "training collapses")
    assert line.startswith("step 4: ")
    assert "100% of the vocabulary; raise model.lambda_d" in line


def test_bounds_of_ones_own(make_base, pairs, caplog):
    base, weak = make_base(), {"lambda_d": 0.0, "learning_rate": 1e-5}
    train(base, pairs, CollapseGuard(every_n_steps=2, max_similarity=0.01), 6, weak)
    (line,) = told(caplog, "training collapses")
    assert "documents are all alike (mean cosine similarity 0." in line
    with pytest.raises(UserError, match=r"step \d+: training collapses: an average document has .* run is stopped"):
        train(base, pairs, CollapseGuard("stop", every_n_steps=2, max_active_dims=3), 12, weak)


def test_too_large_a_lambda_is_told_once(make_base, pairs, caplog):
    module = train(make_base(), pairs, CollapseGuard(every_n_steps=2), 16, STRONG)
    (line,) = told(caplog, "training collapses")
    assert "active dims (it began with" in line
    assert "lower model.lambda_d" in line
    assert module.objective.penalty_scale == 1


class DeadInPart(L.Callback):
    """Takes all dims of this share of the documents of each batch away, from a step on."""

    def __init__(self, share: float, step: int = 0) -> None:
        self.share, self.step = share, step

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def without(_: Any, inputs: Any, vectors: torch.Tensor) -> torch.Tensor:
            alive = torch.arange(len(vectors)) >= self.share * len(vectors) * (trainer.global_step >= self.step)
            return vectors * alive[:, None]

        pl_module.encoder.document.register_forward_hook(without)


@pytest.mark.parametrize(("share", "is_told"), [(0.0, False), (0.25, True)])
def test_documents_that_die_while_others_do_not_are_told(make_base, pairs, caplog, share, is_told):
    model = {"lambda_d": 0.0, "learning_rate": 1e-6}
    train(make_base(), pairs, CollapseGuard(every_n_steps=4), 8, model, callbacks=[DeadInPart(share)])
    lines = told(caplog, "training collapses")
    assert len(lines) == is_told
    assert all("25% of the documents have no active dims and are never found, an average one has" in x for x in lines)


def test_documents_that_die_while_others_do_not_are_acted_upon(make_base, pairs):
    model, settings = {"lambda_d": 1e-3, "learning_rate": 1e-6}, {"callbacks": [DeadInPart(0.25, step=4)]}
    module = train(make_base(), pairs, CollapseGuard("lower_lambda", every_n_steps=2), 8, model, **settings)
    assert module.objective.penalty_scale == 0.25
    with pytest.raises(UserError, match=r"^step 6: training collapses: 25% of the documents have no active dims"):
        train(make_base(), pairs, CollapseGuard("stop", every_n_steps=2), 8, model, **settings)


def test_a_fifth_of_the_target_is_the_least(make_base, pairs, caplog):
    base, model = make_base(), {"learning_rate": 1e-6}
    few = DeadAtTimes(taken=[2], given_back=[], by=1.0)
    train(base, pairs, CollapseGuard(every_n_steps=2), 4, model | {"target_active_dims": 30}, callbacks=[few])
    (line,) = told(caplog, "training collapses")
    assert "start from more dims (model.start_active_dims)" in line
    assert not told(caplog, "lost dims come back slowly")
    caplog.clear()
    train(base, pairs, CollapseGuard(every_n_steps=2), 4, model | {"target_active_dims": 170})  # never had so many
    assert "fewer than the target of 170" in told(caplog, "lost dims come back slowly")[0]
    assert not told(caplog, "training collapses")


class DeadAtTimes(L.Callback):
    """Lowers the logits of all terms at one step, and gives that back at another; by default to no term at all."""

    def __init__(self, taken: list[int], given_back: list[int], by: float = 30.0) -> None:
        self.at = dict.fromkeys(taken, -by) | dict.fromkeys(given_back, by)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        bias = pl_module.encoder.document.decoder.bias
        bias.data.add_(self.at.get(trainer.global_step, 0.0))


def test_a_collapse_after_a_recovery_is_told_again(make_base, pairs, caplog):
    changes = DeadAtTimes(taken=[4, 12], given_back=[8, 16])
    model = {"lambda_d": 0.0, "learning_rate": 1e-6}
    train(make_base(), pairs, CollapseGuard(every_n_steps=2), 20, model, callbacks=[changes])
    assert [line.split(":")[0] for line in told(caplog, "training collapses")] == ["step 6", "step 14"]


def test_a_lower_lambda_keeps_documents_alive(make_base, pairs, caplog):
    base = make_base()
    settings = {"lambda_d": 3.0, "lambda_schedule": "constant", "learning_rate": 1e-3}
    guard = {"every_n_steps": 1, "min_active_dims": 20}
    dead = train(base, pairs, CollapseGuard("warn", **guard), 50, settings)
    kept = train(base, pairs, CollapseGuard("lower_lambda", **guard), 50, settings)
    assert dead.condition[0] < 2
    assert kept.condition[0] > 5
    scale = float(kept.objective.penalty_scale)
    assert scale < 0.5
    assert told(caplog, "lambda is lowered")[-1].endswith(f"lambda is lowered, to {scale:.3g} of what it was.")


def test_a_stopped_run_keeps_and_names_its_last_good_checkpoint(make_base, pairs, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=1, filename="{step}")
    settings = {"callbacks": [keep], "enable_checkpointing": True}
    guard, model = CollapseGuard("stop", every_n_steps=7, min_active_dims=5), STRONG | {"learning_rate": 1e-3}
    with pytest.raises(UserError, match=r"training collapses: .* The run is stopped; its last checkpoint") as error:
        train(make_base(), pairs, guard, 40, model, **settings)
    (path,) = (tmp_path / "kept").iterdir()
    assert str(path) in str(error.value)
    module = SpladeModule(str(make_base()))
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    sample = make_data(make_base(), pairs)
    sample.setup()
    with torch.no_grad():
        vectors = module.encoder.document.eval()(sample.sample_documents(64, seed=1))
    assert Condition.of(vectors).active_dims > 3


def one_document(pairs: Path) -> Path:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    path = pairs.with_name("one_document.jsonl")
    path.write_text("\n".join(json.dumps(row | {"answer": rows[0]["answer"]}) for row in rows))
    return path


def test_one_document_repeated(make_base, pairs, caplog):
    single = one_document(pairs)
    train(make_base(), single, CollapseGuard(every_n_steps=2), 20, {"lambda_d": 3.0})
    assert "1.000); look whether texts of the data differ; if" in told(caplog, "documents start nearly constant")[0]
    assert "64 of 64 batches hold a single pair" in told(caplog, "single pair")[0]
    assert len(told(caplog, "training collapses")) == 1
    with pytest.raises(UserError, match="64 of 64 batches hold a single pair, with no other document"):
        train(make_base(), single, CollapseGuard("stop"), 20, {})


def test_a_remedy_that_is_applied_is_not_advised():
    """A bias for 200 dims makes no texts differ; where it has been set, the line does not tell to set it."""
    size, dense = 30_522, Condition(9_000.0, 0.5)
    for remedied in (dense, None):  # with auto; a grafted head
        line = Start(Condition(200.0, 1.0), remedied, 200).warning(size)
        assert line.endswith(
            "set for 200 active dims already and does not help, so look whether texts of the data differ."
        )
        line = Start(Condition(200.0, 0.5, 20.0, 256.0), remedied, 200).warning(size)
        assert "does not help; write another number of dims as model.start_active_dims" in line
    assert "write start_active_dims: auto" in Start(Condition(5_000.0, 0.5), None, 5_000).warning(size)


def test_documents_on_target_are_not_dense(make_base, pairs, caplog):
    """However large the target; above one and a half times it they are."""
    size = 30_522
    assert Start(Condition(2_100.0, 0.5)).warning(size, 2_000) is None
    assert "documents start dense" in Start(Condition(3_100.0, 0.5)).warning(size, 2_000)
    base, steady = make_base(10.0), {"learning_rate": 0.0, "start_active_dims": 170}
    module = train(base, pairs, CollapseGuard("stop", every_n_steps=2), 6, steady | {"target_active_dims": 160})
    assert module.encoder.vocab_size / 2 < 160
    assert not told(caplog, "dense")


@pytest.fixture
def overflowing(make_masked_lm, tiny_tokenizer, pairs) -> dict[str, Path]:
    """A base model, pairs of which one query has a rare token, and a query table in which it weighs too much."""
    model = make_masked_lm("bert", len(tiny_tokenizer))
    rare = tiny_tokenizer.convert_tokens_to_ids(RARE)
    model.get_output_embeddings().bias.data[rare] += 20
    rows = [json.loads(line.replace(RARE, "blood")) for line in pairs.read_text().splitlines()]
    rows[10]["query"] += f" {RARE}"
    data = pairs.with_name("overflowing.jsonl")
    data.write_text("\n".join(map(json.dumps, rows)))
    table = pairs.with_name("idf.json")
    table.write_text(json.dumps({token: 3e38 if token == RARE else 1.0 for token in tiny_tokenizer.get_vocab()}))
    base = save_base(pairs.parent / "overflowing", model, tiny_tokenizer)
    return {"base": base, "pairs": data, "table": table}


class Weights(L.Callback):
    """Keeps the weights after each optimizer step."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.steps[trainer.global_step] = named_weights(pl_module)


@pytest.mark.parametrize(("precision", "clip"), [("32-true", 1.0), ("32-true", None), ("bf16-mixed", 1.0)])
def test_a_step_that_is_not_finite_is_told_and_leaves_the_weights(overflowing, caplog, precision, clip):
    weights, model = Weights(), {"idf": str(overflowing["table"]), "learning_rate": 1e-3, "dropout": 0.1}
    files = overflowing["base"], overflowing["pairs"]
    train(*files, CollapseGuard(), 9, model, callbacks=[weights], precision=precision, gradient_clip_val=clip)
    (line,) = told(caplog, "not finite")
    lost = int(line.split(":")[0].removeprefix("step "))
    assert 1 <= lost <= 9
    for step in range(2, 10):
        before, after = weights.steps[step - 1], weights.steps[step]
        same = all(torch.equal(after[name], weight) for name, weight in before.items())
        assert same == (step == lost)
        assert all(weight.isfinite().all() for weight in after.values())


def test_a_step_that_is_not_finite_stops_a_run_that_shall_stop(overflowing):
    files = overflowing["base"], overflowing["pairs"]
    model = {"idf": str(overflowing["table"]), "learning_rate": 1e-3}
    with pytest.raises(UserError, match=r"step \d: the loss or its gradient is not finite.* it has no checkpoint"):
        train(*files, CollapseGuard("stop", every_n_steps=3), 9, model)


def test_a_healthy_run_is_not_mentioned(make_base, pairs, caplog):
    train(make_base(), pairs, CollapseGuard(every_n_steps=1), 8, {"learning_rate": 1e-3})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_state_goes_on_after_a_resume(make_base, pairs, tmp_path):
    """Lambda, what was said and what was seen are those of a run without a stop."""
    base = str(make_base())
    settings = {"lambda_d": 3.0, "lambda_schedule": "constant", "learning_rate": 3e-3, "warmup_ratio": 0.0}

    def run(checkpoint: str | None = None) -> tuple[SpladeModule, CollapseGuard]:
        L.seed_everything(1)
        guard = CollapseGuard("lower_lambda", every_n_steps=3, min_active_dims=25)
        keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = make_trainer(tmp_path, 20, callbacks=[guard, keep], enable_checkpointing=True)
        module = SpladeModule(base, **settings)
        trainer.fit(module, make_data(base, pairs), ckpt_path=checkpoint, weights_only=True)
        return module, guard

    whole, guard = run()
    resumed, again = run(str(tmp_path / "kept" / "step=11.ckpt"))
    assert 0 < whole.objective.penalty_scale < 1
    assert torch.equal(whole.objective.penalty_scale, resumed.objective.penalty_scale)
    assert again.state_dict() == guard.state_dict()
    expected = named_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in named_weights(resumed).items())


def test_every_run_of_fit_is_watched(world, tmp_path, caplog):
    changes = {"trainer.callbacks": None, "trainer.max_steps": 20, "trainer.val_check_interval": 20}
    changes |= {"model.lambda_d": 100.0, "model.lambda_schedule": "constant", "model.learning_rate": 1e-2}
    outcome = call(main, "--config", world.config(tmp_path / "warned", changes))
    assert outcome.code == 0
    lines = told(caplog, "training collapses")
    assert lines[0].startswith("step 10: ")
    assert len(lines) <= 2  # of some documents, then of all of them
    assert "guard/lost_updates" in (tmp_path / "warned" / "metrics.csv").read_text().splitlines()[0]
    changes |= {"trainer.val_check_interval": 1, "trainer.limit_val_batches": 1}
    changes["trainer.callbacks"] = [{"class_path": GUARD, "init_args": {"action": "stop"}}]
    run = tmp_path / "stopped"
    outcome = call(main, "--config", world.config(run, changes))
    assert outcome.code == 2
    last = run / "checkpoints" / "last.ckpt"
    assert f"its last checkpoint of before is {last}, of step" in outcome.errors[0]
    assert last.exists()
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"action": "shout"}, "action"),
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"min_active_dims": -1}, "min_active_dims"),
        ({"max_active_dims": -1}, "max_active_dims"),
        ({"max_similarity": 1.5}, "max_similarity"),
        ({"max_empty_share": 1.5}, "max_empty_share"),
    ],
)
def test_settings_out_of_range_are_told(settings, name):
    with pytest.raises(UserError, match=rf"CollapseGuard\.{name} is"):
        CollapseGuard(**settings)
