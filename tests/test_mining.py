"""Hard negatives: against a search by hand, against sentence-transformers, and as `fit` trains on them."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_runs import World, call
from scipy.sparse import csr_array
from tiny_runs import save_base

from splade_lit import fit, mine, score
from splade_lit.core.bm25 import word_counts, word_weights
from splade_lit.data.corpus import open_corpus
from splade_lit.data.pairs import load_pairs
from splade_lit.data.text_keys import document_key, query_key
from splade_lit.mining import mine as mining
from splade_lit.mining.candidates import Candidates, DocumentsOf, find_candidates
from splade_lit.mining.miners import DenseMiner, SparseMiner
from splade_lit.mining.selection import Rules

WORDS = """song film city river king queen band album world war state school team game player book author blood"""


def make_rows(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs with further answers, queries in several spellings, copies, and answers that several queries have."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for n in range(number):
        words = rng.choices(WORDS.split(), k=3)
        query = " ".join(words)
        answer = " ".join([*words[:2], *rng.choices(WORDS.split(), k=6), str(n)])
        also = " ".join(rng.choices(WORDS.split(), k=7)) if n % 3 == 0 else None
        if n % 5 == 4:
            query = f"{rows[-2]['query'].upper()}?"
        if n % 7 == 6:
            answer = "  ".join(rows[-3]["answer"].split())
        rows.append({"query": query, "answer": answer, "also": also})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    return write(tmp_path / "pairs.jsonl", make_rows(60))


def read(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def different(rows: list[dict[str, Any]], others: list[str]) -> list[str]:
    """The keys of all documents, each once."""
    answers = [row[name] for row in rows for name in ("answer", "also") if row[name]]
    return sorted({document_key(text) for text in [*others, *answers]})


@dataclass(frozen=True)
class Expected:
    """Scores of a row's answers, and all documents that may be its negatives with their scores, best first.

    `ties` has those too that could stand in the place of one which scores the same.
    """

    answers: list[float]
    allowed: list[tuple[str, float]]
    ties: dict[str, float]


def by_hand(rows: list[dict[str, Any]], others: list[str], score: Callable[[str, str], float], rules: Rules) -> Any:
    """What is expected of each row."""
    keys = different(rows, others)
    known: dict[str, set[str]] = {}
    for row in rows:
        answers = {document_key(text) for text in (row["answer"], row["also"]) if text}
        known.setdefault(query_key(row["query"]), set()).update(answers)
    for row in rows:
        query, own = row["query"], [document_key(text) for text in (row["answer"], row["also"]) if text]
        answers = known[query_key(query)]
        worst = min(score(query, key) for key in answers)
        others_scored = {key: score(query, key) for key in keys if key not in answers | {document_key(query)}}
        ranked = sorted((pair for pair in others_scored.items() if pair[1] > 0), key=lambda pair: -pair[1])
        ranked = ranked[rules.first_rank : rules.last_rank]

        def fits(value: float, worst: float = worst) -> bool:
            fits = rules.absolute_margin is None or value + rules.absolute_margin <= worst
            fits &= rules.relative_margin is None or value <= worst - abs(worst) * rules.relative_margin
            fits &= rules.max_score is None or value <= rules.max_score
            return fits and (rules.min_score is None or value >= rules.min_score)

        ends = {value for _, value in ranked}
        ties = {key: value for key, value in others_scored.items() if value in ends and fits(value)}
        yield Expected([score(query, key) for key in own], [pair for pair in ranked if fits(pair[1])], ties)


def bm25_scores(rows: list[dict[str, Any]], others: list[str]) -> Callable[[str, str], float]:
    keys = different(rows, others)
    weights, words = word_weights("here", keys)
    places = {key: number for number, key in enumerate(keys)}
    queries = [row["query"] for row in rows]
    table = dict(zip(queries, (word_counts(queries, words) @ weights.T).toarray(), strict=True))
    return lambda query, key: float(table[query][places[key]])


OTHERS = ["the song of the king and the river", "A game  of the team", "a game of the team", "war state", "blood cell"]


@pytest.mark.parametrize(
    "rules",
    [
        Rules(3, 0, 30, "top"),
        Rules(4, 5, 12, "top"),
        Rules(3, 0, 40, "top", absolute_margin=0.5),
        Rules(3, 2, 40, "top", relative_margin=0.3),
        Rules(3, 0, 40, "top", max_score=2.5, min_score=1.0),
        Rules(3, 2, 20, "random", absolute_margin=0.1),
    ],
    ids=["top", "ranks", "absolute margin", "relative margin", "bounds", "random"],
)
def test_negatives_by_hand(source, tmp_path, rules, capsys):
    rows = make_rows(60)
    corpus = write(tmp_path / "docs.jsonl", [{"text": text} for text in OTHERS])
    given = {
        "absolute-margin": rules.absolute_margin,
        "relative-margin": rules.relative_margin,
        "max-score": rules.max_score,
        "min-score": rules.min_score,
    }
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    options += ["--ranks", f"{rules.first_rank}:{rules.last_rank}", "--num-negatives", rules.num_negatives]
    options += ["--strategy", rules.strategy, "--scores", "--positive-columns", "also", "--corpus", corpus]
    outcome = call(mine.main, "--pairs", source, "--output", tmp_path / "mined.parquet", *options)
    assert outcome.code == 0, outcome.err
    expected = by_hand(rows, OTHERS, bm25_scores(rows, OTHERS), rules)
    written = read(tmp_path / "mined.parquet")
    assert len(written) == len(rows)
    fewer = 0
    for row, line, one in zip(rows, written, expected, strict=True):
        own, allowed, scored = one.answers, one.allowed, one.ties
        assert (line["query"], line["answer"], line["positive_2"]) == (row["query"], row["answer"], row["also"])
        negatives = [line[f"negative_{n}"] for n in range(1, rules.num_negatives + 1)]
        texts = [text for text in negatives if text is not None]
        assert negatives == texts + [None] * (rules.num_negatives - len(texts))
        assert len(texts) == min(rules.num_negatives, len(allowed))
        fewer += len(texts) < rules.num_negatives
        keys = [document_key(text) for text in texts]
        assert len(set(keys)) == len(keys)
        assert set(keys) <= set(scored)
        scores = [score for score in line["scores"] if score is not None]
        assert scores == pytest.approx([*own, *(scored[key] for key in keys)], rel=1e-5)
        assert scores[len(own) :] == sorted(scores[len(own) :], reverse=True)
        assert len(line["scores"]) == 2 + rules.num_negatives
        if rules.strategy == "top":
            assert scores[len(own) :] == pytest.approx([score for _, score in allowed[: rules.num_negatives]], rel=1e-5)
    conditions = sum(value is not None for value in given.values())
    assert len(re.findall(r"^left out +[\d,]+ of [\d,]+ documents", outcome.out, re.MULTILINE)) == conditions
    assert f"{60 - fewer} of 60 pairs have all {rules.num_negatives} negatives" in outcome.out
    assert ("pairs lack negatives and are kept" in outcome.out) == (fewer > 0)


def test_draws_are_random_within_the_ranks_and_repeatable(source, tmp_path):
    arguments = ["--pairs", source, "--num-negatives", 2, "--ranks", "1:20", "--output"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        outcome = call(mine.main, *arguments, tmp_path / name, "--seed", seed)
        assert outcome.code == 0, outcome.err
    a, b, c = (read(tmp_path / name / "train.parquet") for name in "abc")
    assert a == b != c
    ranks = [document for row in a for document in (row["negative_1"], row["negative_2"])]
    assert len(set(ranks)) > 30


def test_a_teacher_judges_what_the_miner_finds():
    """The miner ranks by one table, the teacher by another: ranks are the miner's, order and margins the teacher's."""
    rng = np.random.default_rng(0)
    sides = ("miner", "teacher")
    table = {side: {name: rng.random((30, 5)).astype(np.float32) for name in ("q", "d")} for side in sides}
    numbers = {str(n): n for n in range(30)}

    def scorer(side: str) -> SparseMiner:
        queries = table[side]["q"]
        encode = lambda texts: csr_array(queries[[numbers[text] for text in texts]])  # noqa: E731
        return SparseMiner(csr_array(table[side]["d"]), encode)

    everything = np.arange(30)
    texts = [f"document {n}" for n in range(30)]
    answers = DocumentsOf(np.arange(31), everything)
    candidates = Candidates(texts, everything[:, None], 30, 30, 0, everything < 0, everything, answers, answers)
    rules = Rules(4, 2, 15, "top", absolute_margin=0.05)
    blocks = list(mining.mine(candidates, iter([list(numbers)]), scorer("miner"), rules, scorer("teacher")))
    (block,) = blocks
    by_miner, by_teacher = (table[side]["q"] @ table[side]["d"].T for side in sides)
    for n in range(30):
        ranked = [d for d in np.argsort(-by_miner[n], kind="stable") if d != n][2:15]
        allowed = [d for d in ranked if by_teacher[n, d] + 0.05 <= by_teacher[n, n]]
        expected = sorted(allowed, key=lambda d: -by_teacher[n, d])[:4]
        assert [d for d in block.negatives[n] if d >= 0] == expected
        assert block.answer_scores[n, 0] == pytest.approx(by_teacher[n, n], rel=1e-5)


def test_dense_and_sparse_search_agree():
    rng = np.random.default_rng(1)
    queries, documents = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    dense = DenseMiner(documents, lambda texts: queries, torch.device("cpu"))
    sparse = SparseMiner(csr_array(documents), lambda texts: csr_array(queries))
    ours, expected = dense.search(dense.encode([]), 60), sparse.search(sparse.encode([]), 60)
    np.testing.assert_array_equal(ours.documents, expected.documents)
    np.testing.assert_allclose(ours.scores, expected.scores, rtol=1e-5, atol=1e-6)
    rows, chosen = np.array([0, 6, 6]), np.array([3, 49, 0])
    scores = dense.scores(dense.encode([]), rows, chosen)
    np.testing.assert_allclose(scores, sparse.scores(sparse.encode([]), rows, chosen), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores, (queries @ documents.T)[rows, chosen], rtol=1e-5, atol=1e-6)


def test_training_on_mined_negatives(world: World, tmp_path):
    """From pairs to a model: the miner is a model that a run has saved."""
    first = call(fit.main, "--config", world.config(tmp_path / "first", {"trainer.callbacks": None}))
    assert first.code == 0, first.err
    for miner, output in ((tmp_path / "first" / "model", tmp_path / "mined"), ("bm25", tmp_path / "mined.parquet")):
        options = ["--ranks", "1:20", "--num-negatives", 2, "--scores", "--output", output]
        outcome = call(mine.main, "--pairs", world.pairs, "--miner", miner, *options)
        assert outcome.code == 0, outcome.err
        assert f"--data.source {output} " in outcome.out
        changes = {
            "data.source": str(output),
            "data.negative_columns": ["negative_1", "negative_2"],
            "trainer.callbacks": None,
        }
        run = call(fit.main, "--config", world.config(tmp_path / f"on_{output.stem}{output.suffix}", changes))
        assert run.code == 0, run.err
    notes = (tmp_path / "mined" / "README.md").read_text()
    assert "num_negatives: 2" in notes
    assert "ranks: 1:20" in notes
    metadata = pq.read_schema(tmp_path / "mined.parquet").metadata[b"splade_lit.mine"]
    assert json.loads(metadata)["miner"] == "bm25"


def test_rows_with_fewer_negatives_can_be_left_out(source, tmp_path):
    arguments = ["--pairs", source, "--num-negatives", 3, "--ranks", "0:40", "--relative-margin", 0.5, "--output"]
    kept = call(mine.main, *arguments, tmp_path / "kept.parquet")
    dropped = call(mine.main, *arguments, tmp_path / "dropped.parquet", "--drop-incomplete")
    assert kept.code == dropped.code == 0
    whole = [row for row in read(tmp_path / "kept.parquet") if row["negative_3"]]
    assert read(tmp_path / "dropped.parquet") == whole
    assert 0 < len(whole) < 60
    assert f"{60 - len(whole)} pairs lack negatives and are left out" in dropped.out


def test_json_lines_have_the_same_rows(source, tmp_path):
    """Scores, missing negatives and all, and `score` reads both files alike."""
    mined, scored = {}, {}
    for ending in ("parquet", "jsonl"):
        path, output = tmp_path / f"mined.{ending}", tmp_path / f"scored.{ending}"
        given = ["--ranks", "0:40", "--num-negatives", 3, "--relative-margin", 0.5, "--scores", "--output", path]
        outcome = call(mine.main, "--pairs", source, *given)
        assert outcome.code == 0, outcome.err
        assert f"--data.source {path} " in outcome.out
        mined[ending] = pd.read_json(path, lines=True) if ending == "jsonl" else pd.read_parquet(path)
        assert call(score.main, "--pairs", path, "--teachers", "bm25", "--output", output).code == 0
        scored[ending] = pd.read_json(output, lines=True) if ending == "jsonl" else pd.read_parquet(output)
    assert mined["jsonl"]["negative_3"].isna().any()
    for tables in (mined, scored):
        for name in tables["parquet"].columns:
            first, second = (tables[ending][name].tolist() for ending in ("parquet", "jsonl"))
            if name == "scores":
                first, second = ([np.array(row, float) for row in rows] for rows in (first, second))
                np.testing.assert_allclose(np.stack(first), np.stack(second), rtol=1e-6)
            else:
                assert [one or None for one in first] == [one or None for one in second]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--ranks", "10:12"], "ranks 10:12 leave no room for 5 negatives"),
        (["--ranks", "ten"], "must be FIRST:LAST"),
        (["--ranks", "100:200"], "documents, but ranks begin after 100"),
        (["--miner", "no/such/model"], "no/such/model is not a folder"),
        (["--ranks", "0:20", "--max-score", -1], "No pair has a negative; nothing is written"),
        (["--relative-margin", "nan"], "relative_margin is nan"),
        (["--corpus", "gone.jsonl"], "gone.jsonl: there is no such file"),
        (["--query-column", "question"], "no column question"),
        (["--output", "mined.csv"], "mined.csv must end in .parquet or .jsonl"),
    ],
)
def test_bad_input_is_told_and_nothing_written(source, tmp_path, options, part):
    outcome = call(mine.main, "--pairs", source, "--output", tmp_path / "mined", *options)
    assert outcome.code == 2
    assert part in outcome.errors[0]
    assert not (tmp_path / "mined").exists() or not any((tmp_path / "mined").iterdir())


def test_a_masked_language_model_of_others_is_a_miner(source, tmp_path, make_masked_lm, tiny_tokenizer):
    """sentence-transformers takes such a folder for a sparse encoder of both sides."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    base = save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    given = ["--miner", base, "--ranks", "0:60", "--strategy", "top", "--num-negatives", 1, "--device", "cpu"]
    outcome = call(mine.main, "--pairs", source, *given, "--output", tmp_path / "mined.parquet")
    assert outcome.code == 0, outcome.err
    rows = read(tmp_path / "mined.parquet")
    model = sentence_transformers.SparseEncoder(str(base), device="cpu")
    texts = sorted({document_key(row["answer"]) for row in make_rows(60)})
    documents = model.encode_document(texts).to_dense()
    known: dict[str, set[str]] = {}
    for row in make_rows(60):
        known.setdefault(query_key(row["query"]), set()).add(document_key(row["answer"]))
    for row in rows[:20]:
        scores = (model.encode_query(row["query"]).to_dense() @ documents.T).tolist()
        score_of = dict(zip(texts, scores, strict=True))
        others = [score_of[text] for text in texts if text not in known[query_key(row["query"])]]
        assert score_of[document_key(row["negative_1"])] == pytest.approx(max(others), rel=1e-4)


def test_what_is_read_is_not_written_over(source, tmp_path):
    path = source.with_suffix(".parquet")
    call(mine.main, "--pairs", source, "--ranks", "0:20", "--output", path)
    before = path.read_bytes()
    outcome = call(mine.main, "--pairs", path, "--ranks", "0:20", "--output", path)
    assert outcome.code == 2
    assert "is what is read" in outcome.errors[0]
    assert path.read_bytes() == before


def test_a_folder_that_is_read_or_of_something_else_is_not_written_into(source, tmp_path):
    mined = tmp_path / "mined"
    assert call(mine.main, "--pairs", source, "--ranks", "0:20", "--output", mined).code == 0
    before = (mined / "train.parquet").read_bytes()
    again = call(mine.main, "--pairs", mined, "--ranks", "0:20", "--output", mined)
    assert (again.code, (mined / "train.parquet").read_bytes()) == (2, before)
    assert "is what is read" in again.errors[0]
    assert call(mine.main, "--pairs", source, "--ranks", "0:20", "--output", mined).code == 0  # its own is replaced
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    outcome = call(mine.main, "--pairs", source, "--ranks", "0:20", "--output", tmp_path / "project")
    assert "is not one of mined pairs, and would be replaced" in outcome.errors[0]
    assert (tmp_path / "project" / "README.md").read_text() == "mine"
    docs = tmp_path / "docs"
    docs.mkdir()
    pq.write_table(pa.table({"text": ["fever and cough", "a broken leg"]}), docs / "train.parquet")
    outcome = call(mine.main, "--pairs", source, "--corpus", docs, "--ranks", "0:20", "--output", docs)
    assert outcome.code == 2
    assert "is what is read" in outcome.errors[0]
    assert pq.read_table(docs / "train.parquet").column_names == ["text"]


def test_an_interruption_leaves_no_half_of_a_file(source, tmp_path, monkeypatch):
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "mined.parquet"
    assert call(mine.main, "--pairs", source, "--ranks", "0:20", "--output", path).code == 0
    before = path.read_bytes()
    monkeypatch.setattr(mining, "drawn", stop)
    assert call(mine.main, "--pairs", source, "--ranks", "0:20", "--seed", 3, "--output", path).code == 130
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir() if "mined" in one.name] == ["mined.parquet"]


def test_documents_of_pairs_and_corpus_once_each(source, tmp_path):
    rows = make_rows(60)
    corpus = write(tmp_path / "docs.jsonl", [{"text": text} for text in [*OTHERS, rows[0]["answer"], rows[1]["query"]]])
    pairs = load_pairs(str(source), positive_columns=["also"])
    candidates = find_candidates(pairs, open_corpus(str(corpus)))
    keys = [document_key(text) for text in candidates.texts]
    everything = [*OTHERS, rows[1]["query"], *(r["answer"] for r in rows), *(r["also"] for r in rows if r["also"])]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {document_key(text) for text in everything}
    for row, answers in zip(rows, candidates.answers, strict=True):
        texts = [keys[answer] if answer >= 0 else None for answer in answers]
        assert texts == [document_key(row["answer"]), row["also"]]
    places, barred = candidates.barred(np.array([1]))
    assert places.tolist() == [0, 0]
    assert {keys[document] for document in barred} == {rows[1]["query"], document_key(rows[1]["answer"])}
    assert (candidates.num_answers, candidates.num_in_corpus) == (len(different(rows, [])), 1)
