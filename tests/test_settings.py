"""Settings of `fit`: all of jsonargparse's forms, class paths of before, and a `--help` that shows every one."""

from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import yaml
from command_runs import RETRIEVAL, SPARSITY, call
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI

from splade_lit import fit
from splade_lit.command_line.arguments import parse_settings
from splade_lit.core.errors import UserError
from splade_lit.core.renamed import RENAMED, current_names
from splade_lit.training import cli as training_cli
from splade_lit.training.help_text import LINKS, help_text

TIMER = "lightning.pytorch.callbacks.Timer"
TERMS = "splade_lit.training.callbacks.terms.TermTable"


def printed(*arguments: object) -> dict[str, Any]:
    """The settings that `--print_config` prints."""
    outcome = call(fit.main, *arguments, "--print_config")
    assert outcome.code == 0, outcome.err
    return yaml.safe_load(outcome.out)


def callbacks(*arguments: object) -> list[str]:
    return [callback["class_path"] for callback in printed(*arguments)["trainer"]["callbacks"]]


def write(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_file_appends_to_the_callbacks_of_an_earlier_one(tmp_path):
    first = write(tmp_path / "first.yaml", trainer={"callbacks": [{"class_path": SPARSITY}]})
    more = write(tmp_path / "more.yaml", trainer={"callbacks+": [{"class_path": TERMS}]}, model={"lambda_d": 0.5})
    assert callbacks("--config", first, "--config", more) == [SPARSITY, TERMS]
    assert callbacks("--config", more) == [TERMS]
    settings = printed("--config", first, "--config", more)
    assert settings["model"]["lambda_d"] == 0.5
    assert callbacks("--config", more, f"--config={first}") == [SPARSITY]


def test_the_command_line_appends_callbacks_and_sets_what_they_take(tmp_path):
    first = write(tmp_path / "first.yaml", trainer={"callbacks": [{"class_path": SPARSITY}]})
    arguments = [f"--trainer.callbacks+={TERMS}", "--trainer.callbacks.every_n_steps=7"]
    added = printed("--config", first, *arguments)["trainer"]["callbacks"]
    assert [callback["class_path"] for callback in added] == [SPARSITY, TERMS]
    assert added[1]["init_args"]["every_n_steps"] == 7


def test_a_mistake_in_what_is_added_names_its_file(tmp_path):
    first = write(tmp_path / "first.yaml", trainer={"callbacks": [{"class_path": SPARSITY}]})
    more = write(tmp_path / "more.yaml", trainer={"callbacks+": [{"class_path": TERMS, "init_args": {"evry": 1}}]})
    outcome = call(fit.main, "--config", first, "--config", more)
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert outcome.errors[0].startswith(f"error: {more}: trainer.callbacks: TermTable: there is no setting evry")


class Ramp:
    """Decides a weight.

    Args:
        top: where it ends.
    """

    def __init__(self, top: float) -> None:
        self.top = top


class Part:
    """Part of an objective.

    Args:
        weight: a number, or what decides it.
        name: of the part.
    """

    def __init__(self, weight: float | Ramp = 1.0, name: str | None = None) -> None:
        self.weight = weight


def ramp(**settings: Any) -> dict[str, Any]:
    return {"class_path": "Ramp", "init_args": settings}


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"init_args": {"weight": ramp(top="x")}}, "Part: weight: Ramp: top is x, but must be float."),
        ({"init_args": {"weight": ramp(topp=1)}}, "Part: weight: Ramp: there is no setting topp; did you mean top?"),
        ({"init_args": {"weight": ramp()}}, "Part: weight: Ramp: the following arguments are required: top."),
        ({"init_args": {"weight": "x"}}, "Part: weight is x, but must be float or Ramp."),
        ({"init_args": {"nam": "x"}}, "Part: there is no setting nam; did you mean name?"),
        ({"class_path": "Ramp"}, "Ramp does not correspond to a subclass of Part."),
    ],
    ids=str,
)
def test_mistakes_in_classes_within_classes(tmp_path, part, sentence):
    here = f"{__name__}."
    text = yaml.safe_dump({"penalty": {"class_path": "Part", **part}}).replace("class_path: ", f"class_path: {here}")
    (tmp_path / "run.yaml").write_text(text)
    for kind in (Part, Part | None, list[Part] | Part):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_argument("--penalty", type=kind)
        with pytest.raises(UserError) as raised:
            parse_settings(parser, ["--config", str(tmp_path / "run.yaml")], {})
        assert str(raised.value).startswith(f"{tmp_path}/run.yaml: penalty")
        assert sentence in str(raised.value)
        assert "\n" not in str(raised.value)


def test_class_paths_of_before_lead_to_those_of_today():
    for before, now in RENAMED.items():
        module, _, name = now.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name), now
        assert current_names(f"a: {before}\n", "x") == f"a: {now}\n"
        assert current_names(f"a: {before}s, b: my{before}\n", "x") == f"a: {before}s, b: my{before}\n"


BEFORE = """\
model: {lambda_d: 5e-4}
trainer:
  callbacks:
    - class_path: splade_lit.callbacks.retrieval.RetrievalEvaluation
      init_args: {tasks: [docstrings]}
    - splade_lit.callbacks.sparsity.SparsityMonitor
    - class_path: splade_lit.callbacks.model_card.ModelCard
      init_args: {license: mit}
  logger:
    class_path: splade_lit.callbacks.wandb_log.WandbLog
    init_args: {project: mine}
"""


def test_a_file_of_before_is_read_all_the_same(tmp_path, caplog):
    path = tmp_path / "before.yaml"
    path.write_text(BEFORE)
    settings = printed("--config", path)
    assert settings["model"]["lambda_d"] == 5e-4
    trainer = settings["trainer"]
    save = "splade_lit.training.callbacks.save_model.SaveModel"
    assert [callback["class_path"] for callback in trainer["callbacks"]] == [RETRIEVAL, SPARSITY, save]
    assert trainer["callbacks"][2]["init_args"]["license"] == "mit"
    assert trainer["logger"]["class_path"] == "splade_lit.training.callbacks.wandb_log.WandbLog"
    assert f"{path}: splade_lit.callbacks.model_card.ModelCard is now called {save}" in caplog.messages
    assert len(caplog.messages) == 4
    assert path.read_text() == BEFORE


def test_help_shows_every_setting(monkeypatch):
    class Parsed(Exception):
        pass

    def stop(self: LightningCLI, parser: ArgumentParser, arguments: list[str]) -> None:
        raise Parsed([action.dest for action in parser._actions])

    monkeypatch.setattr(training_cli.FitCLI, "parse_arguments", stop)
    with pytest.raises(Parsed) as raised:
        training_cli.run([])
    (known,) = raised.value.args
    text = help_text()
    missing = [name for name in known if f"--{name}" not in text and not name.endswith(".help")]
    assert set(missing) == set(LINKS)
    assert len(known) > 60
    for name in LINKS:
        assert f"--{name} " not in text
    outcome = call(fit.main, "--help")
    assert (outcome.code, outcome.out) == (0, text)
    assert "peak learning rate of the transformer" in " ".join(text.split())


def test_targets_and_several_penalties_with_weights_of_their_own(tmp_path):
    penalties = "splade_lit.losses.penalties"
    ramp = {"class_path": "splade_lit.losses.weights.Ramp", "init_args": {"value": 0.1}}
    listed = ["df_flops", {"class_path": f"{penalties}.Flops", "init_args": {"weight": ramp}}, "anti_zero"]
    path = write(tmp_path / "run.yaml", model={"target_active_dims": 60, "penalty": listed})
    model = printed("--config", path)["model"]
    assert (model["target_active_dims"], model["lambda_d"]) == (60, None)
    first, second, third = model["penalty"]
    assert (first, third) == ("df_flops", "anti_zero")
    assert second["init_args"]["weight"] == {"class_path": ramp["class_path"], "init_args": ANY}
    assert printed("--config", path, "--model.penalty", "l1")["model"]["penalty"] == "l1"
    target = "splade_lit.losses.targets.FlopsTarget"
    chosen = ("--model.target_active_dims", "null", "--model.lambda_d", target, "--model.lambda_d.flops", "0.5")
    model = printed("--config", path, *chosen)["model"]
    defaults = {"path_ratio": 0.25, "ramp_ratio": 0.0}
    assert model["lambda_d"] == {"class_path": target, "init_args": {"flops": 0.5, **defaults}}
