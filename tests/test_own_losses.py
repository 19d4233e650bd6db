"""Losses of a user's own file: named in a YAML file, trained, logged, on the card, resumed; and mistakes in them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from cards import section
from command_runs import Outcome, command, load_checkpoint, rows, weights
from huggingface_hub import ModelCard

MY_LOSSES = '''
"""Losses of my own."""

import torch

from splade_lit.losses.citation import Citation
from splade_lit.losses.penalties import Penalty
from splade_lit.losses.ranking import RankingLoss
from splade_lit.losses.weights import Weight


class Margin(RankingLoss):
    """Answers score higher than every other document by a margin that is learned.

    Args:
        margin: to start from.
        weight: factor of this loss in the sum.
    """

    citations = (Citation("Margin Loss", "@misc{me2026margin,\\n    title = {Margins},\\n}"),)

    def __init__(self, margin: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.margin = torch.nn.Parameter(torch.tensor(margin))

    def forward(self, step):
        gaps = step.scores[step.answers[:, 0]] - step.answer_scores[:, None] + self.margin
        return gaps.relu().masked_fill(step.answer_mask[step.answers[:, 0]], 0).mean() + self.margin.square()


class Hoyer(Penalty):
    """Squared l1 norm over squared l2 norm, and how many vectors it has seen.

    Args:
        power: of the ratio.
    """

    tag = "HoyerLoss"

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.power = power

    def prepare(self, vocab_size):
        self.register_buffer("frequencies", torch.zeros(vocab_size))

    def forward(self, vectors, step):
        if self.training:
            self.frequencies += (vectors.detach() > 0).sum(0)
        return ((vectors.sum(1) ** 2 / (vectors**2).sum(1).clamp(min=1e-6)) ** self.power).mean()


class Target(Weight):
    """A weight that grows while documents have more active dims than wanted.

    Args:
        active_dims: wanted.
    """

    def __init__(self, active_dims: float) -> None:
        super().__init__()
        self.active_dims = active_dims
        self.register_buffer("value", torch.tensor(1e-3))

    def observe(self, step):
        self.value *= torch.where((step.documents > 0).sum() / len(step.documents) > self.active_dims, 2.0, 0.5)

    def weight(self, step, total_steps):
        return self.value.clone()
'''
RANKING = [{"class_path": "my_losses.Margin", "init_args": {"margin": 0.5}}, "in_batch"]
PENALTY = {"class_path": "my_losses.Hoyer", "init_args": {"power": 2}}
CHANGES = {
    "model.ranking": RANKING,
    "model.penalty": PENALTY,
    "model.lambda_d": {"class_path": "my_losses.Target", "init_args": {"active_dims": 20}},
    "trainer.callbacks": None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder with a file of losses."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_losses.py").write_text(MY_LOSSES)
    return folder


@pytest.fixture(scope="module")
def finished(world, folder) -> tuple[Path, Outcome]:
    run = folder / "runs" / "mine"
    return run, command("splade_lit.fit", "--config", world.config(run, CHANGES), cwd=folder)


def test_losses_of_ones_own_are_trained_and_logged(finished):
    run, outcome = finished
    assert outcome.code == 0, outcome.err
    table = rows(run)
    assert len(table) == 6
    for row in table:
        values = {name.removeprefix("train/"): float(value) for name, value in row.items() if value}
        expected = values["margin"] + values["ranking_loss"] + values["lambda_d"] * values["document_hoyer"]
        assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert float(table[0]["train/lambda_d"]) == pytest.approx(2e-3)  # more dims than wanted
    assert {"val/margin", "val/ranking_loss", "train/learning_rate_loss"} <= table[0].keys()
    checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")  # with weights_only
    state = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("objective.")}
    assert state.keys() == {
        "objective.penalty_scale",
        *("objective.ranking.0.margin", "objective.penalties.document.frequencies", "objective.weights.document.value"),
    }
    assert state["objective.ranking.0.margin"] != 0.5
    assert checkpoint["hyper_parameters"]["penalty"] == PENALTY
    assert checkpoint["hyper_parameters"]["ranking"][0]["init_args"] == {"margin": 0.5, "weight": 1.0}


def test_losses_of_ones_own_are_on_the_card(finished):
    text = (finished[0] / "model" / "README.md").read_text()
    assert {"loss:Margin", "loss:SparseMultipleNegativesRankingLoss", "loss:HoyerLoss"} < set(ModelCard(text).data.tags)
    assert "@misc{me2026margin," in section(text, "#### Margin Loss")
    shown = section(text, "### Training Dataset")
    assert "`margin` (`Margin`), `ranking_loss` (`SparseMultipleNegativesRankingLoss`), `document_hoyer`" in shown
    settings = json.loads(shown.partition("```json\n")[2].partition("```")[0])
    assert settings["ranking"][0] == {"class_path": "my_losses.Margin", "init_args": {"margin": 0.5, "weight": 1.0}}
    assert settings["penalty"] == PENALTY
    assert settings["lambda_d"]["init_args"] == {"active_dims": 20.0}
    assert "| Training Loss | Margin | Ranking Loss | Document Hoyer | lambda_d |" in section(text, "### Training Logs")
    assert '{"class_path": "my_losses.Hoyer"' in section(text, "#### Non-Default Hyperparameters")


def test_a_resumed_run_goes_on_with_their_state(finished, world, folder):
    """From the middle of the run; the config.yaml of the run is all that it takes."""
    run, _ = finished
    keep = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    checkpoints = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}]
    kept = folder / "runs" / "kept"
    config = world.config(kept, CHANGES | {"trainer.callbacks": checkpoints})
    assert command("splade_lit.fit", "--config", config, cwd=folder).code == 0
    again = folder / "runs" / "again"
    resumed = command(
        *("splade_lit.fit", "--config", run / "config.yaml", "--trainer.default_root_dir", again),
        *("--ckpt_path", kept / "checkpoints" / "step=3.ckpt"),
        cwd=folder,
    )
    assert resumed.code == 0, resumed.err
    ours, expected = (load_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (again, run))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert weights(again).keys() == weights(run).keys()


def test_the_command_line_names_them_too(world, folder):
    outcome = command(
        *("splade_lit.fit", "--config", world.config(folder / "runs" / "printed")),
        *("--model.penalty.class_path", "my_losses.Hoyer", "--model.penalty.power", "3"),
        *("--model.lambda_d", "my_losses.Target", "--model.lambda_d.active_dims", "9", "--print_config"),
        cwd=folder,
    )
    assert outcome.code == 0, outcome.err
    model = yaml.safe_load(outcome.out)["model"]
    assert model["penalty"] == {"class_path": "my_losses.Hoyer", "init_args": {"power": 3}}
    assert model["lambda_d"] == {"class_path": "my_losses.Target", "init_args": {"active_dims": 9.0}}
    assert model["ranking"] == ["in_batch"]
