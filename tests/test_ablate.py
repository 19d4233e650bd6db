"""Variants of an experiment: trained for real, cut to the same dims, compared, and not trained again."""

import importlib
import re
from inspect import signature
from types import ModuleType

import pytest
import yaml
from command_runs import World, call, make_world
from conftest import REPOSITORY

from splade_lit import fit
from splade_lit.core.errors import UserError
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.task_evaluation import evaluate_task
from splade_lit.training.module import SpladeModule


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    return importlib.import_module("ablate")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


def test_variants_are_trained_once_and_compared_at_the_same_dims(script, world, tmp_path, capsys):
    config = world.config(tmp_path / "experiment", {"trainer.max_steps": 3, "trainer.callbacks": []})
    variants = tmp_path / "variants.yaml"
    variants.write_text(yaml.safe_dump({"as_it_is": {}, "rate_0.01": {"model.learning_rate": 0.01}}, sort_keys=False))
    given = ["--config", config, "--variants", variants, "--tasks", world.tasks, "--output", tmp_path / "runs"]
    given += ["--active-dims", 15]

    def run(*more: object) -> str:
        script.main([str(one) for one in [*given, *more]])
        return capsys.readouterr().out

    out = run()
    assert out.count("training ") == 2
    for task in load_tasks([str(world.tasks)]):
        for variant in ("as_it_is", "rate_0.01"):
            encoder = AsymmetricSparseEncoder.load(tmp_path / "runs" / variant / "model")
            whole = evaluate_task(encoder, task).metrics
            expected = rf"\| {variant} \| {whole['corpus_active_dims']:.0f} \| {whole['ndcg@10']:.4f} \| [\d.]+ \| "
            found = re.search(expected + r"([+-][\d.]+)? ?\| ", out.split(f"| {task.name} | active dims")[1])
            assert found, out
            assert (found[1] is None) == (variant == "as_it_is")
    learning_rate = yaml.safe_load((tmp_path / "runs" / "rate_0.01" / "config.yaml").read_text())["model"][
        "learning_rate"
    ]
    assert learning_rate == 0.01
    assert (tmp_path / "runs" / "rate_0.01.variant.yaml").is_file()
    again = run()
    assert "training" not in again
    assert re.findall(r"^\|.*", again, re.MULTILINE) == re.findall(r"^\|.*", out, re.MULTILINE)
    assert "rate_0.01" not in run("--only", "as_it_is")
    gains = {}
    for baseline, other in (("as_it_is", "rate_0.01"), ("rate_0.01", "as_it_is")):
        lines = re.findall(
            rf"^\| {other} \|.* ([+-][\d.]+) \|", run("--baseline", baseline, "--only", other), re.MULTILINE
        )
        gains[baseline] = [float(gain) for gain in lines]
    assert len(gains["as_it_is"]) == 2
    assert gains["as_it_is"] == [-gain for gain in gains["rate_0.01"]]
    variants.write_text(yaml.safe_dump({"as_it_is": {}, "rate_0.01": {"model.learning_rate": 0.02}}, sort_keys=False))
    with pytest.raises(UserError, match="was trained with other settings"):
        run()
    with pytest.raises(UserError, match=r"has no slow; it has as_it_is, rate_0\.01\."):
        run("--only", "slow")


def test_variants_that_come_to_the_same_are_refused(script, world, tmp_path):
    config, variants = world.config(tmp_path / "experiment", {"model.learning_rate": 0.01}), tmp_path / "variants.yaml"
    variants.write_text("base: {model.idf: ones}\nrate: {model.learning_rate: 0.01}\n")
    with pytest.raises(UserError, match="rate has the settings of base; change one, or take it away"):
        script._variants(config, variants, None)


@pytest.mark.parametrize("file", ["ablations.yaml", "ablations_of_the_recipe.yaml"])
def test_the_variants_that_come_with_it_are_settings_that_there_are(script, tmp_path, file):
    files = [REPOSITORY / "experiments" / "nq_minilm_cpu.yaml", REPOSITORY / "scripts" / file]
    written = yaml.safe_load(files[1].read_text())
    names = {"seed_everything", "trainer.precision", "trainer.max_steps", "trainer.val_check_interval"}
    names |= {"trainer.callbacks", *(f"model.{name}" for name in signature(SpladeModule).parameters)}
    names |= {f"data.{name}" for name in signature(PairsDataModule).parameters}
    assert {name for changes in written.values() for name in changes} <= names
    variants = script._variants(*files, None)
    assert list(variants) == list(written)
    parts = [name for name, changes in written.items() if any(isinstance(value, list) for value in changes.values())]
    for name in parts:
        settings = variants[name]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        parsed = call(fit.main, "--config", path, "--print_config")
        assert parsed.code == 0, (name, parsed.err)
