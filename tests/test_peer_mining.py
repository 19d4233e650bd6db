"""Hard negatives: those that sentence-transformers' `mine_hard_negatives` finds with the same model and options."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_runs import call

from splade_lit import mine
from splade_lit.teachers.sentence_encoder import COSINE_SCALE

sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_tokenizer) -> Path:
    """A sentence encoder whose cosines differ widely: the mean of random vectors of tokens."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    module = StaticEmbedding(tiny_tokenizer, embedding_weights=torch.randn(len(tiny_tokenizer), 24))
    sentence_transformers.SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def rows(tiny_tokenizer) -> list[dict[str, str]]:
    """Pairs, some of which have the same query; three documents are nobody's answer."""
    rng = random.Random(3)
    words = sorted(token for token in tiny_tokenizer.get_vocab() if token.isalpha() and len(token) > 1)
    rows: list[dict[str, str]] = []
    for number in range(80):
        query = rows[-2]["query"] if number % 6 == 5 else " ".join(rng.choices(words, k=4))
        rows.append({"query": query, "answer": " ".join([*query.split()[:2], *rng.choices(words, k=6)])})
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {"num_negatives": 3, "range_max": 20},
        {"num_negatives": 4, "range_min": 5, "range_max": 15},
        {"num_negatives": 3, "range_max": 70, "absolute_margin": 0.1},
        {"num_negatives": 3, "range_max": 70, "relative_margin": 0.2, "max_score": 0.5},
        {"num_negatives": 2, "range_max": 70, "max_score": 0.4, "min_score": 0.2},
    ],
    ids=["top", "ranks", "absolute margin", "relative margin", "bounds"],
)
@pytest.mark.parametrize("with_corpus", [False, True], ids=["pairs", "corpus"])
def test_the_same_negatives(model, rows, tmp_path, options: dict[str, Any], with_corpus: bool):
    corpus = ["the song of the river", "a school team was first", "blood cell protein"] if with_corpus else None
    theirs = sentence_transformers.util.mine_hard_negatives(
        datasets.Dataset.from_list(rows),
        sentence_transformers.SentenceTransformer(str(model), device="cpu"),
        corpus=corpus,
        output_format="n-tuple",
        output_scores=True,
        verbose=False,
        **options,
    )
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [word for name, value in options.items() if "range" not in name for word in (_option(name), value)]
    given += ["--ranks", f"{options.get('range_min', 0)}:{options['range_max']}", "--strategy", "top"]
    if corpus:
        (tmp_path / "docs.txt").write_text("\n".join(corpus) + "\n")
        given += ["--corpus", tmp_path / "docs.txt"]
    path = tmp_path / "mined.parquet"
    arguments = ["--pairs", source, "--miner", model, "--scores", "--drop-incomplete", "--output", path]
    outcome = call(mine.main, *arguments, *given)
    assert outcome.code == 0, outcome.err
    ours = pq.read_table(path).to_pylist()
    pair = lambda row: (row["query"], row["answer"])  # noqa: E731
    expected = sorted(theirs.to_list(), key=pair)  # theirs are in the order of queries, not of rows
    ours.sort(key=pair)
    assert 0 < len(expected) <= 80
    assert list(map(pair, ours)) == list(map(pair, expected))
    cosines = np.array([r["scores"] for r in ours]) / COSINE_SCALE
    np.testing.assert_allclose(cosines, [r["scores"] for r in expected], atol=2e-3)
    # Vectors are kept in 16 bits here, so that documents which score the same but for that may change places.
    negatives = [f"negative_{number}" for number in range(1, options["num_negatives"] + 1)]
    same = [our[name] == their[name] for our, their in zip(ours, expected, strict=True) for name in negatives]
    assert np.mean(same) > 0.97


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
