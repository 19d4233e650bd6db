"""Energy and emissions: what a run writes and logs, how stages are told apart, interrupted and resumed runs."""

import csv
import json
import shutil
import socket
import threading
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from codecarbon.output_methods.emissions_data import EmissionsData
from command_runs import RETRIEVAL, World, call, command, interrupted, read_json
from huggingface_hub import ModelCard
from tiny_runs import make_data, make_trainer

from splade_lit import fit
from splade_lit.core.errors import UserError
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.runs.emissions import SUMS, footprint, grown, read_emissions, write_emissions
from splade_lit.training.callbacks import carbon
from splade_lit.training.callbacks.carbon import CarbonTracker
from splade_lit.training.callbacks.hooks import PhaseCallback, evaluating
from splade_lit.training.module import SpladeModule

CARBON = {"class_path": "splade_lit.training.callbacks.carbon.CarbonTracker", "init_args": {"country_iso_code": "FRA"}}
FAILS = {"class_path": "command_runs.FailsAfter", "init_args": {"steps": 4}}


class FailsAtStart(L.Callback):
    """Raises before the first step."""

    def on_fit_start(self, *args: Any) -> None:
        raise RuntimeError("no more room")


class FailsInEvaluation(L.Callback):
    """Raises in an evaluation before the first step."""

    def on_fit_start(self, trainer: L.Trainer, *args: Any) -> None:
        with evaluating(trainer):
            raise RuntimeError("no such word")


def config(world: World, run: Path, *callbacks: dict[str, Any]) -> Path:
    retrieval = {"class_path": RETRIEVAL, "init_args": {"tasks": [str(world.tasks)]}}
    return world.config(run, {"trainer.callbacks": [retrieval, CARBON, *callbacks]})


@pytest.fixture(scope="module")
def whole(world) -> Path:
    """A run without a stop; not to be written to."""
    run = world.folder / "runs" / "whole"
    outcome = call(fit.main, "--config", config(world, run))
    assert outcome.code == 0, outcome.err
    assert "codecarbon" not in (outcome.out + outcome.err).lower()
    return run


@pytest.fixture(scope="module")
def stopped(world) -> Path:
    """A run that failed after step 4; not to be written to."""
    run = world.folder / "runs" / "stopped"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        call(fit.main, "--config", config(world, run, FAILS))
    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def total(run: Path, name: str) -> float:
    return sum(float(row[name]) for row in rows(run / "emissions.csv"))


def logged(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(run / "metrics.csv") if row.get(name)]


def test_the_file_has_codecarbons_columns_and_a_row_a_stage(whole):
    used = rows(whole / "emissions.csv")
    assert [row["stage"] for row in used] == ["training", "evaluation"]
    assert set(used[0]) == {"stage", *(field.name for field in fields(EmissionsData))}
    assert {row["country_iso_code"] for row in used} == {"FRA"}
    assert {row["run_id"] for row in used} == {used[0]["run_id"]}
    for row in used:
        assert all(float(row[name]) > 0 for name in ("duration", "energy_consumed", "emissions", "ram_energy"))
        parts = sum(float(row[name]) for name in ("cpu_energy", "gpu_energy", "ram_energy"))
        assert float(row["energy_consumed"]) == pytest.approx(parts)
        assert float(row["emissions_rate"]) == pytest.approx(float(row["emissions"]) / float(row["duration"]))
    factors = {round(float(row["emissions"]) / float(row["energy_consumed"]), 6) for row in used}
    assert len(factors) == 1
    assert factors.pop() < 0.1  # kg a kWh: French electricity


def test_every_logged_step_has_figures_that_add_up(whole):
    for name, column, unit in (("energy_kwh", "energy_consumed", 1), ("emissions_g", "emissions", 1000)):
        steps, totals = logged(whole, f"carbon/{name}"), logged(whole, f"carbon/{name}_total")
        assert len(steps) == len(totals) == 6
        assert totals == sorted(totals)
        assert totals[-1] == pytest.approx(unit * total(whole, column))
        assert [sum(steps[: n + 1]) for n in range(6)] == pytest.approx(totals)
        for row in rows(whole / "emissions.csv"):
            assert logged(whole, f"carbon/{name}_{row['stage']}")[-1] == pytest.approx(unit * float(row[column]))


def test_a_run_that_fails_leaves_emissions_and_a_checkpoint(stopped):
    assert [row["stage"] for row in rows(stopped / "emissions.csv")] == ["training", "evaluation"]
    assert logged(stopped, "carbon/energy_kwh_total")[-1] == pytest.approx(total(stopped, "energy_consumed"))
    checkpoint = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    state = checkpoint["callbacks"]["CarbonTracker"]["rows"]
    assert sum(row["energy_consumed"] for row in state) == pytest.approx(total(stopped, "energy_consumed"))
    assert not (stopped / "model").exists()


def test_a_resumed_run_adds_up(stopped, tmp_path):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = rows(run / "emissions.csv")
    spent = total(run, "energy_consumed")
    arguments = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "--trainer.default_root_dir", run]
    callbacks = json.dumps([CARBON])
    outcome = call(fit.main, "--config", run / "config.yaml", *arguments, "--trainer.callbacks", callbacks)
    assert outcome.code == 0, outcome.err
    after = rows(run / "emissions.csv")
    assert after[: len(before)] == before
    assert len({row["run_id"] for row in after}) == 2
    assert total(run, "energy_consumed") > spent
    totals = logged(run, "carbon/energy_kwh_total")
    assert totals == sorted(totals)
    assert totals[-1] == pytest.approx(total(run, "energy_consumed"))
    assert sum(logged(run, "carbon/energy_kwh")) == pytest.approx(totals[-1])
    emissions = ModelCard.load(run / "model" / "README.md").data.co2_eq_emissions
    assert emissions["energy_consumed"] == pytest.approx(total(run, "energy_consumed"))
    seconds = read_json(run / "model" / "card.json")["training"]["seconds"]
    earlier = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["SaveModel"]["seconds"]
    assert all(seconds[stage] > earlier[stage] > 0 for stage in ("training", "evaluation"))


def test_a_run_resumed_elsewhere_counts_what_it_goes_on_from(stopped, tmp_path):
    arguments = ["--ckpt_path", stopped / "checkpoints" / "last.ckpt", "--trainer.default_root_dir", tmp_path / "run"]
    outcome = call(
        fit.main, "--config", stopped / "config.yaml", *arguments, "--trainer.callbacks", json.dumps([CARBON])
    )
    assert outcome.code == 0, outcome.err
    before, after = rows(stopped / "emissions.csv"), rows(tmp_path / "run" / "emissions.csv")
    assert [{name: float(row[name]) for name in SUMS} for row in after[: len(before)]] == [
        {name: pytest.approx(float(row[name])) for name in SUMS} for row in before
    ]
    assert total(tmp_path / "run", "energy_consumed") > total(stopped, "energy_consumed")


def test_a_start_that_fails_before_its_first_step_loses_nothing(stopped, tmp_path):
    """Not even what was used after the last checkpoint."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    later = [row | {"duration": 2 * row["duration"]} for row in read_emissions(run / "emissions.csv")]
    write_emissions(run / "emissions.csv", later)
    log, before = (run / "metrics.csv").read_text(), rows(run / "emissions.csv")
    arguments = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "--trainer.default_root_dir", run]
    callbacks = json.dumps([CARBON, {"class_path": "test_carbon.FailsAtStart"}])
    with pytest.raises(RuntimeError, match="no more room"):
        call(fit.main, "--config", run / "config.yaml", *arguments, "--trainer.callbacks", callbacks)
    assert (run / "metrics.csv").read_text() == log
    assert rows(run / "emissions.csv")[: len(before)] == before


def test_ctrl_c_leaves_emissions_and_a_checkpoint_to_add_to(world, tmp_path):
    run = tmp_path / "run"
    retrieval = {"class_path": RETRIEVAL, "init_args": {"tasks": [str(world.tasks)]}}
    changes = {"trainer.callbacks": [retrieval, CARBON], "trainer.max_steps": 100_000, "trainer.val_check_interval": 4}
    log = run / "metrics.csv"
    outcome = interrupted(world.config(run, changes), tmp_path, lambda: log.exists() and len(rows(log)) > 5)
    assert outcome.code == 130, outcome.err
    assert "codecarbon" not in outcome.err.lower()
    before = rows(run / "emissions.csv")
    assert [row["stage"] for row in before] == ["training", "evaluation"]
    spent = total(run, "energy_consumed")
    assert logged(run, "carbon/energy_kwh_total")[-1] == pytest.approx(spent)
    last = run / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert step > 5
    outcome = call(fit.main, "--config", run / "config.yaml", "--ckpt_path", last, "--trainer.max_steps", step + 2)
    assert outcome.code == 0, outcome.err
    assert rows(run / "emissions.csv")[: len(before)] == before
    assert logged(run, "carbon/energy_kwh_total")[-1] == pytest.approx(total(run, "energy_consumed"))
    assert total(run, "energy_consumed") > spent
    assert sum(logged(run, "carbon/energy_kwh")) == pytest.approx(total(run, "energy_consumed"))
    assert AsymmetricSparseEncoder.load(run / "model").encode_query("the river").to_dense().any()


def test_a_run_that_fails_in_its_first_evaluation_leaves_emissions(world, tmp_path):
    """The callback that evaluates stands before the tracker."""
    run = tmp_path / "run"
    callbacks = [{"class_path": "test_carbon.FailsInEvaluation"}, CARBON]
    with pytest.raises(RuntimeError, match="no such word"):
        call(fit.main, "--config", world.config(run, {"trainer.callbacks": callbacks}))
    assert [row["stage"] for row in rows(run / "emissions.csv")] == ["training", "evaluation"]
    assert total(run, "energy_consumed") > 0


class Phases(PhaseCallback):
    """Writes down the phases that end, and at which step."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int]] = []

    def on_phase_end(self, trainer: L.Trainer) -> None:
        self.ended.append((self.phase, trainer.global_step))


class Evaluates(L.Callback):
    """Evaluates something of its own, inside validation and outside of it."""

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        with evaluating(trainer):
            pass

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        with evaluating(trainer):
            pass


def test_validation_and_what_callbacks_say_is_evaluation(world, tmp_path):
    phases = Phases()
    module = SpladeModule(str(world.base), max_query_tokens=16, max_document_tokens=32)
    data = make_data(world.base, world.pairs, num_eval_pairs=8)
    trainer = make_trainer(tmp_path, 4, callbacks=[Evaluates(), phases], val_check_interval=2)
    trainer.fit(module, data)
    ended = list(dict.fromkeys(phases.ended))
    assert ended == [(phase, step) for step in (2, 4) for phase in ("training", "evaluation")]
    assert phases.phase == "training"


def test_a_phase_that_raises_goes_on():
    phases = Phases()
    trainer = SimpleNamespace(callbacks=[phases], global_step=0)
    with pytest.raises(ValueError, match="stopped"), evaluating(trainer):
        raise ValueError("stopped")
    assert phases.phase == "evaluation"


def test_other_processes_measure_nothing(tmp_path):
    tracker = CarbonTracker()
    trainer: Any = SimpleNamespace(is_global_zero=False, default_root_dir=str(tmp_path), callbacks=[tracker])
    module = L.LightningModule()
    tracker.setup(trainer, module, "fit")
    tracker.on_fit_start(trainer, module)
    tracker.on_train_batch_end(trainer, module)
    tracker.on_fit_end(trainer, module)
    assert tracker.rows == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_count_the_machine_once(world, tmp_path):
    run = tmp_path / "run"
    arguments = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.batch_size", 4]
    outcome = command("splade_lit.fit", "--config", config(world, run), *arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    used = rows(run / "emissions.csv")
    assert [row["stage"] for row in used] == ["training", "evaluation"]
    assert len({row["run_id"] for row in used}) == 1
    assert (run / "model" / "README.md").is_file()


def test_bad_settings_are_told():
    with pytest.raises(UserError, match="no country 'XYZ' is known"):
        CarbonTracker(country_iso_code="XYZ")
    with pytest.raises(UserError, match="measure_power_secs is 0"):
        CarbonTracker(measure_power_secs=0)


def test_the_environment_names_the_country(monkeypatch):
    monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", "SWE")
    assert CarbonTracker().country_iso_code == "SWE"
    assert CarbonTracker("FRA").country_iso_code == "FRA"


def test_without_network_and_country_the_worlds_average_counts(world, tmp_path, monkeypatch):
    monkeypatch.delenv("CODECARBON_COUNTRY_ISO_CODE")
    tracker = CarbonTracker()
    module = SpladeModule(str(world.base), max_query_tokens=16, max_document_tokens=32)
    make_trainer(tmp_path, 2, callbacks=[tracker]).fit(module, make_data(world.base, world.pairs))
    used = footprint(read_emissions(tmp_path / "emissions.csv"))
    assert used is not None
    assert used.country is None
    assert used.total.emissions_kg / used.total.energy_kwh == pytest.approx(0.475)  # kg a kWh


def test_a_network_that_is_not_there_is_noticed(monkeypatch):
    assert carbon._is_offline()  # by the environment of the tests
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))

    def refuse(*args: Any, **settings: Any) -> socket.socket:
        return connect(closed.getsockname(), timeout=1)

    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert carbon._is_offline()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(
            socket, "create_connection", lambda *args, **settings: connect(server.getsockname(), timeout=1)
        )
        assert not carbon._is_offline()


def test_a_network_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(carbon, "_PATIENCE", 0.05)
    answers = threading.Event()

    def hang(*args: Any, **settings: Any) -> None:
        answers.wait()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    assert carbon._is_offline()
    answers.set()


def test_rows_survive_the_file(tmp_path):
    now = {"run_id": "a", "on_cloud": "N", "country_name": None, "cpu_model": "x", "ram_total_size": 4.0}
    row = grown(None, "training", now | dict.fromkeys(SUMS, 0.1))
    row = grown(row, "training", now | dict.fromkeys(SUMS, 0.25))
    write_emissions(tmp_path / "emissions.csv", [row])
    (read,) = read_emissions(tmp_path / "emissions.csv")
    assert {name: read[name] for name in SUMS} == {name: row[name] for name in SUMS} == dict.fromkeys(SUMS, 0.35)
    assert footprint([read]) == footprint([row])
    assert read_emissions(tmp_path / "none.csv") == []
    assert footprint([]) is None


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "emissions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is not a file of emissions"):
        read_emissions(tmp_path / "emissions.csv")
