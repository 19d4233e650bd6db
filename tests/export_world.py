"""What tests of exports share: a model with a corpus, queries and vectors, and readers of what was written."""

import json
from pathlib import Path

import numpy as np
import torch
from command_runs import call
from scipy.sparse import csr_array

from splade_lit import encode, export
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.encoder.query_side import load_query_side
from splade_lit.engines.features import FeatureNames
from splade_lit.engines.shards import read_corpus_vectors

TEXTS = ["the song of the musical.", "river and water " * 9, "heart disease", "a cell protein", "king (and) queen!"] * 3
QUERIES = {"q1": "song of the king.", "q2": "water", "q3": "the heart, a protein"}


def make_export_world(folder: Path, tokenizer, make_masked_lm) -> Path:
    """A folder with a model, a corpus, queries, and vectors of the corpus in two shards."""
    idf = torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(0)) * 3
    document = MlmDocumentEncoder(make_masked_lm("bert", len(tokenizer)))
    AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tokenizer).eval().save(folder / "model")
    lines = [json.dumps({"_id": f"d {n}", "text": text}) for n, text in enumerate(TEXTS)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    asked = [json.dumps({"_id": id, "text": text}) for id, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("\n".join(asked))
    arguments = ("--model", folder / "model", "--corpus", folder / "docs.jsonl", "--shard-documents", 8)
    made = call(encode.main, *arguments, "--output", folder / "vectors")
    assert made.code == 0, made.err
    return folder


def run(world: Path, output: Path, *arguments: object) -> tuple[str, str]:
    """Export the vectors; what is printed and what is logged."""
    format, *more = arguments
    given = ("--model", world / "model", "--vectors", world / "vectors", "--queries-file", world / "queries.jsonl")
    outcome = call(export.main, format, *given, "--output", output, *more)
    assert outcome.code == 0, outcome.err
    return outcome.out, outcome.err


def vectors_of(world: Path) -> tuple[list[str], csr_array]:
    ids, vectors, _ = read_corpus_vectors(world / "vectors")
    return ids, vectors


def lines_of(folder: Path, pattern: str) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()]


def matrix(rows: list[dict], vocab_size: int, dim_of) -> csr_array:
    """Vectors of name to weight as a matrix."""
    dense = np.zeros((len(rows), vocab_size), np.float32)
    for number, row in enumerate(rows):
        for name, weight in row.items():
            dense[number, dim_of(name)] = weight
    return csr_array(dense)


def names_of(world: Path, escaped: bool = True) -> FeatureNames:
    side = load_query_side(world / "model")
    return FeatureNames.of_query_side(side, len(side.weights), escaped)
