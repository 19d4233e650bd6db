"""The corpus to search: documents with ids and titles, from every kind of source."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from splade_lit.core.errors import UserError
from splade_lit.data.corpus import load_corpus, open_corpus
from splade_lit.data.tasks import load_task

ROWS = [
    {"_id": "a", "title": "Rivers", "text": "They flow."},
    {"_id": "b", "title": "", "text": "Songs are sung."},
    {"_id": "c", "title": "Alone", "text": ""},
    {"_id": "d", "title": "", "text": "  "},
]
EXPECTED = {"a": "Rivers They flow.", "b": "Songs are sung.", "c": "Alone"}


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return str(path)


def jsonl(rows: Sequence[object]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv.gz", "a.parquet", "folder/a.jsonl"])
def test_ids_titles_and_texts(tmp_path: Path, name: str) -> None:
    path, frame = tmp_path / name, pd.DataFrame(ROWS)
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    elif "jsonl" in name:
        write(path, jsonl(ROWS))
    else:
        write(path, frame.to_csv(index=False, sep="\t" if "tsv" in name else ","))
    source = str(path.parent if "/" in name else path)
    assert load_corpus(source) == EXPECTED
    assert list(load_corpus(source)) == list(EXPECTED)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_is_read_without_its_judgements(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, jsonl(ROWS) + "no document\n")
    write(tmp_path / "queries.jsonl", jsonl([{"_id": "q", "text": "rivers"}]))
    for read in (open_corpus, load_corpus):
        with pytest.raises(UserError, match=r"corpus\.jsonl.*, line 5: not a JSON object"):
            read(str(tmp_path))
    write(tmp_path / name, jsonl(ROWS))
    opened = open_corpus(str(tmp_path))  # judgements are not needed
    assert opened.num_rows == 4
    assert list(opened) == list(opened) == list(EXPECTED.items())
    write(tmp_path / name, jsonl([*ROWS, ROWS[1]]))
    with pytest.raises(UserError, match=r"line 5: the _id 'b' is also that of .*, line 2; make them unique"):
        load_corpus(str(tmp_path))


def test_lines_of_a_text_file_are_documents(tmp_path: Path) -> None:
    assert load_corpus(write(tmp_path / "a.txt", "one river\n\n  \ntwo, rivers\n")) == {
        "0": "one river",
        "3": "two, rivers",
    }


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl([{"text": "one"}, {"text": None}, {"text": "three"}]))
    assert load_corpus(source) == {"0": "one", "2": "three"}


def test_ids_are_strings_and_may_be_called_id(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl([{"id": 7, "text": "one", "title": None}, {"id": 10, "text": "two"}]))
    assert load_corpus(source) == {"7": "one", "10": "two"}


def test_another_column_of_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'id,body\nx,"one, two"\n')
    assert load_corpus(source, text_column="body") == {"x": "one, two"}


def test_the_corpus_of_a_task(tmp_path: Path, shared_data: Path) -> None:
    folder = str(shared_data / "beir" / "nfcorpus")
    assert load_corpus(folder) == load_task(folder)[0].corpus
    assert len(load_corpus(folder)) == 3633


def test_real_pairs_are_documents_too(shared_data: Path) -> None:
    frame = pd.read_parquet(shared_data / "qa-pairs" / "train.parquet")
    corpus = load_corpus(str(shared_data / "qa-pairs"), text_column="answer")
    assert corpus["0"] == frame["answer"][0].strip()
    assert len(corpus) == len(frame)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"body": "a"}\n', "no column text; its columns are body"),
        ('{"text": 1}\n', "the column text must hold text, one string a row, but holds a value of type number"),
        ('{"text": ["a"]}\n', "the column text must hold text, one string a row, but holds a value of type list"),
        (
            '{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n',
            "line 2: the id '1' is also that of .*, line 1; make them unique",
        ),
        ('{"text": "a", "_id": null}\n{"text": "b", "_id": "x"}\n', "line 1: there is no _id; give each row its own"),
        ('{"text": ""}\n{"text": " "}\n', "no document has text in the column text"),
        ("", "the file is empty"),
        ("some words\n", "line 1: not a JSON object"),
    ],
)
def test_bad_corpora_are_told_in_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    source = write(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError, match=message) as error:
        load_corpus(source)
    assert str(error.value).startswith(source)
    assert "\n" not in str(error.value)


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    """Past empty texts, and up to a line that is damaged; what is read has ids that no two share."""
    rows = [*ROWS, *({"_id": str(number), "text": f"song {number}"} for number in range(1500))]
    source = write(tmp_path / "a.jsonl", jsonl(rows) + "no document\n")
    assert load_corpus(source, limit=4) == EXPECTED | {"0": "song 0"}
    assert len(load_corpus(source, limit=1503)) == 1503
    with pytest.raises(UserError, match="line 1505: not a JSON object"):
        load_corpus(source, limit=1504)
    doubled = write(tmp_path / "b.jsonl", jsonl([*ROWS[:2], ROWS[1]]))
    assert len(load_corpus(doubled, limit=2)) == 2
    with pytest.raises(UserError, match=r"line 3: the _id 'b' is also that of .*, line 2"):
        load_corpus(doubled, limit=3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./none.jsonl", "there is no such file or folder"),
        ("owner/corpus", "the Hugging Face Hub cannot be reached"),
        ("nq", "the Hugging Face Hub cannot be reached"),
    ],
)
def test_no_such_corpus(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_corpus(source)


def test_a_folder_of_several_sets_tells_their_names(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r"available configs: \['corpus', 'queries', 'qrels'\]"):
        load_corpus(str(shared_data / "nanobeir-standin"))
