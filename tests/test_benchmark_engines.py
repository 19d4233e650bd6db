"""The script that measures engines side by side: corpora drawn like a real one, and a table of a small task."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec

import numpy as np
import pytest
from command_runs import call, environment
from conftest import REPOSITORY
from scipy.sparse import csc_array, csr_array, random_array

from splade_lit import encode
from splade_lit.data.tasks import RetrievalTask

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


@pytest.mark.parametrize("side", ["exact", "bmp", pytest.param("splade-index", marks=pytest.mark.slow)])
def test_a_hit_more_is_asked_for_where_a_querys_own_document_is_left_out(encoder, tmp_path, monkeypatch, side):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = importlib.import_module("benchmark_engines")
    pytest.importorskip(script._MODULES[side])
    encoder.save(tmp_path / "model")
    made = random_array((600, encoder.vocab_size), density=0.3, rng=np.random.default_rng(2), dtype=np.float32)
    parts = [([f"d{number}" for number in range(600)], csr_array(made), None)]
    settings = Namespace(side=side, model=str(tmp_path / "model"))
    for leaves_out in (False, True):
        task = RetrievalTask("task", {"d1": "song"}, {"d1": TEXTS[0]}, {"d1": {}}, leave_out_queries=leaves_out)
        (tmp_path / f"{leaves_out}").mkdir()
        ranks, _ = script._open(settings, tmp_path / f"{leaves_out}", lambda: parts, encoder.vocab_size, task)
        assert len(ranks(TEXTS[0])) == 10 + leaves_out


@pytest.fixture
def small_task(encoder, tmp_path) -> list[str]:
    """The command for a task of six documents."""
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
    return [*map(str, words)]


@pytest.mark.slow
def test_a_table_of_a_small_task(small_task):
    """Each engine whose package is there has its row: one that fails would be left out with exit code 0."""
    modules = {"exact": "numpy", "seismic": "seismic", "qdrant": "qdrant_edge", "qdrant in memory": "qdrant_client"}
    modules |= {"bmp": "bmp", "sentence-transformers, topk": "sentence_transformers", "splade-index": "splade_index"}
    modules |= {"sentence-transformers, semantic_search_seismic": "sentence_transformers"}
    modules |= {"sentence-transformers, semantic_search_qdrant in memory": "qdrant_client"}
    done = subprocess.run(small_task, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")][2:]
    figures = {row[0].strip(): float(row[-1]) for row in lines}
    assert set(figures) == {engine for engine, module in modules.items() if find_spec(module)}, done.stderr
    assert figures["exact"] > 0
    for engine in figures.keys() - {"exact", "bmp"}:  # BMP misses hits among so few documents
        assert figures[engine] == figures["exact"], engine


@pytest.mark.slow
def test_a_corpus_of_another_size(small_task):
    """Drawn like the vectors of a task, for which nothing is judged."""
    command = [*small_task, "--engines", "exact", "--synthetic", "300", "12000"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| exact")]
    assert [row[-1].strip() for row in rows] == ["", ""], done.stderr
