"""The comparison with sentence-transformers' trainer: both sides train for real, and are cut to the same dims."""

import importlib
import json
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from command_runs import World, make_world
from conftest import REPOSITORY
from scipy.sparse import csr_array, random_array

from splade_lit import load_query_side
from splade_lit.evaluation.per_query import QueryFigures

pytest.importorskip("sentence_transformers")


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    return importlib.import_module("compare_with_peer")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.mark.parametrize("how", ["threshold", "cap"])
def test_vectors_are_cut_to_so_many_active_dims(script, how):
    cut_to = importlib.import_module("peer_measures").cut_to
    documents = csr_array(random_array((50, 300), density=0.2, rng=np.random.default_rng(0), format="csr"))
    cut = cut_to(documents, 20, how)
    assert 19 <= cut.nnz / 50 <= 20
    kept, dense = cut.toarray(), documents.toarray()
    assert (kept[kept > 0] == dense[kept > 0]).all()
    left_out = (dense > 0) & (kept == 0)
    if how == "threshold":
        assert cut.nnz == 1000
        assert dense[left_out].max() <= kept[kept > 0].min()
    else:
        assert (np.diff(cut.indptr) <= np.diff(cut.indptr).max()).all()
        for row in range(50):
            assert not left_out[row].any() or dense[row][left_out[row]].max() <= kept[row][kept[row] > 0].min()
    assert (cut_to(documents, 1000, how) != documents).nnz == 0


def compare(script: ModuleType, world: World, output: Path, *arguments: object) -> dict:
    config = world.config(output.parent / "experiment", {"model.lambda_d": 0.001})
    given = ["--config", config, "--tasks", world.tasks, "--output", output, *arguments]
    script.main([str(argument) for argument in given])
    return json.loads((output / "results.json").read_text())


def test_both_sides_train_and_are_compared(script, world, tmp_path, capsys):
    output = tmp_path / "against"
    results = compare(script, world, output, "--steps", 4, "--seeds", 1, "--active-dims", 20, "--bm25")
    runs = ["ours-seed1", "peer-lambda0.001-seed1"]
    assert list(results["runs"]) == runs
    assert {run["steps"] for run in results["runs"].values()} == {4}
    assert set(results["bm25"]) == set(results["differences"]) == {"NanoMSMARCO", "NanoNQ"}
    for task in ("NanoMSMARCO", "NanoNQ"):
        rows = {row["system"]: row for row in results["rows"] if row["task"] == task}
        assert list(rows) == ["start", *runs]
        assert {round(row["cut_dims"], 3) for row in rows.values()} == {20.0}
        assert all(row["dims"] > 20 for row in rows.values())
        difference = rows[runs[0]]["cut_ndcg"] - rows[runs[1]]["cut_ndcg"]
        assert results["differences"][task]["ours_minus_peer"] == pytest.approx(difference)
    tables = [load_query_side(output / run / "model").weights for run in ("start", *runs)]
    assert all((table != tables[0]).any() for table in tables[1:])  # from one start, both have moved
    assert "training ours-seed1" in capsys.readouterr().out
    # Again with another number of dims: nothing is trained or encoded again.
    again = compare(script, world, output, "--steps", 4, "--seeds", 1, "--active-dims", 10, "--cut", "cap")
    printed = capsys.readouterr().out
    assert "training" not in printed
    assert "encoding" not in printed
    assert max(row["cut_dims"] for row in again["rows"]) <= 10
    with pytest.raises(SystemExit, match="holds runs of other settings"):
        compare(script, world, output, "--steps", 5)


def test_the_peer_can_have_a_start_of_its_own(script, world, tmp_path):
    output = tmp_path / "against"
    given = ["--steps", 1, "--seeds", 1, "--ours", "model.idf=corpus"]
    compare(script, world, output, *given, "--peer-start", "model.idf=ones")
    start, peer_start, peer = (
        load_query_side(output / run / "model").weights for run in ("start", "peer-start", "peer-lambda0.001-seed1")
    )
    assert (peer_start == 1).all()
    assert np.abs(peer - 1).max() < 0.1  # one step from there
    assert np.abs(start - 1).max() > 0.5
    with pytest.raises(SystemExit, match="holds runs of other settings"):
        compare(script, world, output, *given)


@pytest.mark.slow
def test_sides_take_turns_and_lambdas_are_compared(script, world, tmp_path, capsys):
    arguments = ["--minutes", 0.2, "--seeds", 3, 4, "--probe-steps", 4, "--peer-lambdas", 0.001, 0.1]
    results = compare(script, world, tmp_path / "against", *arguments)
    printed = capsys.readouterr().out
    assert "lambda 0.1: mean ndcg@10" in printed
    best = results["peer_lambda"]
    assert best in (0.001, 0.1)
    assert printed.index("training ours-seed3\n") < printed.index("training ours-seed4\n")
    assert printed.index(f"training peer-lambda{best:g}-seed4\n") < printed.index("training ours-seed4\n")
    assert all(1 <= run["steps"] <= run["planned_steps"] for run in results["runs"].values())


def test_a_time_is_turned_into_steps(script, tmp_path):
    """A run whose steps take 10 ms, after half a second without one."""
    plan = script.Plan({}, [1], 0.05, None, 10, [0.001], None, {})

    def train(folder: Path, steps: int, stop: float | None, probe: bool) -> None:
        clock = peer_clock(folder, stop)
        time.sleep(0.5)
        for _ in range(steps):
            time.sleep(0.01)
            if not clock.step_done():
                break
        clock.write()

    peer_clock = importlib.import_module("peer_sides").Clock
    folder = script.Trainings(plan, tmp_path)._timed(tmp_path / "ours-seed1", train, plan.minutes)
    done = json.loads((folder / "done.json").read_text())
    probe = done["probe"]
    assert probe["steps"] == 10
    assert probe["setup_seconds"] >= 0.4
    assert done["planned_steps"] == int(0.98 * (3 - probe["setup_seconds"]) / probe["step_seconds"])
    assert done["steps"] <= done["planned_steps"]
    assert not (tmp_path / "ours-seed1-probe").exists()
    times = (folder / "done.json").stat().st_mtime_ns
    assert script.Trainings(plan, tmp_path)._timed(folder, train, plan.minutes) == folder
    assert (folder / "done.json").stat().st_mtime_ns == times  # not again


def test_figures_of_seeds_are_averaged_query_by_query(script):
    seeds = [QueryFigures("t", ["a", "b"], ["x", "y"], {"ndcg@10": values}) for values in ([0.0, 1.0], [0.5, 0.5])]
    assert importlib.import_module("peer_measures").mean_figures(seeds).metrics == {"ndcg@10": [0.25, 0.75]}


def test_a_side_that_fails_ends_with_its_log(script, world, tmp_path):
    with pytest.raises(SystemExit, match=r"start ended with code 2[\s\S]*no_such"):
        compare(script, world, tmp_path / "against", "--steps", 1, "--ours", "model.base_model=no_such/model/folder")


def test_evaluations_are_left_out_of_training(script):
    callbacks = [
        {"class_path": "splade_lit.training.callbacks.retrieval.RetrievalEvaluation", "init_args": {"tasks": ["nq"]}},
        {"class_path": "mine.Guard"},
    ]
    config = {"model": {"base_model": "b", "idf": "corpus", "lambda_d": 1}, "trainer": {"callbacks": callbacks}}
    ours = script.our_config(config, Path("out"), Path("out/ours-seed7"), 7, 30, 60.0)
    assert [one["class_path"] for one in ours["trainer"]["callbacks"]] == ["mine.Guard", "peer_sides.StepClock"]
    assert ours["model"] == {"base_model": "out/start/model", "lambda_d": 1}
    assert (ours["seed_everything"], ours["data"]["seed"], ours["trainer"]["max_steps"]) == (7, 7, 30)
    assert config["model"]["idf"] == "corpus"  # as it was


def test_the_peer_gets_accumulation_and_clipping(script, tmp_path):
    """What the experiment does not set is off for both sides; what the peer cannot be given is refused."""
    trainers = ({}, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5})
    for trainer, (accumulate, norm) in zip(trainers, ((1, 0.0), (4, 0.5)), strict=True):
        plan = script.Plan({"trainer": trainer, "data": {"batch_size": 16}}, [1], None, 1, 1, [0.1], None, {})
        settings = plan.peer_settings(tmp_path, tmp_path / "peer", 1, 0.1, max_steps=1)
        assert (settings.batch_size, settings.accumulate, settings.max_grad_norm) == (16, accumulate, norm)
    config = tmp_path / "several.yaml"
    for text in ("data: {positive_columns: [also]}", "trainer: {gradient_clip_val: 1, gradient_clip_algorithm: value}"):
        config.write_text(text)
        given = ["--config", str(config), "--tasks", "nq", "--output", str(tmp_path / "out"), "--steps", "1"]
        with pytest.raises(script.UserError, match=r"positive_columns|gradient_clip_algorithm"):
            script.main(given)
