"""What a corpus costs is estimated from a sample: the arithmetic by hand, and the script on a real model."""

import importlib
import re
import subprocess
import sys

import pytest
from command_runs import environment
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "estimate_scale.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("estimate_scale")


def test_the_arithmetic(script):
    measured = script.Measured(100, 0.01, 600, 1024, 2.0, 1e-4, 1e-9)
    machines = script.Machines(processes=4, hours=24, watts=250, price_per_hour=2, memory_gib=64)
    one = script.estimate(measured, machines, 1e9)
    assert one.encoding.hours == pytest.approx(1e9 * 0.01 / 4 / 3600)  # 694 hours
    assert one.encode_machines == 29
    assert one.encoding.kwh == pytest.approx(694.4 * 0.25, rel=1e-3)
    assert one.encoding.price == pytest.approx(1388.9, rel=1e-3)
    assert one.shards_gb == pytest.approx(600)
    assert one.index_gib == pytest.approx(1e9 / 2**20, rel=1e-6)  # 954
    assert one.serve_machines == 15
    assert one.query_ms == pytest.approx(1000 * (1e-4 + 1e9 / 15 * 2 * 1e-9))
    assert one.engine.startswith("a cluster")
    work = script.training(3.6e6, 500, machines)  # 2 hours
    assert work == pytest.approx((2.0, 0.5, 4.0))


def test_the_script_measures_a_model(encoder, world, tmp_path):
    encoder.save(tmp_path / "model")
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text(
        "\n".join(f'{{"_id": "{n}", "title": "", "text": "the song of the river {n} king"}}' for n in range(300))
    )
    (task / "queries.jsonl").write_text('{"_id": "q", "text": "song king"}\n')
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t3\t1\n")
    words = ["--model", tmp_path / "model", "--task", task, "--documents", 300, 1e9, "--watts", 100]
    words += ["--price-per-hour", 1, "--sample", 200, "--pairs", 7200, "--pairs-per-second", 2]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, env=environment(COLUMNS="200")
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "documents a second, one process",
        "1,000,000,000",
        "exact, in process",
        "a cluster",
        "7,200 pairs: 1.0 hours",
    ):
        assert word in done.stdout
    (nanoseconds,) = re.findall(r"nanoseconds a posting in exact search\W+([\d.]+)", done.stdout)
    assert 0 < float(nanoseconds) < 1000


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, "0") for option in ("--documents", "--sample", "--processes", "--hours", "--memory-gib", "--pairs")),
        *(("--watts", "-1"), ("--price-per-hour", "nan"), ("--pairs-per-second", "0"), ("--hours", "inf")),
    ],
)
def test_numbers_that_make_no_sense_are_told_before_the_measurement(script, capsys, option, value):
    words = ["--model", "m", "--task", "t", "--watts", "1", "--price-per-hour", "1", option, value]
    with pytest.raises(SystemExit):
        script.main(words)
    assert f"argument {option}: must be a" in capsys.readouterr().err
