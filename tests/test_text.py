"""The door for text from outside: what is written is what is read, and what cannot be read is refused or counted."""

import csv
import gzip
import json
import logging
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from splade_lit.core.errors import UserError
from splade_lit.core.tables import read_rows
from splade_lit.core.text import LONGEST_LINE, check_ids, read_qrels, read_trec_run, trec_run_text
from splade_lit.data.corpus import load_corpus
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import RetrievalTask, load_task
from splade_lit.evaluation.metric_names import METRICS
from splade_lit.evaluation.per_query import QueryFigures, read_per_query, write_per_query
from splade_lit.own_data.held_out import write_beir

HOSTILE = st.one_of(
    st.text(alphabet="a\"'\\,;\t\n\r \ufeff\u2028\x85\xa0\x00\x1c{}[]0.", min_size=1, max_size=6),
    st.text(min_size=1, max_size=8),
    st.sampled_from(["007", "2024-05-01", "1e5", "null", "NA", "None", "true", "9" * 40, "\ufeffq", "long " * 3000]),
)
IDS = st.lists(HOSTILE, min_size=1, max_size=4, unique=True)


@pytest.fixture(autouse=True)
def fresh_warnings():
    """Warnings that are given once a process are given once a test."""
    from splade_lit.core import text

    text.warn_once.cache_clear()


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def can_be_judged(ids: list[str]) -> bool:
    return not any(character in id for id in ids for character in "\t\r\n")


@settings(deadline=None, max_examples=150)
@given(queries=IDS, documents=IDS, text=HOSTILE, grades=st.integers(0, 3))
@example(queries=['"q'], documents=['"0', '0"'], text='"', grades=1)
def test_a_task_that_was_written_is_read_back(queries, documents, text, grades) -> None:
    task = RetrievalTask(
        name="mine",
        corpus={id: f"{text}{number}" for number, id in enumerate(documents)},
        queries={id: f"{text}{number}" for number, id in enumerate(queries)},
        qrels={id: {documents[0]: 1} | dict.fromkeys(documents[1:], grades) for id in queries},
        graded=True,
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "mine"
        if not can_be_judged([*queries, *documents]):
            with pytest.raises(UserError, match="has a tab or the end of a line"):
                write_beir(task, folder)
            assert not folder.exists()
            return
        write_beir(task, folder)
        (read,) = load_task(str(folder))
        assert read.qrels == task.qrels
        assert read.corpus == {id: text.strip() for id, text in task.corpus.items()}
        assert read.queries == {id: text.strip() for id, text in task.queries.items()}


@settings(deadline=None, max_examples=150)
@given(queries=IDS, documents=IDS, scores=st.lists(st.floats(0, 1e4, width=32), min_size=4, max_size=4))
def test_a_ranking_that_was_written_is_read_back(queries, documents, scores) -> None:
    run = {id: dict(zip(documents, scores, strict=False)) for id in queries}
    if any(id.split() != [id] or id.startswith("\ufeff") for id in [*queries, *documents]):
        with pytest.raises(UserError, match="which a TREC run cannot hold"):
            trec_run_text(run)
        return
    with tempfile.TemporaryDirectory() as place:
        assert read_trec_run(write(Path(place) / "mine.trec", trec_run_text(run))) == run


@settings(deadline=None, max_examples=50)
@given(task=HOSTILE, queries=IDS, texts=st.lists(HOSTILE, min_size=4, max_size=4))
def test_figures_of_queries_are_read_back(task, queries, texts) -> None:
    figures = QueryFigures(task, queries, texts[: len(queries)], {name: [1 / 3] * len(queries) for name in METRICS})
    with tempfile.TemporaryDirectory() as place:
        write_per_query(path := Path(place) / "per_query.jsonl", {"after": [figures]})
        assert read_per_query(path) == {"after": [figures]}


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=4), kind=st.sampled_from(["jsonl", "csv"]))
def test_pairs_that_were_written_are_read_back(texts, kind) -> None:
    kept = [pair for pair in texts if all(text.strip() for text in pair)]
    assume(kept)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"pairs.{kind}"
        with path.open("w", encoding="utf-8", newline="") as file:
            if kind == "csv":
                csv.writer(file).writerows([("query", "answer"), *texts])
            else:
                file.writelines(json.dumps({"query": q, "answer": a}) + "\n" for q, a in texts)
        assert [tuple(row.values()) for row in load_pairs(str(path), cache_dir=place).dataset] == kept


IDS_AS_WRITTEN = ["007", "2024-05-01", "null", "NA", "None", "1.50", "99999999999999999999999"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "folder/a.csv"])
def test_ids_and_texts_are_strings_as_written(tmp_path, name) -> None:
    path = tmp_path / name
    frame = pd.DataFrame({"bad": [1, 2, 3, 4, 5, 6, 7], "_id": IDS_AS_WRITTEN, "text": IDS_AS_WRITTEN})
    if "json" in name:
        lines = [{"bad": [number], "_id": id, "text": id} for number, id in enumerate(IDS_AS_WRITTEN)]
        write(path, json.dumps(lines) if path.suffix == ".json" else "".join(json.dumps(line) + "\n" for line in lines))
    elif "parquet" in name:
        frame.to_parquet(path)
    else:
        write(path, frame.to_csv(index=False, sep="\t" if "tsv" in name else ","))
    source = str(path.parent if "folder" in name else path)
    assert load_corpus(source) == dict(zip(IDS_AS_WRITTEN, IDS_AS_WRITTEN, strict=True))


def test_numbers_are_their_literals_as_ids(tmp_path) -> None:
    lines = '{"_id": 7, "text": "a"}\n{"_id": 1.50, "text": "b"}\n{"_id": 12345678901234567890123, "text": "c"}\n'
    assert list(load_corpus(str(write(tmp_path / "a.jsonl", lines)))) == ["7", "1.50", "12345678901234567890123"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("null", "line 2: there is no _id"),
        ('""', "line 2: there is no _id"),
        ("true", "line 2: the column _id must hold ids"),
        ('["a"]', "line 2: the column _id must hold ids"),
        ('{"a": 1}', "line 2: the column _id must hold ids"),
        ('"a"', "line 2: the _id 'a' is also that of .*, line 1"),
    ],
)
def test_what_is_no_id_is_refused_with_its_line(tmp_path, value, message) -> None:
    """In a file and in a BEIR folder alike."""
    lines = f'{{"_id": "a", "text": "a"}}\n{{"_id": {value}, "text": "b"}}\n'
    corpus = write(tmp_path / "corpus.jsonl", lines)
    write(tmp_path / "queries.jsonl", '{"_id": "q", "text": "q"}\n')
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\ta\t1\n")
    for read in (load_corpus, load_task):
        for source in {load_corpus: (corpus, tmp_path), load_task: (tmp_path,)}[read]:
            with pytest.raises(UserError, match=message):
                read(str(source))


def test_two_files_of_a_folder_share_no_id(tmp_path) -> None:
    for name in ("one", "two"):
        write(tmp_path / "data" / f"{name}.jsonl", '{"_id": "a", "text": "a"}\n')
    with pytest.raises(UserError, match=r"two\.jsonl, line 1: the _id 'a' is also that of .*one\.jsonl, line 1"):
        load_corpus(str(tmp_path / "data"))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.tsv.gz", "rows.csv.gz", "rows.txt.gz"])
def test_a_line_without_end_is_told(tmp_path, name) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "a"}\n' if "json" in name else b"text\n")
        for _ in range(66):
            file.write(b"a" * (1 << 20))
    with pytest.raises(UserError, match=r"rows.*, line 2: the line is longer than 64 MiB"):
        list(read_rows(path, ["text"]))


def test_a_field_without_end_is_told(tmp_path) -> None:
    assert csv.field_size_limit() == LONGEST_LINE
    path = tmp_path / "rows.csv"
    path.write_text('text\nshort\n"' + "a line\n" * 9_000)
    csv.field_size_limit(1 << 14)
    try:
        with pytest.raises(UserError, match=r"rows\.csv, line 3: not csv: field larger than field limit"):
            list(read_rows(path, ["text"]))
    finally:
        csv.field_size_limit(LONGEST_LINE)


@pytest.mark.parametrize("end", ["\n", ""])
def test_lines_are_whole_wherever_they_are_read_in_parts(tmp_path, end) -> None:
    lines = ["a" * size for size in (0, 1, 262_143, 262_144, 262_145, 700_000, 3)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines) + end)
    assert [line for _, (line,) in read_rows(path, ["text"])] == lines


def test_tabs_cut_and_quotes_are_text(tmp_path) -> None:
    path = write(tmp_path / "a.tsv", 'query\tanswer\r\n"hello world\tone\r\nthird "query"\tthe \u2028third\r\n')
    assert [values for _, values in read_rows(path, ["query", "answer"])] == [
        ['"hello world', "one"],
        ['third "query"', "the \u2028third"],
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.txt", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name) -> None:
    content = '{"text": "song"}\n' if "json" in name else "song\n" if "txt" in name else "text\nsong\n"
    path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
    assert [values for _, values in read_rows(path, ["text"])] == [["song"]]
    with pytest.raises(UserError, match="UTF-16; save it as UTF-8"):
        list(read_rows(write(tmp_path / f"utf16.{name}", content.encode("utf-16")), ["text"]))


def test_byte_order_marks_in_a_beir_folder(tmp_path) -> None:
    mark = "\ufeff"
    write(tmp_path / "corpus.jsonl", mark + '{"_id": "d", "text": "song"}\n')
    write(tmp_path / "queries.jsonl", mark + '{"_id": "q", "text": "song?"}\n')
    write(tmp_path / "qrels" / "test.tsv", mark + "query-id\tcorpus-id\tscore\nq\td\t1\n")
    (task,) = load_task(str(tmp_path))
    assert (task.corpus, task.queries, task.qrels) == ({"d": "song"}, {"q": "song?"}, {"q": {"d": 1}})
    assert read_trec_run(write(tmp_path / "a.trec", mark + "q Q0 d 1 0.5 x\n")) == {"q": {"d": 0.5}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"_id": "a\xe9", "text": "caf\xe9"}\n'),
        ("a.jsonl", b'{"_id": "a\\ud800", "text": "caf\\udc00"}\n'),
        ("a.csv", b"_id,text\na\xe9,caf\xe9\n"),
        ("a.tsv", b"_id\ttext\na\xe9\tcaf\xe9\n"),
    ],
)
def test_what_is_not_unicode_is_replaced_and_counted(tmp_path, caplog, name, content) -> None:
    """Aloud each time, though the texts are read from a cache the second time."""
    from splade_lit.core import text

    source = str(write(tmp_path / name, content))
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            assert load_corpus(source) == {"a\ufffd": "caf\ufffd"}
        assert caplog.messages == [f"{source}: 2 characters are not valid Unicode and are replaced by U+FFFD."]
        caplog.clear()
        text.warn_once.cache_clear()


def test_where_no_cache_can_be_written_texts_are_kept_in_memory(tmp_path, caplog) -> None:
    source = write(tmp_path / "a.jsonl", '{"query": "a", "answer": "b"}\n')
    pairs = load_pairs(str(source), cache_dir=write(tmp_path / "file", "") / "cache")
    assert pairs[0] == {"query": "a", "document": "b"}
    assert "kept in memory" in caplog.text


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data))]
)
def test_damaged_texts_are_read_again(tmp_path, caplog, damage) -> None:
    source = write(tmp_path / "a.jsonl", "".join(f'{{"query": "q{n}", "answer": "d{n}"}}\n' for n in range(2000)))
    expected = load_pairs(str(source), cache_dir=tmp_path / "cache")[1999]
    (path,) = (tmp_path / "cache").rglob("*.arrow")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert load_pairs(str(source), cache_dir=tmp_path / "cache")[1999] == expected
    assert caplog.messages == [f"{path} is not whole and is built again."]
    assert path.read_bytes() == whole


QRELS = {"q0": {"d0": 1, "d 1": 2}, "q1": {"d0": 0}}


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td 1\t2\nq1\td0\t0\n",
        "query-id\tcorpus-id\tscore\r\nq0\td0\t1.0\r\nq0\td 1\t2.0\r\nq1\td0\t0\r\n",
        "score\tquery-id\tnote\tcorpus-id\n1\tq0\tx\td0\n2\tq0\tx\td 1\n0\tq1\tx\td0\n",
        "q0\t0\td0\t1\nq0\t0\td 1\t2\nq1\t0\td0\t0\n",
    ],
)
def test_judgements_in_their_forms(tmp_path, content) -> None:
    assert read_qrels(write(tmp_path / "qrels.tsv", content)) == QRELS


@pytest.mark.parametrize("content", ["query-id corpus-id  score\nq0 d0 1\n", "q0 0 d0 1\n", "q0  Q0  d0  1.0\n"])
def test_judgements_cut_at_spaces(tmp_path, content) -> None:
    assert read_qrels(write(tmp_path / "qrels.tsv", content)) == {"q0": {"d0": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"not judgements; give lines of .*\(BEIR\), or .*\(TREC\), with tabs or spaces"),
        ("q0,d0,1\n", r"not judgements; give lines of .*\(BEIR\), or .*\(TREC\)"),
        ("q0 0 d0 0.5\n", "line 1: the score is not a whole number"),
        ("q0 0 d0 nan\n", "line 1: the score is not a whole number"),
        ("q0 0 d0 1\nq0 0 d0 2\n", "line 2: d0 has another grade for q0 further up"),
        ("q0\t0\t\t1\n", "line 1: an id is missing"),
    ],
)
def test_what_are_no_judgements_is_refused(tmp_path, content, message) -> None:
    with pytest.raises(UserError, match=message):
        read_qrels(write(tmp_path / "qrels.tsv", content))


def test_ids_that_match_none_are_counted_aloud(caplog) -> None:
    with caplog.at_level(logging.INFO):
        check_ids("here", ["d0", "d1"], ["q0", "q1"], {"q0": {"d0": 1, "x": 1}, "z": {"d1": 1}})
    assert caplog.messages == [
        "here: 1 of 3 judgements name no query, such as 'z'.",
        "here: 1 of 3 judgements name no document, such as 'x'.",
        "here: 1 of 2 queries have no judgement and are left out.",
    ]
    for qrels, message in (
        ({"q0": {"D0": 1}}, "no judgement names a document: one has the id 'D0' where a document has 'd0'"),
        ({"Q0": {"d0": 1}}, "no judgement names a query: one has the id 'Q0' where a query has 'q0'"),
    ):
        with pytest.raises(UserError, match=message):
            check_ids("here", ["d0"], ["q0"], qrels)


def test_a_ranking_names_a_document_once(tmp_path) -> None:
    with pytest.raises(UserError, match="line 2: d is ranked for q further up"):
        read_trec_run(write(tmp_path / "a.trec", "q Q0 d 1 0.5 x\nq Q0 d 2 0.4 x\n"))
