"""The comparison with sentence-transformers' trainer: both sides train for real, and are cut to the same dims."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from command_runs import World, make_world
from conftest import REPOSITORY
from scipy.sparse import csr_array, random_array

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
    documents = csr_array(random_array((50, 300), density=0.2, rng=np.random.default_rng(0), format="csr"))
    cut = script.cut_to(documents, 20, how)
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
    assert (script.cut_to(documents, 1000, how) != documents).nnz == 0


def compare(script: ModuleType, world: World, output: Path, *arguments: object) -> dict:
    config = world.config(output.parent / "experiment", {"model.lambda_d": 0.001})
    given = ["--config", config, "--tasks", world.tasks, "--output", output, *arguments]
    script.main([str(argument) for argument in given])
    return json.loads((output / "results.json").read_text())


def test_both_sides_train_and_are_compared(script, world, tmp_path, capsys):
    output = tmp_path / "against"
    results = compare(script, world, output, "--steps", 4, "--seeds", 1, 2, "--active-dims", 20, "--bm25")
    assert set(results["runs"]) == {"ours-seed1", "ours-seed2", "peer-lambda0.001-seed1", "peer-lambda0.001-seed2"}
    assert {run["steps"] for run in results["runs"].values()} == {4}
    assert set(results["bm25"]) == set(results["differences"]) == {"NanoMSMARCO", "NanoNQ"}
    for task in ("NanoMSMARCO", "NanoNQ"):
        rows = {row["system"]: row for row in results["rows"] if row["task"] == task}
        assert set(rows) == {"start", *results["runs"]}
        assert {round(row["cut_dims"], 3) for row in rows.values()} == {20.0}
        assert all(row["dims"] > 20 for row in rows.values())
        ours, peer = (np.mean([row["cut_ndcg"] for name, row in rows.items() if name.startswith(side)])
                      for side in ("ours", "peer"))  # fmt: skip
        assert results["differences"][task]["ours_minus_peer"] == pytest.approx(ours - peer)
    # Both start from one model, and move from it.
    from splade_lit import load_query_side

    tables = [load_query_side(output / run / "model").weights for run in ("start", *results["runs"])]
    assert all((table != tables[0]).any() for table in tables[1:])
    trained = capsys.readouterr().out
    assert trained.index("training ours-seed1") < trained.index("training peer-lambda0.001-seed1")
    assert trained.index("training peer-lambda0.001-seed2") < trained.index("training ours-seed2")
    # Again with another number of dims: nothing is trained or encoded again.
    again = compare(script, world, output, "--steps", 4, "--seeds", 1, 2, "--active-dims", 10, "--cut", "cap")
    assert "training" not in capsys.readouterr().out
    assert max(row["cut_dims"] for row in again["rows"]) <= 10
    with pytest.raises(SystemExit, match="holds runs of other settings"):
        compare(script, world, output, "--steps", 5)


def test_a_time_is_turned_into_steps_and_lambdas_are_compared(script, world, tmp_path, capsys):
    arguments = ["--minutes", 0.1, "--seeds", 3, "--probe-steps", 4, "--peer-lambdas", 0.001, 0.1]
    results = compare(script, world, tmp_path / "against", *arguments)
    printed = capsys.readouterr().out
    assert "lambda 0.1: mean ndcg@10" in printed
    assert results["peer_lambda"] in (0.001, 0.1)
    for run in results["runs"].values():
        assert 1 <= run["steps"] <= run["planned_steps"]
        assert run["seconds"] < 12
        assert run["planned_steps"] == pytest.approx(
            0.98 * (6 - run["probe"]["setup_seconds"]) / run["probe"]["step_seconds"], abs=1
        )


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
