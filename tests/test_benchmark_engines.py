"""The script that measures engines side by side: corpora drawn like a real one, and a table of a small task."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from command_runs import call, environment
from conftest import REPOSITORY
from scipy.sparse import csc_array, random_array

from splade_lit import encode

SCRIPT = REPOSITORY / "scripts" / "benchmark_engines.py"
TEXTS = ["the song of the musical", "river and water", "heart disease", "a cell protein", "king and queen", "song king"]


def test_drawn_documents_have_the_dims_and_the_weights_of_real_ones(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    draw = importlib.import_module("benchmark_engines").draw
    rng = np.random.default_rng(1)
    seen = random_array((400, 200), density=0.2, rng=rng)
    shares = np.concatenate([np.full(150, 0.01), np.full(49, 0.5), [0]])
    seen = csc_array(seen.multiply(rng.random((400, 200)) < shares))
    seen.eliminate_zeros()
    made = draw(seen, 20_000, seed=3)
    frequencies = np.diff(seen.indptr) / 400
    drawn = np.diff(csc_array(made).indptr) / 20_000
    np.testing.assert_allclose(drawn, frequencies, atol=4 * np.sqrt(0.25 / 20_000))
    assert drawn[199] == 0
    for dim in (0, 160):
        weights = set(seen[:, [dim]].tocsr().data.astype(np.float32).tolist())
        assert set(made[:, [dim]].data.tolist()) <= weights
    assert (made != draw(seen, 20_000, seed=3)).nnz == 0
    assert (made != draw(seen, 20_000, seed=4)).nnz > 0


@pytest.mark.slow
def test_a_table_of_a_small_task(encoder, tmp_path):
    encoder.save(tmp_path / "model")
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(TEXTS)]
    (task / "corpus.jsonl").write_text("\n".join(lines))
    (task / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": " ".join(TEXTS)}))
    judged = "".join(f"q1\td{number}\t1\n" for number in range(4))  # a random model finds some of them
    (task / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    vectors = tmp_path / "vectors"
    made = call(encode.main, "--model", tmp_path / "model", "--corpus", task, "--output", vectors)
    assert made.code == 0, made.err
    words = [sys.executable, SCRIPT, "--model", tmp_path / "model", "--tasks", task, "--vectors", vectors]
    command = [*map(str, words), "--engines", "exact", "qdrant", "splade-index"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:4]] == ["exact", "qdrant"]
    assert rows[2][-1] == rows[3][-1]
    assert float(rows[2][-1]) > 0


@pytest.mark.slow
def test_a_corpus_of_another_size(encoder, tmp_path):
    """Drawn like the vectors of a task, for which nothing is judged."""
    test_a_table_of_a_small_task(encoder, tmp_path)
    words = [sys.executable, SCRIPT, "--model", tmp_path / "model", "--tasks", tmp_path / "task", "--vectors"]
    command = [*map(str, words), str(tmp_path / "vectors"), "--engines", "exact", "--synthetic", "300", "12000"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| exact")]
    assert [row[-1].strip() for row in rows] == ["", ""], done.stderr
