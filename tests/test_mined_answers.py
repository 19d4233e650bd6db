"""Hard negatives: what is known to answer a query in any form, row or grade is none."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command_runs import call
from tiny_runs import save_sentence_encoder
from transformers import BertConfig, BertForSequenceClassification

from splade_lit import mine


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def negatives(source: Path, output: Path, *options: object) -> tuple[dict[str, set[str]], str]:
    """All that is mined of each query, and what is printed."""
    given = ["--ranks", "0:50", "--strategy", "top", *options]
    outcome = call(mine.main, "--pairs", source, "--output", output, *given)
    assert outcome.code == 0, outcome.err
    found: dict[str, set[str]] = {}
    for row in pq.read_table(output).to_pylist():
        texts = {text for name, text in row.items() if name.startswith("negative") and text}
        found.setdefault(row["query"], set()).update(texts)
    return found, outcome.out


def test_an_answer_is_known_by_a_title_or_other_letters(tmp_path):
    """In a corpus it may have its title before it, or another spelling."""
    pairs = [
        {"query": "where do rivers flow", "answer": "They flow to the sea."},
        {"query": "capital of france", "answer": "Paris is the capital."},
        {"query": "the sea", "answer": "a song of it"},
    ]
    corpus = [
        {"title": "Rivers", "text": "They flow to the sea."},
        {"title": "Streams", "text": "They  flow to the sea"},
        {"title": None, "text": "paris is the capital"},
        {"title": "Capital", "text": "the capital of rivers and of france"},
        {"title": "The Sea", "text": ""},  # the query itself
    ]
    source, docs = write(tmp_path / "pairs.jsonl", pairs), write(tmp_path / "docs.jsonl", corpus)
    found, printed = negatives(source, tmp_path / "mined.parquet", "--corpus", docs, "--num-negatives", 6)
    assert "answers     2 of 3 are in the corpus\nwarning     the corpus has few of the answers" in printed
    other = "Capital the capital of rivers and of france"
    assert found["where do rivers flow"] == {other}
    assert found["capital of france"] == {other}
    # Of the two forms of an answer, with its title and without, the corpus's is a negative.
    assert found["the sea"] == {"Rivers They flow to the sea.", "Streams They  flow to the sea"}


def test_answers_that_are_not_mined_for_are_no_negatives(tmp_path):
    """Those of rows past `--max-pairs`, and those that judges gave a lower grade."""
    rows = [{"query": f"song of {n}", "answer": f"the song of {n} and {n + 1}"} for n in range(6)]
    rows.append({"query": "Song of 1?", "answer": "a song of 1"})
    corpus = write(tmp_path / "docs.jsonl", [{"_id": str(n), "text": row["answer"]} for n, row in enumerate(rows)])
    source = write(tmp_path / "pairs.jsonl", rows)
    found, _ = negatives(source, tmp_path / "mined.parquet", "--corpus", corpus, "--max-pairs", 3)
    answers = {row["answer"] for row in rows}
    assert found["song of 1"] == answers - {rows[1]["answer"], rows[6]["answer"]}
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(corpus.read_text())
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows)])
    grades = [("q1", 1, 2), ("q1", 6, 1), ("q1", 5, 0), ("q2", 2, 2)]
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in grades)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    found, _ = negatives(folder, tmp_path / "graded.parquet", "--corpus", folder, "--min-grade", 2)
    assert found["song of 1"] == answers - {rows[1]["answer"], rows[6]["answer"]}


def test_the_column_of_scores_changes_no_choice(tmp_path, tiny_tokenizer):
    """A cross-encoder chooses by what it gives, a sigmoid, with the column and without; the column has its logits."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    torch.manual_seed(5)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tiny_tokenizer), num_labels=1, initializer_range=0.5, **shape)
    folder = tmp_path / "cross"
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    words = ["song", "film", "city", "river", "king", "queen", "band"]
    rows = [
        {"query": f"{word} school", "answer": f"school {word} of the {words[n - 1]}"} for n, word in enumerate(words)
    ]
    source, given = (
        write(tmp_path / "pairs.jsonl", rows),
        ["--teacher", folder, "--device", "cpu", "--num-negatives", 2],
    )
    given += ["--max-score", 0.6]
    plain, _ = negatives(source, tmp_path / "plain.parquet", *given)
    scored, _ = negatives(source, tmp_path / "scored.parquet", *given, "--scores")
    assert plain == scored
    assert any(plain.values())
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    for row in pq.read_table(tmp_path / "scored.parquet").to_pylist():
        texts = [row[name] for name in ("answer", "negative_1", "negative_2")]
        logits = [
            float(model.predict([(row["query"], text)], activation_fn=torch.nn.Identity())[0]) if text else None
            for text in texts
        ]
        assert row["scores"] == pytest.approx(logits, abs=1e-3)


def test_written_cosines_are_scores_to_learn_from(tmp_path, tiny_tokenizer):
    """Times 20, as `score` and a teacher in training have them; margins are of cosines. The last line reads them."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    words = ["song", "film", "city", "river", "king", "queen", "band"]
    rows = [{"query": word, "answer": f"{word} of the {words[n - 1]}"} for n, word in enumerate(words)]
    source, model = write(tmp_path / "pairs.jsonl", rows), tmp_path / "dense"
    save_sentence_encoder(model, tiny_tokenizer)
    given = ["--teacher", model, "--device", "cpu", "--num-negatives", 2, "--max-score", 0.9999, "--scores"]
    _, printed = negatives(source, tmp_path / "mined.parquet", *given)
    encoder = sentence_transformers.SentenceTransformer(str(model), device="cpu")
    for row in pq.read_table(tmp_path / "mined.parquet").to_pylist():
        texts = [row[name] for name in ("answer", "negative_1", "negative_2") if row[name]]
        cosines = encoder.similarity(encoder.encode_query([row["query"]]), encoder.encode_document(texts))[0]
        assert [one for one in row["scores"] if one is not None] == pytest.approx((20 * cosines).tolist(), abs=0.02)
    assert any(row["negative_1"] for row in pq.read_table(tmp_path / "mined.parquet").to_pylist())
    assert printed.rstrip().endswith(" --data.score_columns '[scores]' --model.ranking '[kl]'")


def test_grades_of_no_answer_are_refused(tmp_path):
    outcome = call(mine.main, "--pairs", tmp_path, "--output", tmp_path / "mined", "--min-grade", 0)
    assert outcome.code == 2
    assert "--min-grade" in outcome.errors[0]


def test_docstrings_are_mined(world, tmp_path):
    found, _ = negatives("docstrings", tmp_path / "mined.parquet", "--max-pairs", 50, "--ranks", "0:9")
    assert len(found) == 50
    assert all(found.values())


def test_judgements_count_where_pairs_are_triples(tmp_path):
    rows = [{"query": f"song of {n}", "answer": f"the song of {n} and {n + 1}"} for n in range(6)]
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": str(n), "text": row["answer"]} for n, row in enumerate(rows)])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows)])
    (folder / "qidpidtriples.train.tsv").write_text("q1\t1\t4\nq2\t2\t5\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t1\nq1\t5\t1\nq2\t2\t1\n")
    mined = ("--pairs-config", "triples", "--corpus", folder)
    found, _ = negatives(folder, tmp_path / "mined.parquet", *mined)
    assert found["song of 1"] == {row["answer"] for row in rows} - {rows[1]["answer"], rows[5]["answer"]}
