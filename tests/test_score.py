"""`python -m splade_lit.score`: three kinds of teachers, equal to by hand, and training on what it writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from command_runs import call, rows
from tiny_runs import NEGATIVES, save_sentence_encoder
from transformers import BertConfig, BertForSequenceClassification

from splade_lit import fit, score
from splade_lit.core.bm25 import word_counts, word_weights
from splade_lit.data.pairs import load_pairs
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.mining.scores import agreement, min_max, score_rows

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, world, tiny_tokenizer) -> dict[str, Path]:
    """A tiny random model of each kind."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(5)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tiny_tokenizer), num_labels=1, initializer_range=0.5, **shape)
    BertForSequenceClassification(config).save_pretrained(folder / "cross")
    tiny_tokenizer.save_pretrained(folder / "cross")
    save_sentence_encoder(folder / "dense", tiny_tokenizer)
    encoder = AsymmetricSparseEncoder.from_base(str(world.base), idf=torch.rand(len(tiny_tokenizer)))
    encoder.save(folder / "sparse")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def mined(world, tmp_path_factory) -> Path:
    """Pairs with two negatives, some without the second."""
    table = pd.read_json(world.pairs, lines=True)
    table.loc[::7, NEGATIVES[1]] = None
    path = tmp_path_factory.mktemp("mined") / "mined.parquet"
    table.to_parquet(path)
    return path


def by_hand(kind: str, folder: Path, query: str, documents: list[str]) -> np.ndarray:
    """A teacher's scores of one query with documents, one library call each."""
    if kind == "cross":
        model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
        logits = torch.nn.Identity()
        return np.array([float(model.predict([(query, text)], activation_fn=logits)[0]) for text in documents])
    if kind == "dense":
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        return model.similarity(model.encode_query([query]), model.encode_document(documents))[0].numpy()
    model = AsymmetricSparseEncoder.load(folder)
    return (model.encode_query([query]).to_dense() @ model.encode_document(documents).to_dense().T)[0].numpy()


def run(source: Path, output: Path, *arguments: object) -> Any:
    outcome = call(score.main, "--pairs", source, "--output", output, "--device", "cpu", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_three_teachers_together_are_as_by_hand(mined, teachers, tmp_path, ending):
    output = tmp_path / f"scored.{ending}"
    outcome = run(mined, output, "--max-pairs", 15, "--teachers", *teachers.values())
    scored = pd.read_parquet(output) if ending == "parquet" else pd.read_json(output, lines=True)
    given = pd.read_parquet(mined)[:15]
    assert list(scored.columns) == ["query", "answer", *NEGATIVES, "scores"]
    assert scored[["query", "answer", *NEGATIVES]].fillna("").equals(given[["query", "answer", *NEGATIVES]].fillna(""))
    for row in range(15):
        documents = [text for text in given.iloc[row][["answer", *NEGATIVES]] if isinstance(text, str)]
        every = [by_hand(kind, folder, given["query"][row], documents) for kind, folder in teachers.items()]
        # No document of some rows shares a dim with the query: equal scores say nothing, and are 0.
        normalized = [(one - one.min()) / ((one.max() - one.min()) or 1) for one in every]
        expected = 30 * np.mean(normalized, axis=0)
        found = np.array(scored["scores"][row], float)
        np.testing.assert_allclose(found[: len(documents)], expected, rtol=0, atol=0.06)
        assert np.isnan(found[len(documents) :]).all()
        assert len(found) == 3
    assert "together   an answer ranks first in" in outcome.out
    assert outcome.out.count("\nteacher    ") == 3
    if ending == "parquet":
        facts = json.loads(pq.read_schema(output).metadata[b"splade_lit.score"])
        assert facts == {"teachers": [str(path) for path in teachers.values()], "min_max": True, "scale": 30.0}


@pytest.mark.parametrize("kind", ["cross", "dense", "sparse"])
def test_the_scores_of_one_teacher_are_its_own(mined, teachers, tmp_path, kind):
    run(mined, tmp_path / "scored.parquet", "--max-pairs", 4, "--teachers", teachers[kind])
    scored = pd.read_parquet(tmp_path / "scored.parquet")
    for row in range(1, 4):
        expected = by_hand(kind, teachers[kind], scored["query"][row], list(scored.loc[row, ["answer", *NEGATIVES]]))
        scale = 20 if kind == "dense" else 1  # cosines, as in training
        np.testing.assert_allclose(scored["scores"][row], scale * expected, rtol=1e-3, atol=2e-3 * scale)
    run(mined, tmp_path / "scaled.parquet", "--max-pairs", 4, "--teachers", teachers[kind], "--min-max", "--scale", 2)
    scaled = pd.read_parquet(tmp_path / "scaled.parquet")
    assert [(np.nanmin(row), np.nanmax(row)) for row in scaled["scores"]] == [(0.0, 2.0)] * 4


def test_bm25_is_a_teacher(mined, tmp_path):
    run(mined, tmp_path / "scored.parquet", "--max-pairs", 12, "--teachers", "bm25")
    scored = pd.read_parquet(tmp_path / "scored.parquet")
    columns = ["answer", *NEGATIVES]
    texts = sorted({text for column in columns for text in scored[column] if isinstance(text, str)})
    weights, words = word_weights("here", texts)
    table = (word_counts(list(scored["query"]), words) @ weights.T).toarray()
    for row in range(12):
        documents = [text for text in scored.loc[row, columns] if isinstance(text, str)]
        expected = [table[row, texts.index(text)] for text in documents]
        np.testing.assert_allclose(scored["scores"][row][: len(documents)], expected, rtol=1e-4, atol=1e-5)


def test_work_that_was_interrupted_goes_on(mined, teachers, monkeypatch, tmp_path):
    monkeypatch.setattr("splade_lit.mining.scores._BLOCK", 10)
    pairs = load_pairs(str(mined), negative_columns=NEGATIVES)
    texts: list[str] = []

    class Lengths:
        """Scores a pair by its texts; is stopped after some blocks."""

        def __init__(self, documents: Sequence[str], blocks: int) -> None:
            self.documents, self.blocks = documents, blocks

        def encode(self, queries: Sequence[str]) -> Sequence[str]:
            if self.blocks == 0:
                raise KeyboardInterrupt
            self.blocks -= 1
            texts.extend(queries)
            return queries

        def scores(self, queries: Sequence[str], rows: np.ndarray, documents: np.ndarray) -> np.ndarray:
            lengths = [len(queries[row]) - len(self.documents[one]) for row, one in zip(rows, documents, strict=True)]
            return np.array(lengths, np.float32)

    with pytest.raises(KeyboardInterrupt):
        score_rows(pairs, lambda documents: Lengths(documents, 3), "a teacher", tmp_path)
    scores = score_rows(pairs, lambda documents: Lengths(documents, 4), "a teacher", tmp_path)
    assert texts == list(pairs.dataset["query"])  # each once
    given = [
        [len(row["query"]) - len(row[c]) if row[c] else np.nan for c in pairs.columns[1:]] for row in pairs.dataset
    ]
    np.testing.assert_array_equal(scores, np.array(given, np.float32))
    again = score_rows(pairs, lambda documents: pytest.fail("nothing is missing"), "a teacher", tmp_path)
    np.testing.assert_array_equal(again, scores)


def test_fit_learns_from_what_it_writes(world, mined, teachers, tmp_path):
    outcome = run(mined, tmp_path / "scored.parquet", "--teachers", teachers["dense"], teachers["sparse"])
    settings = outcome.out.partition("to train   ")[2].replace("'", "").replace(", ", ",").split()
    trained = call(fit.main, "--config", world.config(tmp_path / "run", {"trainer.callbacks": None}), *settings)
    assert trained.code == 0, trained.err
    assert all(float(row["train/kl_divergence"]) > 0 for row in rows(tmp_path / "run"))


def test_what_cannot_be_scored_is_said_before_any_work(world, mined, teachers, tmp_path):
    def refused(*arguments: object, source: Path = mined, output: str = "scored.parquet") -> str:
        outcome = call(score.main, "--pairs", source, "--output", tmp_path / output, *arguments)
        assert outcome.code == 2
        assert not list(tmp_path.iterdir())
        return outcome.err

    dense = str(teachers["dense"])
    pairs = world.pairs.parent / "plain.jsonl"
    pairs.write_text('{"query": "a", "answer": "b"}\n')
    assert "a row has one document" in refused("--teachers", dense, source=pairs)
    assert "must end in .parquet or .jsonl" in refused("--teachers", dense, output="scored.csv")
    assert "there is no such file" in refused("--teachers", dense, source=tmp_path / "none.jsonl")
    assert "is not a folder" in refused("--teachers", dense, str(tmp_path / "nowhere"))
    assert "no column wrong" in refused("--teachers", dense, "--negative-columns", "wrong")
    assert "scale is 0" in refused("--teachers", dense, "--scale", "0")
    output = call(score.main, "--pairs", mined, "--output", mined, "--teachers", dense)
    assert "is what is read" in output.err


def test_a_cross_encoder_of_several_labels_is_refused(mined, tmp_path, tiny_tokenizer):
    config = BertConfig(vocab_size=len(tiny_tokenizer), num_labels=3, hidden_size=8, num_hidden_layers=1)
    config.num_attention_heads = 2
    BertForSequenceClassification(config).save_pretrained(tmp_path / "labels")
    tiny_tokenizer.save_pretrained(tmp_path / "labels")
    outcome = call(score.main, "--pairs", mined, "--output", tmp_path / "s.parquet", "--teachers", tmp_path / "labels")
    assert outcome.code == 2
    assert "gives 3 scores a pair" in outcome.err


def test_min_max_and_agreement_leave_out_what_is_not_there():
    nan = np.nan
    scores = np.array([[4.0, 2.0, 3.0], [1.0, nan, 2.0], [nan, 1.0, 2.0], [5.0, nan, nan]], np.float32)
    expected = [[1, 0, 0.5], [0, nan, 1], [nan, 0, 1], [0, nan, nan]]
    np.testing.assert_array_equal(min_max(scores), np.array(expected, np.float32))
    assert agreement(scores, 1) == 0.5  # of two rows that have an answer and a negative
    assert agreement(scores, 2) == pytest.approx(1 / 3)
    assert np.isnan(agreement(scores[3:], 1))


def test_triples_of_a_test_collection_are_scored(tmp_path):
    """A folder with the field's names, and a file of triples without names of columns, as mine and fit take them."""
    texts = {"d1": "the song of the king", "d2": "a river", "d3": "the song of the queen"}
    lines = [json.dumps({"_id": id, "text": text}) for id, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.tsv").write_text("q1\tsong king\nq2\tsong queen\n")
    (tmp_path / "qidpidtriples.train.tsv").write_text("q1\td1\td3\nq2\td3\td1\nq2\td3\td2\n")
    path = tmp_path / "triples.tsv"
    path.write_text(f"song king\t{texts['d1']}\t{texts['d3']}\n")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    given = ("--pairs-config", "triples", "--teachers", "bm25")
    run(tmp_path, tmp_path / "scored.parquet", *given, "--max-pairs", 2)
    scored = pd.read_parquet(tmp_path / "scored.parquet")
    assert scored["negative_1"].tolist() == [texts["d3"], texts["d1"]]
    assert all(answer > other for answer, other in scored["scores"])
    run(path, tmp_path / "of_file.parquet", *given)
    assert len(pd.read_parquet(tmp_path / "of_file.parquet")) == 1
    judged = call(score.main, "--pairs", tmp_path, "--output", tmp_path / "x.parquet", "--teachers", "bm25")
    assert "a row has one document" in judged.errors[0]
