"""Targets of sparsity: the controller on a model of training, what it counts, its state, and runs of a small model."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command_runs import call, read_json
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from scipy.sparse import csr_array
from tiny_runs import make_data, make_trainer, named_weights, save_base, write_pairs

from splade_lit import fit
from splade_lit.core.errors import UserError
from splade_lit.evaluation.sparsity import SparsityStatistics, expected_flops
from splade_lit.losses.objective import Objective
from splade_lit.losses.part import Step
from splade_lit.losses.targets import ActiveDimsTarget, FlopsTarget, Target
from splade_lit.losses.weights import penalty_factor
from splade_lit.training.module import SpladeModule


def a_step(documents: torch.Tensor, step: int = 0, total_steps: int = 100, **fields: Any) -> Step:
    queries = fields.pop("queries", torch.ones(2, documents.shape[1]))
    return Step(
        scores=torch.zeros(len(queries), len(documents)),
        answers=torch.tensor([[0, 0]]),
        documents=documents,
        mean_query=queries.mean(0),
        step=step,
        total_steps=total_steps,
        idf_weights=fields.pop("idf_weights", torch.ones(documents.shape[1])),
        **{"penalty": torch.tensor(2.0), "ranking": torch.tensor(0.5)} | fields,
    )


class Plant(NamedTuple):
    """How documents answer a weight of the penalty: see `simulated`."""

    rate: float
    level: float
    drift: float
    speed_noise: float
    dims_noise: float
    error: float
    fastest: float = 0.15


PLANTS = {  # the first two are fitted to runs of MiniLM on question-passage pairs at a learning rate of 1e-4
    "64 pairs": Plant(0.30, -2.7, -1.3, 0.016, 0.001, 0.042),
    "16 pairs": Plant(0.08, -4.4, -1.8, 0.012, 0.041, 0.068),
    "fast": Plant(0.6, -3.0, -1.0, 0.016, 0.001, 0.042, 0.2),
    "slow": Plant(0.02, -3.5, -0.5, 0.007, 0.014, 0.06, 0.05),
    "needs more and more": Plant(0.1, -1.5, 0.5, 0.01, 0.022, 0.06),
}


def simulated(weight: Target, start: float, total_steps: int, plant: Plant) -> np.ndarray:
    """Active dims over a run on a model of training.

    With y the logarithm of the dims over 120, dims stand still where `log(weight) + 2.1 y` is the plant's level, which
    drifts over the run. Else they move by `rate` times the difference a step, but no more than `fastest`, some five
    steps late, and by the schedule of the learning rate; speed and dims are disturbed, and measured with an error.
    """
    random = np.random.default_rng(1)
    y, speed, seen = math.log(start / 120), 0.0, np.empty(total_steps)
    for step in range(total_steps):
        dims = seen[step] = 120 * math.exp(y)
        measured = dims * math.exp(plant.error * random.normal())
        penalty = 1.3e-4 * measured**2 * math.exp(0.1 * random.normal())
        ranking = (0.3 + 0.25 * math.exp(-step / 12)) * math.exp(0.25 * random.normal())
        now = float(weight.weight(step, total_steps))
        weight.measure = lambda _, active=measured: (torch.tensor(16 * active).float(), torch.tensor(16.0))
        fields = {"penalty": torch.tensor(penalty).float(), "ranking": torch.tensor(ranking).float()}
        weight.observe(a_step(torch.zeros(16, 1), step, total_steps, **fields))
        left = 1 - step / total_steps
        excess = math.log(max(now, 1e-9)) + 2.1 * y - plant.level - plant.drift * (1 - left)
        wish = -left * plant.fastest * math.tanh(plant.rate * excess / plant.fastest)
        speed += (wish - speed) / 5 + plant.speed_noise * left * random.normal()
        y += speed + plant.dims_noise * left * random.normal()
    return seen


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(
    ("start", "target", "total_steps", "error"),
    [
        (200, 120, 150, 0.1),
        (200, 60, 150, 0.12),
        (200, 240, 150, 0.1),
        pytest.param(200, 120, 240, 0.1, marks=pytest.mark.slow),
        pytest.param(200, 120, 1000, 0.07, marks=pytest.mark.slow),
    ],
)
def test_dims_come_to_the_target_and_stay(plant, start, target, total_steps, error):
    """Whatever weight the penalty needs and however documents answer it."""
    seen = simulated(ActiveDimsTarget(target), start, total_steps, PLANTS[plant])
    late = np.log(seen[2 * total_steps // 3 :] / target)
    assert np.abs(late).mean() < error
    assert seen.min() > 0.6 * min(start, target)


@pytest.mark.parametrize("plant", ["64 pairs", "16 pairs", "fast"])
@pytest.mark.parametrize("start", [60, 10_000, 25_000])
def test_dims_come_from_far(plant, start):
    seen = simulated(ActiveDimsTarget(150), start, 400, PLANTS[plant])
    assert np.abs(np.log(seen[270:] / 150)).mean() < 0.1
    assert seen.min() > 0.6 * min(start, 150)


@pytest.mark.parametrize("plant", ["64 pairs", "16 pairs"])
@pytest.mark.parametrize("target", [60, 120, 240])
def test_dims_come_to_the_target_after_a_ramp(plant, target):
    """First they rise, as little holds them; from where they are by then, the path goes down."""
    seen = simulated(ActiveDimsTarget(target, path_ratio=0.5, ramp_ratio=0.2), 200, 150, PLANTS[plant])
    assert seen[:30].max() > 1.2 * 200
    assert np.abs(np.log(seen[100:] / target)).mean() < 0.12


def test_what_is_told_as_measured_was_measured():
    """However far away the target is, a mean of the steps' own figures, the later ones counting most."""
    weight = ActiveDimsTarget(20_000)
    for step, dims in enumerate((300, 200, 100, 0)):
        weight.observe(a_step((torch.arange(1000) < dims).float().repeat(16, 1), step))
    factors = np.exp(-np.arange(2, -1, -1) / 12)  # the last step has not been followed by another
    assert float(weight.figures["measured"]) == pytest.approx(np.average([300, 200, 100], weights=factors), rel=1e-5)


def test_the_controller_waits_while_the_weight_rises():
    """However the dims go meanwhile, the weight rises as a fixed one does; the path starts where they end."""
    weight, rising = ActiveDimsTarget(100, path_ratio=0.5, ramp_ratio=0.2), []
    for step in range(21):
        weight.observe(a_step((torch.arange(1000) < 200 + 10 * step).float().repeat(16, 1), step))
        rising.append(float(weight.weight(step, 100)))
    factors = [penalty_factor(step, 20) for step in range(21)]
    assert rising[1:] == pytest.approx([rising[20] * factor for factor in factors[1:]])
    assert (rising[0], rising[20] > 0) == (0, True)
    assert float(weight.integral) == pytest.approx(0, abs=1e-6)
    assert float(weight.path) == pytest.approx(390)  # of step 19, the last one that has been decided by
    weight.observe(a_step((torch.arange(1000) < 390).float().repeat(16, 1), 35))
    weight.observe(a_step((torch.arange(1000) < 390).float().repeat(16, 1), 36))
    assert float(weight.path) == pytest.approx(math.sqrt(390 * 100), rel=1e-3)  # half of the way, in logarithms


def test_the_weight_falls_at_once_where_vectors_die():
    weight = ActiveDimsTarget(100)
    for step in range(40):
        weight.observe(a_step((torch.arange(1000) < (200 if step < 30 else 5)).float().repeat(16, 1), step))
        if step == 29:
            before = float(weight.weight(step, 100))
    assert before > 0
    assert float(weight.weight(39, 100)) < 1e-3 * before


def test_the_weight_stays_while_the_penalty_is_nothing():
    """As where a mask spares all documents of many steps, and then one is not spared."""
    weight, documents = ActiveDimsTarget(100), (torch.arange(1000) < 100).float().repeat(16, 1)
    weights = []
    for step in range(80):
        weight.observe(a_step(documents, step, penalty=torch.tensor(0.0 if step < 5 or step > 20 else 2.0)))
        weights.append(float(weight.weight(step, 100)))
    assert weights[:6] == [0] * 6
    assert 0 < weights[10] < 1
    assert weights[79] == pytest.approx(weights[20], rel=0.5)


@pytest.mark.parametrize("name", ["ranking", "penalty"])
def test_a_step_that_is_not_finite_is_not_counted(name):
    documents = (torch.rand(6, 16, 200, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    weights = [ActiveDimsTarget(30) for _ in range(2)]
    for step, batch in enumerate(documents):
        lost = step in (0, 3)
        weights[0].observe(a_step(batch, step, **({name: torch.tensor(math.nan)} if lost else {})))
        if not lost:
            weights[1].observe(a_step(batch, step))
    first, second = (float(weight.weight(5, 100)) for weight in weights)
    assert math.isfinite(first)
    assert first == pytest.approx(second)
    assert first > 0


def test_a_ranking_loss_below_zero_rewards_no_dims():
    weight = ActiveDimsTarget(30)
    for step in range(6):
        weight.observe(replace(a_step(torch.ones(8, 200), step), ranking=torch.tensor(-0.5)))
        assert float(weight.weight(step, 100)) >= 0
    assert float(weight.weight(6, 100)) > 0


def test_accumulated_batches_count_as_one_large():
    documents = (torch.rand(5, 32, 200, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    weights = []
    for size in (32, 8):
        weight = ActiveDimsTarget(30)
        decided = []
        for step, batch in enumerate(documents):
            for part in batch.split(size):
                weight.observe(a_step(part, step))
                decided.append((step, float(weight.weight(step, 100))))
        assert len(set(decided)) == 5  # one weight a step
        weights.append([value for _, value in sorted(set(decided))])
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)
    assert weights[0][0] == 0 < weights[0][1]


def test_expected_flops_are_those_of_an_evaluation():
    """Also from small batches whose queries go with their documents, which share far more dims than others do."""
    random = np.random.default_rng(0)
    vocab, size, steps = 300, 4, 400
    queries = (random.random((size * steps, vocab)) < 0.02) * 2.0
    documents = (random.random((size * steps, vocab)) < random.random(vocab) * 0.2) * 0.7
    documents = np.where(random.random(documents.shape) < 0.7, np.maximum(documents, queries), documents)
    weight = FlopsTarget(1.0)
    weight.prepare(vocab)
    figures = []
    for step in range(steps):
        rows = slice(step * size, (step + 1) * size)
        shown = [torch.from_numpy(side[rows]).float() for side in (queries, documents)]
        table = torch.full((vocab,), 2.0)
        shared, counted = weight.measure(a_step(shown[1], step, queries=shown[0], idf_weights=table))
        figures.append((float(shared), float(counted)))
    assert figures[0][1] == 0  # there is no earlier query yet
    found = sum(shared for shared, _ in figures) / sum(counted for _, counted in figures)
    expected = expected_flops(*(SparsityStatistics.of(csr_array(side)) for side in (queries, documents)))
    within = float(np.mean(np.sum((queries > 0) & (documents > 0), axis=1)))
    assert within > 3 * expected
    assert found == pytest.approx(expected, rel=0.05)
    seen = float(weight.queries_seen)
    shares = (queries > 0).mean(0)
    np.testing.assert_allclose((weight.queries_with / seen).numpy(), shares, atol=0.01)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lambda_d": 1e-3, "target_flops": 0.5}, "model.lambda_d and model.target_flops are both given; give one"),
        ({"target_active_dims": 9, "target_flops": 0.5}, "model.target_active_dims and model.target_flops are both"),
        ({"lambda_d": FlopsTarget(1.0), "target_active_dims": 9}, "model.lambda_d and model.target_active_dims are"),
        ({"target_active_dims": 0}, "model.target_active_dims is 0; it must be at least 1."),
        ({"target_flops": 0.0}, "model.target_flops is 0.0; it must be at least 1e-06."),
        ({"target_active_dims": 9, "penalty": ["anti_zero"]}, "target_active_dims has no effect"),
        ({"target_active_dims": 9, "l0_threshold": 9}, "(model.l0_threshold) of 9 spares documents at the target of 9"),
        ({"lambda_d": ActiveDimsTarget(9), "l0_threshold": 40}, "(model.l0_threshold) of 40 spares documents"),
    ],
    ids=str,
)
def test_targets_that_cannot_be(settings, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        Objective(**settings)
    with pytest.raises(UserError, match=r"path_ratio is 2\.0; it must be from 0 to 1"):
        ActiveDimsTarget(9, path_ratio=2.0)
    with pytest.raises(UserError, match=r"ramp_ratio is 0\.5; it must be from 0 to 0\.25"):
        FlopsTarget(0.5, ramp_ratio=0.5)


def test_the_reference_has_a_fixed_lambda():
    assert Objective().settings["lambda_d"] == 3e-3
    named = Objective(lambda_d=ActiveDimsTarget(120))
    assert named.settings["lambda_d"]["init_args"] == {"active_dims": 120, "path_ratio": 0.25, "ramp_ratio": 0.0}
    flat = Objective(target_active_dims=120)
    assert (flat.settings["lambda_d"], flat.settings["target_active_dims"]) == (None, 120)
    assert flat.parts["lambda_d"].settings == named.parts["lambda_d"].settings
    assert [*flat.parts] == ["ranking_loss", "document_penalty", "lambda_d"]


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer, num_pairs=128)


@pytest.fixture
def base(make_masked_lm, tiny_tokenizer, tmp_path) -> str:
    return str(save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer))


class Log(Callback):
    """Keeps what is logged of each optimizer step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        values = trainer.callback_metrics
        self.rows.append({name: float(value) for name, value in values.items()})


def train(base: str, pairs: Path, steps: int, log: Log, ckpt_path: str | None = None, **settings: Any) -> SpladeModule:
    trainer = {name: settings.pop(name) for name in ("accumulate_grad_batches", "callbacks") if name in settings}
    trainer["callbacks"] = [log, *trainer.get("callbacks", [])]
    torch.manual_seed(1)
    rate = settings.pop("learning_rate", 3e-4)
    module = SpladeModule(base, learning_rate=rate, idf_learning_rate=1e-2, **settings)
    runs = make_trainer(pairs.parent, steps, enable_checkpointing=len(trainer["callbacks"]) > 1, **trainer)
    runs.fit(module, make_data(base, pairs), ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize(
    "settings",
    [{"target_active_dims": 22}, {"target_active_dims": 22, "penalty": "l1"}, {"target_flops": 0.7}],
    ids=str,
)
def test_a_small_model_is_steered(base, pairs, settings):
    """From about 33 of 180 dims, in 150 steps, near the target: random texts teach nothing that brings dims back."""
    log = Log()
    module = train(base, pairs, 150, log, learning_rate=1e-4, **settings)
    data = make_data(base, pairs)
    data.setup("fit")
    samples = data.sample_documents(128, 1), data.sample_queries(128, 1)
    documents, queries = ([ids.numpy() for ids in side] for side in samples)
    vectors = module.encoder.eval().encode_document_tokens(documents), module.encoder.encode_query_tokens(queries)
    corpus, asked = (SparsityStatistics.of(side) for side in vectors)
    found = expected_flops(asked, corpus) if "target_flops" in settings else corpus.active_dims
    wanted = settings.get("target_flops") or settings["target_active_dims"]
    assert 0.4 * wanted < found < 1.15 * wanted
    last = log.rows[-1]
    assert last["train/lambda_d_path"] == pytest.approx(wanted)
    assert last["train/lambda_d_measured"] == pytest.approx(found, rel=0.2)
    assert {f"train/{name}" for name in ("lambda_d", "lambda_d_integral")} <= last.keys()
    assert {name for name in last if name.startswith("train/")} <= module.logged_names


def test_a_resumed_run_goes_on_as_it_would_have(base, pairs, tmp_path):
    """With a table of document frequencies too, and under accumulation."""
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    settings = {"target_flops": 0.5, "penalty": "df_flops", "accumulate_grad_batches": 2, "callbacks": [keep]}
    whole, resumed = Log(), Log()
    expected = train(base, pairs, 8, whole, **settings)
    again = train(base, pairs, 8, resumed, str(tmp_path / "kept" / "step=5.ckpt"), **settings)
    assert [row["train/lambda_d"] for row in resumed.rows] == [row["train/lambda_d"] for row in whole.rows[10:]]
    weights, state = named_weights(expected), expected.objective.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in named_weights(again).items())
    assert all(torch.equal(value, state[name]) for name, value in again.objective.state_dict().items())
    tables = {"penalties.document.documents_with", "weights.document.queries_with", "weights.document.step"}
    assert tables <= state.keys()
    decided = [row["train/lambda_d"] for row in whole.rows]
    assert decided[::2] == decided[1::2]  # one weight a step


def test_the_end_tells_what_came_of_a_target(world, tmp_path):
    outcome = call(fit.main, "--config", world.config(tmp_path / "run", {"model.target_active_dims": 5}))
    assert outcome.code == 0, outcome.err
    dims = read_json(tmp_path / "run" / "metrics.json")["after"]["NanoBEIR_mean_corpus_active_dims"]
    measured = f"measured {dims:.4g} on the documents of NanoBEIR_mean ({dims / 5 - 1:+.0%})"
    assert f"warning: target 5 active dims, {measured}; docs/sparsity.md" in outcome.err
    assert outcome.last_line.startswith("model: ")
