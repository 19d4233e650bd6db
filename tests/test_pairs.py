"""Training pairs: every kind of source, named columns, empty texts, and what is told about bad ones."""

import gzip
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from splade_lit.core.errors import UserError
from splade_lit.data.answers import NO_TEXT
from splade_lit.data.hub import open_texts
from splade_lit.data.pairs import Pairs, load_pairs, split_rows

QUERIES = ["who wrote it", 'what is a "query", really?', "où est-ce? 🎈"]
ANSWERS = ["An author,\nlong ago.", "Words\tto search with.", "null"]
ROWS = [{"query": query, "answer": answer} for query, answer in zip(QUERIES, ANSWERS, strict=True)]


def jsonl(rows: Sequence[object]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write(path: Path, content: str | bytes) -> str:
    """Write a file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_table(path: Path, rows: Sequence[dict[str, object]] = ROWS) -> str:
    """The rows in the format that the name of the file says."""
    frame = pd.DataFrame(rows)
    name = path.name.lower()
    if name.endswith(".parquet"):
        frame.to_parquet(path)
        return str(path)
    if ".csv" in name or ".tsv" in name:
        if ".tsv" in name:
            return write(path, "".join("\t".join(map(str, row)) + "\n" for row in [frame.columns, *frame.values]))
        return write(path, frame.to_csv(index=False))
    return write(path, json.dumps(list(rows)) if ".json" in name and ".jsonl" not in name else jsonl(rows))


def texts(pairs: Pairs) -> list[tuple[str, ...]]:
    return [tuple(pairs[row][column] for column in pairs.columns) for row in range(len(pairs))]


def write_hub_folder(folder: Path) -> str:
    """A folder as the Hub lays data sets out: two configurations, the default one with two splits."""
    folder.mkdir()
    write_table(folder / "train.parquet")
    write_table(folder / "dev.parquet", ROWS[:1])
    write_table(folder / "hard.parquet", [{**row, "wrong": f"not {row['answer']}"} for row in ROWS])
    head = """---
configs:
- config_name: pair
  default: true
  data_files:
  - {split: train, path: train.parquet}
  - {split: dev, path: dev.parquet}
- config_name: triplet
  data_files:
  - {split: train, path: hard.parquet}
---
# Three questions
"""
    (folder / "README.md").write_text(head)
    return str(folder)


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.tsv.gz", "b.CSV"],
)
def test_files(tmp_path: Path, name: str) -> None:
    answers = [" ".join(answer.split()) for answer in ANSWERS] if "tsv" in name else ANSWERS
    rows = [{"query": query, "answer": answer} for query, answer in zip(QUERIES, answers, strict=True)]
    pairs = load_pairs(write_table(tmp_path / name, rows))
    assert pairs.columns == ("query", "document")
    assert texts(pairs) == list(zip(QUERIES, answers, strict=True))


@pytest.mark.parametrize("name", ["my data/v1.2 [final]*.jsonl", "~/pairs.jsonl"])
def test_files_of_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / name.replace("~", "."), jsonl(ROWS))
    assert len(load_pairs(name if name.startswith("~") else str(tmp_path / name))) == 3


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    for path in (tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz", tmp_path / "a.csv"):
        assert len(load_pairs(write_table(path))) == 3
        assert len(load_pairs(write_table(path, ROWS[:2]))) == 2


@pytest.mark.parametrize("write_folder", [write_hub_folder, lambda folder: folder.mkdir()])
def test_a_folder_that_changed_is_read_anew(tmp_path: Path, write_folder: Callable[[Path], object]) -> None:
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        write_folder(tmp_path / parent / "questions")
        rows = [{"query": f"which {parent}?", "answer": f"{number}"} for number in range(3)]
        for count in (3, 2):
            write_table(tmp_path / parent / "questions" / "train.parquet", rows[:count])
            assert texts(load_pairs(str(tmp_path / parent / "questions"))) == [
                (r["query"], r["answer"]) for r in rows[:count]
            ]


def test_folder_of_bare_files(tmp_path: Path) -> None:
    write(tmp_path / "data" / "one.jsonl", jsonl(ROWS[:1]))
    write(tmp_path / "data" / "two.jsonl", jsonl(ROWS[1:]))
    assert texts(load_pairs(str(tmp_path / "data"))) == list(zip(QUERIES, ANSWERS, strict=True))


def test_columns_by_name_in_the_order_of_their_roles(tmp_path: Path) -> None:
    rows = [{"bad2": "d", "passage": "b", "id": 7, "question": "a", "bad1": "c"}]
    source = write(tmp_path / "named.jsonl", jsonl(rows))
    pairs = load_pairs(source, "question", "passage", ["bad1", "bad2"])
    assert pairs.columns == ("query", "document", "negative_1", "negative_2")
    assert texts(pairs) == [("a", "b", "c", "d")]


def test_real_pairs(shared_data: Path) -> None:
    folder = shared_data / "qa-pairs"
    wikipedia, medical = load_pairs(str(folder)), load_pairs(str(folder), config="medical", max_pairs=500)
    expected = pd.read_parquet(folder / "train.parquet")
    assert wikipedia.columns == ("query", "document")
    assert [text for batch in wikipedia.batches("query") for text in batch] == expected["query"].tolist()
    assert [text for batch in wikipedia.batches("document", rows=777) for text in batch] == expected["answer"].tolist()
    assert medical[499]["query"] == pd.read_parquet(folder / "medical.parquet")["query"][499]
    assert len(medical) == 500


def test_first_rows_only(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl(ROWS))
    assert texts(load_pairs(source, max_pairs=2)) == list(zip(QUERIES, ANSWERS, strict=True))[:2]
    assert len(load_pairs(source, max_pairs=10)) == len(load_pairs(source)) == 3


def test_rows_that_are_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "a.jsonl", jsonl(ROWS))
    with caplog.at_level(logging.INFO, "splade_lit"):
        load_pairs(source, max_pairs=2)
    assert caplog.messages == [f"{source}: max_pairs leaves out 1 of 3 rows."]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_rows_without_query_or_document_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    kept = {"query": "q", "answer": "a"}
    empty = [{**kept, column: text} for column in kept for text in ("", " \t\n", "\u2003", None)]
    rows = [kept, *empty[:3], {**kept, "query": "."}, *empty[3:], {**kept, "answer": "0"}]
    source = write_table(tmp_path / name, rows)
    with caplog.at_level(logging.INFO, "splade_lit"):
        pairs = load_pairs(source)
    assert texts(pairs) == [("q", "a"), (".", "a"), ("q", "0")]
    assert caplog.messages == [f"{source}: 8 of 11 pairs have an empty text and are skipped."]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_further_positives_and_negatives_may_be_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    whole = {"query": "q", "answer": "a", "also": "b", "wrong": "w"}
    rows = [whole, *({**whole, column: text} for column in ("also", "wrong") for text in ("", " \t\n", "\u2003", None))]
    with caplog.at_level(logging.INFO, "splade_lit"):
        pairs = load_pairs(write_table(tmp_path / name, rows), negative_columns=["wrong"], positive_columns=["also"])
    assert (pairs.columns, pairs.num_positives) == (("query", "document", "positive_2", "negative_1"), 2)
    assert len(pairs) == 9
    assert not caplog.messages
    assert [text for batch in pairs.batches("positive_2") for text in batch] == ["b", *[""] * 4, *["b"] * 4]
    present = pairs.fingerprints() != NO_TEXT
    assert present[:, :2].all()
    assert present[:, 2:].tolist() == [[True, True], *[[False, True]] * 4, *[[True, False]] * 4]
    assert set(pairs[4].values()) == {"q", "a", "", "w"}


def test_columns_that_are_not_used_may_be_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(load_pairs(write(tmp_path / "a.jsonl", jsonl([{**row, "note": ""} for row in ROWS])))) == 3
    assert not caplog.messages


def test_many_rows_with_empty_texts_far_apart(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "answer": "" if i % 997 == 0 else f"a{i}"} for i in range(3000)]
    pairs = load_pairs(write_table(tmp_path / "a.parquet", rows))
    assert [text for batch in pairs.batches("query") for text in batch] == [r["query"] for r in rows if r["answer"]]


def test_fingerprints_tell_texts_apart(tmp_path: Path) -> None:
    rows = [{"query": "a", "answer": "b"}, {"query": "b", "answer": "a"}, {"query": "a ", "answer": "B"}]
    fingerprints = load_pairs(write(tmp_path / "a.jsonl", jsonl(rows))).fingerprints()
    assert fingerprints.dtype == np.uint64
    assert fingerprints.shape == (3, 2)
    assert fingerprints[0].tolist() == fingerprints[1, ::-1].tolist()
    assert len(np.unique(fingerprints)) == 4


@pytest.mark.parametrize(("num_pairs", "num_eval_pairs"), [(100_000, 1000), (31_725, 500), (10, 1), (3, 2)])
def test_the_split_is_that_of_datasets(num_pairs: int, num_eval_pairs: int) -> None:
    rows = datasets.Dataset.from_dict({"row": range(num_pairs)})
    expected = rows.train_test_split(test_size=num_eval_pairs, seed=12)
    train, held_out = split_rows(num_pairs, num_eval_pairs, seed=12)
    assert train.tolist() == list(expected["train"]["row"])
    assert held_out.tolist() == list(expected["test"]["row"])
    assert sorted([*train, *held_out]) == list(range(num_pairs))


def test_the_split_of_texts_is_that_of_datasets(shared_data: Path) -> None:
    folder = str(shared_data / "qa-pairs")
    pairs = load_pairs(folder)
    train, held_out = split_rows(len(pairs), 1000, seed=12)
    expected = datasets.load_dataset(folder, split="train").train_test_split(test_size=1000, seed=12)
    assert pairs.select(held_out).dataset["query"][:] == expected["test"]["query"][:]
    assert pairs.select(train).dataset["document"][:] == expected["train"]["answer"][:]


def test_no_split() -> None:
    train, held_out = split_rows(5, 0, seed=12)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert len(held_out) == 0
    with pytest.raises(UserError, match="num_eval_pairs is 5, but there are only 5 pairs"):
        split_rows(5, 5, seed=12)


def bad_yaml(folder: Path) -> str:
    write(folder / "README.md", "---\nconfigs: [\n---\n")
    write(folder / "a.jsonl", jsonl(ROWS))
    return str(folder)


def different_columns(folder: Path) -> str:
    write(folder / "one.jsonl", jsonl(ROWS))
    write(folder / "two.jsonl", '{"other": 1}\n')
    return str(folder)


def cut_gzip(path: Path) -> str:
    path.write_bytes(gzip.compress(jsonl(ROWS * 5000).encode())[:-30])
    return str(path)


def no_rows(path: Path) -> str:
    pd.DataFrame({"query": [], "answer": []}, dtype=str).to_parquet(path)
    return str(path)


def bare_folder(folder: Path, name: str = "", content: str = "") -> str:
    folder.mkdir()
    if name:
        write(folder / name, content)
    return str(folder)


BAD_SOURCES: dict[str, tuple[Callable[[Path], str], str]] = {
    "no such file": (lambda p: str(p / "a.jsonl"), "there is no such file or folder"),
    "no such folder": (lambda p: "./no/such", "there is no such file or folder"),
    "no such home": (lambda p: "~nobody_of_this_name/pairs.jsonl", "there is no such file or folder"),
    "a Hub id without network": (lambda p: "owner/pairs", "the Hugging Face Hub cannot be reached"),
    "a word": (lambda p: "pairs_of_nobody", "the Hugging Face Hub cannot be reached"),
    "an empty folder": (lambda p: bare_folder(p / "f"), "the folder holds no data set"),
    "a folder of code": (lambda p: bare_folder(p / "f", "train.py", "x = 1\n"), "the folder holds no data set"),
    "a model folder": (lambda p: bare_folder(p / "f", "config.json", "{}"), "the folder holds no data set"),
    "a folder of an empty file": (lambda p: bare_folder(p / "f", "a.jsonl"), "the data set has no rows"),
    "a folder of a damaged file": (
        lambda p: bare_folder(p / "f", "a.jsonl", '{"qu'),
        "line 1: not a JSON object",
    ),
    "a damaged README": (lambda p: bad_yaml(p / "f"), "the YAML at the head of its README.md is damaged"),
    "files of different columns": (
        lambda p: different_columns(p / "f"),
        "two.jsonl: no column query, answer",
    ),
    "another kind of file": (lambda p: write(p / "a.docx", "x"), r"must end in \.jsonl, .* \.txt"),
    "gzip alone": (lambda p: write(p / "a.gz", "x"), r"must end in \.jsonl"),
    "gzipped parquet": (lambda p: write(p / "a.parquet.gz", "x"), r"all but \.parquet also \.gz"),
    "an empty file": (lambda p: write(p / "a.jsonl", ""), "the file is empty"),
    "an empty gzip": (lambda p: write(p / "a.csv.gz", ""), "the data set has no rows"),
    "blank lines": (lambda p: write(p / "a.jsonl", "\n\n"), "the data set has no rows"),
    "only a header": (lambda p: write(p / "a.csv", "query,answer\n"), "the data set has no rows"),
    "no row": (lambda p: no_rows(p / "a.parquet"), "the data set has no rows"),
    "only empty texts": (
        lambda p: write(p / "a.csv", "query,answer\n,\n,x\n"),
        "no pair with both a query and a document, of 2 rows",
    ),
    "a text file": (lambda p: write(p / "a.jsonl", "some words\nand more\n"), "line 1: not a JSON object"),
    "half a line": (lambda p: write(p / "a.jsonl", jsonl(ROWS) + '{"query": "a'), "line 4: not a JSON object"),
    "damaged parquet": (lambda p: write(p / "a.parquet", "PAR1 and more"), "cannot be read: Parquet magic bytes"),
    "not gzip": (lambda p: str(Path(write(p / "a", "x")).rename(p / "a.csv.gz")), "cannot be read: Not a gzipped file"),
    "half a gzip": (lambda p: cut_gzip(p / "a.jsonl.gz"), "cannot be read: Compressed file ended"),
    "ragged csv": (
        lambda p: write(p / "a.csv", "query,answer\na,b\na,b,c\n"),
        "line 3: 3 columns where .* 2",
    ),
    "UTF-16": (lambda p: write(p / "a.csv", "query,answer\na,b\n".encode("utf-16")), "UTF-16; save it as UTF-8"),
    "cut at semicolons": (lambda p: write(p / "a.csv", "query;answer\na;b, c\n"), "cut at `;`; save it cut at commas"),
    "an open quote": (lambda p: write(p / "a.csv", 'query,answer\na,b\n"c,d\n'), "line 3: not csv: unexpected end"),
    "a missing column": (
        lambda p: write(p / "a.jsonl", '{"q": "a", "answer": "b"}\n'),
        "no column query; .* are q, answer",
    ),
    "numbers": (
        lambda p: write(p / "a.jsonl", '{"query": "a", "answer": 1}\n'),
        "line 1: the column answer must hold text, .* holds a value of type number",
    ),
    "lists": (
        lambda p: write(p / "a.jsonl", '{"query": "a", "answer": ["b"]}\n'),
        "answer must hold text, .* holds a value of type list",
    ),
    "text and numbers": (lambda p: write(p / "a.jsonl", jsonl([*ROWS, {"query": 1, "answer": "b"}])), "must hold text"),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_bad_sources_are_told_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    make, message = BAD_SOURCES[kind]
    source = make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_pairs(source)
    sentence = str(error.value)
    assert sentence.startswith(source)
    assert "\n" not in sentence
    assert len(sentence) < 400 + len(source)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_column": "question"}, "no column question; its columns are query, answer"),
        ({"negative_columns": ["bad1", "bad2"]}, "no column bad1, bad2; its columns are query, answer"),
        ({"document_column": "query"}, "the columns query, query must be different"),
        ({"config": "medical"}, "BuilderConfig 'medical' not found"),
        ({"split": "test"}, "Unknown split"),
    ],
)
def test_bad_settings_are_told(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    write(tmp_path / "data" / "train.jsonl", jsonl(ROWS))
    with pytest.raises(UserError, match=message) as error:
        load_pairs(str(tmp_path / "data"), **settings)
    assert "\n" not in str(error.value)


def test_bad_configuration_of_several_tells_which_there_are(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path / "questions")
    with pytest.raises(UserError, match=r"Available: \['pair', 'triplet'\]"):
        load_pairs(folder, config="quadruplet")
    with pytest.raises(UserError, match=r"Should be one of \['train', 'dev'\]"):
        load_pairs(folder, split="test")


def test_a_file_of_lines_is_a_column_of_text(tmp_path: Path) -> None:
    dataset = open_texts(write(tmp_path / "a.txt", "one\n\ntwo, three\n")).read(["text"])
    assert dataset["text"][:] == ["one", "", "two, three"]
