"""Models travel to real releases of sentence-transformers and back, each in a virtual environment of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from splade_lit import AsymmetricSparseEncoder
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.results import evaluate_vectors

pytestmark = pytest.mark.slow

# What pip is asked for, after the torch that is installed here.
RELEASES = {
    "5.0.0": ["sentence-transformers==5.0.0", "transformers<5"],
    "newest": ["sentence-transformers"],
}
ENVIRONMENTS = REPOSITORY / ".cache" / "releases"
TEXTS = ["the song of the river", "", "who wrote the book of the year", "heart disease " * 40, "a b c d e f g h i"]
DOCUMENT = "document_0_MLMTransformer"


@dataclass(frozen=True)
class Release:
    """A release that is installed.

    Attributes:
        python: its Python.
        has_limit: whether models keep their `max_active_dims`. In 5.0.0 they do not, and under it queries are taken for
            documents; vectors are cut by its own function there.
    """

    python: Path
    has_limit: bool


def install(name: str) -> Path:
    """The Python of a virtual environment with a release; made the first time, which takes minutes."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        torch = f"torch=={version('torch').partition('+')[0]}"
        for packages in ([torch], RELEASES[name]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "ready").touch()
    return python


@pytest.fixture(scope="module", params=RELEASES)
def release(request) -> Release:
    """A release, installed."""
    return Release(install(request.param), has_limit=request.param != "5.0.0")


def run(release: Release, *arguments: object) -> None:
    """Run `release_side.py` there."""
    done = subprocess.run(
        [release.python, REPOSITORY / "tests" / "release_side.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(TEXTS))
    return path


def assert_same(encoder: AsymmetricSparseEncoder, path: Path) -> dict[str, Any]:
    """Vectors of both sides are those in the file; gives the settings found there."""
    found = np.load(path)
    for side, encode in (("queries", encoder.encode_query), ("documents", encoder.encode_document)):
        np.testing.assert_allclose(encode(TEXTS).to_dense().numpy(), found[side], rtol=1e-5, atol=1e-5)
        assert found[side].any()
    return json.loads(str(found["settings"]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_query_tokens": 3, "max_document_tokens": 7},
        {"prompts": {"query": "who is ", "document": "musical: ", "film": "film "}, "max_active_dims": 6},
        {"architecture": "distilbert", "pooling": "sum", "activation": "log1p_relu"},
        {"architecture": "roberta"},
        {"architecture": "modernbert"},
    ],
    ids=str,
)
def test_ours_open_there(release, make_encoder, texts, tmp_path, settings):
    encoder = make_encoder(**settings)
    frozen = "max_query_tokens" in settings
    encoder.idf_weights.requires_grad_(not frozen)
    encoder.save(tmp_path / "model")
    limit = encoder.max_active_dims
    cut = [] if release.has_limit or limit is None else [limit]
    run(release, "open", tmp_path / "model", texts, tmp_path / "vectors.npz", *cut)
    found = assert_same(encoder, tmp_path / "vectors.npz")
    assert found["max_active_dims"] == (limit if release.has_limit else None)
    assert found["prompts"] == encoder.prompts
    assert found["frozen"] is frozen


def test_theirs_open_here(release, make_encoder, texts, tmp_path):
    limit = 11 if release.has_limit else None
    make_encoder().save(tmp_path / "ours")
    run(release, "save", tmp_path / "ours" / DOCUMENT, tmp_path / "theirs", texts, tmp_path / "vectors.npz")
    loaded = AsymmetricSparseEncoder.load(tmp_path / "theirs")
    found = assert_same(loaded, tmp_path / "vectors.npz")
    assert (loaded.max_active_dims, loaded.max_query_tokens, loaded.max_document_tokens) == (limit, 4, 9)
    assert found["max_active_dims"] == limit
    assert loaded.prompts == {"query": "who is ", "document": "musical: "}
    assert found["frozen"]
    assert loaded.query.frozen
    # And on to the same release again.
    loaded.save(tmp_path / "again")
    run(release, "open", tmp_path / "again", texts, tmp_path / "vectors.npz")
    assert assert_same(loaded, tmp_path / "vectors.npz") == found


def test_figures_are_theirs(release, make_encoder, tmp_path):
    encoder = make_encoder()
    encoder.save(tmp_path / "model")
    words = sorted(token for token in encoder.tokenizer.get_vocab() if token.isalpha() and len(token) > 2)
    generator = np.random.default_rng(0)
    corpus = {f"d{n}": " ".join(generator.choice(words, size=12)) for n in range(150)}
    queries = {f"q{n}": " ".join(generator.choice(words, size=5, replace=False)) for n in range(40)}
    ranked = encoder.similarity(encoder.encode_query([*queries.values()]), encoder.encode_document([*corpus.values()]))
    best = ranked.argsort(dim=1, descending=True)[:, :20].tolist()  # relevant are some of these, at any rank
    qrels = {f"q{n}": {f"d{i}": 1 for i in generator.choice(best[n], size=3, replace=False)} for n in range(40)}
    task = RetrievalTask("small", corpus, queries, qrels)
    query_vectors = encoder.encode_query([*queries.values()], convert_to_csr=True)
    document_vectors = encoder.encode_document([*corpus.values()], convert_to_csr=True)
    vectors = dict(zip(queries.values(), query_vectors.toarray().tolist(), strict=True))
    vectors |= dict(zip(corpus.values(), document_vectors.toarray().tolist(), strict=True))
    given = {"queries": queries, "corpus": corpus, "qrels": {one: [*grades] for one, grades in qrels.items()}}
    (tmp_path / "task.json").write_text(json.dumps(given | {"vectors": vectors}))
    run(release, "measure", tmp_path / "model", tmp_path / "task.json", tmp_path / "figures.json")
    expected = json.loads((tmp_path / "figures.json").read_text())
    ours = evaluate_vectors(task, [*queries], query_vectors, [*corpus], document_vectors).named_metrics
    shared = expected.keys() & ours.keys()
    assert {f"small_dot_{name}" for name in ("ndcg@10", "mrr@10", "map@100", "recall@5")} <= shared
    assert 0 < expected["small_dot_ndcg@10"] < 1
    assert {name: ours[name] for name in shared} == pytest.approx({name: expected[name] for name in shared}, abs=1e-9)
